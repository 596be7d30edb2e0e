"""A small experiment on disk, made once: thirteen road frames, a ResNet-18 teacher trained for a while, three views, blocks of
8."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

TRAINING = dict(
    steps=60,
    batch=4,
    lr=5.0e-2,
    momentum=0.9,
    weight_decay=1.0e-4,
    power=0.9,
    background_weight=0.4,
    existence_weight=0.0,
    fresh_views=False,
    precision="fp32",
    photometric=dict(brightness=0.1, contrast=0.1, noise=2.0),
    checkpoint_every=4,
    norm_every=3,
)
EXPERIMENT = {
    "dataset": dict(name="roads", root="data/toy", train=13, val=2, test=3, size=[148, 410], seed=1, difficulty=0.5),
    "prepare": dict(size=[44, 125], codec="raw", max_stretch=4.0),  # frames are 88 x 410 below the crop
    "views": dict(count=3, seed=0, scale=[0.85, 1.15], rotate_deg=3.0, shift=0.05, mirror=True),
    "teacher": dict(name="resnet18", width=8, head="pyramid", checkpoint=None, backbone=None, precision="fp32"),
    "teacher_training": {**TRAINING, "fresh_views": True},
    "targets": {
        "graph_mid": dict(type="affinity", layer="mid"),
        "graph_high": dict(type="affinity", layer="high"),
        "attention_high": dict(type="attention", layer="high"),
        "logits": dict(type="logits"),
    },
    "students": {"erfnet": dict(width=4)},
    "methods": {
        "plain": [],
        "intra": [
            dict(loss="affinity", reads=["graph_mid", "graph_high"], weight=0.1),
            dict(loss="attention", reads=["attention_high"], weight=0.1),
        ],
        "kd": [dict(loss="kd", reads=["logits"], weight=1.0, temperature=1.0)],
    },
    "training": {**TRAINING, "steps": 12},
    "evaluate": dict(split="test"),
}


def plain_training(*, steps, batch, lr, background_weight, norm_every):
    """`Training` of a test without files: SGD, and pictures as they are."""
    from pipeline.config import Photometric, Training

    return Training(
        steps=steps,
        batch=batch,
        lr=lr,
        momentum=0.9,
        weight_decay=1e-4,
        power=0.9,
        background_weight=background_weight,
        existence_weight=0.0,
        fresh_views=False,
        precision="fp32",
        norm_every=norm_every,
        photometric=Photometric(brightness=0, contrast=0, noise=0),
    )


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


class Experiment:
    """A folder to work in, its YAML, and the command line run there."""

    def __init__(self, folder: Path):
        self.folder, self.config = folder, folder / "toy.yaml"

    def change(self, **sections):
        raw = yaml.safe_load(self.config.read_text())
        for name, values in sections.items():
            raw[name].update(values)
        self.config.write_text(yaml.safe_dump(raw))

    def run(self, command: str, *arguments: str):
        """The click result of `pipeline COMMAND toy.yaml ...` in the folder; bugs keep their traceback."""
        from pipeline.cli import main

        before = os.getcwd()
        os.chdir(self.folder)
        try:
            result = CliRunner().invoke(main, [command, "toy.yaml", *arguments])
        finally:
            os.chdir(before)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def do(self, command: str, *arguments: str) -> str:
        result = self.run(command, *arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def train(self, method="intra", *arguments: str):
        return self.run("train-student", "--student", "erfnet", "--method", method, "--seed", "0", *arguments)

    def load(self):
        from pipeline import config

        return config.load(self.config)

    def store(self, kind: str) -> Path:
        (folder,) = (self.folder / "cache" / "roads").glob(f"{kind}-*")
        return folder


@pytest.fixture(scope="session")
def cached_experiment(tmp_path_factory) -> Experiment:
    """Drawn, prepared, teacher trained, targets cached. Not to be changed: tests that change things take `experiment`."""
    experiment = Experiment(tmp_path_factory.mktemp("experiment"))
    experiment.config.write_text(yaml.safe_dump(EXPERIMENT))
    for command in ("synth", "prepare", "train-teacher", "cache-teacher"):
        experiment.do(command)
    return experiment


@pytest.fixture
def experiment(cached_experiment, tmp_path) -> Experiment:
    """A copy of the cached experiment."""
    folder = tmp_path / "experiment"
    shutil.copytree(cached_experiment.folder, folder)
    return Experiment(folder)


@pytest.fixture
def power_cut(monkeypatch):
    """`with power_cut(7):` a training in this process is interrupted at its step 7."""
    from pipeline.training.step import Step

    @contextmanager
    def at(number: int):
        whole_step = Step.__call__

        def step(self, batch):
            if batch.step == number:
                raise KeyboardInterrupt
            return whole_step(self, batch)

        with monkeypatch.context() as patch:
            patch.setattr(Step, "__call__", step)
            yield

    return at
