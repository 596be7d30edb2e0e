"""Logits of student and teacher brought to one grid; what the losses on logits share.

B images, K classes, h w the grid of the comparison, P = h w its positions.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pipeline.losses.base import Batch
from pipeline.models.base import Output

Grid = Annotated[
    Literal["student", "teacher"],
    Field(
        description="Whose grid the logits are compared on: the teacher's are resized to the student's, or the student's averaged over "  # noqa: E501
        "the teacher's cells."
    ),
]


def compared(output: Output, batch: Batch, name: str, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher [B, K, h, w] on one grid; which of its cells [B, h, w] lie at least half inside."""
    return on_one_grid(output, batch.rows[name]["logits"], batch.inside_BHW, grid)


def on_one_grid(output: Output, teacher: Tensor, inside_BHW: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """The same of the teacher's logits themselves."""
    assert output.logits is not None
    student = output.logits.float()
    if grid == "student":
        teacher = resized(teacher, student.shape[-2:])
    else:
        student = resized(student, teacher.shape[-2:])
    inside_Bhw = F.adaptive_avg_pool2d(inside_BHW[:, None].float(), student.shape[-2:])[:, 0] >= 0.5  # type: ignore[arg-type]  # a Size will do
    return student, teacher, inside_Bhw


def resized(logits_BKhw: Tensor, grid: torch.Size) -> Tensor:
    """Averages over the cells of a grid that is coarser, bilinear where it is finer: either network's may be."""
    if grid[0] <= logits_BKhw.shape[-2] and grid[1] <= logits_BKhw.shape[-1]:
        return F.adaptive_avg_pool2d(logits_BKhw, grid)  # type: ignore[arg-type]  # a Size will do
    return F.interpolate(logits_BKhw, grid, mode="bilinear", align_corners=False)


def log_spatial(logits_BKhw: Tensor, inside_Bhw: Tensor) -> Tensor:
    """[B, K, P] log-softmax over the positions inside, hugely negative outside; a constant where all are outside."""
    lowest = torch.finfo(logits_BKhw.dtype).min  # not -inf: 0 * inf is NaN
    return torch.where(inside_Bhw[:, None], logits_BKhw, lowest).flatten(2).log_softmax(dim=2)
