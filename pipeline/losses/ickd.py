"""Inter-channel correlation of the logits: squared difference of two K x K Gram matrices with unit rows, divided by K.

Source: Liu et al., "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation", ICCV 2021:
    G = F F^T over positions, every row divided by its L2 norm; squares summed over the matrix; mean over images.
The paper takes it of features behind a learnt adapter; logits have K channels on both sides and need none, as in the
comparisons of Mansurian et al. (aicsd.py). Raw logits, as there: the Gram is not centred, and a shift of a pixel's
logits changes it. Cells that lie more than half outside the image are left out. `grid` is as for `kd`.

B images, K classes, h w the grid of the comparison, P = h w its positions.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.losses._logits import Grid, compared
from pipeline.losses.base import Batch, LossModule
from pipeline.models.base import Output


class Loss(LossModule):
    reads_types = ("logits",)

    def __init__(self, *, reads, context, student, grid: Grid = "student"):
        super().__init__(reads=reads, context=context, student=student)
        self.grid = grid

    def forward(self, output: Output, batch: Batch) -> Tensor:
        total: Any = 0.0  # a Tensor after the first
        for name in self.reads:
            student_BKhw, teacher_BKhw, inside_Bhw = compared(output, batch, name, self.grid)
            difference_BKK = unit_gram(student_BKhw, inside_Bhw) - unit_gram(teacher_BKhw, inside_Bhw)
            total = total + difference_BKK.square().sum(dim=2).mean()
        return total


def unit_gram(logits_BKhw: Tensor, inside_Bhw: Tensor) -> Tensor:
    """[B, K, K] mean products of two classes' logits over the positions inside, with rows of norm 1 (0 for zeros)."""
    logits_BKP = torch.where(inside_Bhw[:, None], logits_BKhw, 0).flatten(2)
    products_BKK = logits_BKP @ logits_BKP.mT / inside_Bhw.sum(dim=(1, 2)).clamp(min=1)[:, None, None]
    return F.normalize(products_BKK, dim=2, eps=1e-6)
