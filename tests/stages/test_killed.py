"""SIGKILL during `cache-teacher`: the resumed cache has the bytes of an unbroken one, and at most the blocks in flight are
repeated. KILLS sets how often (a few in the suite; hundreds by hand)."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

NOT_COMPARED = {"history.jsonl", ".lock", ".in-use"}
KILLS = int(os.environ.get("KILLS", 5))


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in NOT_COMPARED and not path.name.endswith(".tmp")
    }


def marks(folder: Path) -> dict[str, int]:
    """The finished blocks, and when each was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob("targets-*/done/*/*.json")}


def test_a_fill_killed_again_and_again_ends_in_the_same_bytes(experiment):
    experiment.change(views=dict(count=30))  # many small blocks: 30 views x 2 blocks x 5 passes
    cache = experiment.folder / "cache" / "roads"
    unbroken, broken = experiment.folder / "unbroken", experiment.store("targets")
    shutil.rmtree(broken)
    experiment.do("cache-teacher")
    report = (experiment.folder / "reports/cache/toy.json").read_bytes()
    broken.rename(unbroken)

    command = [sys.executable, "-m", "pipeline.cli", "cache-teacher", "toy.yaml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    rng, kills, finished = random.Random(0), 0, {}
    while kills < KILLS:
        process = subprocess.Popen(
            command,
            cwd=experiment.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        before = marks(cache)
        deadline = time.monotonic() + 60  # kill once it has marked something of its own, at a random moment
        while process.poll() is None and marks(cache) == before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        if process.poll() is not None:
            break  # finished before the kill: nothing left to break off
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        finished |= marks(cache)
    experiment.do("cache-teacher")
    at_the_end = marks(cache)
    assert kills >= 2 and finished.items() <= at_the_end.items()  # no block was lost, and none done twice
    assert content(broken) == content(unbroken)
    assert (experiment.folder / "reports/cache/toy.json").read_bytes() == report
    history = [json.loads(line) for line in (broken / "history.jsonl").read_text().splitlines()]
    assert history
