"""Boundary-privileged distillation: KD where classes meet, channel-wise distillation inside of them.

Source: Liu, Wang, Phan, Zhang, Ge, Liu, "BPKD: Boundary Privileged Knowledge Distillation for Semantic Segmentation", WACV 2024.
A pixel lies at an edge where pixels up to `radius` away from it, in rows and columns, have labels of two classes or more; e_i is
the part of a cell's pixels that do. With p the softmax over classes at one cell and q that of one class over the cells of the
bodies, which are those of e_i below a half:
    edge = T^2 sum_i e_i KL(p_T,i || p_S,i) / sum_i e_i
    body = T^2 / K sum over classes of KL(q_T || q_S)
each of an image, then the mean over images; `edge` and `body` are their weights inside this loss. The authors have released no code
of their loss: the paper multiplies logits by masks before the softmax, and here the cells of the other part are left out. A pixel
without a label is at no edge and makes none; a cell counts where half of its pixels have a label and lie inside the image. `grid`
is as for `kd`.

B images, H W the network input, K classes, h w the grid of the comparison.
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pipeline.losses._logits import Grid, compared, log_spatial
from pipeline.losses.base import IGNORE, Batch, LossModule, Share, Temperature
from pipeline.losses.kd import divergence
from pipeline.models.base import Output


class Loss(LossModule):
    reads_types = ("logits",)

    def __init__(
        self,
        *,
        reads,
        context,
        student,
        temperature: Temperature,
        edge: Annotated[Share, Field(description="Weight of the term at edges.")] = 1.0,
        body: Annotated[Share, Field(description="Weight of the term inside of the classes' areas.")] = 1.0,
        radius: Annotated[int, Field(ge=1, description="How far from another class an edge reaches, in pixels of the input.")] = 3,
        grid: Grid = "student",
    ):
        super().__init__(reads=reads, context=context, student=student)
        self.temperature, self.edge, self.body, self.radius, self.grid = temperature, edge, body, radius, grid

    def forward(self, output: Output, batch: Batch) -> Tensor:
        total: Any = 0.0  # a Tensor after the first
        labelled_BHW, edge_BHW = batch.inside_BHW & (batch.labels_BHW != IGNORE), edges(batch.labels_BHW, self.radius)
        for name in self.reads:
            student_BKhw, teacher_BKhw, inside_Bhw = compared(output, batch, name, self.grid)
            student_BKhw, teacher_BKhw = student_BKhw / self.temperature, teacher_BKhw / self.temperature
            grid = inside_Bhw.shape[1:]
            counts_Bhw = inside_Bhw & (on_cells(labelled_BHW, grid) >= 0.5)
            edge_Bhw = torch.where(counts_Bhw, on_cells(edge_BHW, grid), 0)
            edge_B = (edge_Bhw * divergence(student_BKhw, teacher_BKhw)).sum(dim=(1, 2)) / sum_or_one(edge_Bhw)
            body_Bhw = counts_Bhw & (edge_Bhw < 0.5)
            student_BKP, teacher_BKP = (log_spatial(logits_BKhw, body_Bhw) for logits_BKhw in (student_BKhw, teacher_BKhw))
            body_B = F.kl_div(student_BKP, teacher_BKP, reduction="none", log_target=True).sum(dim=2).mean(dim=1)
            total = total + self.temperature**2 * (self.edge * edge_B + self.body * body_B).mean()
        return total


def edges(labels_BHW: Tensor, radius: int) -> Tensor:
    """[B, H, W]: whether the pixels around this one have labels of several classes, and it has a label itself."""
    has_label_BHW, side = labels_BHW != IGNORE, 2 * radius + 1
    highest_BHW = F.max_pool2d(torch.where(has_label_BHW, labels_BHW.float(), -IGNORE), side, stride=1, padding=radius)
    lowest_BHW = -F.max_pool2d(torch.where(has_label_BHW, -labels_BHW.float(), -IGNORE), side, stride=1, padding=radius)
    return has_label_BHW & (highest_BHW > lowest_BHW)


def on_cells(pixels_BHW: Tensor, grid: torch.Size) -> Tensor:
    """[B, h, w]: the part of each cell's pixels that are true."""
    return F.adaptive_avg_pool2d(pixels_BHW[:, None].float(), grid)[:, 0]  # type: ignore[arg-type]  # a Size will do


def sum_or_one(weights_Bhw: Tensor) -> Tensor:
    """[B]: their sum, 1 where it is 0."""
    sums_B = weights_Bhw.sum(dim=(1, 2))
    return torch.where(sums_B > 0, sums_B, 1)
