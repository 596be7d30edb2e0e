"""The val split scored while training: the curve, which weights are kept, and an early end."""

import csv
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.data.frames import frame
from pipeline.errors import ConfigError, DatasetError
from pipeline.metrics.segmentation import Confusion
from pipeline.training import run as runs
from pipeline.training.validation import Validation

RUN = "runs/toy/erfnet-plain-0"


def table(folder):
    with open(folder / "validation.tsv") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file, delimiter="\t")]


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_the_best_validation_is_kept_and_equals_a_slow_count(experiment):
    experiment.change(training=dict(validate_every=3, keep="best", ema=0.9))
    done = experiment.train("plain")
    assert done.exit_code == 0, done.output
    folder = experiment.folder / RUN
    rows, found = table(folder), result(folder)
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    best = max(rows, key=lambda row: row["mean_iou"])
    assert found["best"]["step"] == found["kept_step"] == best["step"] and not found["ended_early"]
    assert f"best val mean IoU {best['mean_iou']:.4f} at step {best['step']:.0f} (kept)" in done.output

    cfg = experiment.load()
    cfg.dataset.args["root"] = str(experiment.folder / cfg.dataset.args["root"])
    source, confusion, losses = cfg.dataset.build(), Confusion(5), []
    network = cfg.students["erfnet"].build(num_classes=5, size=(48, 128), lanes=0)
    network.load_state_dict(load_file(folder / "weights.safetensors"))
    weights = torch.tensor([0.4, 1, 1, 1, 1])
    for image_id in source.ids("val"):
        image = source.image(image_id)
        image, label = frame(image, source.label(image_id), source.rows_cut(len(image)), cfg.prepare.size)
        with torch.no_grad():
            logits = network.eval()(torch.from_numpy(image).permute(2, 0, 1)[None].float()).logits
        logits = torch.nn.functional.interpolate(logits, label.shape, mode="bilinear", align_corners=False)[0]
        confusion.add(label, logits.argmax(0).numpy().astype(np.uint8))
        logs = logits.log_softmax(0)
        losses += [(float(-logs[c, y, x] * weights[c]), float(weights[c])) for (y, x), c in np.ndenumerate(label) if c != 255]
    assert best["mean_iou"] == pytest.approx(confusion.mean_iou(), abs=2e-3)
    assert best["cross_entropy"] == pytest.approx(sum(a for a, _ in losses) / sum(b for _, b in losses), rel=1e-3)


def test_the_datasets_own_metric_is_that_of_evaluate_and_chooses_the_best(experiment):
    experiment.change(training=dict(validate_every=6, validate_metric="own", keep="best"))
    done = experiment.train("plain")
    assert done.exit_code == 0, done.output
    rows, found = table(experiment.folder / RUN), result(experiment.folder / RUN)
    best = max(rows, key=lambda row: row["own"])
    assert found["best"]["step"] == best["step"] == found["kept_step"] and "best val own metric" in done.output
    student = "--student", "erfnet", "--method", "plain", "--seed", "0"
    experiment.do("evaluate", *student, "--set", "evaluate.split=val", "--workers", "1")
    scores = json.loads((experiment.folder / "reports/scores/toy/erfnet-plain-0.json").read_text())
    assert best["own"] == pytest.approx(scores[scores["metric"]], abs=1e-6)
    assert (experiment.folder / RUN / "curves/val_own.tsv").read_text().startswith("step\tval_own\n6\t")


def test_scores_while_training_change_no_weight(experiment):
    assert experiment.train("plain").exit_code == 0
    folder = experiment.folder / RUN
    before = load_file(folder / "weights.safetensors")
    assert not (folder / "validation.tsv").exists() and set(result(folder)) == {"weights", "steps", "record"}
    folder.rename(folder.with_name("without"))
    assert experiment.train("plain", "--set", "training.validate_every=5").exit_code == 0
    after = load_file(folder / "weights.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [row["step"] for row in table(folder)] == [5, 10, 12]
    assert (folder / "curves" / "val_mean_iou.tsv").exists()


def scores(monkeypatch, *values):
    """Validations give these scores, one after the other, and remember what they were asked for."""
    left, asked = list(values), []

    def scored(self, network):
        asked.append({name: value.clone() for name, value in network.state_dict().items()})
        return {"mean_iou": left.pop(0), "cross_entropy": 1.0}

    monkeypatch.setattr(Validation, "__call__", scored)
    return asked


def test_training_ends_when_no_validation_is_better_for_long_enough(experiment, monkeypatch):
    asked = scores(monkeypatch, 0.3, 0.5, 0.5, 0.4)
    experiment.change(training=dict(validate_every=2, keep="best", patience=2))
    done = experiment.train("plain")
    folder = experiment.folder / RUN
    assert done.exit_code == 0 and "no better score on val for 2 validations; ends after 8 steps" in done.stderr
    found = result(folder)
    assert (found["steps"], found["kept_step"], found["ended_early"]) == (8, 4, True)
    kept = load_file(folder / "weights.safetensors")
    assert all(torch.equal(kept[name], asked[1][name]) for name in kept)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert experiment.train("plain").exit_code == 0  # nothing is left to do
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_resumed_run_keeps_the_same_weights_and_curves(experiment, monkeypatch, power_cut):
    experiment.change(training=dict(validate_every=2, keep="best", patience=3))
    names = ("weights.safetensors", "validation.tsv", "curves.tsv", "result.json")
    folder = experiment.folder / RUN
    scores(monkeypatch, 0.3, 0.5, 0.4, 0.2, 0.3)
    assert experiment.train("plain").exit_code == 0
    unbroken = {name: (folder / name).read_bytes() for name in names}
    folder.rename(folder.with_name("unbroken"))
    with power_cut(6):
        scores(monkeypatch, 0.3, 0.5, 0.4)
        assert experiment.train("plain").exit_code == 130  # the last checkpoint is of step 4
    scores(monkeypatch, 0.4, 0.2, 0.3)
    assert experiment.train("plain").exit_code == 0
    assert {name: (folder / name).read_bytes() for name in names} == unbroken


def test_a_teacher_is_validated_too(experiment):
    experiment.change(teacher_training=dict(steps=6, validate_every=3, keep="best"))
    line = experiment.do("train-teacher")
    report = json.loads((experiment.folder / "reports/teacher/toy.json").read_text())
    assert report["validation"]["best"]["step"] in (3, 6) and "best val mean IoU" in line
    kept = load_file(experiment.folder / "teachers/toy.safetensors")
    made = load_file(experiment.folder / "runs/toy/teacher/weights.safetensors")
    assert all(torch.equal(kept[name], made[name]) for name in kept)


@pytest.mark.parametrize("setting, words", [("keep=best", "keep: needs scores"), ("patience=2", "patience: needs scores")])
def test_what_needs_validations_says_so(experiment, setting, words):
    from pipeline import config

    with pytest.raises(ConfigError, match=words):
        config.load(experiment.config, [f"training.{setting}"])


def test_a_split_without_labels_is_refused_before_training(experiment, monkeypatch):
    cfg = experiment.load()
    cfg.dataset.args["root"] = str(experiment.folder / cfg.dataset.args["root"])
    source = cfg.dataset.build()
    monkeypatch.setattr(type(source), "label", lambda self, image_id: None)
    with pytest.raises(DatasetError, match="'val' has no labels"):
        Validation(source, cfg.prepare, cfg.training, cfg.evaluate, torch.ones(5))


def test_equal_scores_do_not_move_the_best():
    rows = [{"step": step, "mean_iou": score} for step, score in [(1, 0.2), (2, 0.4), (3, 0.4)]]
    assert runs.best_of(rows)["step"] == 2 and runs.best_of([]) is None
    assert [runs.out_of_patience(rows[:n], 1) for n in range(4)] == [False, False, False, True]
    assert not runs.out_of_patience(rows, 0)


def test_the_report_shows_the_curve_and_the_best_step(experiment):
    assert experiment.train("plain", "--set", "training.validate_every=4", "--set", "training.keep=best").exit_code == 0
    experiment.do("evaluate", "--student", "erfnet", "--method", "plain", "--seed", "0", "--workers", "1")
    experiment.do("report")
    page, best = (experiment.folder / "reports/toy.html").read_text(), result(experiment.folder / RUN)["best"]
    assert "<b>val mean IoU</b>" in page and f"<td>{100 * best['mean_iou']:.2f}, {best['step']}, kept</td>" in page
