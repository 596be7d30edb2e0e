"""Attention-guided feature distillation: unit feature maps, refined by attention over channels and cells, compared.

Source: Mansourian, Jalali, Ahmadi, Kasaei, "Attention-guided Feature Distillation for Semantic Segmentation", 2024 (WACV workshops
2026 as "Attention as Geometric Transformation"), and its official code. Refined maps are those of Woo, Park, Lee, Kweon, "CBAM:
Convolutional Block Attention Module", ECCV 2018:
    F1 = F sigmoid(m(mean of F over cells) + m(max of F over cells)),  m of each channel
    F2 = F1 sigmoid(c(max of F1 over channels, mean of F1 over channels)),  c of each cell
The student's m is two linear layers with a ReLU between, of D / 16 units, and c a 7x7 convolution with batch norm; both are learnt
with it, as is a 1x1 convolution with batch norm that then makes the teacher's channels. The teacher's m is the identity and c the
sum: its gates have no parameters, as those that the official code has for a teacher. Then, both maps divided by their L2 norm,
    L = sum over channels and cells of (F2_S - F2_T)^2, mean over images.

Departures: the official code divides by the norm of the whole batch and then by the number of images, which is B times less for
images of equal norms. Its experiments give the teacher gates of the student's kind, with the weights in the teacher's file, which
nothing trained there. Cells that lie more than half outside the image are in no mean, maximum, norm or sum.

B images, C channels, h w the stored grid.
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.losses._features import READS, compared
from pipeline.losses.base import Batch, LossModule
from pipeline.models.base import Output


class Loss(LossModule):
    reads_types = READS

    def __init__(
        self,
        *,
        reads,
        context,
        student,
        reduction: Annotated[int, Field(ge=1, description="Channels of the student for each unit of its channel attention.")] = 16,
    ):
        super().__init__(reads=reads, context=context, student=student)
        layers = [target.layer for target in self.reads.values()]
        self.attentions = nn.ModuleList(Attention(student.channels[layer], reduction) for layer in layers)
        self.connectors = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(student.channels[layer], context.channels[layer], 1, bias=False), nn.BatchNorm2d(context.channels[layer])
            )
            for layer in layers
        )

    def forward(self, output: Output, batch: Batch) -> Tensor:
        total: Any = 0.0  # a Tensor after the first
        for (name, target), attention, connector in zip(self.reads.items(), self.attentions, self.connectors):
            student_BChw, teacher_BDhw, inside_B1hw = compared(output, batch, name, target, self.context)
            refined_BDhw = connector(attention(student_BChw, inside_B1hw))
            difference_BDhw = unit(refined_BDhw, inside_B1hw) - unit(refined(teacher_BDhw, inside_B1hw), inside_B1hw)
            total = total + difference_BDhw.square().sum(dim=(1, 2, 3)).mean()
        return total


class Attention(nn.Module):
    """The student's gates: [B, C, h, w] to the same shape."""

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        units = max(1, channels // reduction)
        self.channel = nn.Sequential(nn.Linear(channels, units), nn.ReLU(), nn.Linear(units, channels))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, features_BChw: Tensor, inside_B1hw: Tensor) -> Tensor:
        mean_BC, peak_BC = over_cells(features_BChw, inside_B1hw)
        gate_BC = (self.channel(mean_BC) + self.channel(peak_BC)).sigmoid()
        gated_BChw = torch.where(inside_B1hw, features_BChw * gate_BC[..., None, None], 0)
        return gated_BChw * self.norm(self.spatial(over_channels(gated_BChw))).sigmoid()


def refined(features_BChw: Tensor, inside_B1hw: Tensor) -> Tensor:
    """The teacher's map behind gates without parameters."""
    gate_BC = sum(over_cells(features_BChw, inside_B1hw)).sigmoid()  # type: ignore[union-attr]  # two tensors
    gated_BChw = torch.where(inside_B1hw, features_BChw * gate_BC[..., None, None], 0)
    return gated_BChw * over_channels(gated_BChw).sum(dim=1, keepdim=True).sigmoid()


def over_cells(features_BChw: Tensor, inside_B1hw: Tensor) -> tuple[Tensor, Tensor]:
    """[B, C] mean and maximum over the cells inside; 0 where there are none."""
    mean_BC = torch.where(inside_B1hw, features_BChw, 0).sum(dim=(2, 3)) / inside_B1hw.sum(dim=(2, 3)).clamp(min=1)
    lowest = torch.finfo(features_BChw.dtype).min
    peak_BC = torch.where(inside_B1hw, features_BChw, lowest).amax(dim=(2, 3))
    return mean_BC, torch.where(inside_B1hw.flatten(1).any(dim=1, keepdim=True), peak_BC, 0)


def over_channels(features_BChw: Tensor) -> Tensor:
    """[B, 2, h, w]: maximum and mean over channels."""
    return torch.stack([features_BChw.amax(dim=1), features_BChw.mean(dim=1)], dim=1)


def unit(features_BChw: Tensor, inside_B1hw: Tensor) -> Tensor:
    """Of norm 1 over channels and the cells inside, 0 outside; a map of zeros stays zeros, with a finite gradient."""
    inside_BChw = torch.where(inside_B1hw, features_BChw, 0)
    peak_B111 = inside_BChw.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
    inside_BChw = inside_BChw / torch.where(peak_B111 > 0, peak_B111, 1)  # or the squares leave float32's range
    return inside_BChw * inside_BChw.square().sum(dim=(1, 2, 3), keepdim=True).clamp(min=0.5).rsqrt()  # 1 or more, or 0
