"""Wavelet distillation: mean absolute difference of two feature maps' edges and textures, at several scales.

Source: Zhang, Chen, Tu, Xu, Ma, "Wavelet Knowledge Distillation: Towards Efficient Image-to-Image Translation", CVPR 2022, the
high-frequency bands of a wavelet transform; on features, as in Zhang, Huang, Liu, Jiang, Yan, Liu, "FreeKD: Knowledge Distillation
via Semantic Frequency Prompt", CVPR 2024. With W_j the three high-frequency bands of the j-th of `levels` Haar transforms, each of
the low-frequency band of the one before, r a 1x1 convolution where the channels differ:
    L = sum over j of the mean over bands, channels and coefficients of |W_j(r(F_S)) - W_j(F_T)|
Mean over images. What FreeKD adds, masks from prompts that are first learnt by running the teacher's head on masked features,
needs the teacher in the loop and is left out. The transform is linear: it is taken once, of the difference. A difference outside
the image is 0; a coefficient counts where half of the cells under it lie inside, and odd grids are filled up with zeros.

B images, C channels of the student, D of the teacher, h w a grid.
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pipeline.losses._features import READS, adapters, compared, inside_sum
from pipeline.losses.base import Batch, LossModule
from pipeline.models.base import Output


class Loss(LossModule):
    reads_types = READS

    def __init__(
        self,
        *,
        reads,
        context,
        student,
        levels: Annotated[int, Field(ge=1, le=8, description="Scales: neighbouring cells, then twice as far, and so on.")] = 3,
    ):
        super().__init__(reads=reads, context=context, student=student)
        self.levels = levels
        self.adapters = adapters(reads, student, context)

    def forward(self, output: Output, batch: Batch) -> Tensor:
        total: Any = 0.0  # a Tensor after the first
        for (name, target), adapter in zip(self.reads.items(), self.adapters):
            student_BChw, teacher_BDhw, inside_B1hw = compared(output, batch, name, target, self.context)
            low_BDhw = torch.where(inside_B1hw, adapter(student_BChw) - teacher_BDhw, 0)
            inside_B1hw, there_B1hw = inside_B1hw.float(), torch.ones_like(inside_B1hw, dtype=torch.float32)  # counts of cells
            for _ in range(self.levels):
                low_BDhw, *high = haar(low_BDhw)
                inside_B1hw, there_B1hw = 2 * haar(inside_B1hw)[0], 2 * haar(there_B1hw)[0]
                counts_B1hw = inside_B1hw >= there_B1hw / 2
                means_B = sum(inside_sum(band_BDhw.abs(), counts_B1hw) for band_BDhw in high) / 3 / low_BDhw.shape[1]
                total = total + (means_B / counts_B1hw.sum(dim=(1, 2, 3)).clamp(min=1)).mean()
        return total


def haar(map_BDhw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The low band and the three high ones, each of half the height and width, rounded up; orthonormal."""
    h, w = map_BDhw.shape[-2:]
    filled_BDhw = F.pad(map_BDhw, (0, w % 2, 0, h % 2))
    upper, lower = filled_BDhw[..., ::2, :], filled_BDhw[..., 1::2, :]
    sums, differences = (upper + lower) / 2, (upper - lower) / 2
    left, right = sums[..., ::2], sums[..., 1::2]
    upper_left, upper_right = differences[..., ::2], differences[..., 1::2]
    return left + right, left - right, upper_left + upper_right, upper_left - upper_right
