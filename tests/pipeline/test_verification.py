"""Verifying in threads finds the same as one after the other, in the same order; ranges are those of the rows."""

import numpy as np
import pytest
from toy_store import GRAPH, MATRIX, VIEWS, create, fill, filled, images, values

from pipeline.store import ArrayGroup, verification
from pipeline.targets.base import Field


def harm(store):
    """Faults of every kind: a cut chunk, a flipped byte in rows and in a crc array, a lost mark, a stranger."""

    def chunk(view, name, block):
        return store.folder / store.arrays(view, GRAPH.folder)[name].chunk_path(block)

    cut, flipped, crcs = chunk("v000", "graph", 1), chunk("v001", "cells", 4), chunk("v002", "graph_crc", 2)
    cut.write_bytes(cut.read_bytes()[:-9])
    for path in (flipped, crcs):
        data = bytearray(path.read_bytes())
        data[3] ^= 4
        path.write_bytes(data)
    store.mark_path("v001", MATRIX.folder, 3).unlink()
    (store.folder / "passes/x.txt").write_text("?")


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_threads_find_the_same_in_the_same_order(tmp_path, codec):
    store = filled(tmp_path, count=22, codec=codec)
    harm(store)
    alone, many = {}, {}
    faults = verification.verify(store, True, alone)
    assert len(faults) == 5 and [fault for fault in faults if "block 4" in fault]
    assert verification.verify(store, True, many, workers=3) == faults == verification.verify(store, workers=3)
    assert many == alone and verification.table(many) == verification.table(alone)
    done = verification.repair(store, workers=3)
    assert len(done) == 3 and all("is to be filled again" in line for line in done)
    assert fill(store) == 4  # the mark that was lost as well
    store.finalise()
    assert [fault for fault in verification.verify(store, workers=2) if "passes/x.txt" not in fault] == []


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8", "int32"])
def test_the_ranges_are_those_of_the_rows(tmp_path, dtype):
    pass_ = ArrayGroup("numbers", {"type": "numbers"}, {"x": Field((5, 3), dtype, ("y", "x"))})
    store = create(tmp_path)
    store.grow(images(10))
    fill(store, [pass_])
    found = {}
    assert verification.verify(store, True, found, workers=2) == []
    held = found[pass_.folder, "x"]
    meant = np.stack([values(pass_, view, images(10))["x"] for view in VIEWS]).astype(np.float64)
    assert (held.dtype, held.rows, held.count, held.zero_rows) == (np.dtype(dtype), 30, meant.size, 0)
    assert (held.least, held.greatest) == (meant.min(), meant.max()) and np.isclose(held.total, meant.sum(), rtol=1e-12)


def test_rows_that_are_all_zero_are_counted_and_three_are_named(tmp_path):
    pass_ = ArrayGroup("numbers", {"type": "numbers"}, {"x": Field((4,), "float16", ("x",))})
    store = create(tmp_path)
    store.grow(images(9))
    store.add_pass(pass_, range(1))
    for block in range(store.num_blocks):
        rows = values(pass_, 0, store.block_images(block))
        rows["x"][1:] = 0
        store.write_block(pass_, 0, block, rows)
    found = {}
    verification.verify(store, True, found)
    held = found[pass_.folder, "x"]
    assert held.zero_rows == 6 and held.zero_ids == [images(9)[i].id for i in (1, 2, 3)]


@pytest.mark.parametrize("faster", ["fill", "repair"])
def test_a_block_that_others_mended_while_a_repair_looked_is_left_to_them(tmp_path, monkeypatch, faster):
    store = filled(tmp_path, 8)
    chunk = store.folder / store.arrays("v000", GRAPH.folder)["graph"].chunk_path(1)
    chunk.write_bytes(b"?" * len(chunk.read_bytes()))
    mark, claimed = store.mark_path("v000", GRAPH.folder, 1), verification.claim_block

    def after_others(path):
        if faster == "fill":
            store.write_block(GRAPH, 0, 1, values(GRAPH, 0, store.block_images(1)))
        else:
            path.unlink()
        return claimed(path)

    monkeypatch.setattr(verification, "claim_block", after_others)
    assert verification.repair(store) == []
    assert mark.exists() == (faster == "fill") and not mark.with_name(mark.name + ".tmp").exists()


def test_a_repair_writes_the_description_of_a_damaged_pass_alone(tmp_path):
    store = filled(tmp_path, 6, [GRAPH], VIEWS)
    path = store.pass_path(GRAPH.folder)
    before = path.read_bytes()
    assert verification.repair(store, [GRAPH, MATRIX]) == []
    assert not store.pass_path(MATRIX.folder).exists()
    path.write_bytes(before[:-3])
    assert verification.repair(store) == []  # nobody says what the pass is
    assert verification.repair(store, [GRAPH, MATRIX]) == [f"{path}: written again"]
    assert path.read_bytes() == before and not store.pass_path(MATRIX.folder).exists() and verification.verify(store) == []


def test_an_extent_with_names_that_are_no_stores_is_none(tmp_path):
    whole = {"passes": {GRAPH.folder: {"v000": {"marks": "a", "blocks": [[0, 1]]}}}}
    assert verification.extents(whole, 2) is not None
    for passes in ({"../x-0123abcd": whole["passes"][GRAPH.folder]}, {GRAPH.folder: {"v00": {"marks": "a", "blocks": [[0, 1]]}}}):
        assert verification.extents({"passes": passes}, 2) is None
    for blocks in ([[0, 2]], [[1, 0]], [[-1, 0]], [[0.0, 1]], [[0, 1.0]]):
        assert verification.extents({"passes": {GRAPH.folder: {"v000": {"marks": "a", "blocks": blocks}}}}, 2) is None
