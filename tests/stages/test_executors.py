"""The same plan by other hands: local worker processes, a Dask scheduler's workers, shares of an array job. Whoever
fills a block, and whoever is killed meanwhile, the cache ends in the bytes of a serial fill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import dask
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_killed import content, marks

from pipeline.errors import PipelineError, StoreError
from pipeline.store import executors
from pipeline.teacher.fill import BlockFiller

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


class Noter:
    """Stands in for a teacher: writes down in which process it was made, and what it was asked."""

    def __init__(self, folder: Path, device: str):
        self.folder = folder
        (folder / f"made-{os.getpid()}-{time.time_ns()}").write_text(device)

    def __call__(self, task: int) -> int:
        (self.folder / f"task-{task}").write_text(f"{torch.get_num_threads()} threads")
        if task == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        if task == 31:
            raise PipelineError("task 31 is bad")
        return task


@pytest.fixture
def six_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    yield
    torch.set_num_threads(before)


def test_each_local_worker_makes_its_teacher_once_shares_the_threads_and_stops_at_an_error(tmp_path, six_threads):
    before = {name: value for name, value in os.environ.items() if "THREADS" in name}
    with pytest.raises(PipelineError, match="^task 31 is bad$"):
        list(executors.processes([*range(12), 31, *range(40, 1000)], Noter, tmp_path, device="cpu", workers=2))
    makers = [path.name.split("-")[1] for path in tmp_path.glob("made-*")]
    assert len(makers) == len(set(makers)) <= 2 and str(os.getpid()) not in makers
    assert {path.read_text() for path in tmp_path.glob("task-?")} == {"3 threads"}
    assert len(list(tmp_path.glob("task-*"))) < 100  # a few are in flight, not all
    assert {name: value for name, value in os.environ.items() if "THREADS" in name} == before  # nothing left by Dask


def test_one_process_is_this_one(tmp_path):
    assert list(executors.processes([3, 1, 2], Noter, tmp_path, device="cpu")) == [3, 1, 2]
    assert [path.name.split("-")[1] for path in tmp_path.glob("made-*")] == [str(os.getpid())]


def test_nothing_to_do_makes_no_teacher(tmp_path):
    assert list(executors.processes([], Noter, tmp_path, device="cpu", workers=2)) == []
    assert not list(tmp_path.iterdir())


def test_a_task_that_kills_its_workers_is_given_up_and_named(tmp_path):
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        with pytest.raises(PipelineError, match="^13: the worker it was given to died, 1 times"):
            list(executors.processes([13], Noter, tmp_path, device="cpu", workers=2, num_threads=1))


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:9"])
def test_a_scheduler_that_is_not_there_is_named(tmp_path, monkeypatch, address):
    monkeypatch.setattr(executors, "CONNECT_S", 0.2)
    with pytest.raises(PipelineError, match=f"--scheduler {address}: cannot be reached"):
        list(executors.processes([1], Noter, tmp_path, device="cpu", scheduler=address))


@pytest.fixture(scope="module")
def filled(cached_experiment, tmp_path_factory):
    """Thirty views of thirteen images, filled serially, and the report about them."""
    experiment = type(cached_experiment)(tmp_path_factory.mktemp("filled") / "experiment")
    shutil.copytree(cached_experiment.folder, experiment.folder)
    experiment.change(views=dict(count=30))
    shutil.rmtree(experiment.store("targets"))
    experiment.do("cache-teacher", "--threads", "1")
    return content(experiment.store("targets")), (experiment.folder / "reports/cache/toy.json").read_bytes()


@pytest.fixture
def empty(experiment):
    """The same experiment before the fill."""
    experiment.change(views=dict(count=30))
    shutil.rmtree(experiment.store("targets"))
    (experiment.folder / "reports/cache/toy.json").unlink()
    return experiment


def outcome(experiment):
    return content(experiment.store("targets")), (experiment.folder / "reports/cache/toy.json").read_bytes()


def start(experiment, *arguments):
    command = [sys.executable, "-m", "pipeline.cli", "cache-teacher", "toy.yaml", "--threads", "1", *arguments]
    return subprocess.Popen(
        command, cwd=experiment.folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until(true, process, limit_s=300):
    deadline = time.monotonic() + limit_s
    while not true():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    """Worker processes: those that multiprocessing spawned."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"PPid:\t{pid}\n" in (path / "status").read_text() and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def test_local_workers_of_which_one_is_killed_leave_the_bytes_of_a_serial_fill(empty, filled):
    cache = empty.folder / "cache" / "roads"
    process = start(empty, "--workers", "2")
    wait_until(lambda: len(marks(cache)) > 20, process)
    before = marks(cache)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert before.items() <= marks(cache).items()  # what was finished was not done again
    assert outcome(empty) == filled


def test_the_workers_of_a_dask_scheduler_of_which_one_is_killed_leave_them_too(empty, filled, tmp_path):
    elsewhere = tmp_path / "elsewhere"  # workers don't stand where the command was given
    elsewhere.mkdir()
    dask_command = [sys.executable, "-m", "dask"]
    common = dict(cwd=elsewhere, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = elsewhere / "scheduler.json"
    running = [
        subprocess.Popen(
            [*dask_command, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(address)],
            **common,
        )
    ]
    try:
        running += [
            subprocess.Popen(
                [*dask_command, "worker", "--scheduler-file", str(address), "--nthreads", "1", "--no-nanny", "--no-dashboard"],
                **common,
            )
            for _ in range(2)
        ]
        wait_until(address.exists, running[0])
        time.sleep(0.2)  # until it is written
        cache = empty.folder / "cache" / "roads"
        process = start(empty, "--scheduler", json.loads(address.read_text())["address"])
        wait_until(lambda: len(marks(cache)) > 20, process)
        before = marks(cache)
        running[1].kill()
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert before.items() <= marks(cache).items()
        assert outcome(empty) == filled
    finally:
        for process in reversed(running):
            process.kill()
            process.wait()


def test_the_shares_of_an_array_job_make_one_cache_and_the_last_writes_the_report(empty, filled):
    report = empty.folder / "reports/cache/toy.json"
    said = empty.do("cache-teacher", "--threads", "1", "--blocks", "2/2")
    assert "30 blocks filled now; 30 of 60 are still missing (blocks 1)" in said and not report.exists()
    said = empty.do("cache-teacher", "--threads", "1", "--blocks", "0/2")  # the same share, counted from 0
    assert "0 blocks filled now; 30 of 60" in said
    said = empty.do("cache-teacher", "--threads", "1", "--blocks", "1/2")
    assert "30 blocks filled now" in said and "missing" not in said
    assert outcome(empty) == filled


def test_a_worker_that_reads_other_weights_refuses_to_fill(empty, monkeypatch):
    told = []

    def keep(tasks, make, spec, **_):
        told.append(spec)
        return iter(())

    monkeypatch.setattr(executors, "processes", keep)
    assert "60 of 60 are still missing (blocks 0-1)" in empty.do("cache-teacher")
    path = empty.folder / "teachers/toy.safetensors"
    state = load_file(path)
    state["conv1.weight"][0, 0, 0, 0] += 1
    save_file(state, path)
    with pytest.raises(StoreError, match="teacher.weights"):
        BlockFiller(told[0], "cpu")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--scheduler", "127.0.0.1:9", "--workers", "2"],
        ["--blocks", "3/2"],
        ["--blocks", "1"],
        ["--blocks", "0/0"],
        ["--workers", "0"],
    ],
)
def test_what_makes_no_sense_is_wrong_usage(cached_experiment, arguments):
    assert cached_experiment.run("cache-teacher", *arguments).exit_code == 2
