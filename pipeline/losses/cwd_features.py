"""Channel-wise distillation on features: T^2 / D KL(teacher || student) summed over channels, each a distribution over positions.

Source: Shu, Liu, Gao, Yan, Shen, "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, on the features of a layer;
cwd.py is the same on logits. Mean over the teacher's channels, then over images. The student's features pass a 1x1 convolution,
learnt with the student, where the channels differ; the official code has batch norm and ReLU behind it. Cells that lie more than
half outside the image have probability 0 on both sides.

B images, D channels of the teacher, h w the stored grid, P = h w its positions.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from pipeline.losses._features import READS, adapters, compared
from pipeline.losses._logits import log_spatial
from pipeline.losses.base import Batch, LossModule, Temperature
from pipeline.models.base import Output


class Loss(LossModule):
    reads_types = READS

    def __init__(self, *, reads, context, student, temperature: Temperature):
        super().__init__(reads=reads, context=context, student=student)
        self.temperature = temperature
        self.adapters = adapters(reads, student, context)

    def forward(self, output: Output, batch: Batch) -> Tensor:
        total: Any = 0.0  # a Tensor after the first
        for (name, target), adapter in zip(self.reads.items(), self.adapters):
            student_BChw, teacher_BDhw, inside_B1hw = compared(output, batch, name, target, self.context)
            student_BDP = log_spatial(adapter(student_BChw) / self.temperature, inside_B1hw[:, 0])
            teacher_BDP = log_spatial(teacher_BDhw / self.temperature, inside_B1hw[:, 0])
            divergence = F.kl_div(student_BDP, teacher_BDP, reduction="sum", log_target=True)
            total = total + self.temperature**2 * divergence / student_BDP[..., 0].numel()
        return total
