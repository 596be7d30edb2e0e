"""A fill that is killed at any moment resumes, repeats no more than the blocks in flight, and ends in the same bytes.

STORE_KILLS=500 python -m pytest tests/pipeline/test_store_kill.py   # as many random kills as wanted
"""

import os
import random
import signal
import stat
import time

import numpy as np
import pytest
from killing import ended, forked
from toy_store import GRAPH, MATRIX, PASSES, create, fill, filled, images, tree, values

from pipeline.store import Reader, Store
from pipeline.store.verification import verify

KILLS = int(os.environ.get("STORE_KILLS", 25))
BLOCKS = 30  # of each of two passes


def work(root, log, writer, writers):
    """One of several processes that make, grow and fill the same store; notes each block it begins."""
    store = create(root)
    store.grow(images(4 * BLOCKS - 1))
    for pass_ in PASSES:
        store.add_pass(pass_, range(1))
        for block in store.missing(pass_, 0):
            if block % writers == writer:
                os.write(log, f"{pass_.name} {block}\n".encode())
                store.write_block(pass_, 0, block, values(pass_, 0, store.block_images(block)))
    store.finalise()


def check_what_is_whole(root):
    """Whatever a kill has left: every block that counts as whole has its very rows."""
    (folder,) = [path.parent for path in root.glob("roads/*/store.json")] or [None]
    if folder is None:
        return
    store = Store.open(folder)
    for pass_ in PASSES:
        missing = set(store.missing(pass_, 0))
        rows = [row for block in range(store.num_blocks) if block not in missing for row in store.block_images(block)]
        if rows:
            found = Reader(store, [pass_], [row.id for row in rows], 1).read(pass_, np.arange(len(rows)), np.zeros(len(rows), int))
            assert all(np.array_equal(found[name], meant) for name, meant in values(pass_, 0, rows).items())


@pytest.mark.parametrize("shared", [False, True], ids=["own blocks", "the same blocks"])
def test_two_writers_killed_at_random_moments_end_in_the_bytes_of_an_unbroken_run(tmp_path, shared):
    meant = tree(filled(tmp_path / "unbroken", 4 * BLOCKS - 1, views=range(1)).folder)
    dice, kills, rounds = random.Random(0), 0, 0
    writers = 1 if shared else 2  # into how many shares the blocks are cut
    while kills < KILLS:
        root, killed = tmp_path / str(rounds), 0
        root.mkdir()
        log = os.open(tmp_path / f"{rounds}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        while True:
            pids = [forked(lambda writer=writer: work(root, log, writer % writers, writers)) for writer in range(2)]
            if kills < KILLS:
                time.sleep(dice.uniform(0, 0.08))
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
            codes = [ended(pid) for pid in pids]
            assert set(codes) <= {0, -signal.SIGKILL}
            if codes == [0, 0]:
                break
            killed, kills = killed + 1, kills + 1
            check_what_is_whole(root)
        os.close(log)
        rounds += 1
        store = Store.find(root, "targets", "roads", create(root).identity["record"])
        begun = (tmp_path / f"{rounds - 1}.log").read_text().count("\n")
        assert shared or begun - len(PASSES) * BLOCKS <= 2 * killed
        assert verify(store) == []
        found = tree(store.folder)
        if shared:  # who waited for the same block may leave an empty claim
            found = {path: data for path, data in found.items() if not path.endswith(".json.tmp") or data}
        assert found == meant
    print(f"{kills} kills of two writers in {rounds} fills")


def grow_and_fill(root):
    for count in (3, 6):
        store = create(root)
        store.grow(images(count))
        fill(store, [MATRIX], range(1))
        store.finalise()


@pytest.fixture
def quick(monkeypatch):
    """What a killed process wrote is the kernel's already, so fsync matters only for the time the test takes."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def suicidal(step):
    """Dies at the step-th fsync or rename; a file that was about to be fsynced is cut in half."""
    left = [step]

    def watched(call):
        def replacement(*given):
            if left[0] == 0:
                if call is fsync and stat.S_ISREG(os.fstat(given[0]).st_mode):
                    os.truncate(f"/proc/self/fd/{given[0]}", os.fstat(given[0]).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return call(*given)

        return replacement

    fsync = os.fsync
    os.fsync, os.replace = watched(os.fsync), watched(os.replace)


def test_a_kill_at_every_step_of_creating_growing_and_filling_leaves_nothing_behind(tmp_path, quick):
    grow_and_fill(tmp_path / "unbroken")
    meant = tree(tmp_path / "unbroken")
    step, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        root = tmp_path / str(step)
        code = ended(forked(lambda: (suicidal(step), grow_and_fill(root))))
        grow_and_fill(root)
        assert tree(root) == meant, step
        (store,) = [Store.open(path.parent) for path in root.glob("roads/*/store.json")]
        assert not [fault for fault in verify(store) if "history" not in fault], step
        step += 1
    assert code == 0 and step > 60


def test_a_kill_at_every_step_of_a_repair_leaves_a_block_that_is_missing_or_whole(tmp_path, quick):
    store = filled(tmp_path, 4, [GRAPH], range(1))
    meant, rows = tree(store.folder), values(GRAPH, 0, images(4))
    chunk = store.folder / store.arrays("v000", GRAPH.folder)["cells"].chunk_path(0)
    step, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
        other = {name: values + values.dtype.type(1) for name, values in rows.items()}  # as another device would
        code = ended(forked(lambda: (suicidal(step), store.write_block(GRAPH, 0, 0, other))))
        if store.missing(GRAPH, 0, deep=True) == []:
            found = Reader(store, [GRAPH], [row.id for row in images(4)], 1).read(GRAPH, np.arange(4), np.zeros(4, int))
            assert all(np.array_equal(found[name], other[name]) for name in rows)
            chunk.write_bytes(b"")
        store.write_block(GRAPH, 0, 0, rows)
        assert tree(store.folder) == meant, step
        step += 1
    assert code == 0 and step > 15
