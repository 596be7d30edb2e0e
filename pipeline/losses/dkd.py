"""Decoupled knowledge distillation: T^2 (alpha TCKD + beta NCKD) at every labelled pixel.

Source: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022. With t the label's class:
    TCKD = KL of (p_t, 1 - p_t), NCKD = KL of the softmax over the other classes, teacher || student at T.
KD is TCKD + (1 - p_t) NCKD, p_t the teacher's: where it is sure, it silences what the other classes say. Published for
classification; here a pixel is a sample: mean over the labelled pixels inside an image, then over images. Ignored
pixels do not count, nor do images without labels. On a coarser grid a cell's label is that of the pixel at its centre.
The own class is shut out exactly, where the official code lowers its logit by 1000. `grid` is as for `kd`.

B images, H W the network input, K classes, h w the grid of the comparison.
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pipeline.losses._logits import Grid, compared
from pipeline.losses.base import Batch, LossModule, Temperature
from pipeline.losses.kd import divergence
from pipeline.models.base import Output

IGNORE = 255


Alpha = Annotated[float, Field(ge=0, description="Weight of the term on the label's class against all others.")]
Beta = Annotated[float, Field(ge=0, description="Weight of the term among the other classes.")]


class Loss(LossModule):
    reads_types = ("logits",)

    def __init__(
        self, *, reads, context, student, temperature: Temperature, alpha: Alpha = 1.0, beta: Beta = 8.0, grid: Grid = "student"
    ):
        super().__init__(reads=reads, context=context, student=student)
        self.temperature, self.alpha, self.beta, self.grid = temperature, alpha, beta, grid

    def forward(self, output: Output, batch: Batch) -> Tensor:
        total: Any = 0.0  # a Tensor after the first
        for name in self.reads:
            student_BKhw, teacher_BKhw, inside_Bhw = compared(output, batch, name, self.grid)
            labels_BHW, grid = batch.labels_BHW.float(), inside_Bhw.shape[1:]
            labels_Bhw = F.interpolate(labels_BHW[:, None], grid, mode="nearest-exact")[:, 0]
            counts_Bhw = inside_Bhw & (labels_Bhw != IGNORE)
            own_B1hw = torch.where(counts_Bhw, labels_Bhw, 0).long()[:, None]
            student_own, student_others = decoupled(student_BKhw / self.temperature, own_B1hw)
            own, others = decoupled(teacher_BKhw / self.temperature, own_B1hw)
            terms_Bhw = self.alpha * divergence(student_own, own) + self.beta * divergence(student_others, others)
            mean_B = torch.where(counts_Bhw, terms_Bhw, 0).sum(dim=(1, 2)) / counts_Bhw.sum(dim=(1, 2)).clamp(min=1)
            total = total + self.temperature**2 * mean_B.mean()
        return total


def decoupled(logits_BKhw: Tensor, own_B1hw: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 2, h, w] logits of the own class and of the others as one; [B, K, h, w] logits without the own class."""
    lowest = torch.finfo(logits_BKhw.dtype).min  # not -inf: 0 * inf is NaN
    others_BKhw = logits_BKhw.scatter(1, own_B1hw, lowest)
    return torch.cat([logits_BKhw.gather(1, own_B1hw), others_BKhw.logsumexp(dim=1, keepdim=True)], dim=1), others_BKhw
