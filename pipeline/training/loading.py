"""Batches: prepared images and labels joined with cached rows by image id, warped by the stored view.

A batch is a pure function of the step, so a resumed run sees what an unbroken one sees, and a thread may make it while the
step before it runs. Order: one permutation of the images an epoch, from (seed, epoch), or for slow storage
(`training.shuffle_block`) one that goes from block to block. At epoch e an image is shown in view (e + hash(id)) % K.

B images, H W the network input.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config import Photometric, Training, Views
from pipeline.data import views as geometry
from pipeline.datasets.base import DatasetBase
from pipeline.errors import ConfigError
from pipeline.losses.base import Batch
from pipeline.progress import say
from pipeline.seeds import text_digest
from pipeline.store import ArrayGroup, Reader
from pipeline.targets.base import TargetType
from pipeline.threads import map_in_order

FETCHED_AHEAD = 32  # steps

if TYPE_CHECKING:
    from pipeline.teacher.experiment import Experiment
    from pipeline.teacher.fill import FillingTargets
    from pipeline.teacher.online import OnlineTargets
    from pipeline.teacher.several import SeveralTargets


@dataclass(frozen=True)
class CachedTargets:
    """The targets a method reads: `reader` holds their rows and the views' matrices, for the same ids as the samples'."""

    reader: Reader
    matrix: ArrayGroup
    targets: Mapping[str, tuple[TargetType, ArrayGroup]]

    @property
    def readers(self) -> list[Reader]:
        return [self.reader]

    def matrices(self, positions: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        return self.reader.read(self.matrix, positions, numbers)["matrix"]

    def rows(self, positions: np.ndarray, numbers: np.ndarray, to_device: Callable) -> dict[str, dict[str, Tensor]]:
        """[B, ...] by target and field, decoded. `to_device` is how arrays get there."""
        read: dict[str, dict[str, Tensor]] = {}  # two targets with equal parts share arrays: read them once
        for _, pass_ in self.targets.values():
            if pass_.folder not in read:
                rows = self.reader.read(pass_, positions, numbers)
                read[pass_.folder] = {field: to_device(values) for field, values in rows.items()}
        return {name: target.decode(read[pass_.folder]) for name, (target, pass_) in self.targets.items()}


@dataclass
class Stream:
    """Images that a fixed number of each batch is drawn from, each once an epoch."""

    positions: np.ndarray
    count: int  # of a batch
    seed: str
    fresh: bool = False  # shown in new views, without targets
    order: tuple[int, np.ndarray] = (-1, np.empty(0, int))  # an epoch and its permutation


class Loader:
    def __init__(
        self,
        samples: Reader,
        sample: ArrayGroup,
        ids: Sequence[str],
        *,
        dataset: DatasetBase,
        content: tuple[int, int],
        views: Views,
        training: Training,
        seed: int,
        device,
        cached: "CachedTargets | FillingTargets | OnlineTargets | SeveralTargets | None" = None,
        share: tuple[int, int] = (0, 1),
        labelled: Collection[str] | None = None,
        labelled_per_batch: int | None = None,
    ):
        """`share` (i, n): of every batch, the i-th of n equal parts, for one of n processes. `labelled`: ids of the images that
        have a label (None: all); `labelled_per_batch`: so many of them in each batch, the rest from those without (None: as
        they come). Raises ConfigError."""
        self.samples, self.sample, self.ids = samples, sample, list(ids)
        self.dataset, self.content, self.views, self.training = dataset, content, views, training
        self.seed, self.device, self.cached, self.share = seed, torch.device(device), cached, share
        if training.batch % (share[1] * training.accumulate):
            raise ConfigError(
                f"training.batch: {training.batch} images are no whole number for each of {share[1]} processes "
                f"in {training.accumulate} parts; write a multiple of {share[1] * training.accumulate}"
            )
        height, width = sample.fields["label"].shape
        self.size = height, width
        self._readers = [samples, *getattr(cached, "readers", ())]
        for reader in self._readers:
            if not reader.resident:
                self._keep_chunks(reader)
        if not 0 <= training.held_out < len(self.ids):
            raise ConfigError(
                f"training.held_out: {training.held_out} of {len(self.ids)} images leave none to train on; write less"
            )
        order = scan_order(self.ids)
        self.held_out, self.shown = np.array(order[: training.held_out], int), np.sort(order[training.held_out :])
        self._labelled = set(self.ids if labelled is None else labelled)
        self._streams = self._split(labelled_per_batch)
        # evenly spread, so that parts of a batch and processes get labelled images alike
        place = np.concatenate([(np.arange(stream.count) + 0.5) / stream.count for stream in self._streams])
        self._order = np.argsort(place, kind="stable")
        self._fresh_B = np.repeat([stream.fresh for stream in self._streams], [stream.count for stream in self._streams])[
            self._order
        ]
        parts = self._fresh_B.reshape(share[1] * training.accumulate, -1)
        if cached is not None and training.fresh_views == "labelled" and parts.all(axis=1).any():
            raise ConfigError(
                f"training.fresh_views: labelled: of {len(parts)} parts of a batch, one for each process and each of "
                f"training.accumulate, some would have no image with targets; write a smaller training.labelled_per_batch"
            )

    @classmethod
    def of(cls, experiment: "Experiment", samples: Reader, training: Training, **how: Any) -> "Loader":
        """Of an experiment's training images; `how` are the other keywords."""
        config = experiment.config
        return cls(
            samples,
            experiment.sample,
            experiment.ids,
            dataset=experiment.source,
            content=config.prepare.size,
            views=config.views,
            training=training,
            **how,
        )

    @property
    def partly_labelled(self) -> bool:
        """Whether batches show images without a label."""
        return any(self.ids[position] not in self._labelled for stream in self._streams for position in stream.positions)

    def _split(self, labelled_per_batch: int | None) -> "list[Stream]":
        """What batches are drawn from. Raises ConfigError where one of the two kinds has no image."""
        batch, fresh_views = self.training.batch, self.training.fresh_views
        if labelled_per_batch is None:
            return [Stream(self.shown, batch, f"{self.seed}", bool(fresh_views))]
        has_label = np.array([self.ids[position] in self._labelled for position in self.shown], bool)
        if not has_label.any():
            raise ConfigError(
                f"training.labelled_per_batch: none of the {len(self.shown)} images to train on has a label; write null"
            )
        if labelled_per_batch < batch and has_label.all() and fresh_views != "labelled":
            raise ConfigError(
                f"training.labelled_per_batch: all {len(self.shown)} images to train on have a label, and the other "
                f"{batch - labelled_per_batch} of a batch would be none; write null"
            )
        streams = [Stream(self.shown[has_label], labelled_per_batch, f"{self.seed}", bool(fresh_views))]
        if labelled_per_batch < batch:
            others = self.shown if has_label.all() else self.shown[~has_label]
            streams.append(Stream(others, batch - labelled_per_batch, f"{self.seed}/unlabelled", fresh_views is True))
        return streams

    def batch(self, step: int) -> Batch:
        positions, epochs, fresh_B = self._own(step)
        seen = self._seen(positions, self.views_at(positions, epochs, fresh_B), step, fresh_B)
        images_B3HW = photometric(seen.images_B3HW, self.training.photometric, self._generator(step))
        return dataclasses.replace(seen, images_B3HW=images_B3HW)

    @property
    def steps_to_fetch(self) -> int:
        """So many steps ahead blocks are fetched over a network: less than a window of the order, as two of them are kept."""
        if not any(reader.remote and not reader.resident for reader in self._readers) or not self.training.shuffle_block:
            return 0
        window = self.training.shuffle_block * self.training.shuffle_window // self.training.batch
        return max(1, min(FETCHED_AHEAD, window - 3))

    def fetch(self, step: int) -> int:
        """Brings the blocks of a step, so that `batch` need not wait for them; returns the step."""
        positions, epochs, fresh_B = self._own(step)
        self.samples.fetch(positions, np.zeros_like(positions))
        for reader in self._readers[1:]:
            reader.fetch(positions[~fresh_B], self.views_at(positions, epochs, fresh_B)[~fresh_B])
        return step

    def held_out_batches(self, step: int) -> Iterator[Batch]:
        """The images kept from training, in the plain view, without photometric changes."""
        for start in range(0, len(self.held_out), self.training.batch):
            positions = self.held_out[start : start + self.training.batch]
            yield self._seen(positions, np.zeros_like(positions), step)

    def _seen(self, positions: np.ndarray, numbers: np.ndarray, step: int, fresh_B: np.ndarray | None = None) -> Batch:
        """`fresh_B`: which images are shown in new views, for which no targets are stored (None: as `cached` has them, none)."""
        rows = self.samples.read(self.sample, positions, np.zeros_like(positions))
        stored = None  # positions in the batch of the images with targets, where that isn't all of them
        if fresh_B is not None and self.training.fresh_views == "labelled" and self.cached is not None:
            stored = np.flatnonzero(~fresh_B)
        matrices = self._matrices(positions, numbers, rows.get("content"), stored)
        images, labels, inside = geometry.apply(
            self._tensor(rows["image"]),
            self._tensor(rows["label"]),
            matrices,
            content=self._tensor(rows["content"]) if "content" in rows else self.content,
            permutation=self.dataset.mirror,
            size=self.views.crop,
        )
        flags = None
        if "existence" in rows:
            flags = geometry.existence(
                self._tensor(rows["existence"]), labels, self.dataset.lane_classes, matrices, self.dataset.mirror_lanes
            )
        return Batch(
            images,
            labels,
            inside,
            flags,
            self._targets(positions, numbers) if stored is None else self._targets(positions[stored], numbers[stored]),
            step,
            tuple(self.ids[position] for position in positions),
            tuple(map(int, numbers)),
            matrices,
            None if stored is None else tuple(map(int, stored)),
        )

    def _own(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of this process's share: which images, in which epoch of each, and whether in new views."""
        own = slice(*(self.training.batch * i // self.share[1] for i in (self.share[0], self.share[0] + 1)))
        positions, epochs = (of_all[own] for of_all in self.positions(step))
        return positions, epochs, self._fresh_B[own]

    def positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Which images a step shows, and in which epoch of each."""
        drawn = [self._drawn(stream, step) for stream in self._streams]
        positions, epochs = (np.concatenate(of_all)[self._order] for of_all in zip(*drawn))
        return positions, epochs

    def _drawn(self, stream: "Stream", step: int) -> tuple[np.ndarray, np.ndarray]:
        numbers, size = step * stream.count + np.arange(stream.count), len(stream.positions)
        epochs = numbers // size
        positions = np.array([self._permutation(stream, int(epoch))[n % size] for n, epoch in zip(numbers, epochs)])
        return positions, epochs

    def views_at(self, positions: np.ndarray, epochs: np.ndarray, fresh_B: np.ndarray | bool = False) -> np.ndarray:
        """The view each image is shown in; fresh views are never the plain one and never repeat."""
        if np.all(fresh_B):
            return epochs + 1
        stored = np.array([geometry.view_of_epoch(self.ids[p], e, self.views.count) for p, e in zip(positions, epochs)])
        return np.where(fresh_B, epochs + 1, stored)

    def scan(self, images: int = 16) -> Iterator[dict[str, dict[str, Tensor]]]:
        """Rows of the plain view, some images at a time, in an order that follows from the ids alone."""
        order = np.array(scan_order(self.ids)[self.training.held_out :])
        for start in range(0, len(order), images):
            positions = order[start : start + images]
            yield self._targets(positions, np.zeros_like(positions))

    def class_shares(self, images: int = 2000) -> Tensor:
        """[K]: each class's part of the labelled pixels, of all images or of these many of them."""
        counts = np.zeros(256)
        order = [position for position in scan_order(self.ids)[self.training.held_out :] if self.ids[position] in self._labelled]
        for position in order[:images]:
            label = self.samples.read(self.sample, np.array([position]), np.array([0]))["label"]
            counts += np.bincount(torch.as_tensor(label).cpu().numpy().ravel(), minlength=256)
        counts = counts[: len(self.dataset.classes)]
        return torch.from_numpy(counts / counts.sum().clip(min=1)).float()

    def _keep_chunks(self, reader: Reader) -> None:
        """Makes it keep whole blocks if the order goes from block to block; says so if it should."""
        block, rows = self.training.shuffle_block, reader.block_rows
        if block % rows:
            raise ConfigError(
                f"training.shuffle_block: {block} images are no whole number of blocks of {reader.folder}, "
                f"which have {rows}; write a multiple of {rows}"
            )
        if block:
            reader.keep_chunks(block * self.training.shuffle_window * (2 if reader.remote else 1))  # and what is fetched ahead
        elif reader.remote and self.share[0] == 0:
            say(
                f"{reader.folder}: rows are fetched one by one, since they don't fit into RAM; training.shuffle_block: {rows} "
                f"fetches each block once an epoch, `pipeline cache pull` each once and for all"
            )

    def _permutation(self, stream: "Stream", epoch: int) -> np.ndarray:
        order = stream.order  # which another thread may replace
        if order[0] != epoch:
            block, window, positions = self.training.shuffle_block, self.training.shuffle_window, stream.positions
            stream.order = order = (
                epoch,
                positions[
                    block_shuffled(stream.seed, epoch, positions // block, window)
                    if block
                    else permutation(stream.seed, epoch, len(positions))
                ],
            )
        return order[1]

    def _matrices(self, positions, numbers, contents_B2, stored: np.ndarray | None = None) -> Tensor:
        """[B, 2, 3]: those that the targets were made with, of all images or of these of the batch; drawn for the others."""
        if self.cached is not None and stored is None:
            return torch.from_numpy(self.cached.matrices(positions, numbers))
        if isinstance(contents_B2, Tensor):
            contents_B2 = contents_B2.cpu().numpy()
        drawn_B23 = geometry.drawn(self.views, (self.ids[p] for p in positions), numbers, self.size, contents_B2)
        if self.cached is not None:
            drawn_B23[stored] = self.cached.matrices(positions[stored], numbers[stored])
        return torch.from_numpy(drawn_B23)

    def _targets(self, positions, numbers) -> dict[str, dict[str, Tensor]]:
        return {} if self.cached is None else self.cached.rows(positions, numbers, self._tensor)

    def _tensor(self, rows: np.ndarray | Tensor) -> Tensor:
        if isinstance(rows, Tensor):  # the reader holds them on the device
            return rows
        tensor = torch.from_numpy(rows)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def _generator(self, step: int) -> torch.Generator:
        own = f"/{self.share[0]}" if self.share[0] else ""
        key = int.from_bytes(text_digest(f"photometric/{self.seed}/{step}{own}", 7), "little")
        return torch.Generator(self.device).manual_seed(key)


def ahead(loader: Loader, steps: Sequence[int]) -> Iterator[Batch]:
    """The batches of these steps, each made by a thread while the step before it runs; on CUDA in a stream of its own."""
    stream = torch.cuda.Stream(loader.device) if loader.device.type == "cuda" else None

    def make(step: int):
        if stream is None:
            return loader.batch(step), None
        with torch.cuda.stream(stream):
            batch = loader.batch(step)
            return batch, stream.record_event()

    with ThreadPoolExecutor(1, "blocks") as fetching, ThreadPoolExecutor(1, "batches") as thread:
        fetched = map_in_order(fetching, loader.fetch, steps, loader.steps_to_fetch) if loader.steps_to_fetch else steps
        for batch, made in map_in_order(thread, make, fetched, 2):
            if made is not None:
                current = torch.cuda.current_stream(loader.device)
                current.wait_event(made)
                for tensor in batch.tensors():  # or their memory is given to the next batch while the step reads them
                    tensor.record_stream(current)
            yield batch


def scan_order(ids: Sequence[str]) -> list[int]:
    """Positions of the images as a scan shows them: in the order of their ids' digests, wherever they stand in a list."""
    return sorted(range(len(ids)), key=lambda position: text_digest(ids[position], 8))


def permutation(seed: int | str, epoch: int, count: int) -> np.ndarray:
    """The order of `count` images in one epoch."""
    return _generator(seed, epoch).permutation(count)


def block_shuffled(seed: int | str, epoch: int, blocks_N: np.ndarray, window: int) -> np.ndarray:
    """The order in one epoch of images that lie in these blocks: the blocks in random order, `window` of them at a time, and
    their images shuffled. So each block is done with before the next window begins."""
    draw, numbers_N = _generator(seed, epoch), np.unique(blocks_N, return_inverse=True)[1]
    windows_N = draw.permutation(numbers_N.max() + 1)[numbers_N] // window
    return np.lexsort((draw.random(len(blocks_N)), windows_N))


def _generator(seed: int | str, epoch: int) -> np.random.Generator:
    key = int.from_bytes(text_digest(f"{seed}/{epoch}", 8), "little")
    return np.random.Generator(np.random.Philox(key=key))


def photometric(images_B3HW: Tensor, change: Photometric, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and noise, drawn per image; 0..255 is kept."""
    if not (change.brightness or change.contrast or change.noise):
        return images_B3HW
    draws = torch.rand(2, len(images_B3HW), 1, 1, 1, generator=generator, device=images_B3HW.device) * 2 - 1
    mean = images_B3HW.mean(dim=(1, 2, 3), keepdim=True)
    images_B3HW = (images_B3HW - mean).mul_(1 + change.contrast * draws[0]).add_(mean).mul_(1 + change.brightness * draws[1])
    if change.noise:
        images_B3HW += normal_like(images_B3HW, generator).mul_(change.noise)
    return images_B3HW.clamp_(0, 255)


PART = 2**16  # numbers drawn at a time, an even number
MARGIN = 8  # last digits of float64 by which sines, logarithms and roots of two libraries may differ, with room to spare


def normal_like(values: Tensor, generator: torch.Generator) -> Tensor:
    """What `torch.empty_like(values).normal_(generator=generator)` is, to the bit. On the CPU PyTorch draws one number after the
    other where memory is not in the order of the axes, as in channels-last images. Here the same uniform numbers go through the
    same formula (Box and Muller, 1958: pairs r cos t and r sin t) as whole arrays, in float64. A last digit there may differ,
    which float32 shows only next to the middle between two of its numbers: then PyTorch draws after all."""
    found, before = torch.empty_like(values), generator.get_state()
    if values.device.type != "cpu" or values.dtype != torch.float32 or values.is_contiguous():
        return found.normal_(generator=generator)
    in_memory = found.permute(sorted(range(values.dim()), key=values.stride, reverse=True)).view(-1)
    largest = -(-min(len(in_memory), PART) // 2)
    pairs_N2, normals_N2 = torch.empty(2, largest, 2, dtype=torch.float64)  # made once: fresh memory costs as much as the sines
    several_3N = torch.empty(3, largest, dtype=torch.float64)
    for part in in_memory.split(PART):
        half = -(-len(part) // 2)
        pairs_n2, normals_n2, (angle_n, radius_n, cosine_n) = pairs_N2[:half], normals_N2[:half], several_3N[:, :half]
        torch.rand(half, 2, out=pairs_n2, generator=generator)
        torch.mul(pairs_n2[:, 0], 2 * math.pi, out=angle_n)
        torch.neg(pairs_n2[:, 1], out=radius_n).log1p_().mul_(-2).sqrt_()
        torch.mul(torch.cos(angle_n, out=cosine_n), radius_n, out=normals_n2[:, 0])
        torch.mul(angle_n.sin_(), radius_n, out=normals_n2[:, 1])
        normal_n = normals_n2.view(-1)[: len(part)]
        part.copy_(normal_n)
        dropped_n = normal_n.view(torch.int64).bitwise_and(2**29 - 1)  # bits that float32 has no room for; 2**28 is the middle
        if int(dropped_n.sub_(2**28).abs_().min()) < MARGIN:
            return found.normal_(generator=generator.set_state(before))
    return found
