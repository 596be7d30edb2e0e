"""Flow distillation (FSP; PS-N in IntRA-KD's tables): mean squared difference of two Gram matrices between layers.

Source: Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation", CVPR 2017, Eq. 2; what the matrices are stands in
targets/gram.py. Departures: the student's layers are brought to the projected number of channels by 1x1 convolutions
of its own, learnt with it, which begin as projections of the same kind as the teacher's; the term stands beside the
labels' from the first step, where the paper trains with it alone at first. The mean is over entries, then over images
that see anything at all. `normalise: teacher` divides by the mean square of the teacher's entries, image by image, so
that a weight does not depend on how large activations are and 1 is the loss of a matrix of zeros.

B images, D channels after the projection.
"""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.losses.base import Batch, LossModule
from pipeline.models.base import Output
from pipeline.targets.gram import gram

Normalise = Annotated[
    Literal["none", "teacher"], Field(description="Compare values as they are, or divide by the mean square of the teacher's.")
]


class Loss(LossModule):
    reads_types = ("gram",)

    def __init__(self, *, reads, context, student, normalise: Normalise = "none"):
        super().__init__(reads=reads, context=context, student=student)
        self.normalise = normalise
        self.adapters = nn.ModuleList(
            nn.ModuleList(adapter(target, place, student.channels[layer]) for place, layer in enumerate(target.layers))
            for target in self.reads.values()
        )

    def forward(self, output: Output, batch: Batch) -> Tensor:
        total: Any = 0.0  # a Tensor after the first
        seen_B = batch.inside_BHW.flatten(1).any(dim=1)
        for (name, target), adapters in zip(self.reads.items(), self.adapters):
            assert isinstance(adapters, nn.ModuleList)
            teacher_BDD = batch.rows[name]["gram"]
            student_BDD = gram(*(adapter(output.features[layer]) for adapter, layer in zip(adapters, target.layers)))
            squares_B = (student_BDD - teacher_BDD).square().mean(dim=(1, 2))
            if self.normalise == "teacher":
                energy_B = teacher_BDD.square().mean(dim=(1, 2))
                squares_B = squares_B / torch.where(energy_B > 0, energy_B, 1)
            total = total + torch.where(seen_B, squares_B, 0).mean()
        return total


def adapter(target, place: int, channels: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, target.channels, 1, bias=False)
    with torch.no_grad():
        signs_DC = target.signs(place, channels, layer.weight.device)
        layer.weight.copy_(signs_DC[..., None, None] / math.sqrt(channels))
    return layer
