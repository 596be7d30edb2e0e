"""Batches: prepared images and labels joined with cached rows by image id, warped by the stored view.

A batch is a pure function of the step, so a resumed run sees what an unbroken one sees. Order: one permutation of the images
an epoch, from (seed, epoch). At epoch e an image is shown in view (e + hash(id)) % K.

B images, H W the network input.
"""

import hashlib
from dataclasses import dataclass
from typing import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline import views as geometry
from pipeline.config import Photometric, Training, Views
from pipeline.datasets.base import DatasetBase
from pipeline.losses.base import Batch
from pipeline.store import Pass, Reader
from pipeline.targets.base import TargetType


@dataclass(frozen=True)
class CachedTargets:
    """The targets a method reads: `reader` holds their rows and the views' matrices, for the same ids as the samples'."""

    reader: Reader
    matrix: Pass
    targets: Mapping[str, tuple[TargetType, Pass]]


class Loader:
    def __init__(self, samples: Reader, sample: Pass, ids: Sequence[str], *, dataset: DatasetBase, content: tuple[int, int],
                 views: Views, training: Training, seed: int, device, cached: CachedTargets | None = None):
        self.samples, self.sample, self.ids = samples, sample, list(ids)
        self.dataset, self.content, self.views, self.training = dataset, content, views, training
        self.seed, self.device, self.cached = seed, torch.device(device), cached
        self.size = sample.fields["label"].shape
        self._order = (-1, None)

    @property
    def epochs(self) -> float:
        return self.training.steps * self.training.batch / len(self.ids)

    def batch(self, step: int) -> Batch:
        positions, epochs = self.positions(step)
        numbers = self.views_at(positions, epochs)
        rows = self.samples.read(self.sample, positions, np.zeros_like(positions))
        matrices = self._matrices(positions, numbers)
        images, labels, inside = geometry.apply(
            self._tensor(rows["image"]), self._tensor(rows["label"]), matrices,
            content=self.content, permutation=self.dataset.mirror)
        flags = None
        if "existence" in rows:
            flags = geometry.existence(self._tensor(rows["existence"]), labels, self.dataset.lane_classes, matrices,
                                       self.dataset.mirror_lanes)
        images = photometric(images, self.training.photometric, self._generator(step))
        return Batch(images, labels, inside, flags, self._targets(positions, numbers), step)

    def positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Which images a step shows, and in which epoch of each."""
        numbers = step * self.training.batch + np.arange(self.training.batch)
        epochs = numbers // len(self.ids)
        positions = np.array([self._permutation(epoch)[n % len(self.ids)] for n, epoch in zip(numbers, epochs)])
        return positions, epochs

    def views_at(self, positions: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """The view each image is shown in; fresh views are never the plain one and never repeat."""
        if self.training.fresh_views:
            return epochs + 1
        return np.array([geometry.view_of_epoch(self.ids[p], e, self.views.count) for p, e in zip(positions, epochs)])

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            key = int.from_bytes(hashlib.blake2b(f"{self.seed}/{epoch}".encode(), digest_size=8).digest(), "little")
            self._order = (epoch, np.random.Generator(np.random.Philox(key=key)).permutation(len(self.ids)))
        return self._order[1]

    def _matrices(self, positions, numbers) -> Tensor:
        if self.cached is not None:
            return torch.from_numpy(self.cached.reader.read(self.cached.matrix, positions, numbers)["matrix"])
        return torch.from_numpy(np.stack([
            geometry.draw(self.views, self.ids[p], int(v), self.size) for p, v in zip(positions, numbers)]))

    def _targets(self, positions, numbers) -> dict[str, dict[str, Tensor]]:
        if self.cached is None:
            return {}
        read = {}                                     # two targets with equal parts share arrays: read them once
        for _, pass_ in self.cached.targets.values():
            if pass_.folder not in read:
                rows = self.cached.reader.read(pass_, positions, numbers)
                read[pass_.folder] = {field: self._tensor(values) for field, values in rows.items()}
        return {name: target.decode(read[pass_.folder]) for name, (target, pass_) in self.cached.targets.items()}

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def _generator(self, step: int) -> torch.Generator:
        key = int.from_bytes(hashlib.blake2b(f"photometric/{self.seed}/{step}".encode(), digest_size=7).digest(), "little")
        return torch.Generator(self.device).manual_seed(key)


def photometric(images_B3HW: Tensor, change: Photometric, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and noise, drawn per image; 0..255 is kept."""
    if not (change.brightness or change.contrast or change.noise):
        return images_B3HW
    draws = torch.rand(2, len(images_B3HW), 1, 1, 1, generator=generator, device=images_B3HW.device) * 2 - 1
    mean = images_B3HW.mean(dim=(1, 2, 3), keepdim=True)
    images_B3HW = ((images_B3HW - mean) * (1 + change.contrast * draws[0]) + mean) * (1 + change.brightness * draws[1])
    if change.noise:
        noise = torch.empty_like(images_B3HW).normal_(generator=generator)
        images_B3HW = images_B3HW + change.noise * noise
    return images_B3HW.clamp(0, 255)
