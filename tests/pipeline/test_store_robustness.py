"""Whatever happens to the disk, the clock or the neighbours: no row is lost, no wrong row can be read, the message is one
line, and what is resumed ends in the bytes of an unbroken run. (SIGKILL: test_store_kill.py, tests/stages/test_killed.py.)

ROBUSTNESS_ROUNDS=20 python -m pytest tests/pipeline/test_store_robustness.py     # more sizes of full disks
"""

import errno
import fcntl
import itertools
import os
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from toy_store import GRAPH, MATRIX, PASSES, RECORD, VIEWS, create, fill, filled, images, tree, values

from pipeline.errors import StoreError
from pipeline.store import ArrayGroup, Reader, Store
from pipeline.store.verification import verify
from pipeline.targets.base import Field
from tests.mounts import mounted, read_only

ROUNDS = int(os.environ.get("ROBUSTNESS_ROUNDS", 4))
COMMAND = [sys.executable, "-m", "pipeline.cli"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
BIG = ArrayGroup("big", {"type": "big", "version": 1}, {"map": Field((64, 64), "float32", ("y", "x"))})


def run_until(root, count=10, passes=PASSES, views=VIEWS):
    """Creates, grows, fills, finalises: what a stage does."""
    store = create(root)
    store.grow(images(count))
    fill(store, passes, views)
    store.finalise()
    return store


def check_rows(folder, passes=PASSES, views=VIEWS):
    """Whatever a reader gives out is what was written; returns how many blocks are whole."""
    store, whole = Store.open(folder), 0
    for pass_ in (pass_ for pass_ in passes if store.has_pass(pass_)):
        missing = [set(store.missing(pass_, view)) for view in views]
        whole += sum(store.num_blocks - len(blocks) for blocks in missing)
        for view in views:
            blocks = sorted(set(range(store.num_blocks)).difference(*missing[: view + 1]))
            rows = [row for block in blocks for row in store.block_images(block)]
            if not rows:
                continue
            found = Reader(store, [pass_], [row.id for row in rows], view + 1, memory="disk").read(
                pass_, np.arange(len(rows)), np.full(len(rows), view)
            )
            assert all(np.array_equal(found[name], meant) for name, meant in values(pass_, view, rows).items())
    return whole


def one_line(error):
    assert "\n" not in str(error) and len(str(error)) < 500
    return str(error)


# Disks


@pytest.mark.parametrize("round", range(ROUNDS))
def test_a_full_disk_loses_nothing_and_the_fill_goes_on_when_there_is_room(tmp_path, round):
    views, passes = range(2), [MATRIX, BIG]
    meant = tree(filled(tmp_path / "unbroken", 24, passes, views).folder)
    size = 40 + int(np.random.default_rng(round).integers(0, 280))  # of the 330 pages it takes, in pages of 4 kB
    with mounted("-t", "tmpfs", "-o", f"size={4 * size}k", "tmpfs", folder=tmp_path / "disk") as disk:
        with pytest.raises(StoreError) as error:
            run_until(disk, 24, passes, views)
        assert "No space left on device" in one_line(error.value) and "what is finished is safe" in str(error.value)
        (folder,) = [path.parent for path in disk.glob("*/*/store.json")] or [None]
        whole = check_rows(folder, passes, views) if folder else 0
        with pytest.raises(StoreError, match="No space left"):  # again, without room: nothing gets worse
            run_until(disk, 24, passes, views)
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        assert (check_rows(folder, passes, views) if folder else 0) >= whole
        store = run_until(disk, 24, passes, views)
        assert tree(store.folder) == meant and verify(store) == []


@pytest.fixture
def quick(monkeypatch):
    """fsync matters only for the time the test takes."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=["ENOSPC", "EIO", "EDQUOT"])
def test_an_error_at_any_step_of_a_fill_is_a_message_and_the_fill_resumes(tmp_path, monkeypatch, quick, number):
    def work(root):
        return run_until(root, 6, [MATRIX], range(1))

    meant = tree(work(tmp_path / "unbroken").folder)
    replace, left = os.replace, [0]

    def failing(source, target):
        left[0] -= 1
        if left[0] == -1:
            raise OSError(number, os.strerror(number), str(target))
        return replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    for step in itertools.count():
        left[0] = step
        root = tmp_path / str(step)
        try:
            work(root)
            break
        except StoreError as error:
            assert os.strerror(number) in one_line(error)
        left[0] = 10**9
        assert tree(work(root).folder) == meant, step
    assert step > 12


def test_a_read_only_store_is_read_and_a_fill_of_it_is_refused(tmp_path):
    store = filled(tmp_path / "cache", 10)
    before = tree(store.folder)
    with read_only(tmp_path / "cache"):
        for memory in ("ram", "disk"):
            reader = Reader(
                Store.find(tmp_path / "cache", "targets", "roads", RECORD),
                PASSES,
                [row.id for row in images(10)],
                len(VIEWS),
                memory=memory,
            )
            assert np.array_equal(
                reader.read(GRAPH, np.arange(10), np.ones(10, int))["cells"], values(GRAPH, 1, images(10))["cells"]
            )
        del reader  # which keeps files open, and with them the mount
        assert verify(store) == []
        run_until(tmp_path / "cache")  # whole already: nothing to write
        for harder in (dict(count=13), dict(views=range(4)), dict(passes=[*PASSES, BIG])):
            with pytest.raises(StoreError, match="Read-only file system") as error:
                run_until(tmp_path / "cache", **harder)
            one_line(error.value)
        with pytest.raises(StoreError, match="Read-only file system"):
            create(tmp_path / "cache", {"another": "identity"})
    assert tree(store.folder) == before


# Files


def test_files_truncated_missing_and_extra_cost_their_block_only(tmp_path):
    store = filled(tmp_path, 10)
    meant, generator = tree(store.folder), np.random.default_rng(0)
    data = sorted(
        path for path in store.folder.rglob("*") if path.is_file() and (path.name.startswith("c.") or "done" in path.parts)
    )
    for round in range(12):
        path = data[generator.integers(len(data))]
        kind = ("cut", "lost", "emptied", "longer")[round % 4]
        content = path.read_bytes()
        path.unlink()
        if kind != "lost":
            path.write_bytes({"cut": content[: len(content) // 2], "emptied": b"", "longer": content + b"\0"}[kind])
        (store.folder / "images/extra.txt").write_text("x")
        assert check_rows(store.folder) == 17  # of 3 blocks x 3 views x 2 passes
        faults = verify(store)
        assert any("extra.txt" in fault for fault in faults) and any(str(path) in fault for fault in faults)
        (store.folder / "images/extra.txt").unlink()
        assert fill(Store.open(store.folder)) == 1, (path, kind)
        assert tree(store.folder) == meant
    assert verify(store) == []


# Clocks


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path, monkeypatch):
    meant = tree(filled(tmp_path / "unbroken").folder)
    now, gmtime = itertools.count(2_000_000_000, -40_000_000), time.gmtime
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    monkeypatch.setattr(time, "time_ns", lambda: next(now) * 10**9)
    monkeypatch.setattr(time, "gmtime", lambda *given: gmtime(max(0, next(now))))
    for passes in ([GRAPH], [MATRIX], PASSES):
        store = run_until(tmp_path / "cache", 10, passes)
        for path in store.folder.rglob("*"):
            os.utime(path, (next(now) % 10**9,) * 2)  # and files from the past
    assert tree(store.folder) == meant and verify(store) == []
    times = [line.split('"time": "')[1][:10] for line in (store.folder / "history.jsonl").read_text().splitlines()]
    assert times == sorted(times, reverse=True) and len(set(times)) > 1


# Neighbours

READS = """
import os, sys, time
import numpy as np
sys.path[:0] = {paths!r}
from toy_store import PASSES, images, values
from pipeline.store import Reader, Store
rounds, deadline = 0, time.monotonic() + 60
held = [Reader(Store.open({folder!r}), PASSES, [row.id for row in images(10)], 3, memory=memory) for memory in ("ram", "disk")]
generator = np.random.default_rng(0)
print("reading", flush=True)
while not os.path.exists({stop!r}) and time.monotonic() < deadline:
    fresh = Reader(Store.open({folder!r}), PASSES, [row.id for row in images(10)], 3, memory="disk")
    for reader in [*held, fresh]:
        positions, view = generator.integers(0, 10, 5), int(generator.integers(0, 3))
        for pass_ in PASSES:
            found = reader.read(pass_, positions, np.full(5, view))
            for name, rows in values(pass_, view, [images(10)[p] for p in positions]).items():
                assert np.array_equal(found[name], rows), (pass_.name, name)
    rounds += 1
print(rounds, flush=True)
"""


def test_a_cache_grows_by_images_views_and_targets_while_a_process_keeps_reading(tmp_path):
    folder, stop = filled(tmp_path / "cache", 10).folder, tmp_path / "stop"
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READS.format(folder=str(folder), stop=str(stop), paths=paths)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        assert all(reader.stdout.readline() == "reading\n" for reader in readers)
        for count, passes, views in [(13, PASSES, range(3)), (17, PASSES, range(5)), (21, [*PASSES, BIG], range(5))]:
            run_until(tmp_path / "cache", count, passes, views)
        stop.touch()
        for reader in readers:
            said, wrong = reader.communicate(timeout=60)
            assert reader.returncode == 0, wrong
            assert int(said) > 3
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()
    store = Store.open(folder)
    assert verify(store) == [] and store.num_blocks == 6
    assert check_rows(folder, [*PASSES, BIG], range(5)) == 3 * 5 * 6


def test_a_reader_sees_a_block_that_is_repaired_under_it(tmp_path):
    store = filled(tmp_path, 10)
    reader = Reader(store, PASSES, [row.id for row in images(10)], len(VIEWS), memory="disk")
    meant = values(GRAPH, 0, images(4))
    reader.read(GRAPH, np.arange(4), np.zeros(4, int))  # its files are open now
    chunk = store.folder / store.arrays("v000", GRAPH.folder)["graph"].chunk_path(0)
    for harmed in (b"?" * 30 + chunk.read_bytes()[30:], b""):
        chunk.write_bytes(harmed)
        with pytest.raises(StoreError):
            reader.read(GRAPH, np.arange(4), np.zeros(4, int))
        store.write_block(GRAPH, 0, 0, meant)  # a new file of the same name
        assert np.array_equal(reader.read(GRAPH, np.arange(4), np.zeros(4, int))["graph"], meant["graph"])


def test_a_file_that_another_host_has_replaced_is_opened_anew(tmp_path, monkeypatch):
    store, preadv, stale = filled(tmp_path, 4), os.preadv, []
    reader = Reader(store, [GRAPH], [row.id for row in images(4)], 1, memory="disk")
    reader.read(GRAPH, np.arange(4), np.zeros(4, int))

    def over_the_network(*given):
        if stale and stale.pop():
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return preadv(*given)

    monkeypatch.setattr(os, "preadv", over_the_network)
    stale.append(True)
    found = reader.read(GRAPH, np.arange(4), np.zeros(4, int))
    assert not stale and np.array_equal(found["graph"], values(GRAPH, 0, images(4))["graph"])
    stale += [True, True]  # the new one, too
    with pytest.raises(StoreError, match="c.0.*[Ss]tale"):
        reader.read(GRAPH, np.arange(4), np.zeros(4, int))


def test_a_file_system_without_locks_is_refused_with_what_to_do(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    store = filled(tmp_path, 4, [GRAPH])
    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(StoreError, match="has no locks .* choose a --root on another one"):
        store.grow(images(8))
    store.mark_path("v000", GRAPH.folder, 0).unlink()
    with pytest.raises(StoreError, match="has no locks"):
        store.write_block(GRAPH, 0, 0, values(GRAPH, 0, images(4)))
    assert store.missing(GRAPH, 1) == []  # reading takes none


def test_readers_keep_few_files_open_share_them_between_threads_and_give_them_back(tmp_path):
    store = filled(tmp_path, 40, [GRAPH])  # 60 chunk files for each of two readers
    before, limits = len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)
    readers = [Reader(store, [GRAPH], [row.id for row in images(40)], len(VIEWS), memory="disk") for _ in range(2)]
    meant = {view: values(GRAPH, view, images(40))["graph"] for view in VIEWS}
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2 * (before + 10), limits[1]))

        def read(seed):
            positions, views = np.random.default_rng(seed).integers(0, (40, 3), (50, 2)).T
            rows = readers[seed % 2].read(GRAPH, positions, views)["graph"]
            return all(np.array_equal(row, meant[view][position]) for row, position, view in zip(rows, positions, views))

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(200)))
        opened = len(os.listdir("/proc/self/fd")) - before
        assert before + 10 <= opened < before + 10 + 8  # the limit is no lock
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    readers.clear()
    assert len(os.listdir("/proc/self/fd")) == before


# The command line


def command(experiment, *arguments):
    return subprocess.Popen(
        [*COMMAND, *arguments], cwd=experiment.folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def content(folder):
    return {path: data for path, data in tree(folder).items() if not path.endswith(".tmp")}


def test_two_fills_of_one_cache_at_once_end_in_the_bytes_of_one(experiment):
    folder = experiment.store("targets")
    meant, report = content(folder), (experiment.folder / "reports/cache/toy.json").read_bytes()
    shutil.rmtree(folder)
    both = [command(experiment, "cache-teacher", "toy.yaml") for _ in range(2)]
    for fill_ in both:
        _, said = fill_.communicate(timeout=120)
        assert fill_.returncode == 0, said
    assert content(folder) == meant and verify(Store.open(folder)) == []
    assert (experiment.folder / "reports/cache/toy.json").read_bytes() == report


def test_a_fill_with_another_fingerprint_stands_beside_the_old_one(experiment):
    old = experiment.store("targets")
    meant = content(old)
    experiment.change(views=dict(seed=1))
    experiment.do("cache-teacher")
    stores = sorted((experiment.folder / "cache/roads").glob("targets-*"))
    assert len(stores) == 2 and content(old) == meant
    assert all(verify(Store.open(folder)) == [] for folder in stores)
    experiment.change(views=dict(seed=0))
    assert "0 blocks filled now" in experiment.do("cache-teacher") and content(old) == meant


def test_a_full_disk_and_a_read_only_one_are_one_line_of_the_command(experiment):
    cache = experiment.folder / "cache"
    folder = experiment.store("targets")
    meant = content(folder)
    with read_only(cache):
        assert experiment.run("cache-teacher").exit_code == 0  # whole: there is nothing to write
        assert experiment.run("verify").exit_code == 0
        experiment.change(views=dict(count=4))
        result = experiment.run("cache-teacher")
        assert result.exit_code == 1 and result.stderr.count("Error: ") == 1 and "Read-only file system" in result.stderr
        experiment.change(views=dict(count=3))
    prepared = experiment.store("prepared")
    shutil.rmtree(folder)
    with mounted("-t", "tmpfs", "-o", "size=900k", "tmpfs", folder=experiment.folder / "small") as disk:
        shutil.copytree(prepared, disk / "roads" / prepared.name)
        result = experiment.run("cache-teacher", "--root", "small")
        assert result.exit_code == 1 and "No space left on device" in result.stderr and result.stderr.count("Error: ") == 1
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        experiment.do("cache-teacher", "--root", "small")
        (found,) = (disk / "roads").glob("targets-*")
        assert content(found) == meant
