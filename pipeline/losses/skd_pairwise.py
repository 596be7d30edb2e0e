"""Pair-wise distillation of SKD: mean squared difference of the cosines between all pairs of nodes.

Source: Liu, Chen, Liu, Qin, Luo, Wang, "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019; what
nodes are stands in targets/pairwise.py. As published the divisor is the square of the number of nodes, so the
diagonal, whose difference is 0, is counted in it. Nodes that lie more than half outside the image are in no pair.

B images, N nodes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.losses.base import Batch, LossModule
from pipeline.models.base import Output


class Loss(LossModule):
    reads_types = ("pairwise",)

    def forward(self, output: Output, batch: Batch) -> Tensor:
        total: Any = 0.0  # a Tensor after the first
        for name, target in self.reads.items():
            student_BNN = target.graph(output.features[target.layer], self.context)
            teacher_BNN = target.stored_graph(batch.rows[name], self.context)
            inside = F.adaptive_avg_pool2d(batch.inside_BHW[:, None].float(), target.node_grid(self.context))
            inside_BN = inside.flatten(1) >= 0.5
            diagonal = torch.eye(inside_BN.shape[1], dtype=torch.bool, device=inside_BN.device)
            counts_BNN = inside_BN[:, :, None] & inside_BN[:, None] & ~diagonal
            squares_B = torch.where(counts_BNN, student_BNN - teacher_BNN, 0).square().sum(dim=(1, 2))
            total = total + (squares_B / inside_BN.sum(dim=1).clamp(min=1).square()).mean()
        return total
