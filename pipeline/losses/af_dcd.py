"""Augmentation-free dense contrast: masked features must find their own place and channels among their neighbours' in the teacher.

Source: Fan, Li, Liu, Song, Yao, "Augmentation-Free Dense Contrastive Knowledge Distillation for Efficient Semantic Segmentation",
NeurIPS 2023, the omni-contrasting form, and its official code. The student's features are masked and pass a network as in mgd.py;
its result F and the teacher's T are compared twice:
    mimicry:  sum over channels and cells of (F - T)^2
    contrast: both maps are max-pooled over `pool` x `pool` cells and cut into patches of `patch` x `patch` cells, and their
              channels into `groups`. With s(ig, jf) = -|F_ig - T_jf|_1 / temperature for cells i, j of a patch and groups g, f:
              sum over groups, mean over cells of -log( exp s(ig, ig) / (exp s(ig, ig) + sum over j, f != g of exp s(ig, jf)) )
both a mean over images. A sample's negatives are all other groups of channels in the patch, of its own cell too; the same group of
other cells is neither positive nor negative. `mimicry` and `contrast` are their weights inside this loss, by default those of the
official code. The mask of a step follows from its number and `seed`.

Departures: grids that are no multiple of pool and patch are filled up with cells that count as outside, where the official code
cuts CamVid's off. Cells outside are hidden, in no sum and in no contrast; a pooled cell counts where half of it is inside.

B images, C channels of the student, D of the teacher, h w the stored grid, Q patches of N cells, G groups of d = D / G
channels, S = N G samples of a patch.
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.losses._features import READS, adapters, compared, inside_sum
from pipeline.losses._random import generator_of
from pipeline.losses.base import Batch, LossModule, Share
from pipeline.losses.mgd import Masked, Seed, generation, hidden
from pipeline.models.base import Output

Cells = Annotated[int, Field(ge=1)]


class Loss(LossModule):
    reads_types = READS

    def __init__(
        self,
        *,
        reads,
        context,
        student,
        mimicry: Annotated[Share, Field(description="Weight of the squared differences.")] = 4e-5,
        contrast: Annotated[Share, Field(description="Weight of the contrast.")] = 1e-3,
        temperature: Annotated[float, Field(gt=0, description="Distances are divided by this before the softmax.")] = 0.07,
        groups: Annotated[int, Field(ge=2, description="Parts that the teacher's channels are cut into; a divisor of them.")] = 16,
        pool: Annotated[Cells, Field(description="Height and width of a pooled cell, in cells of the stored grid.")] = 4,
        patch: Annotated[Cells, Field(description="Height and width of a patch, in pooled cells.")] = 4,
        masked: Masked = 0.75,
        seed: Seed = 0,
    ):
        super().__init__(reads=reads, context=context, student=student)
        self.mimicry, self.weight, self.temperature = mimicry, contrast, temperature
        self.groups, self.pool, self.patch, self.masked, self.seed = groups, pool, patch, masked, seed
        channels = [context.channels[target.layer] for target in self.reads.values()]
        for name, count in zip(self.reads, channels):
            if count % groups:
                raise ConfigError(f"af_dcd.groups: {groups} does not divide the {count} channels of {name}; write a divisor")
        self.adapters = adapters(reads, student, context)
        self.generations = nn.ModuleList(map(generation, channels))

    def forward(self, output: Output, batch: Batch) -> Tensor:
        total: Any = 0.0  # a Tensor after the first
        generator = generator_of(self.seed, batch.step)
        for (name, target), adapter, generate in zip(self.reads.items(), self.adapters, self.generations):
            student_BChw, teacher_BDhw, inside_B1hw = compared(output, batch, name, target, self.context)
            generated_BDhw = generate(hidden(adapter(student_BChw), inside_B1hw, self.masked, generator))
            squares_B = inside_sum((generated_BDhw - teacher_BDhw).square(), inside_B1hw)
            total = total + self.mimicry * squares_B.mean()
            if self.weight:
                total = total + self.weight * self.contrast(generated_BDhw, teacher_BDhw, inside_B1hw).mean()
        return total

    def contrast(self, student_BDhw: Tensor, teacher_BDhw: Tensor, inside_B1hw: Tensor) -> Tensor:
        """[B]: sum over groups, mean over the pooled cells that count."""
        lowest = torch.finfo(student_BDhw.dtype).min  # not -inf: 0 * inf is NaN
        counts_B1hw = tiles(inside_B1hw.float(), self.pool).mean(dim=-1) >= 0.5
        student_BQSd, teacher_BQSd = (
            samples(
                torch.where(
                    counts_B1hw, tiles(torch.where(inside_B1hw, map_BDhw, lowest), self.pool, lowest).max(dim=-1).values, 0
                ),
                self.patch,
                self.groups,
            )
            for map_BDhw in (student_BDhw, teacher_BDhw)
        )
        counts_BQS = samples(counts_B1hw.float().expand(-1, self.groups, -1, -1), self.patch, self.groups)[..., 0] > 0
        place_S = torch.arange(counts_BQS.shape[2], device=counts_BQS.device)
        same_group_SS = place_S[:, None] % self.groups == place_S % self.groups
        own_SS = place_S[:, None] == place_S
        logits_BQSS = -torch.cdist(student_BQSd, teacher_BQSd, p=1) / self.temperature
        shown_BQSS = own_SS | ~same_group_SS & counts_BQS[:, :, None]
        total_BQS = torch.where(shown_BQSS, logits_BQSS, lowest).logsumexp(dim=3)
        losses_BQS = torch.where(counts_BQS, total_BQS - logits_BQSS.diagonal(dim1=2, dim2=3), 0)
        return losses_BQS.sum(dim=(1, 2)) / counts_B1hw.sum(dim=(1, 2, 3)).clamp(min=1)


def tiles(map_BDhw: Tensor, side: int, fill: float = 0.0) -> Tensor:
    """[B, D, h', w', side * side]: the cells of each square, the last rows and columns filled up."""
    h, w = map_BDhw.shape[-2:]
    filled = F.pad(map_BDhw, (0, -w % side, 0, -h % side), value=fill)
    return filled.unflatten(3, (-1, side)).unflatten(2, (-1, side)).transpose(3, 4).flatten(4)


def samples(map_BDhw: Tensor, patch: int, groups: int) -> Tensor:
    """[B, Q, N G, D / G]: of each patch the groups of its first cell, then those of its second, ..."""
    parts_BDQN = tiles(map_BDhw, patch).flatten(2, 3)
    return parts_BDQN.unflatten(1, (groups, -1)).permute(0, 3, 4, 1, 2).flatten(2, 3)
