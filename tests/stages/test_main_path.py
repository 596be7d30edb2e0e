import json

import pytest
import torch
from safetensors.torch import load_file


def test_the_main_path_ends_in_scores_and_a_table(experiment):
    for method in ("plain", "intra", "kd"):
        assert experiment.train(method).exit_code == 0
        out = experiment.do("evaluate", "--student", "erfnet", "--method", method, "--seed", "0")
        assert "mean IoU" in out
    experiment.do("evaluate", "--teacher")
    scores = json.loads((experiment.folder / "reports/scores/toy/erfnet-intra-0.json").read_text())
    assert scores["images"] == 3 and 0 < scores["mean_iou"] < 1 and len(scores["iou"]) == 5
    table = experiment.do("report")
    assert table.count("\n| ") == 5 and "| teacher |" in table and "| erfnet | kd | 1 |" in table
    run = experiment.folder / "runs/toy/erfnet-intra-0"
    assert {"run.json", "checkpoint.pt", "weights.safetensors", "curves.tsv", "curves.json", "curves.png", "norms.tsv"} <= {
        path.name for path in run.iterdir()
    }
    header = (run / "curves.tsv").read_text().splitlines()[0].split("\t")
    assert header == ["step", "ce", "affinity", "attention"]
    assert (experiment.folder / "reports/scores/toy/erfnet-intra-0.png").stat().st_size > 10_000


def test_every_stage_run_again_does_nothing_and_changes_nothing(experiment):
    experiment.train()
    before = {
        path: path.read_bytes()
        for path in experiment.folder.rglob("*")
        if path.is_file() and path.name not in ("history.jsonl", ".lock", ".in-use")
    }
    for command in ("synth", "prepare", "train-teacher", "cache-teacher"):
        experiment.do(command)
    experiment.train()
    changed = [path for path, content in before.items() if path.suffix != ".png" and path.read_bytes() != content]
    assert changed == []


def test_an_interrupted_run_ends_in_the_weights_of_an_unbroken_one(experiment, power_cut):

    assert experiment.train().exit_code == 0
    run = experiment.folder / "runs/toy/erfnet-intra-0"
    unbroken = {name: (run / name).read_bytes() for name in ("weights.safetensors", "curves.tsv", "norms.tsv")}
    run.rename(run.with_name("unbroken"))

    with power_cut(7):  # between the checkpoints after 4 and after 8 steps
        assert experiment.train().exit_code == 130
        assert not (run / "weights.safetensors").exists()
    assert experiment.train().exit_code == 0
    assert {name: (run / name).read_bytes() for name in unbroken} == unbroken


def test_a_run_of_another_recipe_is_set_aside_not_overwritten(experiment):
    experiment.train("plain")
    first = load_file(experiment.folder / "runs/toy/erfnet-plain-0/weights.safetensors")
    result = experiment.train("plain", "--set", "training.lr=0.01")
    assert result.exit_code == 0 and "training.lr: 0.05 here, 0.01 asked for" in result.stderr
    kept = load_file(experiment.folder / "runs/toy/erfnet-plain-0.before-1/weights.safetensors")
    assert all(torch.equal(first[name], kept[name]) for name in first)


def test_a_damaged_checkpoint_is_named(experiment):
    experiment.train("plain")
    run = experiment.folder / "runs/toy/erfnet-plain-0"
    (run / "weights.safetensors").unlink()
    (run / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes()[:1000])
    result = experiment.train("plain")
    assert result.exit_code == 1 and "checkpoint.pt: cannot be read" in result.stderr


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_term(experiment):
    result = experiment.train("intra", "--set", "training.lr=1.0e+20")
    assert result.exit_code == 1 and "the term 'ce' is" in result.stderr and "step " in result.stderr


def test_students_can_be_trained_on_fresh_views_without_a_cache(experiment):
    import shutil

    shutil.rmtree(experiment.store("targets"))
    assert experiment.train("plain", "--set", "training.fresh_views=true").exit_code == 0


def test_fresh_views_with_cached_targets_are_refused(experiment):
    result = experiment.train("intra", "--set", "training.fresh_views=true")
    assert result.exit_code == 1 and "fresh_views" in result.stderr


def test_a_checkpoint_named_in_the_yaml_is_taken_as_the_teacher(experiment):
    experiment.change(teacher=dict(checkpoint=str(experiment.folder / "teachers/toy.safetensors")))
    weights = experiment.folder / "teachers/mine.safetensors"
    (experiment.folder / "teachers/toy.safetensors").rename(weights)
    experiment.change(teacher=dict(checkpoint=str(weights)))
    assert "copied from" in experiment.do("train-teacher")
    assert "0 blocks filled now" in experiment.do("cache-teacher")  # the same weights: the same identity


@pytest.mark.parametrize("arguments", [[], ["--teacher", "--student", "erfnet"], ["--student", "erfnet"]])
def test_evaluate_says_how_it_is_used(experiment, arguments):
    assert experiment.run("evaluate", *arguments).exit_code == 2


def test_evaluating_what_was_not_trained_names_the_command(experiment):
    result = experiment.run("evaluate", "--student", "erfnet", "--method", "plain", "--seed", "9")
    assert result.exit_code == 1 and "train-student" in result.stderr


@pytest.mark.parametrize("device", ["cuda:7", "gpu"])
def test_a_device_that_is_not_there_is_refused_in_one_line(experiment, device):
    result = experiment.run("cache-teacher", "--device", device)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1 and "--device cpu" in result.stderr


def test_a_finished_run_writes_again_what_dvc_has_deleted(experiment):
    experiment.train("plain")
    run = experiment.folder / "runs/toy/erfnet-plain-0"
    before = {name: (run / name).read_bytes() for name in ("weights.safetensors", "curves.tsv")}
    for name in before:
        (run / name).unlink()
    experiment.train("plain")
    assert {name: (run / name).read_bytes() for name in before} == before


def test_a_run_keeps_the_file_it_was_asked_for_with_its_overrides(experiment):
    from pipeline import config

    experiment.train("plain", "--set", "training.lr=0.03")
    kept = experiment.folder / "runs/toy/erfnet-plain-0/config.yaml"
    assert kept.read_text().startswith("# --set training.lr=0.03\n")
    assert config.load(kept).training == config.load(experiment.config, ["training.lr=0.03"]).training


def test_another_meaning_of_the_same_labels_is_another_run(experiment, monkeypatch):
    from pipeline.datasets import culane

    experiment.train("plain")
    monkeypatch.setattr(culane.Dataset, "background", 1)
    assert "dataset.background" in experiment.train("plain").stderr


def test_another_backbone_is_another_teacher(experiment):
    state = load_file(experiment.folder / "teachers/toy.safetensors")
    from safetensors.torch import save_file

    names = [name for name in state if not name.startswith(("head", "pyramid", "classifier"))]
    save_file({name: state[name] for name in names}, experiment.folder / "backbone.safetensors")
    result = experiment.run("train-teacher", "--set", f"teacher.backbone={experiment.folder / 'backbone.safetensors'}")
    assert result.exit_code == 0 and "set aside" in result.stderr


def test_a_run_is_not_scored_at_another_size_or_as_another_network(experiment):
    experiment.train("plain")
    for change in ("prepare.size=[32,64]", "students.erfnet.dropout=[0.0,0.0]"):
        result = experiment.run("evaluate", "--student", "erfnet", "--method", "plain", "--seed", "0", "--set", change)
        assert result.exit_code == 1 and "was trained with something else" in result.stderr


def test_a_run_of_an_older_meaning_of_an_option_is_not_scored_as_if_it_were_of_todays(experiment):
    experiment.change(students={"resnet": {"model": "resnet18", "width": 8, "dilation": "torchvision"}})
    arguments = ("--student", "resnet", "--method", "plain", "--seed", "0")
    experiment.do("train-student", *arguments, "--set", "training.steps=1")
    record = experiment.folder / "runs/toy/resnet-plain-0/run.json"
    made = json.loads(record.read_text())
    assert made.pop("network_version") == 2
    experiment.do("evaluate", *arguments, "--set", "training.steps=1")
    record.write_text(json.dumps(made))
    result = experiment.run("evaluate", *arguments, "--set", "training.steps=1")
    assert result.exit_code == 1 and "network_version: nothing here, 2 asked for" in result.stderr
