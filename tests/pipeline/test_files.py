"""Small files: whole or not at all, whoever writes them; on disk and on object storage."""

import errno
import fcntl
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from toy_store import GRAPH, filled, images, tree, values

from pipeline.errors import PipelineError, StoreError
from pipeline.files import read_json, write_text
from pipeline.store import files as store_files
from pipeline.store.remote import RemoteError, RemotePath
from pipeline.store.verification import verify


def write_often(path, letter):
    for _ in range(100):
        write_text(path, letter * 200_000)


def test_processes_that_write_one_file_leave_the_whole_text_of_one_of_them(tmp_path):
    path = tmp_path / "below" / "report.json"
    with ProcessPoolExecutor(3, get_context("fork")) as pool:
        list(pool.map(write_often, [path] * 3, "abc"))
    text = path.read_text()
    assert len(text) == 200_000 and len(set(text)) == 1
    assert list(path.parent.iterdir()) == [path]


def test_a_text_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "report.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_record_ends_in_one_line(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=r"run\.json: cannot be read \(.*move it away") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_a_url_of_this_machine_is_a_path():
    assert store_files.as_path("file:///a/b") == Path("/a/b") and store_files.as_path("a/b") == Path("a/b")


def test_linked_files_are_made_to_last_with_their_folders(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(store_files, "sync", synced.append)
    (tmp_path / "from").mkdir(), (tmp_path / "to").mkdir()
    (tmp_path / "from/x").write_bytes(b"1")
    store_files.link([(tmp_path / "to/x", b"1")], lambda path: tmp_path / "from" / path.name)
    assert (tmp_path / "to/x").samefile(tmp_path / "from/x") and synced == [tmp_path / "to"]


def test_integers_are_finite_and_rows_with_a_number_that_is_none_are_not():
    assert store_files.finite(np.array([[1, 2], [3, 4]])).tolist() == [True, True]
    for dtype in (np.float16, np.float32):
        rows = np.array([[1, 2], [np.nan, 1], [1, np.inf], [-np.inf, 1], [65504, -65504]], dtype)
        assert store_files.finite(rows).tolist() == [True, False, False, False, True]
    half_of_it_looks_infinite = np.array([[0x3F807C00], [0x7C003F80]], np.uint32).view(np.float32)
    assert store_files.finite(half_of_it_looks_infinite).tolist() == [True, True]


def test_a_store_that_is_being_filled_is_not_unused(tmp_path):
    with store_files.unused(tmp_path) as free:
        assert free
    filling = store_files.InUse(tmp_path)
    with store_files.unused(tmp_path) as free:
        assert not free
    del filling
    with store_files.unused(tmp_path) as free:
        assert free


def test_a_folder_that_nobody_may_write_to_is_told(tmp_path, monkeypatch):
    assert store_files.writable(tmp_path)
    monkeypatch.setattr("os.access", lambda path, how: False)
    assert not store_files.writable(tmp_path)


# Files of a store


def open_files():
    return len(os.listdir("/proc/self/fd"))


def test_what_is_written_removed_or_made_is_made_to_last_with_its_folder(tmp_path, monkeypatch):
    synced, folder = [], tmp_path / "a/b"
    monkeypatch.setattr(store_files, "sync", synced.append)
    store_files.make_folder(folder)
    store_files.make_folder(folder)
    assert synced == [tmp_path, tmp_path / "a"]
    synced.clear()
    store_files.write([(folder / "x", b"1"), (folder / "y", b"2")])
    assert set(synced[:2]) == {folder / "x.tmp", folder / "y.tmp"} and synced[2:] == [folder]
    synced.clear()
    store_files.remove(folder / "x")
    with store_files.claim_block(folder / "mark") as claim:
        claim.finish(b"3")
    assert synced == [folder] * 2 and {path.name: path.read_bytes() for path in folder.iterdir()} == {"y": b"2", "mark": b"3"}


def test_sync_and_append_reach_the_disk_and_leave_nothing_open(tmp_path, monkeypatch):
    before, fds = open_files(), []
    monkeypatch.setattr(os, "fsync", fds.append)
    store_files.sync(tmp_path)
    for line in (b"1\n", b"2\n"):
        store_files.append(tmp_path / "x", line)
    assert (tmp_path / "x").read_bytes() == b"1\n2\n" and len(fds) == 3 and open_files() == before


def test_of_files_that_cannot_all_be_written_none_is(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(FileNotFoundError):
        store_files.write([(tmp_path / "a", b"1"), (tmp_path / "none/b", b"2")])
    assert [*tmp_path.iterdir()] == [tmp_path / "a"] and (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize("make", [lambda path: path.symlink_to(path.with_name("elsewhere")), os.mkfifo], ids=["link", "pipe"])
def test_a_link_or_pipe_in_the_place_of_a_file_is_told(tmp_path, make):
    make(tmp_path / ".lock")
    with pytest.raises(StoreError, match=r"\.lock: is a link or a pipe where a file should be; remove it"):
        with store_files.locked(tmp_path):
            raise AssertionError
    with pytest.raises(StoreError, match=f"{tmp_path}: No space left on device; what is finished is safe"):
        with store_files.writing(tmp_path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["lock", "claim"])
def test_a_second_one_waits_for_the_first(tmp_path, name):
    mark, order = tmp_path / "mark", []
    mark.with_name("mark.tmp").write_bytes(b"of a killed process")

    def hold():
        return store_files.locked(tmp_path) if name == "lock" else store_files.claim_block(mark)

    def second():
        with hold() as claim:
            order.append("second")
            if claim:
                claim.finish(b"2")

    thread = threading.Thread(target=second, daemon=True)
    with hold() as claim:
        thread.start()
        thread.join(0.05)
        order.append("first")
        if claim:
            claim.finish(b"1")
            assert mark.read_bytes() == b"1"
    thread.join(30)
    assert order == ["first", "second"]
    if name == "claim":
        assert mark.read_bytes() == b"2" and not mark.with_name("mark.tmp").exists()


def test_a_claim_that_is_left_leaves_no_file(tmp_path):
    with store_files.claim_block(tmp_path / "mark") as claim:
        assert [*tmp_path.iterdir()] == [tmp_path / "mark.tmp"]
        claim.release()
    assert not [*tmp_path.iterdir()]


def test_who_may_not_write_passes_where_there_is_a_lock_and_is_refused_where_there_is_none(tmp_path, monkeypatch):
    number = errno.EACCES

    def closed(path, mode, **options):
        if mode == "ab":
            raise OSError(number, os.strerror(number), str(path))
        return open(path, mode, **options)

    monkeypatch.setattr(store_files, "open", closed, raising=False)
    with pytest.raises(StoreError, match="lock: Permission denied"), store_files.locked(tmp_path):
        raise AssertionError
    (tmp_path / ".lock").touch()
    with store_files.locked(tmp_path):
        pass
    number = errno.EIO
    with pytest.raises(StoreError, match="lock: Input/output error"), store_files.locked(tmp_path):
        raise AssertionError


def test_only_a_file_system_without_locks_is_called_that(tmp_path, monkeypatch):
    numbers = [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EIO]

    def refuse(fd, how):
        raise OSError(numbers[0], os.strerror(numbers[0]))

    monkeypatch.setattr(fcntl, "flock", refuse)
    before = open_files()
    while len(numbers) > 1:
        with pytest.raises(StoreError, match=r"\.in-use: this file system has no locks"):
            store_files.InUse(tmp_path)
        numbers.pop(0)
    with pytest.raises(StoreError, match=f"{tmp_path}: Input/output error"):
        store_files.InUse(tmp_path)
    assert open_files() == before


@pytest.mark.parametrize("number, told", [(errno.EROFS, None), (errno.EACCES, None), (errno.EMFILE, "Too many open files")])
def test_a_store_is_in_use_without_a_lock_where_this_process_may_write_nothing(tmp_path, monkeypatch, number, told):
    def refuse(folder, how):
        raise OSError(number, os.strerror(number), str(folder))

    monkeypatch.setattr(store_files, "_open_lock", refuse)
    if told is None:
        store_files.InUse(tmp_path)
    else:
        with pytest.raises(StoreError, match=f"{tmp_path}: {told}"):
            store_files.InUse(tmp_path)


def test_asking_whether_a_store_is_in_use_leaves_nothing_open(tmp_path):
    before = open_files()
    filling = store_files.InUse(tmp_path)
    also = store_files.InUse(tmp_path)  # any number may
    for free in (False, False):
        with store_files.unused(tmp_path) as found:
            assert found == free
    del filling, also
    with store_files.unused(tmp_path) as found:
        assert found
    assert open_files() == before


# Object storage


@pytest.fixture
def storage():
    """A folder of object storage that fsspec holds in memory."""
    fsspec = pytest.importorskip("fsspec")
    yield store_files.as_path("memory://bucket/cache")
    fsspec.filesystem("memory").store.clear()


def test_a_store_on_object_storage_has_the_files_of_one_on_disk(tmp_path, storage):
    here, there = (filled(root, 6, [GRAPH], range(2)) for root in (tmp_path, storage))
    assert str(there.folder).startswith("memory://bucket/cache/roads/") and store_files.writable(there.folder)
    history = there.folder / "history.jsonl"
    files = {str(path.relative_to(there.folder)): path.read_bytes() for path in there.folder.rglob("*")}
    assert {name: data for name, data in files.items() if name != history.name} == tree(here.folder)
    assert [store_files.check_and_parse(line, history)["action"] for line in files[history.name].splitlines(keepends=True)] == [
        "create",
        "grow",
        "finalise",
    ]
    assert verify(there) == []
    store_files.remove(there.mark_path("v001", GRAPH.folder, 0))
    assert there.missing(GRAPH, 1) == [0] and store_files.size_of(there.mark_path("v001", GRAPH.folder, 0)) is None
    there.write_block(GRAPH, 1, 0, values(GRAPH, 1, images(4)))
    assert {str(path.relative_to(there.folder)): path.read_bytes() for path in there.folder.rglob("*")} == files


def test_a_put_that_fails_is_told(storage, monkeypatch):
    def refuse(path, data):
        raise RemoteError(f"{path}: no permission")

    monkeypatch.setattr(RemotePath, "write_bytes", refuse)
    with pytest.raises(RemoteError, match="cache/x: no permission"):
        store_files.write([(storage / "x", b"1")])


def test_nothing_is_linked_between_a_disk_and_object_storage(tmp_path, storage):
    for path, origin in ((tmp_path / "x", storage / "x"), (storage / "y", tmp_path / "y"), (storage / "z", storage / "zz")):
        store_files.link([(path, b"1")], lambda _, origin=origin: origin)
        assert path.read_bytes() == b"1"
