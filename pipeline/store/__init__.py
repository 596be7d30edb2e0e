"""Rows in blocks on disk, format 1: bytes and their checks, without torch.

`store` writes (blocks, marks, identities, growth) by way of `files`, `reader` reads, `verification` finds faults and mends
them, `remote` is object storage, `plan` the arithmetic of a fill, `executors` run one.
"""

from pipeline.store.files import ImageRow, image_row
from pipeline.store.reader import Reader
from pipeline.store.store import ArrayGroup, Store

__all__ = ["ImageRow", "ArrayGroup", "Reader", "Store", "image_row"]
