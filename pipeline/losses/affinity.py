"""Affinity distillation, IntRA-KD Eq. 4: squared differences of two graphs, summed and divided by 3 n^2.

Source: Hou, Ma, Liu, Hui, Loy, "Inter-Region Affinity Distillation for Road Marking Segmentation", CVPR 2020; several
reads (mid, high) add up, images are averaged. Departures: a pair counts only where both regions have `min_cells` (for
mean, variance, skewness) on the teacher's grid and on the student's: the variance of one cell and the skewness of two
are identically 0, and that of a few is noise. The diagonal is left out (it is 1 on both sides). The divisor is 3 n^2
whatever counts, so that a weight means what it means in the paper; `normalise: present` takes the mean over the pairs
that count instead. `moments` picks those that count (the divisor stays).

B images, K = n regions, R = 3 moments.
"""

import functools
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pipeline.losses.base import Batch, LossModule
from pipeline.models.base import Output
from pipeline.targets import affinity

MinCells = Annotated[
    tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]],
    Field(description="Cells that a region must have for its mean, variance and skewness to count."),
]
Moments = Annotated[
    tuple[Literal[1, 2, 3], ...],
    Field(min_length=1, description="Which moments count: 1 the mean, 2 the variance, 3 the skewness."),
]
Normalise = Annotated[
    Literal["all", "present"], Field(description="Divide by 3 n^2 as in the paper, or by the number of pairs that count.")
]


class Loss(LossModule):
    needed_R1: Tensor

    reads_types = ("affinity",)

    def __init__(
        self,
        *,
        reads,
        context,
        student,
        min_cells: MinCells = (1, 2, 8),
        moments: Moments = (1, 2, 3),
        normalise: Normalise = "all",
    ):
        super().__init__(reads=reads, context=context, student=student)
        self.normalise = normalise
        needed = [cells if r in moments else math.inf for r, cells in enumerate(min_cells, start=1)]
        self.register_buffer("needed_R1", torch.tensor(needed, dtype=torch.float32)[:, None], persistent=False)

    def forward(self, output: Output, batch: Batch) -> Tensor:
        total: Any = 0.0  # a Tensor after the first
        made: dict[tuple, Tensor] = {}  # areas of interest on the teacher's grid, once for all layers of one grid
        for name, target in self.reads.items():
            rows = batch.rows[name]
            student = self.graph(target, output.features[target.layer], batch.labels_BHW, rows, made)
            total = total + self.distance(student, rows)
        return total

    def graph(
        self, target: Any, features_BChw: Tensor, labels_BHW: Tensor, rows: Mapping[str, Tensor], made: dict[tuple, Tensor]
    ) -> dict[str, Tensor]:
        """The student's `target.graph`, bit for bit. Areas of labels on the teacher's grid are taken from `made`, or put there."""
        if target.regions != "label" or target.aoi_grid != "teacher":
            graph: dict[str, Tensor] = target.graph(features_BChw, target.seen(labels_BHW, **rows), self.context)
            return graph
        key = self.context.grids[target.layer], target.aoi_kernel
        if key not in made:
            made[key] = affinity.any_pixel(packed(labels_BHW, self.context.regions), key[0], margin=target.aoi_kernel // 2)
        height, width = features_BChw.shape[-2:]
        aoi_BKhw = affinity.unpack(affinity.any_pixel(made[key], (height, width)), len(self.context.regions))
        nodes_BRKC = affinity.nodes(features_BChw, aoi_BKhw, target.reading, target.eps, target.eps_scale)
        return {"graph": affinity.cosines(nodes_BRKC).float(), "cells": aoi_BKhw.sum(dim=(2, 3)).float()}

    def distance(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        """Eq. 4 on `graph` [B, 3, K, K] and `cells` [B, K] of both."""
        enough_BRK = torch.minimum(student["cells"], teacher["cells"])[:, None] >= self.needed_R1
        diagonal = torch.eye(enough_BRK.shape[-1], dtype=torch.bool, device=enough_BRK.device)
        counts_BRKK = enough_BRK[..., :, None] & enough_BRK[..., None, :] & ~diagonal
        squares_B = torch.where(counts_BRKK, student["graph"] - teacher["graph"], 0).square().sum(dim=(1, 2, 3))
        if self.normalise == "present":
            return (squares_B / counts_BRKK.sum(dim=(1, 2, 3)).clamp(min=1)).mean()
        return squares_B.mean() / diagonal.numel() / 3


def packed(labels_BHW: Tensor, regions: tuple[int, ...]) -> Tensor:
    """`affinity.pack` of these labels; on the CPU by OpenCV's table look-up, which takes a tenth of the time."""
    if labels_BHW.device.type != "cpu":
        return affinity.pack(labels_BHW, regions)
    labels = labels_BHW.flatten(0, 1).numpy()
    return torch.from_numpy(np.stack([cv2.LUT(labels, table) for table in tables(regions)])).unflatten(1, labels_BHW.shape[:2])


@functools.cache
def tables(regions: tuple[int, ...]) -> np.ndarray:
    """[K / 8, 256]: what each label is in `affinity.pack`."""
    return affinity.pack(torch.arange(256, dtype=torch.uint8), regions).numpy()
