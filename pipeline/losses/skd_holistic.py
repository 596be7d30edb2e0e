"""Holistic distillation: a discriminator learns to tell teacher from student by their logits, the student to pass.

Source: Liu, Chen, Liu, Qin, Luo, Wang, "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, the
holistic part, after Gulrajani et al., "Improved Training of Wasserstein GANs", NIPS 2017, and Zhang et al.,
"Self-Attention Generative Adversarial Networks", ICML 2019. With D the discriminator's score, S and T the logits:
    -mean D(S), whose gradient goes to the student alone, plus `discriminator` times
    mean D(S) - mean D(T) + penalty * mean (|slope of D between S and T| - 1)^2, whose gradient goes to D alone.
`objective: hinge` has mean relu(1 + D(S)) + mean relu(1 - D(T)) in place of the difference. One optimiser trains both
in one step; `discriminator` is the ratio of the official learning rates, 4e-4 / 1e-2. The sum shows the balance of a
game, not progress.

Departures: D sees logits alone, as in the official code (in the paper the image too), less their mean over the classes,
which means nothing. D is smaller and has no spectral or batch normalisation; the penalty bounds its slope. D is a mean
over positions, and its slope is per root mean square change of a cell, so that a weight means the same on every grid.
The grid is the coarser one, mostly the teacher's, the other's logits averaged over its cells: a finer one would betray
the upsampled side by its smoothness. Cells outside the image are 0 on both sides; images that lie wholly outside do not count.

B images, K classes, h w the grid of the comparison, C channels, P positions.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from pipeline.losses._logits import compared
from pipeline.losses.base import Batch, LossModule, Share
from pipeline.models.base import Output


class Loss(LossModule):
    reads_types = ("logits",)

    def __init__(
        self,
        *,
        reads,
        context,
        student,
        objective: Annotated[
            Literal["wasserstein", "hinge"], Field(description="What the discriminator minimises.")
        ] = "wasserstein",
        discriminator: Annotated[
            Share, Field(description="Weight of the discriminator's own loss: the ratio of its learning rate to the student's.")
        ] = 0.04,
        penalty: Annotated[Share, Field(description="Weight of the penalty on the discriminator's slope.")] = 10.0,
        width: Annotated[int, Field(ge=1, description="Channels of the discriminator's first layer.")] = 32,
    ):
        super().__init__(reads=reads, context=context, student=student)
        self.objective, self.discriminator, self.penalty = objective, discriminator, penalty
        self.discriminators = nn.ModuleList(Discriminator(student.num_classes, width) for _ in reads)

    def forward(self, output: Output, batch: Batch) -> Tensor:
        total: Any = 0.0  # a Tensor after the first
        for name, score in zip(self.reads, self.discriminators):
            assert output.logits is not None
            finer = output.logits.shape[-2:].numel() >= batch.rows[name]["logits"].shape[-2:].numel()
            student_BKhw, teacher_BKhw, inside_Bhw = compared(output, batch, name, "teacher" if finer else "student")
            student_BKhw, teacher_BKhw = centred(student_BKhw, inside_Bhw), centred(teacher_BKhw, inside_Bhw)
            frozen = {key: parameter.detach() for key, parameter in score.named_parameters()}
            passing_B = -functional_call(score, frozen, student_BKhw)
            telling_B = self.telling(score, student_BKhw.detach(), teacher_BKhw, inside_Bhw, batch.step)
            counts_B = inside_Bhw.flatten(1).any(dim=1)
            both_B = torch.where(counts_B, passing_B + self.discriminator * telling_B, 0)
            total = total + both_B.sum() / counts_B.sum().clamp(min=1)
        return total

    def telling(self, score: nn.Module, student_BKhw: Tensor, teacher_BKhw: Tensor, inside_Bhw: Tensor, step: int) -> Tensor:
        """[B] what the discriminator minimises."""
        student_B, teacher_B = score(student_BKhw), score(teacher_BKhw)
        if self.objective == "hinge":
            difference_B = (1 + student_B).relu() + (1 - teacher_B).relu()
        else:
            difference_B = student_B - teacher_B
        generator = torch.Generator().manual_seed(step)  # equal logits, equal loss: offline = online
        share_B = torch.rand(len(student_B), generator=generator).to(student_B.device)
        between_BKhw = student_BKhw.lerp(teacher_BKhw, share_B[:, None, None, None])
        return difference_B + self.penalty * (slope(score, between_BKhw, inside_Bhw) - 1).square()


def centred(logits_BKhw: Tensor, inside_Bhw: Tensor) -> Tensor:
    return torch.where(inside_Bhw[:, None], logits_BKhw - logits_BKhw.mean(dim=1, keepdim=True), 0)


def slope(score: nn.Module, logits_BKhw: Tensor, inside_Bhw: Tensor) -> Tensor:
    """[B] the largest change of the score for a change of the cells inside by 1 in root mean square."""
    with torch.enable_grad():
        logits_BKhw = logits_BKhw.detach().requires_grad_()
        (gradient_BKhw,) = torch.autograd.grad(score(logits_BKhw).sum(), logits_BKhw, create_graph=True)
    squares_B = torch.where(inside_Bhw[:, None], gradient_BKhw, 0).square().sum(dim=(1, 2, 3))
    return (inside_Bhw.sum(dim=(1, 2)) * squares_B + 1e-12).sqrt()  # the slope of a root at 0 is infinite


class Discriminator(nn.Module):
    """A score [B] of logits: three convolutions of stride 2, self-attention, and a mean over positions."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        channels = (num_classes, width, 2 * width, 4 * width)
        convolutions = (nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(channels, channels[1:]))
        self.convolutions = nn.ModuleList(convolutions)
        C = channels[-1]
        self.query, self.key, self.value = nn.Conv2d(C, C // 8, 1), nn.Conv2d(C, C // 8, 1), nn.Conv2d(C, C, 1)
        self.attended = nn.Parameter(torch.zeros(()))  # attention starts as nothing and is learnt, as in SAGAN
        self.last = nn.Conv2d(C, 1, 1)

    def forward(self, logits_BKhw: Tensor) -> Tensor:
        x = logits_BKhw
        for convolution in self.convolutions:
            x = F.leaky_relu(convolution(x), 0.1)
        query_BCP, key_BCP, value_BCP = (part(x).flatten(2) for part in (self.query, self.key, self.value))
        weights_BPP = (query_BCP.mT @ key_BCP).softmax(dim=2)
        x = x + self.attended * (value_BCP @ weights_BPP.mT).view_as(x)
        return self.last(x).mean(dim=(1, 2, 3))
