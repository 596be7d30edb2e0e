"""`torchrun pipeline ...` with two processes trains as one process does at the same batch: both commands that train.

By the network of an adapter, since PyTorch has no batch norm for several processes on the CPU, and here is none.
"""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Experiment
from safetensors.torch import load_file

NETWORK = '''
from torch import nn

class Bare(nn.Module):
    """Maps at strides 4 and 8, logits at stride 8, no batch norm."""

    def __init__(self, classes):
        super().__init__()
        self.early = nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.classify = nn.Conv2d(16, classes, 1)

    def forward(self, images):
        return self.classify(self.late(self.early(images)))
'''
BARE = dict(
    factory="bare_network:Bare",
    arguments={"classes": 5},
    layers={"mid": "early", "high": "late"},
    logits="output",
    mean=[120.0, 110.0, 100.0],
    std=[60.0, 50.0, 40.0],
)
STILL = dict(brightness=0.0, contrast=0.0, noise=0.0)  # drawn noise is each process's own


@pytest.fixture
def bare(experiment, monkeypatch) -> Experiment:
    (experiment.folder / "bare_network.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(experiment.folder)
    raw = yaml.safe_load(experiment.config.read_text())
    raw["students"]["bare"] = {"model": "adapter", **BARE}
    raw["training"] |= {"photometric": STILL, "lr": 0.01}
    raw["methods"]["intra"][0]["weight"] = {"gradient": 0.3, "every": 2}
    raw["teacher_training"] |= {"photometric": STILL, "lr": 0.01, "steps": 8, "ema": 0.9}
    experiment.config.write_text(yaml.safe_dump(raw))
    return experiment


def in_two(experiment: Experiment, *command: str) -> None:
    """Both processes read the same files and end alike; the first says what came of it."""
    places = Path(__file__).parents[2], experiment.folder
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pipeline.cli", *command],
        cwd=experiment.folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, places))},
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 and done.stderr.count("took ") == 1, done.stdout + done.stderr


def trained(experiment: Experiment, run: str, weights: str) -> tuple[list[dict], list[dict], dict]:
    """Every step's terms, gradient norms where they were measured, and the weights; then the run is removed."""
    folder = experiment.folder / "runs/toy" / run
    curves, norms = (
        [
            {name: float(value) for name, value in row.items()}
            for row in csv.DictReader((folder / f"{kind}.tsv").read_text().splitlines(), delimiter="\t")
        ]
        for kind in ("curves", "norms")
    )
    found = load_file(experiment.folder / weights)
    shutil.rmtree(folder)
    return curves, norms, found


def assert_equal_training(one, two):
    (curves, norms, weights), (others, other_norms, other_weights) = one, two
    for mine, theirs in zip(curves, others, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4, abs=1e-7)
    assert len(norms) == len(other_norms) > 0
    for name, value in weights.items():
        assert (other_weights[name] - value).abs().max() <= 1e-4 * value.abs().max(), name


def test_a_student_of_two_processes_is_that_of_one(bare):
    student = "--student", "bare", "--method", "intra", "--seed", "0"
    where = "bare-intra-0", "runs/toy/bare-intra-0/weights.safetensors"
    bare.change(training=dict(validate_every=6, keep="best", patience=2))  # each process scores its share of the split
    validations = bare.folder / "runs/toy/bare-intra-0/validation.tsv"
    bare.do("train-student", *student)
    scores = [line.split("\t") for line in validations.read_text().splitlines()[1:]]
    one = trained(bare, *where)
    assert len(one[0]) == 12 and {"ce", "affinity", "attention"} < set(one[0][0])
    in_two(bare, "train-student", "toy.yaml", *student)
    for mine, theirs in zip(scores, validations.read_text().splitlines()[1:], strict=True):
        assert [float(value) for value in theirs.split("\t")] == pytest.approx([float(value) for value in mine], rel=1e-3)
    assert_equal_training(one, trained(bare, *where))


def test_a_teacher_of_two_processes_is_that_of_one(bare):
    bare.change(teacher={"name": "adapter", **BARE})
    raw = yaml.safe_load(bare.config.read_text())
    for key in ("width", "head"):
        del raw["teacher"][key]
    bare.config.write_text(yaml.safe_dump(raw))
    where = "teacher", "teachers/toy.safetensors"
    torch.rand(17)  # somebody has drawn: the first weights follow from the seed alone
    bare.do("train-teacher")
    one = trained(bare, *where)
    assert len(one[0]) == 8
    in_two(bare, "train-teacher", "toy.yaml")
    assert_equal_training(one, trained(bare, *where))
