"""A network that is shown windows of an image, one after the other: networks whose input has one size answer larger images so.

Windows have one size and lie `stride` apart, from the upper left corner; the last of a row or column ends with the image, so
that it overlaps its neighbour by more. The logits of a pixel are the mean over the windows that show it, and a lane exists
with the greatest of the windows' logits. Features stay with the windows: there are none of the whole image.

Source of the practice: the mode "slide" of mmsegmentation (mmseg/models/segmentors/encoder_decoder.py), which averages logits,
too; strides of about two thirds of the window are those of its configurations (513 of 769, 341 of 512).

B images, H W the input, K classes, L lanes, h w a window.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.base import ModelBase, Output

Size = tuple[int, int]  # height, width


def starts(side: int, window: int, stride: int) -> list[int]:
    """Where the windows begin along an axis of `side` pixels: every `stride`, and the last so that it ends with the image."""
    last = max(0, side - window)
    return [*range(0, last, stride), last]


class Sliding(ModelBase):
    """`content`: the part of the input, from its upper left corner, that windows cover; the rest is padding, and its logits are 0
    where no window shows it. Of one window as large as the input the answer is the network's own, bit for bit."""

    def __init__(self, network: nn.Module, content: Size, window: Size, stride: Size):
        super().__init__()
        self.network, self.content, self.window, self.stride = network, content, window, stride
        self.uses_labels = bool(getattr(network, "uses_labels", False))

    def forward(self, images_B3HW: Tensor, labels_BHW: Tensor | None = None) -> Output:
        B, _, H, W = images_B3HW.shape
        height, width = self.window
        if (H, W) == self.window:
            whole: Output = self.network(images_B3HW, labels_BHW)
            return whole
        seen = torch.zeros(1, 1, H, W, device=images_B3HW.device)
        logits = existence = None
        corners = (starts(*sides) for sides in zip(self.content, self.window, self.stride))
        for top, left in itertools.product(*corners):
            here = (..., slice(top, top + height), slice(left, left + width))
            output: Output = self.network(
                images_B3HW[here].contiguous(memory_format=torch.channels_last), None if labels_BHW is None else labels_BHW[here]
            )
            if output.logits is not None:
                found = F.interpolate(output.logits.float(), self.window, mode="bilinear", align_corners=False)
                logits = found.new_zeros(B, found.shape[1], H, W) if logits is None else logits
                logits[here] += found
            seen[here] += 1
            if output.existence is not None:
                existence = output.existence if existence is None else torch.maximum(existence, output.existence)
        return Output(None if logits is None else logits / seen.clamp(min=1), {}, existence)
