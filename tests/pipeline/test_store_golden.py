"""Stores of format 1 as they were written first: whatever comes later reads them, goes on filling them, and writes the same.

tests/golden/store-v1/<codec>/ was made by `made` below and is never made again; rows.npz holds its rows, and nothing else
of this version. A format that can't be read any more is a new format, and needs a folder of its own.
"""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from toy_store import GRAPH, RECORD, create, fill, images, tree, values

from pipeline.store import ArrayGroup, Reader, Store
from pipeline.store.verification import verify
from pipeline.targets.base import Field

GOLDEN = Path(__file__).parents[1] / "golden/store-v1"
CODECS = ["raw", "zstd"]
KINDS = ArrayGroup(
    "kinds",
    {"type": "kinds", "version": 1},
    {"scale": Field((), "float32"), "code": Field((7,), "int32", ("bit",)), "matrix": Field((2, 3), "float64", ("row", "column"))},
)
PASSES, COUNT, VIEWS = [GRAPH, KINDS], 5, range(2)


def made(root, codec):
    """Three images, then two more, so there is a block with padding in the middle."""
    store = create(root / codec, codec=codec)
    for count in (3, COUNT):
        store.grow(images(count))
        fill(store, PASSES, VIEWS)
        store.finalise()
    return store


def golden(codec):
    (folder,) = (GOLDEN / codec).glob("roads/targets-*")
    return folder


def meant(pass_, view):
    with np.load(GOLDEN / "rows.npz") as rows:
        return {name: rows[f"{view}/{pass_.name}/{name}"] for name in pass_.fields}


@pytest.mark.parametrize("codec", CODECS)
def test_a_golden_store_is_whole_and_gives_its_rows(codec):
    store = Store.open(golden(codec))
    assert store.identity["record"] == RECORD and [row.id for row in store.images if row.id] == [row.id for row in images(COUNT)]
    assert verify(store) == []
    ids = [row.id for row in images(COUNT)]
    for memory in ("ram", "disk"):
        reader = Reader(store, PASSES, ids, len(VIEWS), memory=memory)
        for view in VIEWS:
            for pass_ in PASSES:
                found = reader.read(pass_, np.arange(COUNT), np.full(COUNT, view))
                assert all(
                    found[name].dtype == rows.dtype and np.array_equal(found[name], rows)
                    for name, rows in meant(pass_, view).items()
                )


@pytest.mark.parametrize("codec", CODECS)
def test_plain_zarr_gives_the_rows_of_a_golden_store(codec):
    group = zarr.open_group(golden(codec) / "targets.zarr", mode="r")
    rows = [0, 1, 2, 4, 5]  # three images in a block of four, and growth in a new block
    for view in VIEWS:
        for pass_ in PASSES:
            for name, wanted in meant(pass_, view).items():
                array = group[f"v{view:03d}/{pass_.folder}/{name}"]
                assert np.array_equal(array[:][rows], wanted) and array.dtype == wanted.dtype
                assert array.metadata.dimension_names == ("image", *pass_.fields[name].dims)


@pytest.mark.parametrize("codec", CODECS)
def test_this_version_writes_what_the_golden_store_holds(tmp_path, codec):
    ours, theirs = tree(made(tmp_path, codec).folder), tree(golden(codec))
    if codec != "raw":  # how a compressor spells the same rows is its own affair
        ours, theirs = (
            {
                path: data
                for path, data in files.items()
                if "/c." not in path and not path.startswith("done/") and path != "manifest.json"
            }
            for files in (ours, theirs)
        )
    assert ours == theirs


@pytest.mark.parametrize("codec", CODECS)
def test_a_golden_store_grows_without_a_byte_rewritten(tmp_path, codec):
    folder = shutil.copytree(golden(codec), tmp_path / "copy")
    before = tree(folder)
    store = Store.open(folder)
    store.grow(images(COUNT + 2))
    assert fill(store, PASSES, range(3)) == len(PASSES) * (2 * 1 + 3)  # the new block of two views, and a new view
    store.finalise()
    assert verify(Store.open(folder)) == []
    after = tree(folder)
    assert all(after[path] == data for path, data in before.items() if not path.endswith("zarr.json") and path != "manifest.json")


def test_the_golden_rows_are_those_the_toy_was_made_of():
    for view in VIEWS:
        for pass_ in PASSES:
            assert all(np.array_equal(meant(pass_, view)[name], rows) for name, rows in values(pass_, view, images(COUNT)).items())


def example():
    """The reader in docs/cache-format.md."""
    page = (Path(__file__).parents[2] / "docs/cache-format.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(code, names)
    return names["read_row"]


def test_the_reader_of_the_format_page_gives_the_golden_rows():
    read_row = example()
    for view in VIEWS:
        for pass_ in PASSES:
            for name, rows in meant(pass_, view).items():
                for image, row in zip(images(COUNT), rows):
                    found = read_row(golden("raw"), pass_.folder, name, image.id, view)
                    assert found.dtype == row.dtype and np.array_equal(found, row)


def test_the_reader_of_the_format_page_refuses_what_is_damaged(tmp_path):
    read_row, folder = example(), shutil.copytree(golden("raw"), tmp_path / "copy")
    store = Store.open(folder)
    arrays = store.arrays("v000", GRAPH.folder)
    for path in (
        folder / arrays["graph"].chunk_path(0),
        folder / arrays["graph_crc"].chunk_path(0),
        folder / "images/000000.tsv",
        store.mark_path("v000", GRAPH.folder, 0),
        folder / f"passes/{GRAPH.folder}.json",
        folder / "store.json",
    ):
        data = path.read_bytes()
        path.write_bytes(data[:9] + bytes([data[9] ^ 1]) + data[10:])
        with pytest.raises((AssertionError, ValueError, KeyError)):
            read_row(folder, GRAPH.folder, "graph", images(1)[0].id, 0)
        path.write_bytes(data)
