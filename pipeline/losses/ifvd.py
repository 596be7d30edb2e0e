"""Intra-class feature variation: mean squared difference of two maps of similarity to the class's mean feature.

Source: Wang, Zhou, Jiang, Bai, Xu, "Intra-class Feature Variation Distillation for Semantic Segmentation", ECCV 2020;
what the maps are stands in targets/class_similarity.py. The official code's mean includes ignored cells, whose
difference is 0 there; here it is over the cells that have a class and lie at least half inside the image, then over
images. Its weight is 200.

B images, h w the teacher's grid of the layer.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.losses.base import Batch, LossModule
from pipeline.models.base import Output
from pipeline.targets.class_similarity import cell_labels


class Loss(LossModule):
    reads_types = ("class_similarity",)

    def forward(self, output: Output, batch: Batch) -> Tensor:
        total: Any = 0.0  # a Tensor after the first
        for name, target in self.reads.items():
            teacher_Bhw = batch.rows[name]["similarity"]
            student_Bhw = target.compute(output, batch.labels_BHW, self.context)["similarity"]
            grid = teacher_Bhw.shape[-2], teacher_Bhw.shape[-1]
            inside_Bhw = F.adaptive_avg_pool2d(batch.inside_BHW[:, None].float(), grid)[:, 0] >= 0.5
            counts_Bhw = inside_Bhw & (cell_labels(batch.labels_BHW, grid) != 255)
            squares_B = torch.where(counts_Bhw, student_Bhw - teacher_Bhw, 0).square().sum(dim=(1, 2))
            total = total + (squares_B / counts_Bhw.sum(dim=(1, 2)).clamp(min=1)).mean()
        return total
