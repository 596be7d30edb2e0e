"""Inter-class similarity: how far the spatial distributions of any two classes diverge, teacher against student.

Source: Mansurian, Ahmadi, Kasaei, "Adaptive Inter-Class Similarity Distillation for Semantic Segmentation", 2023. With
p_k the softmax of class k's logits over positions:
    D_ij = KL(p_i || p_j), every row divided by its L2 norm; mean squared difference over the matrix, mean over images.
Departures from the official code, which gives probabilities where KL needs their logarithms (D_ij is then close to the
negative entropy of p_j, whatever i), mirrors the upper triangle, averages D over the batch before comparing, and has 21
classes written in. Its adaptive weighting of KD against CE is the schedule's business: `start` and `ramp`. Rows shorter
than 0.001 nats (all classes look alike) are not scaled up to 1. Cells that lie more than half outside the image have
probability 0. `grid` is as for `kd`.

B images, K classes, h w the grid of the comparison, P = h w its positions.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.losses._logits import Grid, compared, log_spatial
from pipeline.losses.base import Batch, LossModule, Temperature
from pipeline.models.base import Output


class Loss(LossModule):
    reads_types = ("logits",)

    def __init__(self, *, reads, context, student, temperature: Temperature = 1.0, grid: Grid = "student"):
        super().__init__(reads=reads, context=context, student=student)
        self.temperature, self.grid = temperature, grid

    def forward(self, output: Output, batch: Batch) -> Tensor:
        total: Any = 0.0  # a Tensor after the first
        for name in self.reads:
            student_BKhw, teacher_BKhw, inside_Bhw = compared(output, batch, name, self.grid)
            student_BKK = unit_divergences(student_BKhw / self.temperature, inside_Bhw)
            teacher_BKK = unit_divergences(teacher_BKhw / self.temperature, inside_Bhw)
            total = total + (student_BKK - teacher_BKK).square().mean()
        return total


def unit_divergences(logits_BKhw: Tensor, inside_Bhw: Tensor) -> Tensor:
    """[B, K, K] KL(p_i || p_j) with rows of norm 1."""
    log_BKP = log_spatial(logits_BKhw, inside_Bhw)
    p_BKP = log_BKP.exp()
    log_BKP = torch.where(inside_Bhw.flatten(1)[:, None], log_BKP, 0)  # or a sum of slopes outside overflows
    divergences_BKK = (p_BKP * log_BKP).sum(dim=2)[..., None] - p_BKP @ log_BKP.mT
    return F.normalize(divergences_BKK, dim=2, eps=1e-3)
