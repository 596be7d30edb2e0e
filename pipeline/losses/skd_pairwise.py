"""Pair-wise distillation of SKD: mean squared difference of the cosines between all pairs of nodes.

Source: Liu, Chen, Liu, Qin, Luo, Wang, "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019; what
nodes are stands in targets/pairwise.py. As published the divisor is the square of the number of nodes, so the
diagonal, whose difference is 0, is counted in it. Nodes that lie more than half outside the image are in no pair.

`gradient: formula` is the gradient of the cosine. `gradient: published` is that of the authors' code, which divides by
the nodes' lengths as by constants: the value is the same, the gradient is larger and points elsewhere.

B images, N nodes.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline.later import AddedLater
from pipeline.losses.base import Batch, LossModule
from pipeline.models.base import Output

Gradient = Annotated[
    Literal["formula", "published"],
    AddedLater("formula"),
    Field(description="Through the lengths of the nodes as well, or past them as in the authors' code."),
]


class Loss(LossModule):
    reads_types = ("pairwise",)

    def __init__(self, *, reads, context, student, gradient: Gradient = "formula"):
        super().__init__(reads=reads, context=context, student=student)
        self.fixed_lengths = gradient == "published"

    def forward(self, output: Output, batch: Batch) -> Tensor:
        total: Any = 0.0  # a Tensor after the first
        for name, target in self.reads.items():
            student_BNN = target.graph(output.features[target.layer], self.context, self.fixed_lengths)
            teacher_BNN = target.stored_graph(batch.rows[name], self.context)
            inside_BN = target.inside(batch.inside_BHW, self.context)
            diagonal = torch.eye(inside_BN.shape[1], dtype=torch.bool, device=inside_BN.device)
            counts_BNN = inside_BN[:, :, None] & inside_BN[:, None] & ~diagonal
            squares_B = torch.where(counts_BNN, student_BNN - teacher_BNN, 0).square().sum(dim=(1, 2))
            total = total + (squares_B / inside_BN.sum(dim=1).clamp(min=1).square()).mean()
        return total
