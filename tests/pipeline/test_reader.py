"""Both ways of reading give the stored rows bit for bit, or refuse; verify names the file of every flipped byte."""

import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from toy_store import GRAPH, MATRIX, PASSES, VIEWS, create, fill, filled, images, values

from pipeline.errors import StoreError
from pipeline.progress import byte_size
from pipeline.store import ArrayGroup, ImageRow, Reader, Store
from pipeline.store import reader as module
from pipeline.store.files import check_and_parse, images_tsv, parse_images, with_checksum
from pipeline.store.reader import ChunkCache, free_bytes
from pipeline.store.verification import verify
from pipeline.targets.base import Field

IDS = [row.id for row in images(10)]


def asked(count=40, ids=IDS):
    generator = np.random.default_rng(0)
    return generator.integers(0, len(ids), count), generator.integers(0, len(VIEWS), count)


@pytest.mark.parametrize("codec", ["raw", "lz4", "zstd"])
@pytest.mark.parametrize("memory", ["ram", "disk"])
def test_rows_are_those_that_were_written_and_those_zarr_reads(tmp_path, codec, memory):
    store = filled(tmp_path, 10, codec=codec)
    store.grow(images(13))  # positions are not row indices: two rows of padding lie between
    fill(store)
    ids = [row.id for row in images(13)][::-1]
    reader = Reader(store, PASSES, ids, len(VIEWS), memory=memory)
    positions, views = asked(ids=ids)
    group = zarr.open_group(store.folder / "targets.zarr", mode="r")
    for pass_ in PASSES:
        found = reader.read(pass_, positions, views)
        assert set(found) == set(pass_.fields)
        for name, rows in found.items():
            meant = [values(pass_, view, [images(13)[12 - position]])[name][0] for position, view in zip(positions, views)]
            theirs = [
                group[f"v{view:03d}/{pass_.folder}/{name}"][store.row_of[ids[position]]] for position, view in zip(positions, views)
            ]
            assert rows.dtype == pass_.fields[name].dtype and rows.flags.c_contiguous
            assert rows.tobytes() == np.stack(meant).tobytes() == np.stack(theirs).tobytes()


def test_chunks_smaller_than_a_block_are_read_at_the_right_place(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.store.store.MAX_CHUNK_BYTES", 100)  # two graphs, or two matrices, a file
    store = filled(tmp_path, 10)
    rows = {name: array.chunk_rows for name, array in store.arrays("v000", GRAPH.folder).items()}
    assert rows == {"graph": 2, "graph_crc": 4, "cells": 4, "cells_crc": 4}
    monkeypatch.undo()
    positions, views = asked()
    for memory in ("ram", "disk"):
        found = Reader(store, [GRAPH], IDS, len(VIEWS), memory=memory).read(GRAPH, positions, views)
        for i, (position, view) in enumerate(zip(positions, views)):
            assert np.array_equal(found["graph"][i], values(GRAPH, view, [images(10)[position]])["graph"][0])
    assert verify(store) == []


def test_memory_goes_to_the_smallest_passes_and_the_log_says_so(tmp_path):
    store = filled(tmp_path, 10)
    sizes = {
        pass_.folder: 30 * sum(np.dtype(f.dtype).itemsize * int(np.prod(f.shape)) for f in pass_.fields.values())
        for pass_ in PASSES
    }
    assert sizes[GRAPH.folder] == 30 * 39 < sizes[MATRIX.folder] == 30 * 48

    def strategy(**options):
        return Reader(store, PASSES, IDS, len(VIEWS), **options).strategy.split("; ")

    assert strategy() == [f"{GRAPH.folder}: 1.2 kB in RAM", f"{MATRIX.folder}: 1.4 kB in RAM"]
    assert strategy(limit_bytes=30 * 39 + 5)[0].endswith("in RAM")
    assert strategy(limit_bytes=30 * 39 + 5)[1].endswith("from disk")
    assert all(text.endswith("from disk") for text in strategy(memory="disk"))
    assert free_bytes() > 2**20


@pytest.mark.parametrize(
    "free, places",
    [
        (2 * 30 * 39 - 2, ["from disk", "from disk"]),
        (2 * 30 * 39, ["on cpu", "from disk"]),
        (2 * 30 * 87 - 2, ["on cpu", "from disk"]),
        (2 * 30 * 87, ["on cpu", "on cpu"]),
    ],
)
def test_half_of_what_is_free_on_the_device_goes_to_the_smallest_passes(tmp_path, monkeypatch, free, places):
    monkeypatch.setattr(module, "free_device_bytes", lambda device: free)
    store = filled(tmp_path, 10)

    def reader(**options):
        return Reader(store, PASSES, IDS, len(VIEWS), limit_bytes=0, device="cpu", **options)

    assert [text.split("B ")[1] for text in reader().strategy.split("; ")] == places
    assert reader().resident == ("from disk" not in places)
    assert reader(memory="disk").strategy.count("from disk") == 2
    assert not any("cpu" in text for text in reader(host=[GRAPH]).strategy.split("; ") if text.startswith(GRAPH.folder))


def test_rows_on_a_device_are_those_that_were_written_whatever_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.store.store.MAX_CHUNK_BYTES", 100)  # two graphs a file
    store = filled(tmp_path, 10)
    ids = IDS[::-1][:7]
    reader = Reader(store, PASSES, ids, len(VIEWS), memory="device", device="cpu", host=[MATRIX])
    positions, views = asked(ids=ids)
    for pass_, kind in ((GRAPH, torch.Tensor), (MATRIX, np.ndarray)):
        for name, rows in reader.read(pass_, positions, views).items():
            meant = [values(pass_, view, [images(10)[9 - position]])[name][0] for position, view in zip(positions, views)]
            assert isinstance(rows, kind) and np.array_equal(rows, np.stack(meant))
    assert reader.resident and not reader.remote
    path = store.folder / store.arrays("v000", GRAPH.folder)["graph"].chunk_path(4)
    shutil.copy(store.folder / store.arrays("v001", GRAPH.folder)["graph"].chunk_path(4), path)
    with pytest.raises(StoreError, match="'seq/09 ü.png', view 0, field 'graph' .* is not what was written"):
        Reader(store, [GRAPH], ids, len(VIEWS), memory="device", device="cpu")


def test_without_a_device_not_a_byte_goes_there(tmp_path):
    pass_ = ArrayGroup("flag", {"type": "flag"}, {"flag": Field((), "uint8")})
    store = filled(tmp_path, 2, [pass_], range(1))
    for ids in ([], IDS[:1]):
        for memory, place in (("auto", "in RAM"), ("disk", "from disk")):
            reader = Reader(store, [pass_], ids, 1, memory=memory)
            assert reader.strategy == f"{pass_.folder}: {byte_size(len(ids))} {place}"
            found = reader.read(pass_, np.arange(len(ids)), np.zeros(len(ids), int))["flag"]
            assert isinstance(found, np.ndarray) and found.tolist() == values(pass_, 0, images(len(ids)))["flag"].tolist()


def test_free_memory_is_the_machine_s_or_the_container_s_where_that_is_less(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "Path", lambda text: tmp_path / Path(text).name)
    assert free_bytes() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    (tmp_path / "meminfo").write_text("MemTotal:  9 kB\nMemFree:  1 kB\nMemAvailable:  4 kB\n")
    assert free_bytes() == 4096
    for limit, free in (("max", 4096), ("4097", 4096), ("1000", 1000)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert free_bytes() == free


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_workers_read_the_same(tmp_path, start):
    store = filled(tmp_path, 10)
    positions, views = asked()
    zarr.open_group(store.folder / "targets.zarr")[f"v000/{GRAPH.folder}/graph"][:]  # its threads must not matter
    readers = [Reader(store, [MATRIX], IDS, len(VIEWS), memory=memory) for memory in ("ram", "disk")]
    meant = readers[0].read(MATRIX, positions, views)["matrix"]
    with ProcessPoolExecutor(1 if start == "spawn" else 2, multiprocessing.get_context(start)) as pool:
        found = [pool.submit(reader.read, MATRIX, positions, views) for reader in readers * 2]
        assert all(np.array_equal(each.result(60)["matrix"], meant) for each in found)


def test_a_reader_keeps_reading_while_the_store_grows(tmp_path):
    store = filled(tmp_path, 10)
    positions, views = asked()
    readers = [Reader(store, PASSES, IDS, len(VIEWS), memory=memory) for memory in ("ram", "disk")]
    meant = readers[0].read(GRAPH, positions, views)["graph"]
    other = Store.open(store.folder)
    other.grow(images(17))
    fill(other, views=range(4))
    other.finalise()
    for reader in [*readers, Reader(store, PASSES, IDS, len(VIEWS)), pickle.loads(pickle.dumps(readers[1]))]:
        assert np.array_equal(reader.read(GRAPH, positions, views)["graph"], meant)


def test_what_is_not_there_is_refused(tmp_path):
    store = filled(tmp_path, 10, [GRAPH])
    with pytest.raises(StoreError, match="1 of 2 images are not in it: 'nobody'"):
        Reader(store, [GRAPH], [IDS[0], "nobody"], 1)
    with pytest.raises(StoreError, match="never stored"):
        Reader(store, [MATRIX], IDS, 1)
    with pytest.raises(StoreError, match="v003"):
        Reader(store, [GRAPH], IDS, 4)
    store.grow(images(11))
    with pytest.raises(StoreError, match="no mark"):
        Reader(store, [GRAPH], [row.id for row in images(11)], 1)
    with pytest.raises(StoreError, match="not in it"):
        Reader(store, [GRAPH], [""], 1)  # padding has no name to ask for


# Whole chunks


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_chunks_fetched_ahead_are_those_that_are_not_held_and_are_read_from_memory(tmp_path, monkeypatch, codec):
    store, fetched, whole = filled(tmp_path, 10, codec=codec), [], Reader._chunk
    reader = Reader(store, PASSES, IDS, len(VIEWS), limit_bytes=30 * 39)  # of the graphs
    monkeypatch.setattr(Reader, "_chunk", lambda self, path: fetched.append(path) or whole(self, path))
    words = "from disk" + (", decompressed" if codec == "zstd" else "")
    assert reader.strategy.endswith(words) and not reader.resident
    reader.keep_chunks(8)
    assert ("from disk, by whole chunks, those of 8 images kept" + words.removeprefix("from disk")) in reader.strategy
    positions, views = np.array([1, 0, 9, 1]), np.array([0, 0, 2, 2])
    matrices = [store.arrays(f"v{view:03d}", MATRIX.folder)["matrix"] for view in VIEWS]
    for _ in range(2):
        reader.fetch(positions, views)
        assert sorted(fetched) == [matrices[0].chunk_path(0), matrices[2].chunk_path(0), matrices[2].chunk_path(2)]
    found = reader.read(MATRIX, positions, views)["matrix"]
    meant = [values(MATRIX, view, [images(10)[position]])["matrix"][0] for position, view in zip(positions, views)]
    assert np.array_equal(found, np.stack(meant)) and len(fetched) == 3
    reader.read(MATRIX, np.array([1, 4]), np.array([1, 1]))
    assert sorted(fetched[3:]) == [matrices[1].chunk_path(0), matrices[1].chunk_path(1)]


def test_chunks_that_were_used_last_are_kept():
    cache, none = ChunkCache(5), ChunkCache(0)
    chunks = {number: np.full((2, 1), number, np.uint8) for number in range(5)}
    for number in (0, 1, 2, 0, 3):  # three chunks hold five rows
        cache.put("a", number, chunks[number])
    cache.put("b", 1, chunks[4])
    assert [number for number in range(4) if cache.get("a", number) is chunks[number]] == [0, 2, 3]
    assert cache.get("a", 1) is None and cache.get("b", 1) is chunks[4] and cache.get("c", 0) is None
    none.put("a", 0, chunks[0])
    assert none.get("a", 0) is None and none.num_rows == 0
    again = pickle.loads(pickle.dumps(cache))
    assert again.num_rows == 5 and again.get("a", 0) is None


# Damage


def reads_wrongly(folder, memory):
    """Whether any row comes back other than it was written; False if reading is refused."""
    try:
        store = Store.open(folder)
        store.check(images(6), range(2), [(pass_, True) for pass_ in PASSES])
        reader = Reader(store, PASSES, IDS[:6], 2, memory=memory)
        for view in range(2):
            for pass_ in PASSES:
                found = reader.read(pass_, np.arange(6), np.full(6, view))
                meant = values(pass_, view, images(6))
                if any(found[name].tobytes() != meant[name].tobytes() for name in meant):
                    return True
    except StoreError:
        pass
    return False


def faults(folder):
    try:
        return verify(Store.open(folder))
    except StoreError as error:
        return [str(error)]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("small"), 6, views=range(2)).folder


def data_files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def test_a_flipped_byte_anywhere_is_named_and_no_wrong_row_is_read(small):
    generator = np.random.default_rng(0)
    for path in data_files(small):
        data = path.read_bytes()
        for position in {0, len(data) - 1, *generator.integers(0, len(data), 2).tolist()}:
            harmed = bytearray(data)
            harmed[position] ^= 1 << generator.integers(8)
            path.write_bytes(harmed)
            found = faults(small)
            assert found and any(str(path) in fault for fault in found), (path, position)
            if "c." in path.name or "done" in path.parts:
                assert any("block" in fault for fault in found)
            assert not reads_wrongly(small, "disk") and not reads_wrongly(small, "ram"), (path, position)
        path.write_bytes(data)
    assert faults(small) == []


def test_a_lost_emptied_cut_or_lengthened_file_is_named_and_no_wrong_row_is_read(small):
    for path in data_files(small):
        data = path.read_bytes()
        for content in (None, b"", data[: len(data) // 2], data + b"\0"):
            if content is None and path.name in ("history.jsonl", "manifest.json"):
                continue  # a store that was never finalised has neither
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)
            named = path if path.suffix != ".tsv" or content is not None or path.name == "000000.tsv" else "zarr.json"
            if content != b"" or path.name != "history.jsonl":
                assert any(str(named) in fault for fault in faults(small)), (path, content)
            assert not reads_wrongly(small, "disk") and not reads_wrongly(small, "ram"), (path, content)
        path.write_bytes(data)
    assert faults(small) == []


def test_strays_are_named_and_leftovers_and_neighbours_are_not(small):
    top = small / "targets.zarr"
    strays = [
        small / "images/note.txt",
        top / "v000/foo",
        top / f"v000/{GRAPH.folder}/graph/c.9.0.0.0",
        small / "done/v000/000009.00000000.json",
        small / "passes/old.json",
    ]
    harmless = [small / "done/v000/000001.0.json.tmp", small / "sources.tsv", top / f"v001/{GRAPH.folder}/cells/c.0.0.tmp"]
    for path in strays + harmless:
        path.write_text("x")
    found = faults(small)
    assert all(any(str(path) in fault for fault in found) for path in strays) and len(found) == len(strays)
    for path in strays + harmless:
        path.unlink()
    assert faults(small) == []


def test_files_of_equal_size_that_changed_places_are_noticed(small):
    first, second = Store.open(small).arrays("v000", MATRIX.folder), Store.open(small).arrays("v001", MATRIX.folder)
    for name in ("matrix", "matrix_crc"):
        a, b = small / first[name].chunk_path(0), small / second[name].chunk_path(0)
        before = a.read_bytes(), b.read_bytes()
        a.write_bytes(before[1])
        b.write_bytes(before[0])
        for memory in ("ram", "disk"):
            with pytest.raises(StoreError, match="not what was written" if name == "matrix" else "crc32c"):
                reader = Reader(Store.open(small), [MATRIX], IDS[:6], 2, memory=memory)
                reader.read(MATRIX, np.arange(6), np.zeros(6, int))
        assert {path for path in (a, b) if any(f"{path}:" in fault for fault in faults(small))} == {a, b}
        a.write_bytes(before[0])
        b.write_bytes(before[1])


def test_a_wrong_row_is_refused_by_image_view_field_and_block(tmp_path):
    store = filled(tmp_path, 10)
    reader = Reader(store, PASSES, IDS, len(VIEWS), memory="disk")
    path = store.folder / store.arrays("v002", GRAPH.folder)["graph"].chunk_path(1)
    data = path.read_bytes()
    path.write_bytes(data[: 36 + 4] + bytes([data[40] ^ 1]) + data[41:])
    assert len(reader.read(GRAPH, np.array([4, 6, 5]), np.array([2, 2, 1]))["graph"]) == 3
    message = r"image 'seq/05 ü.png', view 2, field 'graph' of affinity-\w{8} \(block 1\)"
    with pytest.raises(StoreError, match=message):
        reader.read(GRAPH, np.array([4, 5]), np.array([2, 2]))
    with pytest.raises(StoreError, match="damaged"):
        Reader(store, [GRAPH], IDS, len(VIEWS), memory="ram")
    assert any("block 1" in fault and "images 'seq/04 ü.png' to 'seq/07" in fault for fault in verify(store))


def test_arrays_that_are_described_otherwise_are_refused(tmp_path):
    store = filled(tmp_path, 10, [GRAPH])
    path = store.folder / store.arrays("v001", GRAPH.folder)["cells"].path / "zarr.json"
    data = path.read_bytes()
    for other in (data.replace(b'"uint8"', b'"int8"'), data[:-1], b"[]", b'{"shape": []}', b"[" * 100_000):
        path.write_bytes(other)
        with pytest.raises(StoreError, match=f"{path}: does not describe .*/cells as it was written; verify the store"):
            Reader(store, [GRAPH], IDS, len(VIEWS))
    path.write_bytes(data)
    Reader(store, [GRAPH], IDS, len(VIEWS))


@pytest.mark.parametrize("size", [0, 3])
def test_a_chunk_too_short_for_a_crc_is_damaged(tmp_path, size):
    store = filled(tmp_path, 4, [GRAPH], range(1))
    path = store.folder / store.arrays("v000", GRAPH.folder)["graph"].chunk_path(0)
    path.write_bytes(b"\0" * size)
    with pytest.raises(StoreError, match=f"{path}: damaged, its crc32c does not fit"):
        Reader(store, [GRAPH], IDS[:4], 1, memory="ram")


@pytest.mark.parametrize("codec", ["raw", "lz4"])
def test_fill_is_never_read(tmp_path, codec):
    store = filled(tmp_path, 10, codec=codec)
    reader = Reader(store, [GRAPH], IDS, len(VIEWS), memory="disk")
    array = store.arrays("v000", GRAPH.folder)["cells"]
    (store.folder / array.chunk_path(0)).unlink()  # zarr would now hand out 255
    assert (zarr.open_array(store.folder / array.path)[:4] == 255).all()
    with pytest.raises(StoreError, match="No such file"):
        reader.read(GRAPH, np.array([1]), np.array([0]))
    (store.folder / array.chunk_path(0)).write_bytes(array.encode(np.full((4, 3), 255, np.uint8)))
    with pytest.raises(StoreError, match="not what was written"):
        reader.read(GRAPH, np.array([1]), np.array([0]))


def test_rows_that_are_not_finite_are_found(tmp_path, monkeypatch):
    store = create(tmp_path)
    store.grow(images(6))
    store.add_pass(GRAPH, range(1))
    rows = values(GRAPH, 0, images(4))
    rows["graph"][2, 0, 0, 0] = np.nan
    monkeypatch.setattr(Store, "_refuse_bad", lambda *given: None)
    store.write_block(GRAPH, 0, 0, rows)
    (fault,) = verify(store)
    assert "not finite" in fault and "seq/02" in fault and "block 0" in fault and "seq/01" not in fault
    assert verify(store, deep=False) == []


def test_verify_names_blocks_that_were_whole_once(small, tmp_path):
    folder = shutil.copytree(small, tmp_path / "copy")
    store = Store.open(folder)
    store.mark_path("v001", GRAPH.folder, 1).unlink()
    (fault,) = verify(store)
    assert f"block 1 of {GRAPH.folder}, v001" in fault
    shutil.rmtree(folder / "targets.zarr/v001" / GRAPH.folder)
    assert any("v001" in fault for fault in verify(store))


def test_every_byte_of_sealed_json_and_of_a_list_of_images_counts(tmp_path):
    for data, parse in [
        (with_checksum({"a": [1, 2.5, "ü\n"], "b": {}}), check_and_parse),
        (with_checksum({"a": 1}, indent=None), check_and_parse),
        (images_tsv([ImageRow("x y", "ab", "-"), ImageRow("\udcff", "1", "2")]), parse_images),
    ]:
        parse(data, tmp_path)
        for position in range(len(data)):
            for change in (1, 32, 128):
                harmed = bytearray(data)
                harmed[position] ^= change
                with pytest.raises(StoreError, match="damaged"):
                    parse(bytes(harmed), tmp_path)
        for end in range(len(data)):
            with pytest.raises(StoreError, match="damaged"):
                parse(data[:end], tmp_path)


def test_a_file_that_is_opened_later_is_no_way_out_of_the_store_and_no_pipe(tmp_path):
    """Folders are looked at once for each array, files whenever they are opened."""
    store = filled(tmp_path / "here", 10)
    array = store.arrays("v000", GRAPH.folder)["graph"]
    first, later, last = (store.folder / array.chunk_path(chunk) for chunk in range(3))
    reader = Reader(store, [GRAPH], IDS, len(VIEWS), memory="disk")
    meant = reader.read(GRAPH, np.array([0]), np.array([0]))["graph"]
    one = np.array([store.block_rows]), np.array([0])  # the first row of `later`
    (tmp_path / "outside").write_bytes(later.read_bytes())
    (store.folder / "inside").write_bytes(later.read_bytes())
    later.unlink()
    later.symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match=f"{later}: is a link that leads out of"):
        reader.read(GRAPH, *one)
    later.unlink()
    later.symlink_to(store.folder / "inside")
    assert np.array_equal(reader.read(GRAPH, *one)["graph"], values(GRAPH, 0, [images(10)[store.block_rows]])["graph"])
    last.unlink()
    os.mkfifo(last)
    with pytest.raises(StoreError, match=f"{last}: is neither a file nor a folder"):
        reader.read(GRAPH, np.array([2 * store.block_rows]), np.array([0]))
    assert first.exists() and np.array_equal(reader.read(GRAPH, np.array([0]), np.array([0]))["graph"], meant)
