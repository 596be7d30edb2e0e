"""Which blocks, bytes and files a fill means: arithmetic, decided before anything runs and handed to every executor."""

from dataclasses import dataclass
from typing import Mapping, Sequence

import numpy as np

from pipeline.store import Pass
from pipeline.targets.base import Field


@dataclass(frozen=True)
class Task:
    """One block of one view: the unit of work and of resume. `passes` are the folders that are still missing."""

    view: int
    block: int
    passes: tuple[str, ...]


def field_bytes(field: Field) -> int:
    return int(np.prod(field.shape, dtype=np.int64)) * np.dtype(field.dtype).itemsize


def row_bytes(pass_: Pass) -> int:
    """Bytes of one (image, view): the fields and a crc for each."""
    return sum(field_bytes(field) + 4 for field in pass_.fields.values())


def block_rows(num_images: int, passes: Sequence[Pass]) -> int:
    """Rows of a block: a power of two from 8 to 128, so that the largest file reaches 1-16 MB where the data allows, and a
    small dataset still has about 16 blocks to resume from."""
    largest = max(field_bytes(field) for pass_ in passes for field in pass_.fields.values())
    rows = 128
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
