"""Channel-wise distillation: T^2 / K KL(teacher || student) summed over classes, each a distribution over positions.

Source: Shu, Liu, Gao, Yan, Shen, "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, on the logits,
where it does best: each class's logits go through a softmax over positions. Mean over all classes, absent ones too, and
over images. It needs logits: class probabilities have lost every pixel's shift. Cells that lie more than half outside
the image have probability 0 on both sides. `grid` is as for `kd`.

B images, K classes, h w the grid of the comparison, P = h w its positions.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from pipeline.losses._logits import Grid, compared, log_spatial
from pipeline.losses.base import Batch, LossModule, Temperature
from pipeline.models.base import Output


class Loss(LossModule):
    reads_types = ("logits",)

    def __init__(self, *, reads, context, student, temperature: Temperature, grid: Grid = "student"):
        super().__init__(reads=reads, context=context, student=student)
        self.temperature, self.grid = temperature, grid

    def forward(self, output: Output, batch: Batch) -> Tensor:
        total: Any = 0.0  # a Tensor after the first
        for name in self.reads:
            student_BKhw, teacher_BKhw, inside_Bhw = compared(output, batch, name, self.grid)
            student_BKP = log_spatial(student_BKhw / self.temperature, inside_Bhw)
            teacher_BKP = log_spatial(teacher_BKhw / self.temperature, inside_Bhw)
            divergence = F.kl_div(student_BKP, teacher_BKP, reduction="sum", log_target=True)
            total = total + self.temperature**2 * divergence / student_BKP[..., 0].numel()
        return total
