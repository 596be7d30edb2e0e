"""The contract of a network, teacher or student.

`Model(num_classes, *, size, lanes, ...)`: `num_classes` outputs; `size` = (height, width) of the input it will see, for heads
that need it; `lanes` > 0 asks for a lane-existence head; further keywords are the YAML's keys. Called with RGB images in
0..255 it normalises them itself, from its buffers `mean` and `std`, so that nobody else needs to know.

B images, H W the input, K classes, C channels, h w a layer's own grid.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class Output(NamedTuple):
    logits: Tensor                          # [B, K, h, w] on the model's own grid; whoever needs pixels upsamples
    features: dict[str, Tensor]             # by role, "mid" and "high": [B, C, h, w]
    existence: Tensor | None = None         # [B, lanes] logits


class ModelBase(nn.Module):
    version: ClassVar[int] = 1              # bump when the same weights would give other outputs; part of a cache's identity
    multiple: ClassVar[int] = 8             # height and width of the input must be multiples of it
    layers: ClassVar[dict[str, str]]        # role -> what it is in this network, e.g. {"mid": "layer2", "high": "layer4"}

    def __init__(self, mean=IMAGENET_MEAN, std=IMAGENET_STD):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def normalise(self, images_B3HW: Tensor) -> Tensor:
        return (images_B3HW - self.mean) / self.std

    def forward(self, images_B3HW: Tensor, labels_BHW: Tensor | None = None) -> Output:
        """`images` float RGB in 0..255; `labels` only for a teacher that is fed labels."""
        raise NotImplementedError


def shapes(build, size: tuple[int, int]) -> Output:
    """The output of `build()` on one image of this size as empty meta tensors: every grid and channel count, no arithmetic."""
    with torch.device("meta"), torch.no_grad():
        return build().eval()(torch.empty(1, 3, *size))


def set_precision(precision: str) -> None:
    """TF32 only where it is asked for: `fp32` means fp32."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
