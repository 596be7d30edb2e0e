"""The store: what is written is what is read, what is not whole is refused, and the difference is named."""

import dataclasses
import json
import multiprocessing
import os
import resource
import shutil

import numpy as np
import pytest
import zarr
from google_crc32c import value as crc32c
from toy_store import GRAPH, MATRIX, PASSES, RECORD, VIEWS, create, fill, filled, images, tree, values

from pipeline.errors import CodeChanged, StoreError
from pipeline.identity import diff, digest_array, identity_digest, join_names, short
from pipeline.store import ArrayGroup, ImageRow, Store
from pipeline.store.files import Array, codec_chain, row_crcs, with_checksum
from pipeline.store.store import fits_chunk, head_fault, is_pass
from pipeline.store.verification import verify
from pipeline.targets.base import Field


def refused(action, *words):
    with pytest.raises(StoreError) as error:
        action()
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


# Bytes


def test_rows_come_back_through_zarr_by_name(tmp_path):
    store = filled(tmp_path, 10)
    group = zarr.open_group(store.folder / "targets.zarr", mode="r")
    for pass_ in PASSES:
        for view in VIEWS:
            for name, field in pass_.fields.items():
                array, meant = group[f"v{view:03d}/{pass_.folder}/{name}"], values(pass_, view, images(10))[name]
                assert array.shape == (12, *field.shape) and array.metadata.dimension_names == ("image", *field.dims)
                assert array.dtype == meant.dtype and np.array_equal(array[:10], meant)
                crcs = group[f"v{view:03d}/{pass_.folder}/{name}_crc"][:]
                assert [crc32c(row.tobytes()) for row in meant] == crcs[:10].tolist() and not crcs[10:].any()
    assert np.isnan(group[f"v000/{GRAPH.folder}/graph"][10:]).all()
    assert (group[f"v000/{GRAPH.folder}/cells"][10:] == 255).all()


@pytest.mark.parametrize("codec", ["raw", "lz4", "zstd"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int16", "int64"])
def test_files_are_those_zarr_itself_would_write(tmp_path, codec, dtype):
    dtype = np.dtype(dtype)
    fill_value = np.nan if dtype.kind == "f" else int(np.iinfo(dtype).max)
    ours = Array("a", (2, 3), dtype, ("y", "x"), 4, codec_chain(codec, dtype), fill_value)
    compressors = [zarr.codecs.Crc32cCodec()]
    if codec != "raw":
        compressors.insert(0, zarr.codecs.BloscCodec(cname=codec, shuffle="bitshuffle", typesize=dtype.itemsize))
    theirs = zarr.create_array(
        tmp_path / "a",
        shape=(8, 2, 3),
        chunks=(4, 2, 3),
        dtype=dtype,
        fill_value=fill_value,
        compressors=compressors,
        dimension_names=("image", "y", "x"),
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    assert json.loads(ours.metadata(8)) == json.loads((tmp_path / "a/zarr.json").read_bytes())
    rows = np.random.default_rng(0).integers(0, 99, (8, 2, 3)).astype(dtype)
    theirs[:] = rows
    for chunk in range(2):
        data = (tmp_path / ours.chunk_path(chunk)).read_bytes()
        assert ours.encode(rows[4 * chunk : 4 * chunk + 4]) == data
        assert np.array_equal(ours.decode(data), rows[4 * chunk : 4 * chunk + 4])


def test_a_row_of_fill_never_has_the_crc_of_fill():
    fills = {"float16": np.nan, "float32": np.nan, "float64": np.nan, "uint8": 255, "int32": 2**31 - 1}
    for dtype, fill_value in fills.items():
        for size in range(1, 200):
            assert row_crcs(np.full((1, size), fill_value, dtype))[0] != 0
    assert crc32c(b"\xff" * 4) == 0xFFFFFFFF  # the largest integer would not do


def test_the_bytes_of_format_1_stay_what_they_are(tmp_path):
    store = filled(tmp_path, 6, views=range(1))
    text = json.dumps({path: digest_array(np.frombuffer(data, np.uint8)) for path, data in tree(store.folder).items()})
    assert digest_array(np.frombuffer(text.encode(), np.uint8)) == "1829774170648a2c"


def test_chunk_rows_divide_the_block_and_keep_files_below_16_mb(tmp_path):
    store = create(tmp_path, block_rows=12)
    pass_ = ArrayGroup(
        "sample",
        {},
        {
            "image": Field((1000, 1000, 3), "uint8", ("y", "x", "rgb")),
            "huge": Field((5000, 5000), "uint8", ("Y", "X")),
            "flag": Field((), "uint8"),
        },
    )
    store.add_pass(pass_, range(1))
    rows = {name: array.chunk_rows for name, array in store.arrays("v000", pass_.folder).items()}
    assert rows == {"image": 4, "image_crc": 12, "huge": 1, "huge_crc": 12, "flag": 12, "flag_crc": 12}


@pytest.mark.parametrize("limit", [10**9, 100, 1], ids=["one file", "two files", "four files"])
def test_a_block_is_read_whole_whatever_its_files(tmp_path, monkeypatch, limit):
    monkeypatch.setattr("pipeline.store.store.MAX_CHUNK_BYTES", limit)
    store = filled(tmp_path, 6)
    for view, block in ((0, 0), (1, 1)):
        found, meant = (
            store.read_block(f"v{view:03d}", GRAPH.folder, block),
            values(GRAPH, view, images(6)[4 * block : 4 * block + 4]),
        )
        assert found.keys() == meant.keys()
        assert all(np.array_equal(found[name], rows) for name, rows in meant.items())


def test_digests_tell_dtype_shape_and_content_apart():
    base = np.arange(6, dtype=np.int32)
    others = [base.reshape(2, 3), base.astype(np.int64), base.astype(np.float32), base[::-1], base[:5]]
    assert len({digest_array(array) for array in [base, *others]}) == 6
    assert digest_array(base) == digest_array(np.arange(12, dtype=">i4")[:6]) and digest_array(None) == "-"
    assert identity_digest({"a": 1, "b": (1, 2)}) == identity_digest({"b": [1, 2], "a": 1})


def test_a_record_that_json_cannot_hold_has_no_digest():
    with pytest.raises(ValueError):
        identity_digest({"scale": float("nan")})


@pytest.mark.parametrize("count, said", [(1, "a"), (3, "a, b, c"), (4, "a, b, c and 1 more"), (5, "a, b, c and 2 more")])
def test_the_first_three_names_are_said(count, said):
    assert join_names(list("abcde")[:count]) == said


@pytest.mark.parametrize("length, said", [(58, f"'{'x' * 58}'"), (59, f"'{'x' * 56}...")])
def test_a_long_value_is_cut_at_60_characters(length, said):
    assert short("x" * length) == said


def test_a_difference_names_the_path_and_both_values():
    here = {"teacher": {"weights": "1a", "width": 64}, "size": [1, 2]}
    assert diff(here, {"teacher": {"weights": "9f", "width": 64}, "size": (1, 2)}) == ["teacher.weights: '1a' here, '9f' asked for"]
    assert diff(here, {"teacher": {"weights": "1a"}, "size": (1, 2), "fill": None}) == [
        "teacher.width: 64 here, nothing asked for",
        "fill: nothing here, None asked for",
    ]


# Identity


def test_an_equal_identity_opens_the_store_as_it_was_made(tmp_path):
    first = create(tmp_path)
    again = create(tmp_path, dict(reversed(RECORD.items())), block_rows=99, codec="lz4", card={})
    assert again.folder == first.folder and again.folder.name == f"targets-{identity_digest(RECORD)[:12]}"
    assert (again.block_rows, again.codec, again.card) == (4, "raw", {"licence": "CC0"})
    assert Store.find(tmp_path, "targets", "roads", RECORD).identity["record"] == RECORD


def test_another_identity_is_refused_by_its_difference_to_the_nearest(tmp_path):
    create(tmp_path)
    create(tmp_path, {"teacher": {"name": "vgg", "weights": "77"}, "size": [8, 8]})
    asked = {"teacher": {"name": "resnet101", "weights": "9f8e"}, "size": [16, 24]}
    message = refused(lambda: Store.find(tmp_path, "targets", "roads", asked), "teacher.weights: '1a2b' here, '9f8e' asked for")
    assert "vgg" not in message
    refused(lambda: Store.find(tmp_path, "prepared", "roads", asked), "no prepared store")
    refused(lambda: Store.find(tmp_path, "targets", "culane", asked), "no targets store")


def test_a_store_under_anothers_name_or_of_another_format_is_refused(tmp_path):
    store = create(tmp_path)
    other = store.folder.with_name(f"targets-{identity_digest({'a': 1})[:12]}")
    shutil.copytree(store.folder, other)
    refused(lambda: Store.find(tmp_path, "targets", "roads", {"a": 1}), "not what its name says", "teacher: ")
    refused(lambda: Store.open(tmp_path), "store.json")


# Growth


def test_growth_starts_a_new_block_and_rewrites_nothing(tmp_path):
    store = filled(tmp_path, 6)
    before = tree(store.folder)
    store.grow(images(9))
    assert [len(store.block_images(block)) for block in range(store.num_blocks)] == [4, 2, 3]
    ids = [row.id for row in images(9)]
    assert [row.id for row in store.images] == [*ids[:6], "", "", *ids[6:], ""]
    assert store.row_of[images(9)[8].id] == 10
    assert store.missing(GRAPH, 0) == [2]
    assert fill(store) == 2 * len(VIEWS) and fill(store) == 0
    after = tree(store.folder)
    changed = {path.rpartition("/")[2] for path, data in before.items() if after[path] != data}
    assert changed == {"zarr.json"}
    assert verify(store) == []
    store.finalise()
    assert verify(store) == []
    assert [row.id for row in Store.open(store.folder).images] == [row.id for row in store.images]


def test_views_and_passes_are_added_to_what_is_there(tmp_path):
    store = filled(tmp_path, 6, [MATRIX], range(1))
    before = tree(store.folder)
    fill(store)
    store.finalise()
    after = tree(store.folder)
    assert all(after[path] == data for path, data in before.items() if path != "manifest.json")
    assert verify(store) == [] and tree(filled(tmp_path / "at once", 6).folder) == after


def test_a_process_that_opened_before_another_grew_catches_up(tmp_path):
    store = filled(tmp_path, 6)
    stale = Store.open(store.folder)
    store.grow(images(9))
    stale.grow(images(11))
    assert [len(stale.block_images(block)) for block in range(stale.num_blocks)] == [4, 2, 3, 2]
    stale.add_pass(GRAPH, VIEWS)
    store.finalise()
    fill(store)
    store.finalise()
    assert verify(store) == []


def test_a_process_that_finalises_does_not_forget_what_another_has_grown_and_filled(tmp_path):
    store = filled(tmp_path, 6)
    other = Store.open(store.folder)
    other.grow(images(9))
    fill(other)
    other.finalise()
    before = (store.folder / "manifest.json").read_bytes()
    store.finalise()
    assert (store.folder / "manifest.json").read_bytes() == before and json.loads(before)["images"] == 9


def test_a_lost_list_of_images_is_missed_by_the_manifest_and_a_list_more_is_not(tmp_path):
    store = filled(tmp_path, 6)
    store.refuse_lost_lists()
    store.grow(images(9))
    store.refuse_lost_lists()
    store.image_file(2).unlink()
    store.image_file(1).unlink()
    refused(Store.open(store.folder).refuse_lost_lists, "000001.tsv", "knows 6 images", "name 4")


def test_changed_pixels_are_refused_and_changed_labels_are_not(tmp_path):
    store = filled(tmp_path, 6)
    rows = images(6)
    rows[3] = ImageRow(rows[3].id, "beef", rows[3].label_digest)
    refused(lambda: store.grow(rows), "the image of 'seq/03 ü.png' has changed", f"{3:016x} here", "beef asked for")
    rows[3] = ImageRow(rows[3].id, f"{3:016x}", "beef")
    store.grow(rows)
    assert store.num_blocks == 2
    rows[0] = ImageRow(rows[0].id, "beef", rows[0].label_digest)
    refused(lambda: store.grow(rows), "the image of 'seq/00 ü.png' has changed")


@pytest.mark.parametrize("bad", ["", "a\tb", "a\nb"])
def test_ids_that_do_not_fit_a_line_are_refused(tmp_path, bad):
    refused(lambda: create(tmp_path).grow([ImageRow(bad, "1", "-")]), repr(bad))


def test_an_id_that_comes_twice_is_refused(tmp_path):
    refused(lambda: create(tmp_path).grow([*images(3), *images(1)]), "seq/00 ü.png", "twice")


def test_ids_may_hold_any_other_character(tmp_path):
    odd = ["\r", "\x0b\x1c\u2028", "#", "\udcff", "a b", "\\t", '"', "日本"]
    store = create(tmp_path)
    store.grow([ImageRow(image_id, "1", "-") for image_id in odd])
    assert [row.id for row in Store.open(store.folder).images] == odd


# Passes


def test_a_pass_with_other_fields_is_refused(tmp_path):
    store = filled(tmp_path, 2)
    changed = ArrayGroup(GRAPH.name, GRAPH.record, {**GRAPH.fields, "cells": Field((4,), "uint8", ("region",))})
    refused(lambda: store.add_pass(changed, VIEWS), "cells.shape: [3] here, [4] asked for")
    assert ArrayGroup(GRAPH.name, {**GRAPH.record, "version": 2}, GRAPH.fields).folder != GRAPH.folder
    assert ArrayGroup("other", GRAPH.record, GRAPH.fields).digest8 != GRAPH.digest8


def test_rows_that_other_code_stored_are_refused_unless_any_code_will_do(tmp_path):
    old, new = (dataclasses.replace(GRAPH, code=code) for code in ("1a", "2b"))
    store = filled(tmp_path, 4, [old], range(1))
    for action in (lambda: store.check(images(4), range(1), [(new, True)]), lambda: store.add_pass(new, range(1))):
        with pytest.raises(CodeChanged, match=f"the code of the target affinity has changed since {GRAPH.folder} was stored"):
            action()
    store.check(images(4), range(1), [(new, True)], any_code=True)
    for pass_ in (old, GRAPH):  # of a pass without code nothing is known
        store.check(images(4), range(1), [(pass_, True)])
    store.vouch_for_code([new, MATRIX])
    assert store.codes() == {GRAPH.folder: "2b"} and store.other_code([old, new, MATRIX]) == [old]


@pytest.mark.parametrize(
    "change",
    [{"shape": "233"}, {"shape": [2, 0, 3]}, {"dims": "abc"}, {"dims": ["a", "b"]}, {"dims": ["a", "b", 3]}, {"dtype": "bool"}]
    + [{"chunk_rows": 0}, {"chunk_rows": 3}, {"codecs": {}}, {"codecs": ["bytes"]}, {"codecs": [{"name": "crc32c"}]}, {"more": 1}],
    ids=str,
)
def test_a_field_that_no_store_describes_so_is_refused(tmp_path, change):
    store = filled(tmp_path, 4, [GRAPH], range(1))
    path = store.pass_path(GRAPH.folder)
    content = store.pass_file(GRAPH.folder)
    content["fields"]["graph"] |= change
    path.write_bytes(sealed(content))
    refused(lambda: Store.open(store.folder).layout(GRAPH.folder), str(path), "the field 'graph' is not described as a store")


def test_fields_have_names_and_there_is_one_at_least(tmp_path):
    store = filled(tmp_path, 4, [GRAPH], range(1))
    path = store.pass_path(GRAPH.folder)
    content = store.pass_file(GRAPH.folder)
    graph = content["fields"]["graph"]
    for fields, words in (
        ({}, "has no fields"),
        ([], "has no fields"),
        ({"../x": graph}, "the field '../x' is no name"),
        ({"x_crc": graph}, "the field 'x_crc' is not described"),
    ):
        path.write_bytes(sealed(content | {"fields": fields}))
        refused(lambda: Store.open(store.folder).layout(GRAPH.folder), str(path), words)


# Blocks


@pytest.mark.parametrize(
    "field, change, words",
    [
        ("graph", lambda a: a[:, :1], ["'graph'", "(4, 1, 3, 3)", "(4, 2, 3, 3)", "seq/00"]),
        ("graph", lambda a: a[:3], ["'graph'", "(3, 2, 3, 3)"]),
        ("graph", lambda a: a.astype("float32"), ["'graph'", "float32", "float16"]),
        (
            "graph",
            lambda a: np.where(np.arange(4)[:, None, None, None] == 2, np.inf, a).astype("float16"),
            ["'graph'", "not finite", "seq/02"],
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused_by_field_and_image(tmp_path, field, change, words):
    store = create(tmp_path)
    store.grow(images(4))
    store.add_pass(GRAPH, range(1))
    rows = values(GRAPH, 0, images(4))
    refused(lambda: store.write_block(GRAPH, 0, 0, {**rows, field: change(rows[field])}), *words)
    refused(lambda: store.write_block(GRAPH, 0, 0, {field: rows[field]}), "cells")
    assert store.missing(GRAPH, 0) == [0]


def test_a_whole_block_is_left_alone_and_a_damaged_one_written_again(tmp_path):
    store = filled(tmp_path, 6)
    before = tree(store.folder)
    chunk = store.folder / store.arrays("v001", GRAPH.folder)["graph"].chunk_path(1)
    untouched = chunk.stat().st_ino
    rows = values(GRAPH, 1, store.block_images(1))
    store.write_block(GRAPH, 1, 1, {**rows, "cells": rows["cells"] + 1})
    assert tree(store.folder) == before and chunk.stat().st_ino == untouched
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    assert store.missing(GRAPH, 1) == [] and store.missing(GRAPH, 1, deep=True) == [1]
    store.write_block(GRAPH, 1, 1, rows)
    assert tree(store.folder) == before


def test_a_damaged_block_has_no_mark_while_its_files_change(tmp_path, monkeypatch):
    store = filled(tmp_path, 6)
    chunk = store.folder / store.arrays("v001", GRAPH.folder)["graph"].chunk_path(1)
    chunk.write_bytes(b"?" * chunk.stat().st_size)

    def full(files):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.store.store.write", full)
    with pytest.raises((OSError, StoreError)):
        store.write_block(GRAPH, 1, 1, values(GRAPH, 1, store.block_images(1)))
    assert not store.mark_path("v001", GRAPH.folder, 1).exists() and store.missing(GRAPH, 1) == [1]


def test_the_extent_that_is_taken_from_another_store_counts_for_all_passes(tmp_path):
    other = filled(tmp_path / "other", 10, [MATRIX], range(1))
    store = filled(tmp_path / "own", 4, [GRAPH], range(1))
    store.take_extent(other, [("v000", MATRIX.folder)])
    for group in (GRAPH, MATRIX):
        name = next(iter(group.fields))
        assert zarr.open_group(store.folder / "targets.zarr", mode="r")[f"v000/{group.folder}/{name}"].shape[0] == 12, group


def test_a_block_is_taken_over_from_a_store_of_the_same_images_alone(tmp_path):
    other = filled(tmp_path / "other", 6, [GRAPH], range(1))
    store = create(tmp_path / "own", RECORD | {"more": 1})
    stale = Store.open(store.folder)
    store.take_extent(other, [("v000", GRAPH.folder)])
    assert store.missing(GRAPH, 0) == [0, 1]
    store.take_over_block(other, "v000", GRAPH.folder, 1)
    assert store.missing(GRAPH, 0, deep=True) == [0]
    rows = store.read_block("v000", GRAPH.folder, 1)
    assert all(np.array_equal(rows[name], meant) for name, meant in values(GRAPH, 0, images(6)[4:]).items())
    strange = create(tmp_path / "strange")
    strange.grow(images(6, start=20))
    refused(lambda: stale.take_extent(strange, []), "000000.tsv: lists other images than")


def sealed(content):
    return with_checksum({key: value for key, value in content.items() if key != "checksum"})


def test_what_belongs_to_another_store_or_says_what_cannot_be_is_refused(tmp_path):
    store = filled(tmp_path, 6, [GRAPH], range(1))
    path, mark, head = store.pass_path(GRAPH.folder), store.mark_path("v000", GRAPH.folder, 0), store.folder / "store.json"
    before = {each: each.read_bytes() for each in (path, mark, head)}
    content, said = json.loads(before[path]), json.loads(before[mark])
    path.write_bytes(sealed(content | {"store": "0" * 64}))
    assert any(str(path) in fault for fault in verify(Store.open(store.folder)))
    path.write_bytes(before[path])
    for files in ([], {}, dict([*said["files"].items()][1:]), said["files"] | {"more": [8, "0123abcd"]}):
        mark.write_bytes(sealed(said | {"files": files}))
        assert store.missing(GRAPH, 0) == [0]
    mark.write_bytes(before[mark])
    assert verify(store) == []
    own = store.identity["digest"]
    for digest, passes, words in [
        ("0" * 64, {}, "belongs to another store"),
        (own, [], "does not say which code"),
        (own, {"a/b": "1"}, "does not say which code"),
        (own, {GRAPH.folder: 1}, "does not say which code"),
    ]:
        store.path("code.json").write_bytes(sealed({"store": digest, "passes": passes}))
        refused(store.codes, "code.json", words)
    head.write_bytes(sealed(json.loads(before[head]) | {"block_rows": 0}))
    refused(lambda: Store.open(store.folder), "store.json", "no number of rows")


@pytest.mark.parametrize(
    "folder, meant", [("affinity-0123abcd", True), ("affinity-0123abc", False), ("../a-0123abcd", False), ("a/-0123abcd", False)]
)
def test_a_pass_has_a_name_and_eight_digits(folder, meant):
    assert is_pass(folder) == meant


def test_what_a_mark_says_of_a_file_can_be(tmp_path):
    store = filled(tmp_path, 4, [GRAPH], range(1), codec="lz4")
    array = store.arrays("v000", GRAPH.folder)["graph"]
    assert fits_chunk([5, "0123abcd"], array)
    for other in ([4, "0123abcd"], [5, "0123abcd", 0], [5], [5.0, "0123abcd"], [5, 1], [5, "0123abc"], None):
        assert not fits_chunk(other, array)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("kind", "other", "holds 'other'"),
        ("codec", "gzip", "in the codec 'gzip'"),
        ("block_rows", 0, "no number of rows"),
        ("block_rows", 4.0, "no number of rows"),
        ("card", [], "or no card"),
        ("identity", {"record": [], "digest": "0"}, "not the digest"),
    ],
)
def test_what_a_store_says_of_itself_can_be(tmp_path, key, value, words):
    content = json.loads((filled(tmp_path, 4).folder / "store.json").read_text())
    assert head_fault(content) is None
    assert words in head_fault(content | {key: value})


@pytest.mark.parametrize(
    "harm", [lambda path: path.unlink(), lambda path: path.write_bytes(b""), lambda path: path.write_bytes(path.read_bytes()[:-1])]
)
@pytest.mark.parametrize("kind", ["graph", "cells_crc", "mark"])
def test_lost_or_cut_files_make_their_block_missing_and_only_it(tmp_path, harm, kind):
    store = filled(tmp_path, 10, [GRAPH])
    before = tree(store.folder)
    arrays = store.arrays("v002", GRAPH.folder)
    harm(store.mark_path("v002", GRAPH.folder, 1) if kind == "mark" else store.folder / arrays[kind].chunk_path(1))
    assert [store.missing(GRAPH, view) for view in VIEWS] == [[], [], [1]]
    refused(lambda: store.check(images(10), VIEWS, [(GRAPH, True)]), "1 of 3 blocks", GRAPH.folder, "view 2")
    store.check(images(4), VIEWS, [(GRAPH, True)])
    fill(store, [GRAPH])
    assert tree(store.folder) == before


def test_a_mark_from_another_store_or_place_counts_for_nothing(tmp_path):
    store = filled(tmp_path, 10)
    other = filled(tmp_path, 10, record={"teacher": "another"})
    shutil.rmtree(store.folder / "done/v000")
    shutil.copytree(other.folder / "done/v000", store.folder / "done/v000")
    assert store.missing(GRAPH, 0) == [0, 1, 2]
    shutil.copy(store.mark_path("v001", GRAPH.folder, 0), store.mark_path("v001", GRAPH.folder, 1))
    assert store.missing(GRAPH, 1) == [1]


def test_two_processes_fill_the_same_blocks_without_mixing_their_bytes(tmp_path):
    store = create(tmp_path)
    store.grow(images(38))
    for pass_ in PASSES:
        store.add_pass(pass_, VIEWS)

    def work(writer):  # each writes other values, as two unequal devices would
        mine = Store.open(store.folder)
        for pass_ in PASSES:
            for view in VIEWS:
                for block in range(mine.num_blocks):
                    rows = values(pass_, view, mine.block_images(block))
                    mine.write_block(pass_, view, block, {name: a + a.dtype.type(writer) for name, a in rows.items()})

    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=work, args=(number,)) for number in (0, 1)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    assert [process.exitcode for process in writers] == [0, 0]
    store.finalise()
    assert verify(store) == [] and not list(store.folder.rglob("*.tmp"))
    group, winners = zarr.open_group(store.folder / "targets.zarr", mode="r"), set()
    for view in VIEWS:
        for block in range(store.num_blocks):
            rows = values(GRAPH, view, store.block_images(block))
            found = {name: group[f"v{view:03d}/{GRAPH.folder}/{name}"][block * 4 :][: len(rows[name])] for name in rows}
            whose = [
                writer
                for writer in (0, 1)
                if all(np.array_equal(found[name], rows[name] + rows[name].dtype.type(writer)) for name in rows)
            ]
            assert len(whose) == 1
            winners |= set(whose)
    assert winners


def test_a_full_disk_is_a_message_and_the_fill_resumes(tmp_path):
    meant = tree(filled(tmp_path / "unbroken", 6).folder)
    store = create(tmp_path)
    store.grow(images(6))
    pid = os.fork()
    if pid == 0:  # a file size limit stands for a disk that fills up
        store.add_pass(MATRIX, VIEWS)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, 150))
        try:
            fill(store, [MATRIX])
        except StoreError as error:
            os._exit(0 if "File too large" in str(error) else 2)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    fill(store)
    store.finalise()
    assert tree(store.folder) == meant


# Extent


def test_what_a_run_asks_for_and_is_whole_is_not_refused(tmp_path):
    store = filled(tmp_path, 10)
    before = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")}
    store.check(images(10)[::-2], VIEWS, [(pass_, True) for pass_ in PASSES])
    store.grow(images(10))
    store.add_pass(GRAPH, VIEWS)
    store.finalise()
    assert {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")} == before


def test_what_is_not_as_asked_for_is_refused_by_its_difference(tmp_path):
    store = filled(tmp_path, 10)
    both = [(GRAPH, True), (MATRIX, False)]
    refused(lambda: store.check(images(12), VIEWS, both), "2 of 12 images", "seq/10", "seq/11")
    changed = images(10)
    changed[7] = ImageRow(changed[7].id, "beef", changed[7].label_digest)
    refused(lambda: store.check(changed, VIEWS, both), "the image of 'seq/07", f"{7:016x} here", "beef asked for")
    changed[7] = ImageRow(changed[7].id, f"{7:016x}", "beef")
    refused(lambda: store.check(changed, VIEWS, both), "the label of 'seq/07", "beef asked for", GRAPH.folder)
    store.check(changed, VIEWS, [(GRAPH, False), (MATRIX, False)])
    mid = ArrayGroup("affinity", {**GRAPH.record, "layer": "mid"}, GRAPH.fields)
    refused(lambda: store.check(images(10), VIEWS, [(mid, True)]), mid.folder, "layer: 'high' here, 'mid' asked for")
    logits = ArrayGroup("logits", {"type": "logits"}, MATRIX.fields)
    assert "nearest" not in refused(lambda: store.check(images(10), VIEWS, [(logits, True)]), "never stored")
    refused(lambda: store.check(images(10), range(4), both), "3 of 3 blocks", "view 3")
    store.grow(images(13))
    refused(lambda: store.check(images(13), VIEWS, both), "1 of 4 blocks", "no mark")
    store.check(images(10), VIEWS, both)


def test_the_digest_of_rows_depends_on_them_alone(tmp_path):
    store = filled(tmp_path, 10)
    asked = images(10)[2:7]
    digest = store.digest_of(asked, VIEWS, PASSES)
    elsewhere = create(tmp_path / "b", block_rows=3)
    elsewhere.grow(images(20)[::-1])
    fill(elsewhere, views=range(4))
    assert elsewhere.digest_of(asked[::-1], VIEWS, PASSES[::-1]) == digest
    assert elsewhere.digest_of(asked, range(4), PASSES) != digest
    assert store.digest_of(asked[1:], VIEWS, PASSES) != digest
    assert store.digest_of(asked, VIEWS, [GRAPH]) != digest
    assert store.digest_of([*asked[1:], ImageRow(asked[0].id, asked[0].image_digest, "-")], VIEWS, PASSES) != digest
    one = create(tmp_path / "c")
    one.grow(images(10))
    for pass_ in PASSES:
        one.add_pass(pass_, VIEWS)
        for view in VIEWS:
            for block in range(3):
                rows = values(pass_, view, one.block_images(block))
                if (pass_, view, block) == (GRAPH, 1, 1):
                    rows["cells"][0, 0] += 1
                one.write_block(pass_, view, block, rows)
    assert one.digest_of(asked, VIEWS, PASSES) != digest
    assert one.digest_of(asked[2:][-1:], VIEWS, PASSES) == store.digest_of(asked[2:][-1:], VIEWS, PASSES)


def test_the_digest_of_rows_is_taken_in_parts_and_is_that_of_the_whole(tmp_path, monkeypatch):
    store = filled(tmp_path, 10)
    digest = store.digest_of(images(10), VIEWS, PASSES)
    for at_once in (1, 3, 10):
        monkeypatch.setattr("pipeline.store.store.AT_ONCE", at_once)
        assert store.digest_of(images(10), VIEWS, PASSES) == digest


def test_the_manifest_says_what_is_whole_and_history_who_did_it(tmp_path):
    store = filled(tmp_path, 10, [GRAPH])
    store.grow(images(18))
    store.write_block(GRAPH, 1, 4, values(GRAPH, 1, store.block_images(4)))
    store.finalise()
    manifest = json.loads((store.folder / "manifest.json").read_text())
    assert manifest["images"] == 18
    blocks = {view: extent["blocks"] for view, extent in manifest["passes"][GRAPH.folder].items()}
    assert blocks == {"v000": [[0, 2]], "v001": [[0, 2], [4, 4]], "v002": [[0, 2]]}
    lines = [json.loads(line) for line in (store.folder / "history.jsonl").read_text().splitlines()]
    assert [line["action"] for line in lines] == ["create", "grow", "finalise", "grow", "finalise"]
    assert lines[1]["images"] == 10 and "zarr" in lines[0]["versions"]
