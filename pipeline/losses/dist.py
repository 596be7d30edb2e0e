"""DIST: 1 - Pearson correlation of class probabilities, over a pixel's classes and over a class's pixels.

Source: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022:
    inter * mean over pixels (1 - r over classes) + intra * mean over classes (1 - r over all pixels of the batch).
The intra term joins the images: a batch counts as one here, so the loss is no mean over images and its value depends on
the batch size. Pixels outside the image are left out. Departure: a pixel or class where the teacher's probabilities
deviate from their mean by less than 1 % is left out (the official code scores it 1, whatever the student does), and a
student's that vary less are not scaled up to full correlation, so that constant logits have a finite gradient. `grid`
is as for `kd`.

B images, K classes, h w the grid of the comparison.
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from pipeline.losses._logits import Grid, compared
from pipeline.losses.base import Batch, LossModule, Share
from pipeline.models.base import Output

LEAST_DEVIATION = 0.01  # relative to the mean
LEAST_MEAN = 1e-12  # of a probability


Inter = Annotated[Share, Field(description="Weight of the correlations over the classes of a position.")]
Intra = Annotated[Share, Field(description="Weight of the correlations over the positions of a class.")]


class Loss(LossModule):
    reads_types = ("logits",)

    def __init__(self, *, reads, context, student, inter: Inter = 1.0, intra: Intra = 1.0, grid: Grid = "student"):
        super().__init__(reads=reads, context=context, student=student)
        self.inter, self.intra, self.grid = inter, intra, grid

    def forward(self, output: Output, batch: Batch) -> Tensor:
        total: Any = 0.0  # a Tensor after the first
        for name in self.reads:
            student_BKhw, teacher_BKhw, inside_Bhw = compared(output, batch, name, self.grid)
            inside_B1hw = inside_Bhw[:, None].to(student_BKhw)
            student_BKhw, teacher_BKhw = student_BKhw.softmax(dim=1) * inside_B1hw, teacher_BKhw.softmax(dim=1) * inside_B1hw
            total = total + self.inter * distance(student_BKhw, teacher_BKhw, inside_B1hw, over=(1,))
            total = total + self.intra * distance(student_BKhw, teacher_BKhw, inside_B1hw, over=(0, 2, 3))
        return total


def distance(student: Tensor, teacher: Tensor, inside: Tensor, over: tuple[int, ...]) -> Tensor:
    """1 - Pearson correlation over the dimensions `over`, mean over the others where the teacher's varies; 0 outside."""
    count = inside.expand_as(student).sum(dim=over, keepdim=True).clamp(min=1)
    student, student_deviation, _ = deviations(student, inside, count, over)
    teacher, deviation, varies = deviations(teacher, inside, count, over)
    correlation = (student * teacher).sum(dim=over, keepdim=True) / count / student_deviation / deviation
    return torch.where(varies, 1 - correlation, 0).sum() / varies.sum().clamp(min=1)


def deviations(values: Tensor, inside: Tensor, count: Tensor, over: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Deviations from the mean, 0 outside; their standard deviation, kept above the least; whether it is above."""
    mean = values.detach().sum(dim=over, keepdim=True) / count  # deviations sum to 0: no slope through it
    values = torch.addcmul(values, mean, inside, value=-1)
    variance = values.square().sum(dim=over, keepdim=True) / count
    least = (LEAST_DEVIATION * mean.clamp(min=LEAST_MEAN)).square()
    return values, variance.clamp(min=least).sqrt(), variance >= least
