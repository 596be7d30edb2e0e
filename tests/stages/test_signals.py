"""SIGTERM and Ctrl-C: one line that says how much is done, exit code 75 or 130, and going on ends in the same bytes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from test_killed import content, marks

from pipeline.training import run as runs
from pipeline.training.loading import ahead
from pipeline.training.step import Step

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def said(err: list[str]) -> str:
    """The one line that the command ends with. Libraries may warn before it; there is no traceback."""
    lines = [line for line in err if line.startswith(("Stopped: ", "Error: "))]
    assert len(lines) == 1 and not [line for line in err if line.startswith("Traceback")], err
    return lines[0]


def stopped(experiment, number: int, begun, *arguments: str, file: str = "toy.yaml", send=os.killpg) -> tuple[int, str, list[str]]:
    """Exit code, stdout and stderr's lines of a command that is sent a signal, with all its group, once `begun()`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", arguments[0], file, *arguments[1:]],
        cwd=experiment.folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not begun():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    send(process.pid, number)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, [line for line in err.splitlines() if " left" not in line]  # without progress


def test_a_fill_that_is_told_to_stop_goes_on_to_the_bytes_of_an_unbroken_one(experiment):
    experiment.change(views=dict(count=30))  # many small blocks: 30 views x 2 blocks x 5 passes
    cache = experiment.folder / "cache" / "roads"
    shutil.rmtree(experiment.store("targets"))
    experiment.do("cache-teacher")
    unbroken = content(experiment.store("targets"))
    shutil.rmtree(experiment.store("targets"))
    code, out, err = stopped(experiment, signal.SIGTERM, lambda: len(marks(cache)) > 20, "cache-teacher")
    assert (code, out) == (75, ""), err
    assert "of the 390 views that were missing are filled; run the same command again" in said(err)
    before = marks(cache)
    assert len(before) < 300
    experiment.do("cache-teacher")
    assert before.items() <= marks(cache).items()  # nothing was done twice
    assert content(experiment.store("targets")) == unbroken


def test_ctrl_c_reaches_worker_processes_too_and_is_still_one_line(experiment):
    experiment.change(views=dict(count=200))
    shutil.rmtree(experiment.store("targets"))
    cache = experiment.folder / "cache" / "roads"
    code, out, err = stopped(experiment, signal.SIGINT, lambda: len(marks(cache)) > 20, "cache-teacher", "--workers", "2")
    assert (code, out) == (130, ""), err
    assert "of the 2600 views that were missing are filled; run the same command again" in said(err)
    assert len(marks(cache)) < 2000


def test_preparing_that_is_told_to_stop_goes_on_to_the_same_bytes(experiment, tmp_path):
    pictures = tmp_path / "pictures" / "images"
    pictures.mkdir(parents=True)
    (pictures.parent / "classes.yaml").write_text(
        "classes: [{name: ground, colour: [0, 0, 0]}]\nignore: [255]\nbackground: null\nmirror: []\n"
    )
    labels = pictures.parent / "labels"
    labels.mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)
    cv2.imwrite(str(pictures / "00.jpg"), picture)
    cv2.imwrite(str(labels / "00.png"), np.zeros((900, 1200), np.uint8))
    for i in range(1, 90):  # one decodes in about 30 ms
        os.link(pictures / "00.jpg", pictures / f"{i:02d}.jpg")
        os.link(labels / "00.png", labels / f"{i:02d}.png")
    raw = yaml.safe_load(experiment.config.read_text())
    raw["dataset"] = dict(name="folder", root=str(pictures.parent))
    experiment.config.write_text(yaml.safe_dump(raw))

    top = experiment.folder / "cache" / f"folder-{pictures.parent.name}"
    code, out, err = stopped(experiment, signal.SIGTERM, lambda: list(top.glob("prepared-*/done/*/*.json")), "prepare")
    assert (code, out) == (75, ""), err
    assert "of 90 images are prepared; run the same command again" in said(err) and ": 90 of" not in said(err)
    experiment.do("prepare")
    (folder,) = top.glob("prepared-*")
    resumed = content(folder)
    shutil.rmtree(folder)
    experiment.do("prepare")
    assert content(folder) == resumed


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_training_that_is_told_to_stop_keeps_its_last_step(experiment, monkeypatch, number, code):
    experiment.change(training=dict(checkpoint_every=100))
    monkeypatch.setattr(runs, "POINTS", 2)  # six steps a point of the curves: stopped in the middle of one
    run = experiment.folder / "runs" / "toy" / "erfnet-intra-0"
    assert experiment.train().exit_code == 0
    unbroken = content(run)
    shutil.rmtree(run)
    assert unbroken.pop("checkpoint.pt")  # pickled, whose bytes depend on which strings are one object

    step = Step.__call__
    monkeypatch.setattr(
        Step, "__call__", lambda self, batch: (batch.step == 7 and os.kill(os.getpid(), number), step(self, batch))[1]
    )
    result = experiment.train()
    assert result.exit_code == code
    assert "Stopped: 8 of 12 steps are kept; run the same command again" in result.stderr
    monkeypatch.setattr(Step, "__call__", step)
    begun = []
    monkeypatch.setattr(runs, "ahead", lambda loader, steps: (begun.append(steps.start), ahead(loader, steps))[1])
    assert experiment.train().exit_code == 0
    resumed = content(run)
    assert begun == [8] and resumed.pop("checkpoint.pt") and resumed == unbroken


def test_a_second_ctrl_c_does_not_wait(experiment, monkeypatch):
    experiment.change(training=dict(checkpoint_every=100))
    step = Step.__call__

    def twice(self, batch):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch)

    monkeypatch.setattr(Step, "__call__", twice)
    result = experiment.train()
    assert result.exit_code == 130 and "Stopped: nothing finished is lost" in result.stderr
    assert not (experiment.folder / "runs/toy/erfnet-intra-0/checkpoint.pt").exists()


def kill_a_worker(parent: int, number: int) -> None:
    children = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    os.kill(next(pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()), number)


@pytest.mark.parametrize(
    "number, send, code, words",
    [
        (signal.SIGTERM, os.killpg, 75, "Stopped: 0 of 3 cells are done, and every step of those begun is kept"),
        (signal.SIGINT, os.killpg, 130, "Stopped: 0 of 3 cells are done, and every step of those begun is kept"),
        (signal.SIGKILL, kill_a_worker, 1, "Error: study: a cell's process was killed, perhaps for want of memory"),
    ],
)
def test_a_study_that_is_told_to_stop_keeps_the_last_steps_of_its_cells(experiment, number, send, code, words):
    experiment.change(training=dict(steps=10**6, checkpoint_every=50))
    (experiment.folder / "study.yaml").write_text(
        yaml.safe_dump(
            {
                "config": "toy.yaml",
                "student": "erfnet",
                "splits": ["test"],
                "seeds": [0, 1, 2],
                "gate": 0,
                "primary": None,
                "arms": {"plain": {"method": "plain"}},
            }
        )
    )
    files = [experiment.folder / f"runs/study/plain-{seed}/checkpoint.pt" for seed in (0, 1)]

    def begun():
        return all(file.exists() for file in files)

    got, out, err = stopped(experiment, number, begun, "study", "--jobs", "2", file="study.yaml", send=send)
    assert (got, out) == (code, "") and said(err).split(";")[0] == words, err
    kept = [torch.load(file, weights_only=True)["steps"] for file in files]
    assert any(steps % 50 for steps in kept)  # the last step, which only by chance is one that is kept anyway
    assert number != signal.SIGKILL or not all(steps % 50 for steps in kept)
    assert all(0 < steps < 10**6 for steps in kept) and not (experiment.folder / "runs/study/plain-2").exists()


def test_who_comes_second_waits_for_the_first_and_finds_the_run_done(experiment, monkeypatch):
    """A job that is requeued while the old one still ends, or a command typed twice."""
    experiment.change(training=dict(steps=200, checkpoint_every=1))
    run = experiment.folder / "runs/toy/erfnet-intra-0"
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "train-student",
        "toy.yaml",
        "--student",
        "erfnet",
        "--method",
        "intra",
        "--seed",
        "0",
    ]
    first = subprocess.Popen(command, cwd=experiment.folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while not (run / "checkpoint.pt").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.005)
    begun = []
    monkeypatch.setattr(runs, "ahead", lambda loader, steps: (begun.append(steps.start), ahead(loader, steps))[1])
    second = experiment.train()
    assert second.exit_code == 0 and "another process trains here; waiting for its end" in second.stderr
    assert first.wait() == 0 and begun == [200]
