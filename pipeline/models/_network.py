"""What the networks here share: the check of their input size and their first weights."""

import math

from torch import nn

from pipeline.errors import ConfigError
from pipeline.models.base import ModelBase


def check_size(network: ModelBase, size: tuple[int, int]) -> None:
    """Raises ConfigError, with the next size that fits, unless both axes are multiples of the network's `multiple`."""
    multiple = network.multiple
    height, width = size
    if height % multiple or width % multiple:
        fits = [-(-length // multiple) * multiple for length in size]
        raise ConfigError(
            f"{name(network)}: input of {height} x {width} (height x width) is not a multiple of "
            f"{multiple} in both axes; prepare images of {fits[0]} x {fits[1]}"
        )


def check_width(network: ModelBase, width: int, least: int) -> None:
    if width < least:
        raise ConfigError(f"{name(network)}: width {width} leaves its first layers without channels; use {least} or more")


def name(network: ModelBase) -> str:
    return type(network).__module__.rpartition(".")[2]


def initialise(network: nn.Module) -> None:
    """Normal weights of variance 2 / (inputs of one output) and zero bias in every convolution.

    Source: He et al., "Delving Deep into Rectifiers", ICCV 2015, Eq. 10 (forward form, so that the first logits are of
    order one). An output pixel of a transposed convolution of stride s sees 1/s of the kernel along each axis, which
    torch's `kaiming_normal_` does not count. Batch norms and linear layers keep torch's own.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            inputs: float = module.in_channels * math.prod(module.kernel_size)
            if isinstance(module, nn.ConvTranspose2d):
                inputs /= math.prod(module.stride)
            nn.init.normal_(module.weight, std=math.sqrt(2 / inputs))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
