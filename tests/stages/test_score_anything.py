"""Networks that no run made: scored, and never taken for a seed of a method."""

import json
import shutil

import pytest
import torch
from test_other_teachers import NETWORK
from torch import nn

import pipeline
from pipeline import weights
from pipeline.errors import ConfigError

RUN = ("--student", "erfnet", "--method", "plain", "--seed", "0")


@pytest.fixture(scope="module")
def trained(cached_experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "experiment"
    shutil.copytree(cached_experiment.folder, folder)
    experiment = type(cached_experiment)(folder)
    assert experiment.train("plain").exit_code == 0
    experiment.do("evaluate", *RUN)
    return experiment


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    shutil.copytree(trained.folder, tmp_path / "experiment")
    monkeypatch.chdir(tmp_path / "experiment")
    return type(trained)(tmp_path / "experiment")


def scores(here, path):
    return json.loads((here.folder / path).read_text())


def test_other_weights_get_the_score_of_the_run_and_count_for_no_method(here):
    shutil.copy(here.folder / "runs/toy/erfnet-plain-0/weights.safetensors", here.folder / "mine.safetensors")
    here.do("evaluate", "--student", "erfnet", "--weights", "mine.safetensors")
    assert scores(here, "reports/evaluate/toy/erfnet-mine.json") == scores(here, "reports/scores/toy/erfnet-plain-0.json")
    assert not list(here.folder.glob("reports/scores/toy/*mine*"))
    assert "| erfnet | plain | 1 |" in here.do("report")


def test_a_file_that_no_run_left_is_neither_scored_as_a_run_nor_counted(here):
    first, second = here.folder / "runs/toy/erfnet-plain-0", here.folder / "runs/toy/erfnet-plain-1"
    second.mkdir()
    shutil.copy(first / "weights.safetensors", second)
    refused = here.run("evaluate", "--student", "erfnet", "--method", "plain", "--seed", "1")
    (line,) = refused.stderr.splitlines()
    assert refused.exit_code == 1 and "no run left this file" in line and "--weights runs/toy/erfnet-plain-1/weights" in line
    shutil.copy(here.folder / "reports/scores/toy/erfnet-plain-0.json", here.folder / "reports/scores/toy/erfnet-plain-1.json")
    said = here.do("report")
    assert "| erfnet | plain | 1 |" in said and "erfnet-plain-1: not counted; no run left this file" in said


def test_a_file_copied_over_what_a_run_left_is_told_by_its_digest(here):
    path = here.folder / "runs/toy/erfnet-plain-0/weights.safetensors"
    state = weights.load_file(path)
    weights.save_file(path, {name: value + 1 if value.is_floating_point() else value for name, value in state.items()})
    refused = here.run("evaluate", *RUN)
    assert refused.exit_code == 1 and "result.json has another digest" in refused.stderr
    refused = here.run("report")
    assert refused.exit_code == 1 and "result.json has another digest" in refused.stderr


def test_python_scores_any_network_as_the_command_does(here):
    cfg = here.load()
    network = cfg.student("erfnet").build(num_classes=5, size=(48, 128), lanes=0)
    network.load_state_dict(weights.load_file(here.folder / "runs/toy/erfnet-plain-0/weights.safetensors"))
    known = scores(here, "reports/scores/toy/erfnet-plain-0.json")
    del known["weights"], known["network"]  # what the command adds

    class Own(nn.Module):  # returns logits alone
        def __init__(self):
            super().__init__()
            self.inside = network

        def forward(self, images):
            assert not self.training
            return self.inside(images).logits

    own = Own().train()
    assert pipeline.evaluate(own, "toy.yaml", workers=1) == known and own.training
    assert pipeline.evaluate(network, "toy.yaml", split="val", predictions="files", workers=1)["images"] == 2
    assert len(list((here.folder / "files/val").rglob("*.lines.txt"))) == 2
    with pytest.raises(ConfigError, match="Flatten: returns Tensor; return pipeline.Output"):
        pipeline.evaluate(nn.Flatten(), "toy.yaml", workers=1)


def test_a_network_of_ones_own_is_scored_and_shown_by_its_key(here):
    """With the weights that its factory brings: no run, no file."""
    torch.manual_seed(0)
    here.change(students={"mine": {"model": "adapter", **NETWORK}})
    here.do("evaluate", "--student", "mine")
    found = scores(here, "reports/evaluate/toy/mine.json")
    assert found["images"] == 3 and len(found["weights"]) == 16
    source = here.load().dataset.build()
    picture = source.files(source.ids("test")[0])[0]
    here.do("predict", str(picture), "--student", "mine", "--out", "seen")
    assert len(list((here.folder / "seen/overlay").rglob("*.jpg"))) == 1
    assert "all of --student, --method and --seed, or --student and --weights" in here.run("evaluate", "--student", "erfnet").stderr
