"""Feature distillation: mean squared difference of a layer's features, the student's brought to the teacher's channels.

Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, Eq. 3, without its factor 1/2 and with the
regressor of later segmentation work: a 1x1 convolution with bias, learnt with the student, which stands beside the
labels' term from the first step (the paper trains up to the layer alone at first). Features are compared as they are,
on the stored grid, to which the student's are averaged (or resized bilinearly, where they are coarser): mean over
channels and cells at least half inside the image, then over images. `normalise: teacher` divides by the mean square of
the teacher's features over the same cells, image by image, so that a weight does not depend on how large activations
are and 1 is the loss of a student that says zero. `components` are features that were stored in fewer directions.

B images, C channels, h w the stored grid.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.losses.base import Batch, LossModule
from pipeline.models.base import Output

Normalise = Annotated[
    Literal["none", "teacher"], Field(description="Compare values as they are, or divide by the mean square of the teacher's.")
]


class Loss(LossModule):
    reads_types = ("features", "components")

    def __init__(self, *, reads, context, student, normalise: Normalise = "none"):
        super().__init__(reads=reads, context=context, student=student)
        self.normalise = normalise
        self.adapters = nn.ModuleList(
            nn.Conv2d(student.channels[target.layer], context.channels[target.layer], 1) for target in self.reads.values()
        )

    def forward(self, output: Output, batch: Batch) -> Tensor:
        total: Any = 0.0  # a Tensor after the first
        for (name, target), adapter in zip(self.reads.items(), self.adapters):
            teacher_BChw = batch.rows[name]["features"]
            student_BChw = adapter(target.compute(output, batch.labels_BHW, self.context)["features"])
            inside_Bhw = F.adaptive_avg_pool2d(batch.inside_BHW[:, None].float(), teacher_BChw.shape[-2:])[:, 0] >= 0.5  # type: ignore[arg-type]  # a Size will do
            loss_B = inside_mean(F.mse_loss(student_BChw, teacher_BChw, reduction="none"), inside_Bhw)
            if self.normalise == "teacher":
                energy_B = inside_mean(teacher_BChw.square(), inside_Bhw)
                loss_B = loss_B / torch.where(energy_B > 0, energy_B, 1)
            total = total + loss_B.mean()
        return total


def inside_mean(squares_BChw: Tensor, inside_Bhw: Tensor) -> Tensor:
    """[B]: mean over channels and the cells inside; 0 where there are none."""
    sums_B = torch.where(inside_Bhw, squares_BChw.mean(dim=1), 0).sum(dim=(1, 2))
    return sums_B / inside_Bhw.sum(dim=(1, 2)).clamp(min=1)
