"""What the losses on a layer's features share: both networks' maps on the stored grid, the adapter, and sums over the cells inside.

B images, C channels of the student, D of the teacher, h w the stored grid.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.losses.base import Batch
from pipeline.models.base import Output
from pipeline.targets.base import Context, TargetType

READS = ("features", "components")  # types of targets whose rows are features of one layer


def adapters(reads: Mapping[str, TargetType], student: Context, teacher: Context | None) -> nn.ModuleList:
    """For each target a 1x1 convolution with bias to the teacher's channels; nothing where both have as many."""
    assert teacher is not None
    made = nn.ModuleList()
    for target in reads.values():
        (layer,) = target.source_layers()
        channels = student.channels[layer], teacher.channels[layer]
        made.append(nn.Conv2d(*channels, 1) if channels[0] != channels[1] else nn.Identity())
    return made


def compared(output: Output, batch: Batch, name: str, target: TargetType, context: Context) -> tuple[Tensor, Tensor, Tensor]:
    """Features of the student [B, C, h, w] and of the teacher [B, D, h, w] on the stored grid; which of its cells [B, 1, h, w] lie
    at least half inside the image."""
    teacher_BDhw = batch.rows[name]["features"]
    student_BChw = target.compute(output, batch.labels_BHW, context)["features"]
    share_B1hw = F.adaptive_avg_pool2d(batch.inside_BHW[:, None].float(), teacher_BDhw.shape[-2:])  # type: ignore[arg-type]  # a Size will do
    return student_BChw, teacher_BDhw, share_B1hw >= 0.5


def inside_sum(values_BDhw: Tensor, inside_B1hw: Tensor) -> Tensor:
    """[B]: sum over channels and the cells inside."""
    return torch.where(inside_B1hw, values_BDhw, 0).sum(dim=(1, 2, 3))
