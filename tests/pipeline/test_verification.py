"""Verifying in threads finds the same as one after the other, in the same order; ranges are those of the rows; a repair mends."""

import dataclasses
import json

import numpy as np
import pytest
from toy_store import GRAPH, MATRIX, RECORD, VIEWS, create, fill, filled, images, tree, values

from pipeline.store import ArrayGroup, Store, verification
from pipeline.store.files import image_row, with_checksum
from pipeline.targets.base import Field

SAMPLE = ArrayGroup(
    "sample",
    {"type": "sample", "version": 1},
    {"image": Field((4, 6, 3), "uint8", ("y", "x", "rgb")), "label": Field((4, 6), "uint8", ("y", "x"))},
)


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


def test_the_range_of_large_integers_is_exact(tmp_path):
    pass_ = ArrayGroup("numbers", {"type": "numbers"}, {"x": Field((2,), "int32", ("x",))})
    store = create(tmp_path)
    store.grow(images(2))
    store.add_pass(pass_, range(1))
    store.write_block(pass_, 0, 0, {"x": np.array([[2**24 + 1, 0], [-(2**24) - 1, 5]], np.int32)})
    found = {}
    assert verification.verify(store, True, found) == []
    held = found[pass_.folder, "x"]
    assert (held.least, held.greatest, held.total) == (-(2**24) - 1, 2**24 + 1, 5)


def test_a_block_without_one_right_row_adds_nothing_to_the_ranges(tmp_path, monkeypatch):
    store = create(tmp_path)
    store.grow(images(6))
    store.add_pass(MATRIX, range(1))
    monkeypatch.setattr(Store, "_refuse_bad", lambda *given: None)
    for block, bad in ((0, slice(None)), (1, slice(1))):
        rows = values(MATRIX, 0, store.block_images(block))
        rows["matrix"][bad] = np.inf
        store.write_block(MATRIX, 0, block, rows)
    found = {}
    faults = verification.verify(store, True, found)
    assert len(faults) == 2 and "'seq/00 ü.png'" in faults[0] and "'seq/04 ü.png'" in faults[1] and "seq/05" not in faults[1]
    (held,) = found.values()
    right = values(MATRIX, 0, images(6))["matrix"][5]
    assert (held.rows, held.count, held.least, held.greatest) == (1, 6, right.min(), right.max())


def test_the_table_says_of_each_field_its_range_and_which_rows_are_zero():
    three = verification.Values.of(np.zeros((3, 2), np.float32), list("stu"))
    four = dataclasses.replace(three)
    four.add(verification.Values.of(np.zeros((1, 2), np.float32), ["v"]))
    some = verification.Values.of(np.array([[1, 2], [0, 0], [3, 6]], np.uint8), list("pqr"))
    none = verification.Values.of(np.array([[1.5, 2.5]]), ["a"])
    text = verification.table({("z-1", "three"): three, ("b-1", "some"): some, ("b-1", "none"): none, ("a-1", "four"): four})
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()] == [
        ["field", "type", "rows", "least", "mean", "greatest", "rows all zero"],
        ["---"] * 7,
        ["a-1/four", "float32", "4", "0", "0", "0", "4 (s, t, u, ...)"],
        ["b-1/none", "float64", "1", "1.5", "2", "2.5", "0"],
        ["b-1/some", "uint8", "3", "0", "2", "6", "1 (q)"],
        ["z-1/three", "float32", "3", "0", "0", "0", "3 (s, t, u)"],
    ]


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


def test_what_was_begun_and_is_not_filled_is_a_gap(tmp_path):
    empty, begun, store = create(tmp_path / "empty"), create(tmp_path / "begun"), create(tmp_path)
    empty.add_pass(GRAPH, range(1))
    begun.grow(images(6))
    for other in (empty, begun):
        assert verification.gaps(other) == [f"{other.folder}: holds no rows yet"]
    store.grow(images(6))
    fill(store, [GRAPH], range(1))
    store.add_pass(GRAPH, range(2))
    store.write_block(GRAPH, 1, 0, values(GRAPH, 1, images(4)))
    unfilled = f"{store.folder}: 1 of 2 blocks of {GRAPH.folder}, v001, are not filled (first: 1)"
    manifest, history = store.folder / "manifest.json", store.folder / "history.jsonl"
    found = verification.gaps(store)
    assert found[0] == unfilled and len(found) == 2 and f"{manifest}: missing or empty, so that blocks may be lost" in found[1]
    store.finalise()
    assert verification.gaps(store) == [unfilled]
    fill(store, [GRAPH], range(2))
    assert verification.gaps(store) == []
    history.write_bytes(b"")
    (found,) = verification.gaps(store)
    assert found.startswith(f"{history}: missing or empty, so that its origin may be lost")


def test_notes_that_no_checksum_covers_are_counted(tmp_path):
    store = filled(tmp_path, 4, [GRAPH], range(1))
    assert verification.unvouched(store) == []
    (store.folder / "skipped.tsv").write_text("image\treason\nbad.png\tcut off\n")
    (store.folder / "sources.tsv").write_text(f"{images(1)[0].id}\t5:0\nnobody.png\t5:0\nno one.png\t7:0\n")
    skipped, sources = verification.unvouched(store)
    assert skipped.startswith(f"{store.folder / 'skipped.tsv'}: no checksum covers these 1 notes; ")
    assert sources.startswith(f"{store.folder / 'sources.tsv'}: no checksum covers these 3 notes, 2 of no image here; ")


def test_rows_of_a_prepared_store_are_those_of_the_digests_in_its_list(tmp_path):
    draw = np.random.default_rng(0)
    rows = {name: draw.integers(0, 99, (6, *field.shape), np.uint8) for name, field in SAMPLE.fields.items()}
    listed = [image_row(f"{i}.png", {name: part[i] for name, part in rows.items()}) for i in range(6)]
    changed = {name: part.copy() for name, part in rows.items()}
    changed["label"][5, 0, 0] += 1
    for kind, given, faults in (("prepared", rows, 0), ("prepared", changed, 1), ("targets", changed, 0)):
        store = Store.create_or_open(tmp_path / f"{kind}-{faults}", kind, "roads", RECORD, block_rows=4, card={})
        store.grow(listed)
        store.add_pass(SAMPLE, range(1))
        for block in range(2):
            store.write_block(SAMPLE, 0, block, {name: part[4 * block : 4 * block + 4] for name, part in given.items()})
        found = verification.verify(store)
        assert len(found) == faults and all(fault.startswith(f"{store.folder}: the rows are not those") for fault in found)
        assert all("for image '5.png' (block 1 of" in fault for fault in found)


def test_images_of_a_damaged_chunk_are_named_and_padding_is_called_that(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.store.store.MAX_CHUNK_BYTES", 80)  # two graphs a file
    store = filled(tmp_path, 9, [GRAPH], range(1))
    graph = store.arrays("v000", GRAPH.folder)["graph"]
    assert graph.chunk_rows == 2
    for chunk, words in (
        (0, "images 'seq/00 ü.png' to 'seq/01 ü.png'"),
        (1, "images 'seq/02 ü.png' to 'seq/03 ü.png'"),
        (4, "images 'seq/08 ü.png' to 'seq/08 ü.png'"),
        (5, "padding"),
    ):
        path = store.folder / graph.chunk_path(chunk)
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        (fault,) = verification.verify(store)
        assert fault.endswith(f"damaged, its crc32c does not fit, {words} (block {chunk // 2} of {GRAPH.folder}, v000)")
        path.write_bytes(data)
    assert verification.verify(store) == []


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes() + b" ")])
def test_a_description_that_is_lost_or_changed_is_named_and_written_again(tmp_path, harm):
    store = filled(tmp_path, 6, [GRAPH], range(2))
    path = store.folder / store.arrays("v001", GRAPH.folder)["cells"].path / "zarr.json"
    before = tree(store.folder)
    harm(path)
    assert verification.verify(store) == [f"{path}: missing, or not what the store wrote (all blocks of {GRAPH.folder}, v001)"]
    assert verification.repair(store) == [f"{path}: written again"]
    assert tree(store.folder) == before and verification.verify(store) == []


def test_a_damaged_line_of_the_history_is_numbered_and_dropped(tmp_path):
    store = filled(tmp_path, 4, [GRAPH], range(1))
    path = store.folder / "history.jsonl"
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, b"?\n", *rest]))
    (fault,) = verification.verify(store)
    assert fault == f"{path}: damaged, its checksum does not fit (line 2)"
    assert verification.repair(store) == [f"{path}: 1 damaged lines dropped"]
    assert path.read_bytes().splitlines(keepends=True)[:-1] == [first, *rest]
    last = json.loads(path.read_bytes().splitlines()[-1])
    assert (last["action"], last["done"]) == ("repair", 1)
    before = path.read_bytes()
    assert verification.repair(store) == [] and path.read_bytes() == before  # nothing was done
    path.unlink()
    assert verification.repair(store) == [f"{path}: begun again"]
    actions = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [line["action"] for line in actions] == ["repair", "repair"] and actions[0]["history"] == "begun again"
    assert verification.verify(store) == []


def test_a_repair_removes_a_damaged_code_file_alone_and_begins_the_manifest_again(tmp_path):
    store = create(tmp_path)
    store.grow(images(4))
    fill(store, [dataclasses.replace(GRAPH, code="1a")], range(1))
    store.finalise()
    code, manifest = store.folder / "code.json", store.folder / "manifest.json"
    assert verification.repair(store) == [] and store.codes() == {GRAPH.folder: "1a"}
    code.write_bytes(code.read_bytes()[:-3])
    assert verification.repair(store) == [f"{code}: removed; which code stored the rows is not known any more"]
    assert not code.exists()
    before = manifest.read_bytes()
    manifest.unlink()
    assert verification.repair(store) == [f"{manifest}: written again"] and manifest.read_bytes() == before


def test_after_a_repair_the_manifest_promises_no_damaged_block(tmp_path):
    store = filled(tmp_path, 8, [GRAPH], range(1))
    chunk = store.folder / store.arrays("v000", GRAPH.folder)["graph"].chunk_path(1)
    chunk.write_bytes(b"?" * len(chunk.read_bytes()))
    assert verification.repair(store) == [f"{store.folder}: block 1 of {GRAPH.folder}, v000, is to be filled again"]
    assert verification.verify(store) == [] and store.missing(GRAPH, 0) == [1]


def test_a_pass_whose_description_is_damaged_is_named_once_and_a_repair_leaves_its_blocks(tmp_path):
    store = filled(tmp_path, 6, [GRAPH, MATRIX], range(1))
    path = store.pass_path(GRAPH.folder)
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    opened = Store.open(store.folder)
    assert verification.verify(opened) == [f"{path}: damaged, its checksum does not fit (all blocks of {GRAPH.folder})"]
    zarr_json = store.folder / store.arrays("v000", MATRIX.folder)["matrix"].path / "zarr.json"
    zarr_json.unlink()
    assert f"{zarr_json}: written again" in verification.repair(opened)
    path.write_bytes(data)
    assert Store.open(store.folder).missing(GRAPH, 0) == []


def test_what_the_manifest_promises_and_is_not_so_is_a_fault(tmp_path):
    store = filled(tmp_path, 8, [GRAPH], range(1))
    path, mark = store.folder / "manifest.json", store.mark_path("v000", GRAPH.folder, 1)
    data = path.read_bytes()
    whole = mark.read_bytes()
    mark.unlink()
    assert verification.verify(store) == [f"{mark}: missing (block 1 of {GRAPH.folder}, v000)"]
    rows = values(GRAPH, 0, images(8)[4:])
    store.write_block(GRAPH, 0, 1, rows | {"cells": rows["cells"] + np.uint8(1)})
    assert mark.read_bytes() != whole
    assert verification.verify(store) == [f"{path}: other blocks of {GRAPH.folder}, v000, were filled since; fill the store again"]
    content = {key: value for key, value in json.loads(data).items() if key != "checksum"}
    content["passes"][GRAPH.folder]["v000"]["blocks"] = [[0, 2]]
    path.write_bytes(with_checksum(content))
    (fault,) = verification.verify(store)
    assert fault.startswith(f"{path}: vouches for passes, views or blocks that this store has not")


def test_a_link_among_the_files_of_a_store_does_not_belong_there(tmp_path):
    store = filled(tmp_path, 4, [GRAPH], range(1))
    link, folder, unfinished = (store.folder / "images" / name for name in ("link", "folder", "unfinished.tmp"))
    link.symlink_to(tmp_path / "nowhere"), folder.mkdir(), unfinished.write_bytes(b"")
    assert verification.verify(store) == [f"{link}: does not belong here"]


@pytest.mark.parametrize(
    "passes",
    [
        None,
        [],
        {GRAPH.folder: []},
        {GRAPH.folder: {"v000": {"blocks": []}}},
        {GRAPH.folder: {"v000": {"marks": "a", "blocks": [1]}}},
    ]
    + [{GRAPH.folder: {"v000": {"marks": "a", "blocks": [[0]]}}}, {GRAPH.folder: {"v000": {"marks": 1, "blocks": []}}}],
)
def test_an_extent_that_no_store_writes_is_none(passes):
    assert verification.extents({"passes": passes}, 2) is None


def test_an_extent_with_names_that_are_no_stores_is_none(tmp_path):
    whole = {"passes": {GRAPH.folder: {"v000": {"marks": "a", "blocks": [[0, 1]]}}}}
    assert verification.extents(whole, 2) is not None
    for passes in ({"../x-0123abcd": whole["passes"][GRAPH.folder]}, {GRAPH.folder: {"v00": {"marks": "a", "blocks": [[0, 1]]}}}):
        assert verification.extents({"passes": passes}, 2) is None
    for blocks in ([[0, 2]], [[1, 0]], [[-1, 0]], [[0.0, 1]], [[0, 1.0]]):
        assert verification.extents({"passes": {GRAPH.folder: {"v000": {"marks": "a", "blocks": blocks}}}}, 2) is None
