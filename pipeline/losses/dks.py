"""Deeply-supervised knowledge synergy: auxiliary heads on the student learn the labels and one another's answers.

Source: Sun, Yao, Zhou, Chen, "Deeply-supervised Knowledge Synergy", CVPR 2019; nothing is stored:
    sum over heads CE + synergy * sum over ordered pairs (i, j) KL(p_i || p_j), no gradient to p_i.
The heads are 1x1 convolutions on the student's features, one a role, parameters of this loss; the student's own logits
are one more, whose cross-entropy is the step's business. The pairs are compared on the coarsest grid of all (finer
logits averaged over its cells), mean over the cells inside an image, then over images. A head's cross-entropy is taken
at the labels' resolution, mean over the batch's labelled pixels. All classes weigh the same in it: a loss does not know
`background_weight`. Departure: the paper's heads are whole branches; what they were for segmentation is not published.

B images, H W the network input, K classes, h w the coarsest grid.
"""

import itertools
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.losses.base import Batch, LossModule, Share
from pipeline.losses.kd import divergence
from pipeline.models.base import Output

IGNORE = 255


Synergy = Annotated[Share, Field(description="Weight of the heads' agreement beside their cross-entropy.")]


class Loss(LossModule):
    def __init__(self, *, reads, context, student, synergy: Synergy = 1.0):
        super().__init__(reads=reads, context=context, student=student)
        self.synergy = synergy
        self.heads = nn.ModuleDict(
            {role: nn.Conv2d(channels, student.num_classes, 1) for role, channels in student.channels.items() if role != "logits"}
        )

    def forward(self, output: Output, batch: Batch) -> Tensor:
        answers = [head(output.features[role]) for role, head in self.heads.items()]
        labels = sum(cross_entropy(logits_BKhw, batch.labels_BHW) for logits_BKhw in answers)
        assert output.logits is not None
        answers.append(output.logits.float())
        grid = min((logits_BKhw.shape[-2:] for logits_BKhw in answers), key=lambda size: size[0] * size[1])
        answers = [F.adaptive_avg_pool2d(logits_BKhw, grid) for logits_BKhw in answers]
        inside_Bhw = F.adaptive_avg_pool2d(batch.inside_BHW[:, None].float(), grid)[:, 0] >= 0.5
        pairs_Bhw = sum(divergence(one, other.detach()) for one, other in itertools.permutations(answers, 2))
        mean_B = torch.where(inside_Bhw, pairs_Bhw, 0).sum(dim=(1, 2)) / inside_Bhw.sum(dim=(1, 2)).clamp(min=1)
        return labels + self.synergy * mean_B.mean()


def cross_entropy(logits_BKhw: Tensor, labels_BHW: Tensor) -> Tensor:
    """Mean over labelled pixels, 0 where none is; logits are upsampled to the labels."""
    logits_BKHW = F.interpolate(logits_BKhw, labels_BHW.shape[-2:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits_BKHW, labels_BHW.long(), ignore_index=IGNORE, reduction="sum")
    return total / (labels_BHW != IGNORE).sum().clamp(min=1)
