"""Distillation of lane existence: T^2 KL(teacher || student) of "is this lane there?" at temperature T, lane by lane.

Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, for the two outcomes of each lane on
its own; that lanes are distilled so is ours. Mean over lanes, then over images; an image wholly out of sight adds nothing.
Images whose flags are unknown count as well: the teacher has looked at them. The student needs its head, that is
`training.existence_weight` above 0.

B images, L lanes.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.losses.base import Batch, LossModule, Temperature
from pipeline.models.base import Output


class Loss(LossModule):
    reads_types = ("existence",)

    def __init__(self, *, reads, context, student, temperature: Temperature):
        super().__init__(reads=reads, context=context, student=student)
        self.temperature = temperature

    def forward(self, output: Output, batch: Batch) -> Tensor:
        if output.existence is None:
            raise ConfigError("existence_kd: the student has no lane-existence head; write training.existence_weight above 0")
        student_BL = output.existence.float() / self.temperature
        seen_B1 = batch.inside_BHW.flatten(1).any(dim=1, keepdim=True)
        total: Any = 0.0  # a Tensor after the first
        for name in self.reads:
            teacher_BL = batch.rows[name]["existence"] / self.temperature
            total = total + self.temperature**2 * (divergence(student_BL, teacher_BL) * seen_B1).mean()
        return total


def divergence(student_BL: Tensor, teacher_BL: Tensor) -> Tensor:
    """KL(teacher || student) in nats of each lane's two outcomes, from logits."""
    there_BL = teacher_BL.sigmoid()
    yes_BL = F.logsigmoid(teacher_BL) - F.logsigmoid(student_BL)
    no_BL = F.logsigmoid(-teacher_BL) - F.logsigmoid(-student_BL)
    return there_BL * yes_BL + (1 - there_BL) * no_BL
