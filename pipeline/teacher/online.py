"""Online distillation: what a method reads, computed by the teacher at each step instead of read from a cache.

Stands in for loading.CachedTargets: the same images in the same views, so that a run with the teacher in the loop differs
from one on cached rows by the rounding of what is stored, and of other batches. Nothing is rounded here, and any view will do,
fresh ones too.

    store, sample, images = prepared.open_whole(root, config.dataset, dataset, config.prepare, dataset.ids("train"))
    samples = Reader(store, [sample], [image.id for image in images], 1)
    targets = online_targets(config.teacher, config.targets, dataset, config.prepare, config.views, weights_file, samples, sample,
                           batch=8, device="cpu")
    loader = Loader(samples, sample, samples.ids, ..., cached=targets)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.config import Plugin, Prepare, Teacher, Views
from pipeline.data import views as geometry
from pipeline.datasets.base import DatasetBase
from pipeline.store import ArrayGroup, Reader
from pipeline.targets.base import TargetType
from pipeline.teacher import cache


@dataclass(frozen=True)
class OnlineTargets:
    """`samples` holds the prepared images on the host. The teacher answers `answers.batch` views at a time."""

    answers: cache.TeacherRunner
    samples: Reader
    sample: ArrayGroup
    views: Views
    targets: Mapping[str, tuple[TargetType, ArrayGroup]]

    def matrices(self, positions: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """[B, 2, 3], drawn as the fill draws them."""
        height, width = self.sample.fields["label"].shape
        contents_B2 = None
        if self.views.crop is not None and "content" in self.sample.fields:
            contents_B2 = self.samples.read(self.sample, positions, np.zeros_like(positions))["content"]
        return geometry.drawn(self.views, (self.samples.ids[p] for p in positions), numbers, (height, width), contents_B2)

    def rows(self, positions: np.ndarray, numbers: np.ndarray, to_device: Callable) -> dict[str, dict[str, Tensor]]:
        """[B, ...] by target and field, as a loss sees them, on the teacher's device."""
        return self.answered(positions, self.matrices(positions, numbers))

    def answered(self, positions: np.ndarray, matrices: np.ndarray) -> dict[str, dict[str, Tensor]]:
        """The same of views with these matrices, e.g. those that a cache holds."""
        images = self.samples.read(self.sample, positions, np.zeros_like(positions))
        parts = []
        for start in range(0, len(positions), self.answers.batch):
            some = slice(start, start + self.answers.batch)
            output, labels_BHW = self.answers.output(images["image"][some], images["label"][some], matrices[some])
            parts.append(
                {
                    name: cache.computed(target, output, labels_BHW, self.answers.context)
                    for name, (target, _) in self.targets.items()
                }
            )
        return {
            name: {field: torch.cat([part[name][field] for part in parts]).contiguous() for field in fields}
            for name, fields in parts[0].items()
        }  # as stored rows lie, or sums are taken in another order


def online_targets(
    teacher: Teacher,
    targets: Mapping[str, Plugin],
    dataset: DatasetBase,
    prepare: Prepare,
    views: Views,
    weights_file: Path,
    samples: Reader,
    sample: ArrayGroup,
    hidden: cache.HiddenLabels | None = None,
    *,
    batch: int,
    device,
) -> OnlineTargets:
    """What this teacher makes of the samples, with its weights from the file."""
    seen = views.crop or prepare.size
    model = cache.load_teacher(teacher, dataset, seen, weights_file)
    context = cache.context(teacher.model, dataset, seen)
    answers = cache.TeacherRunner(model, dataset, context, prepare.size, precision=teacher.precision, batch=batch, device=device)
    return OnlineTargets(answers, samples, sample, views, cache.target_passes(targets, context, hidden))
