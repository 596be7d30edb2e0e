"""Code of one's own that fails: file, line and message at the first command that runs it; a traceback where it is asked for."""

import sys
from importlib import import_module
from textwrap import dedent

import pytest
import yaml
from click.testing import CliRunner

from pipeline import lookup
from pipeline.cli import main
from tests.conftest import EXPERIMENT

NETS = """
    import torch
    from torch import nn


    class Net(nn.Module):
        def __init__(self, classes, wrong=None, width=8):
            super().__init__()
            self.early = nn.Conv2d(3, width, 3, 4, 1)
            self.late = nn.Conv2d(width, width, 3, 2, 1)
            self.head = nn.Conv2d(width, classes, 1)
            self.wrong = wrong
            if wrong == "constructor":
                len(width)  # a TypeError

        def forward(self, x):
            if self.wrong == "forward":
                x = x[:, :2]
            return self.head(self.late(self.early(x)))
    """
TEACHER = {
    "name": "adapter",
    "factory": "own_nets:Net",
    "arguments": {"classes": 5},
    "layers": {"mid": "early", "high": "late"},
    "logits": "output",
    "mean": [120.0, 110.0, 100.0],
    "std": [60.0, 50.0, 40.0],
    "checkpoint": "weights.pt",
    "backbone": None,
    "precision": "fp32",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("PIPELINE_TRACEBACK", raising=False)
    monkeypatch.setenv(lookup.VARIABLE, "")
    search = {kind: import_module(f"pipeline.{kind}").__path__ for kind in lookup.CLASSES}
    before = {kind: path[:] for kind, path in search.items()}
    write(tmp_path, "own_nets.py", NETS)
    yield tmp_path
    sys.modules.pop("own_nets", None)
    for kind, path in search.items():
        path[:] = before[kind]


def write(folder, name, text):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(dedent(text).lstrip())


def line_of(folder, name, part):
    return next(number for number, line in enumerate((folder / name).read_text().splitlines(), 1) if part in line)


def run(command, *arguments, out=False, **sections):
    """Exit code, and stderr or stdout."""
    raw = {**EXPERIMENT, "teacher": TEACHER, **sections}
    with open("toy.yaml", "w") as file:
        yaml.safe_dump(raw, file)
    result = CliRunner().invoke(main, [command, "toy.yaml", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout if out and result.exit_code == 0 else result.stderr


def teacher(**arguments):
    return TEACHER | {"arguments": {"classes": 5, **arguments}}


def test_a_constructor_that_fails_is_told_by_its_line_and_arguments_only_where_they_are_wrong(place):
    code, said = run("plan", "--images", "4", teacher=teacher(wrong="constructor"))
    at = line_of(place, "own_nets.py", "# a TypeError")
    assert code == 1 and len(said.splitlines()) == 1
    assert f"own_nets:Net: {place}/own_nets.py: line {at}: TypeError: object of type 'int' has no len(); correct that line" in said
    code, said = run("plan", "--images", "4", teacher=teacher(klasses=5))
    assert code == 1 and "unexpected keyword argument 'klasses'; correct 'arguments'" in said and "line" not in said


@pytest.mark.parametrize(
    ("text", "part", "what"),
    [
        ("def net(:\n    pass\n", "def net", "SyntaxError"),
        ("import torch\nnumber = 1 / 0\n", "1 / 0", "ZeroDivisionError: division by zero; correct the file"),
        ("import torch\nimport no_such_thing\n", "no_such", "ModuleNotFoundError: No module named 'no_such_thing'"),
    ],
)
def test_an_import_that_fails_is_told_by_its_line(place, text, part, what):
    write(place, "own_nets.py", text)
    code, said = run("plan", "--images", "4")
    assert code == 1 and len(said.splitlines()) == 1
    assert f"own_nets.py: line {line_of(place, 'own_nets.py', part)}: " in said and what in said


def test_a_forward_that_fails_is_told_when_the_checkpoint_is_taken(place, monkeypatch):
    import torch
    from own_nets import Net

    torch.save(Net(5).state_dict(), "weights.pt")
    code, said = run("train-teacher", teacher=teacher(wrong="forward"))
    at = line_of(place, "own_nets.py", "return self.head")
    assert code == 1 and len(said.splitlines()) == 1 and not (place / "teachers").exists()
    assert f"Error: {place}/own_nets.py: line {at}: RuntimeError: Given groups=1" in said
    assert said.endswith("; correct that line (PIPELINE_TRACEBACK=1 prints the whole traceback)\n")
    monkeypatch.setenv("PIPELINE_TRACEBACK", "1")
    code, said = run("train-teacher", teacher=teacher(wrong="forward"))
    assert "Traceback (most recent call last)" in said and "in forward" in said and code == 1
    monkeypatch.delenv("PIPELINE_TRACEBACK")
    assert run("train-teacher")[0] == 0


def test_a_call_that_the_network_does_not_take_is_the_configurations_error(place):
    code, said = run("plan", "--images", "4", teacher=TEACHER | {"call": {"hidden": True}})
    assert code == 1 and len(said.splitlines()) == 1
    assert "adapter: the network fails: TypeError: " in said and "'hidden'; correct 'call'" in said


def test_a_target_and_a_loss_that_fail_are_told_before_the_cache_is_filled(place):
    import torch
    from own_nets import Net

    torch.save(Net(5).state_dict(), "weights.pt")
    head = "from dataclasses import dataclass\nfrom pipeline.targets.base import Field, TargetType\n\n\n@dataclass(frozen=True)\n"
    body = "class Target(TargetType):\n    def fields(self, context):\n        return {'x': Field((1,), 'float32', ('x',))}\n\n"
    compute = "    def compute(self, output, labels_BHW, context):\n        return {'x': output.features['deep']}\n"
    write(place, "mine/targets/broken.py", head + body + compute)
    loss = "from pipeline.losses.base import LossModule\n\n\nclass Loss(LossModule):\n"
    loss += "    def __init__(self, *, reads, context, student):\n        self.table = context.depth\n"
    write(place, "mine/losses/faulty.py", loss)
    targets = {"own": {"type": "broken"}}
    code, said = run("train-teacher", plugins=["mine"], targets=targets, methods={"plain": []})
    assert code == 1 and len(said.splitlines()) == 1
    assert f"{place}/mine/targets/broken.py: line {line_of(place, 'mine/targets/broken.py', 'deep')}: KeyError: 'deep'" in said
    code, said = run("plan", "--images", "4", plugins=["mine"], methods={"own": [{"loss": "faulty", "weight": 1.0}]})
    assert code == 1 and "mine/losses/faulty.py: line 6: AttributeError: " in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_reader_that_fails_is_told_by_its_line_from_other_processes_too(place, workers):
    reader = """
        import numpy as np

        from pipeline.datasets.base import DatasetBase


        class Dataset(DatasetBase):
            classes, colours, splits = ("dark", "light"), ((0, 0, 0), (255, 255, 255)), ("train",)

            def __init__(self, *, root: str):
                self.root = root

            def ids(self, split):
                return ["a", "b"]

            def image(self, image_id):
                return {"c": 1}[image_id]

            def label(self, image_id):
                return None

            def files(self, image_id):
                return []
        """
    name = f"faulty_reader_{workers}"
    write(place, f"mine/datasets/{name}.py", reader)
    data = {
        "dataset": {"name": name, "root": "."},
        "evaluate": {"split": "train"},
        "views": {**EXPERIMENT["views"], "mirror": False},
    }
    code, said = run("doctor", "--workers", workers, plugins=["mine"], **data)
    at = line_of(place, f"mine/datasets/{name}.py", '{"c": 1}')
    assert code == 1 and f"mine/datasets/{name}.py: line {at}: KeyError: 'a'; correct that line" in said
    assert len(said.splitlines()) < 4
