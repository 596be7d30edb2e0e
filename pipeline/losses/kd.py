"""Knowledge distillation: T^2 KL(teacher || student) of the class probabilities at temperature T, at every pixel.

Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015. The teacher's logits are
upsampled bilinearly to the student's logit grid before the softmax; `grid: teacher` averages the student's over the
teacher's cells instead, which is cheaper. Logits that go to a coarser grid are averaged over its cells, those that go
to a finer one are upsampled, whosever they are. Every pixel inside the image counts, whatever its label; mean over
these, then over images. From `top_classes` the tail's mass is shared equally by the classes that were not kept.

B images, K classes, h w the grid of the comparison.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.losses._logits import Grid, on_one_grid
from pipeline.losses.base import Batch, LossModule, Temperature
from pipeline.models.base import Output


class Loss(LossModule):
    reads_types = ("logits", "top_classes")

    def __init__(self, *, reads, context, student, temperature: Temperature, grid: Grid = "student"):
        super().__init__(reads=reads, context=context, student=student)
        self.temperature, self.grid = temperature, grid

    def forward(self, output: Output, batch: Batch) -> Tensor:
        total: Any = 0.0  # a Tensor after the first
        for name, target in self.reads.items():
            rows = batch.rows[name]
            logits = rows["logits"] if "logits" in rows else target.logits(rows, self.context)
            student, teacher, inside_Bhw = on_one_grid(output, logits, batch.inside_BHW, self.grid)
            divergence_Bhw = torch.where(inside_Bhw, divergence(student / self.temperature, teacher / self.temperature), 0)
            mean_B = divergence_Bhw.sum(dim=(1, 2)) / inside_Bhw.sum(dim=(1, 2)).clamp(min=1)
            total = total + self.temperature**2 * mean_B.mean()
        return total


def divergence(student_BKhw: Tensor, teacher_BKhw: Tensor) -> Tensor:
    """KL(teacher || student) in nats at each position, from logits."""
    student_BKhw, teacher_BKhw = student_BKhw.log_softmax(dim=1), teacher_BKhw.log_softmax(dim=1)
    return F.kl_div(student_BKhw, teacher_BKhw, reduction="none", log_target=True).sum(dim=1)
