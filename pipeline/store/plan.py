"""Which blocks, bytes and files a fill means: arithmetic, decided before anything runs and handed to every executor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.store.store import MAX_CHUNK_BYTES, ArrayGroup

if TYPE_CHECKING:
    from pipeline.targets.base import Field  # imports torch, which arithmetic can do without

MANY_BLOCKS = 2**14


@dataclass(frozen=True)
class Task:
    """One block of one view: the unit of work and of resume. `passes` are the folders that are still missing."""

    view: int
    block: int
    passes: tuple[str, ...]


def field_bytes(field: Field) -> int:
    return int(np.prod(field.shape, dtype=np.int64)) * np.dtype(field.dtype).itemsize


def row_bytes(pass_: ArrayGroup) -> int:
    """Bytes of one (image, view): the fields and a crc for each."""
    return sum(field_bytes(field) + 4 for field in pass_.fields.values())


def block_rows(num_images: int, passes: Sequence[ArrayGroup]) -> int:
    """Rows of a block: a power of two from 8 to 128, so that the largest file reaches 1-16 MB where the data allows, and a
    small dataset still has about 16 blocks to resume from. From two million images on up to 1,024, since every block is a
    file or more in the same few folders; a fill holds the images of a block in memory."""
    largest = max(field_bytes(field) for pass_ in passes for field in pass_.fields.values())
    rows = 128
    while rows < 1024 and num_images > MANY_BLOCKS * rows:
        rows *= 2
    while rows > 8 and (rows * 16 > num_images or rows * largest > 128 * 2**20):
        rows //= 2
    return rows


def tasks(missing: Mapping[tuple[int, str], Sequence[int]]) -> list[Task]:
    """(view, pass folder) -> missing blocks, turned into tasks: all passes of a block at once, so the teacher runs once."""
    wanted: dict[tuple[int, int], list[str]] = {}
    for (view, folder), blocks in missing.items():
        for block in blocks:
            wanted.setdefault((view, block), []).append(folder)
    return [Task(view, block, tuple(folders)) for (view, block), folders in sorted(wanted.items())]


@dataclass(frozen=True)
class Sizes:
    """What a cache will weigh. Bytes of a target are those of one (image, view), its crcs included."""

    num_images: int
    num_views: int
    rows_of_block: int
    target_bytes: Mapping[str, int]  # equal targets under two names are stored, and counted, once
    num_files: int
    probability_bytes: int  # of one view, for comparison: float16 class probabilities at input size
    feature_bytes: int  # and float16 features of all layers that the teacher names

    @property
    def num_blocks(self) -> int:
        return -(-self.num_images // self.rows_of_block)

    @property
    def row_bytes(self) -> int:
        return sum(self.target_bytes.values())

    @property
    def total_bytes(self) -> int:
        """Blocks are whole on disk, so the last one's padding counts."""
        return self.num_blocks * self.rows_of_block * self.num_views * self.row_bytes


def sizes(num_images: int, num_views: int, named: Mapping[str, ArrayGroup], always: ArrayGroup, context) -> Sizes:
    """`named` target passes beside the one that is `always` there (the views' matrices)."""
    passes = {pass_.folder: pass_ for pass_ in (always, *named.values())}
    target_bytes, counted = {always.name: row_bytes(always)}, {always.folder}
    for name, pass_ in named.items():
        target_bytes[name] = 0 if pass_.folder in counted else row_bytes(pass_)
        counted.add(pass_.folder)
    rows = block_rows(num_images, list(passes.values()))
    blocks = -(-num_images // rows)
    chunks = sum(
        -(-rows * field_bytes(field) // MAX_CHUNK_BYTES) + 1 for pass_ in passes.values() for field in pass_.fields.values()
    )
    area = context.size[0] * context.size[1]
    features = sum(2 * context.channels[role] * h * w for role, (h, w) in context.grids.items() if role != "logits")
    return Sizes(
        num_images,
        num_views,
        rows,
        target_bytes,
        blocks * num_views * (chunks + len(passes)) + blocks,
        2 * context.num_classes * area,
        features,
    )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Measured seconds."""

    teacher_s: float  # the bare teacher, one view
    answer_s: float  # with its targets, encoded, one view
    read_s: float  # the images of a block, once for all its views
    write_s: float  # one view of a block, its marks included
    verify_s: float  # the same
    student_s: float  # a plain step, one image

    def view_s(self, sizes: Sizes) -> float:
        """The whole fill, one view."""
        return self.answer_s + (self.write_s + self.read_s / sizes.num_views) / sizes.rows_of_block

    def fill_total_s(self, sizes: Sizes) -> float:
        return sizes.num_images * sizes.num_views * self.view_s(sizes)

    def verify_total_s(self, sizes: Sizes) -> float:
        return sizes.num_blocks * sizes.num_views * self.verify_s

    def break_even_epochs(self, sizes: Sizes) -> float:
        """Student epochs after which the fill has cost less than a teacher in every step: K fill / teacher."""
        return sizes.num_views * self.view_s(sizes) / self.teacher_s
