"""A small store whose rows follow from image id, view and field, so that any row can be told from any other."""

import zlib

import numpy as np

from pipeline.store import ArrayGroup, ImageRow, Store
from pipeline.targets.base import Field

GRAPH = ArrayGroup(
    "affinity",
    {"type": "affinity", "version": 1, "layer": "high", "min_cells": [1, 2, 8]},
    {
        "graph": Field((2, 3, 3), "float16", ("moment", "region", "other")),
        "cells": Field((3,), "uint8", ("region",)),
    },
)
MATRIX = ArrayGroup("matrix", {"type": "matrix", "version": 1}, {"matrix": Field((2, 3), "float64", ("row", "column"))})
PASSES = [GRAPH, MATRIX]
VIEWS = range(3)
RECORD = {"teacher": {"name": "resnet101", "weights": "1a2b"}, "size": [16, 24]}


def images(count, start=0):
    return [ImageRow(f"seq/{i:02d} ü.png", f"{i:016x}", f"{i + 999:016x}") for i in range(start, start + count)]


def values(pass_, view, rows):
    """The rows of these images; never a fill value."""
    found = {}
    for name, field in pass_.fields.items():
        base = np.array([zlib.crc32(f"{name} {view} {row.id}".encode("utf-8", "surrogateescape")) for row in rows])
        numbers = (base[:, None] + 7919 * np.arange(np.prod(field.shape))) % 200
        found[name] = numbers.reshape(len(rows), *field.shape).astype(field.dtype)
    return found


def create(root, record=RECORD, **options):
    options = {"block_rows": 4, "card": {"licence": "CC0"}, **options}
    return Store.create_or_open(root, "targets", "roads", record, **options)


def fill(store, passes=PASSES, views=VIEWS):
    """Writes what is missing; returns how many blocks that were."""
    written = 0
    for pass_ in passes:
        store.add_pass(pass_, views)
        for view in views:
            for block in store.missing(pass_, view):
                store.write_block(pass_, view, block, values(pass_, view, store.block_images(block)))
                written += 1
    return written


def filled(root, count=10, passes=PASSES, views=VIEWS, **options):
    store = create(root, **options)
    store.grow(images(count))
    fill(store, passes, views)
    store.finalise()
    return store


def tree(folder):
    """Every file's bytes, but for the history and the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("history.jsonl", ".lock", ".in-use", "images.index")
    }
