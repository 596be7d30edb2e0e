"""Masked generative distillation: the student's features, most cells of them hidden, must let a small network make the teacher's.

Source: Yang, Li, Shao, Shi, Yuan, Yuan, "Masked Generative Distillation", ECCV 2022, Eq. 4 and 5. With M a mask that hides a cell
of all channels with probability `masked`, r a 1x1 convolution where the channels differ, and G two 3x3 convolutions with a ReLU
between, both learnt with the student:
    L = sum over channels and cells of (G(M r(F_S)) - F_T)^2, mean over images.
The masks of a step follow from its number and `seed`, so that offline and online draw the same. Cells that lie more than half
outside the image are hidden, and in no sum. `normalise: teacher` divides by the sum of squares of the teacher's features over the
same cells, image by image, so that a weight depends on neither grid nor channels and 1 is the loss of a network that says zero.

B images, C channels of the student, D of the teacher, h w the stored grid.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.losses._features import READS, adapters, compared, inside_sum
from pipeline.losses._random import generator_of
from pipeline.losses.base import Batch, LossModule
from pipeline.models.base import Output

Masked = Annotated[float, Field(ge=0, lt=1, description="Part of the student's cells that are hidden.")]
Normalise = Annotated[
    Literal["none", "teacher"], Field(description="Sum squares as they are, or divide by the sum of squares of the teacher's.")
]
Seed = Annotated[int, Field(ge=0, description="Seed of the masks.")]


class Loss(LossModule):
    reads_types = READS

    def __init__(self, *, reads, context, student, masked: Masked = 0.75, normalise: Normalise = "none", seed: Seed = 0):
        super().__init__(reads=reads, context=context, student=student)
        self.masked, self.normalise, self.seed = masked, normalise, seed
        self.adapters = adapters(reads, student, context)
        self.generations = nn.ModuleList(generation(context.channels[target.layer]) for target in self.reads.values())

    def forward(self, output: Output, batch: Batch) -> Tensor:
        total: Any = 0.0  # a Tensor after the first
        generator = generator_of(self.seed, batch.step)
        for (name, target), adapter, generate in zip(self.reads.items(), self.adapters, self.generations):
            student_BChw, teacher_BDhw, inside_B1hw = compared(output, batch, name, target, self.context)
            generated_BDhw = generate(hidden(adapter(student_BChw), inside_B1hw, self.masked, generator))
            loss_B = inside_sum((generated_BDhw - teacher_BDhw).square(), inside_B1hw)
            if self.normalise == "teacher":
                energy_B = inside_sum(teacher_BDhw.square(), inside_B1hw)
                loss_B = loss_B / torch.where(energy_B > 0, energy_B, 1)
            total = total + loss_B.mean()
        return total


def generation(channels: int) -> nn.Sequential:
    """The network that makes the teacher's features: D channels in and out."""
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1))


def hidden(features_BDhw: Tensor, inside_B1hw: Tensor, masked: float, generator: torch.Generator) -> Tensor:
    """With 0 in the cells that are drawn, all channels of a cell alike, and outside the image."""
    drawn_B1hw = torch.rand(inside_B1hw.shape, generator=generator).to(features_BDhw.device)  # on the CPU: the same everywhere
    return torch.where(inside_B1hw & (drawn_B1hw <= 1 - masked), features_BDhw, 0)
