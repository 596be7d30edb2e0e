"""`input_scale` of any student: a network that sees the image at a half or a quarter of its height and width.

The image is shrunk by averaging over 2 x 2 or 4 x 4 pixels, and the network is built for the smaller size, so that its
grids, the logits' too, are coarser by that factor. Whoever needs pixels upsamples logits anyway. Names of layers and
weights stay the network's own: a file that fits the network fits it at any scale, but for an existence head.

B images, H W the input.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.base import ModelBase

SCALES = (1, 0.5, 0.25)


def scaled(model: type[ModelBase], *, size: tuple[int, int], input_scale: float, **keywords: Any) -> ModelBase:
    """`model` of these keywords for images of `size`, which it shrinks itself. Raises ConfigError if they do not fit."""
    if fault := misfit(model, keywords, size, input_scale):
        raise ConfigError(fault)
    factor = round(1 / input_scale)
    make: Callable[..., ModelBase] = model
    network = make(size=(size[0] // factor, size[1] // factor), **keywords)
    network.multiple *= factor
    network.register_forward_pre_hook(partial(shrink, factor))
    return network


def misfit(
    model: type[ModelBase], args: Mapping[str, Any], size: tuple[int, int], input_scale: float, do: str = "prepare images of"
) -> str:
    """Why images of this size cannot be shrunk for this network, and the next size that can; empty if they can."""
    multiple = own_multiple(model, args) * round(1 / input_scale)
    if not any(length % multiple for length in size):
        return ""
    height, width = (-(-length // multiple) * multiple for length in size)
    return (
        f"{input_scale:g} of images of {size[0]} x {size[1]} (height x width) does not fit "
        f"{model.__module__.rpartition('.')[2]}: both axes must be multiples of {multiple}; {do} "
        f"{f'[{height}, {width}]' if do.endswith(':') else f'{height} x {width}'}"
    )


def own_multiple(model: type[ModelBase], args: Mapping[str, Any]) -> int:
    """What height and width of a network's input must be multiples of; an adapter resizes images itself, or says it."""
    return 1 if args.get("input_size") else int(args.get("multiple", model.multiple))


def shrink(factor: int, network: nn.Module, inputs: tuple) -> tuple:
    """Averages of factor x factor pixels in the image's place; a forward pre-hook."""
    images_B3HW, *others = inputs
    smaller: Tensor = F.avg_pool2d(images_B3HW, factor)
    return (smaller, *others)
