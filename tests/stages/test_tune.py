"""`pipeline tune`: what it runs, what it proposes, and that its lines are a configuration."""

import csv
import json

import pytest
import yaml
from conftest import EXPERIMENT

from pipeline import config
from pipeline.errors import ConfigError
from pipeline.teacher.experiment import Experiment
from stages import tune


@pytest.fixture
def experiment(tmp_path):
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    return Experiment(config.load(tmp_path / "toy.yaml"), tmp_path / "cache", tmp_path / "teacher.safetensors")


def pretended(made):
    """A training that answers at once: the best rate is 0.02, the best share 0.3."""

    def train(experiment, *, student, method, seed, folder, device):
        training, terms = experiment.config.training, experiment.config.method(method)
        made.append((folder.name, training.steps, training.validate_every, experiment.config.evaluate.split))
        score = 0.5 - abs(training.lr - 0.02)
        folder.mkdir(parents=True)
        if terms:
            share = terms[0].weight.gradient
            score -= abs(share - 0.3) / 10
            rows = [{"step": step, "weight(affinity)": 100 * share * step, "weight(attention)": 2.0} for step in (1, 2, 4)]
            (folder / "curves.json").write_text(json.dumps(rows))
        with open(folder / "validation.tsv", "w") as file:
            table = csv.DictWriter(file, ["step", "mean_iou"], delimiter="\t")
            table.writeheader()
            table.writerow({"step": training.steps, "mean_iou": score + 0.001 * seed})

    return train


def tuned(experiment, tmp_path, made, **more):
    keywords = dict(student="erfnet", method="intra", steps=6, rates=[0.01, 0.02, 0.2], shares=[0.1, 0.3], seeds=2, device="cpu")
    return tune.run(experiment, folder=tmp_path / "tune", train=pretended(made), **keywords | more)


def test_too_few_steps_to_measure_a_gradient_propose_no_weight_of_zero(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "mean_weights", lambda places, terms: {"affinity": 0.0, "attention": 2.0})
    with pytest.raises(ConfigError, match="--steps 6: too few to measure the gradient of affinity, .* at least 60"):
        tuned(experiment, tmp_path, [])


def test_it_proposes_the_best_rate_and_the_weights_of_the_best_share(experiment, tmp_path):
    made = []
    said = tuned(experiment, tmp_path, made)
    assert len(made) == (3 + 2) * 2 and made[0] == ("erfnet-plain-lr0.01-0", 6, 6, "test")
    assert [name for name, *_ in made[-2:]] == ["erfnet-intra-lr0.02-share0.3-0", "erfnet-intra-lr0.02-share0.3-1"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("|")]
    assert ["plain", "0.02", "", "50.05", "0.07", ""] in rows and rows[-1][-1] == "affinity 84.9, attention 2"
    lines = yaml.safe_load("\n".join(line[4:] for line in said.splitlines() if line.startswith("    ")))
    assert lines["training"] == {"lr": 0.02}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump({**EXPERIMENT, "methods": lines["methods"]}))
    weights = [term.weight for term in config.load(tmp_path / "toy.yaml").method("intra")]
    assert weights == [85.0, 2.0]  # sqrt(60 * 120) = 84.85: the geometric mean over the second half of the runs


def test_its_runs_have_the_schedule_of_the_whole_one(experiment):
    whole = experiment.config
    short = tune.shortened(whole, 3, 0.5)
    assert (short.training.steps, short.training.lr, short.training.validate_every) == (3, 0.5, 3)
    assert short.raw["training"]["steps"] == 3 and whole.raw["training"]["steps"] == 12
    shared = tune.with_share(short, "intra", 0.3)
    assert [term.weight.gradient for term in shared.method("intra")] == [0.3, 0.3]
    assert "weight: {gradient: 0.3}" in shared.text.replace("\n", " ").replace("weight:  ", "weight: ")


def test_a_method_without_a_weight_is_refused(experiment, tmp_path):
    with pytest.raises(ConfigError, match="methods.plain: has no loss with a weight above 0"):
        tuned(experiment, tmp_path, [], method="plain")
