"""Attention-map distillation, IntRA-KD Eq. 6: squared differences of two normalised maps, summed over positions.

Source: Hou, Ma, Liu, Hui, Loy, "Inter-Region Affinity Distillation for Road Marking Segmentation", CVPR 2020, after
Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017: energies L2-normalised over positions.
`reduction: mean` over positions inside the image is that of AT, with a weight of 1000; at the sum's weight it is
thousands of times smaller. `normalise: softmax` is a softmax over positions instead (Hou et al., "Learning Lightweight
Lane Detection CNNs by Self Attention Distillation", ICCV 2019). The student's energy is resized to the teacher's grid
first; images are averaged; cells that lie more than half outside the image are left out on both sides.

B images, h w the teacher's grid of the layer.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pipeline.losses.base import Batch, LossModule
from pipeline.models.base import Output

Normalise = Annotated[
    Literal["l2", "softmax"], Field(description="How a map is normalised over its positions before maps are compared.")
]
Reduction = Annotated[Literal["sum", "mean"], Field(description="Sum or mean over positions.")]


class Loss(LossModule):
    reads_types = ("attention",)

    def __init__(self, *, reads, context, student, normalise: Normalise = "l2", reduction: Reduction = "sum"):
        super().__init__(reads=reads, context=context, student=student)
        self.normalised, self.reduction = {"l2": unit, "softmax": softmax}[normalise], reduction

    def forward(self, output: Output, batch: Batch) -> Tensor:
        pairs = [
            (target.compute(output, batch.labels_BHW, self.context)["energy"], batch.rows[name]["energy"])
            for name, target in self.reads.items()
        ]
        return self.distance(pairs, batch.inside_BHW)

    def distance(self, pairs: Sequence[tuple[Tensor, Tensor]], inside_BHW: Tensor) -> Tensor:
        """The sum of Eq. 6 over pairs of un-normalised energies, the student's and the teacher's, which may have another grid.
        Maps of one teacher's grid go through each operation together: on small maps the number of operations takes the time."""
        students: dict[tuple[int, ...], list[Tensor]] = {}
        teachers: dict[tuple[int, ...], list[Tensor]] = {}
        for student_Bhw, teacher_Bhw in pairs:
            grid = tuple(teacher_Bhw.shape[-2:])
            if student_Bhw.shape[-2:] != grid:
                student_Bhw = F.interpolate(student_Bhw[:, None], grid, mode="bilinear", align_corners=False)[:, 0]
            students.setdefault(grid, []).append(student_Bhw)
            teachers.setdefault(grid, []).append(teacher_Bhw)
        total: Any = 0.0  # a Tensor after the first
        for grid, maps in students.items():
            inside_Bhw = F.adaptive_avg_pool2d(inside_BHW[:, None].float(), grid)[:, 0] >= 0.5  # type: ignore[arg-type]  # a tuple will do
            inside = inside_Bhw.repeat(len(maps), 1, 1)
            difference = self.normalised(torch.cat(maps), inside) - self.normalised(torch.cat(teachers[grid]), inside)
            squares = difference.square().sum(dim=(1, 2))
            if self.reduction == "mean":
                squares = squares / inside.sum(dim=(1, 2)).clamp(min=1)
            total = total + squares.view(len(maps), -1).mean(dim=1).sum()
        return total


def unit(energy_Bhw: Tensor, inside_Bhw: Tensor) -> Tensor:
    """Of norm 1 over the positions inside, 0 outside; a map of zeros stays zeros, with a finite gradient."""
    energy_Bhw = torch.where(inside_Bhw, energy_Bhw, 0)
    peak_B11 = energy_Bhw.detach().amax(dim=(1, 2), keepdim=True)
    energy_Bhw = energy_Bhw / torch.where(peak_B11 > 0, peak_B11, 1)  # or the squares leave float32's range
    return energy_Bhw * energy_Bhw.square().sum(dim=(1, 2), keepdim=True).clamp(min=0.5).rsqrt()  # 1 or more, or 0


def softmax(energy_Bhw: Tensor, inside_Bhw: Tensor) -> Tensor:
    """Of sum 1 over the positions inside; where all are outside, a constant without gradient."""
    lowest = torch.finfo(energy_Bhw.dtype).min
    return torch.where(inside_Bhw, energy_Bhw, lowest).flatten(1).softmax(dim=1).view_as(energy_Bhw)
