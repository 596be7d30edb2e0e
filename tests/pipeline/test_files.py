"""Small files: whole or not at all, whoever writes them."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.files import read_json, write_text
from pipeline.store import files as store_files


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
