"""Images that can't be read and teachers that answer nonsense: named, and never in a cache."""

import json
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.models.base import Output
from pipeline.store import Store
from pipeline.targets.base import Context
from pipeline.teacher import cache


def frame(experiment, number):
    """Image and label file of a training frame."""
    image, label = (experiment.folder / "data/toy/list/train_gt.txt").read_text().splitlines()[number].split()[:2]
    root = experiment.folder / "data/toy"
    return root / image.lstrip("/"), root / label.lstrip("/")


@pytest.fixture
def damaged(experiment):
    """Before anything is prepared: a truncated JPEG, a label of another size, and one with a value that is no class."""
    shutil.rmtree(experiment.folder / "cache")
    shutil.rmtree(experiment.folder / "reports")
    image, _ = frame(experiment, 1)
    image.write_bytes(image.read_bytes()[:-2000])
    _, label = frame(experiment, 4)
    cv2.imwrite(str(label), cv2.imread(str(label), cv2.IMREAD_UNCHANGED)[:-8])
    _, label = frame(experiment, 9)
    values = cv2.imread(str(label), cv2.IMREAD_UNCHANGED)
    values[3, 5] = 77
    cv2.imwrite(str(label), values)
    return experiment


def store_of(experiment, kind):
    return Store.open(experiment.store(kind))


def test_bad_images_are_listed_after_the_others_are_prepared(damaged):
    result = damaged.run("prepare")
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 4
    for line, file, reason in zip(
        lines,
        (frame(damaged, 1)[0], frame(damaged, 4)[1], frame(damaged, 9)[1]),
        ("fetch it again", "must have one size", "value 77 at x=5, y=3"),
    ):
        assert file.name in line and reason in line, line
    assert "3 of 13 images can't be prepared" in lines[3] and "--skip-bad" in lines[3]
    assert len(store_of(damaged, "prepared").row_of) == 10
    assert not (damaged.folder / "reports/prepare/toy.json").exists()
    refused = damaged.run("cache-teacher")
    assert refused.exit_code == 1
    assert "3 of 13 images are not in it" in refused.stderr and "pipeline prepare" in refused.stderr


def test_skipped_images_are_on_record_and_left_out_by_every_later_stage(damaged):
    assert "10 images (3 left out: skipped.tsv)" in damaged.do("prepare", "--skip-bad")
    record = (damaged.store("prepared") / "skipped.tsv").read_text().splitlines()
    assert record[0] == "image\treason" and len(record) == 4
    assert {line.split("\t")[0] for line in record[1:]}.isdisjoint(store_of(damaged, "prepared").row_of)
    assert any("value 77" in line for line in record)
    report = json.loads((damaged.folder / "reports/prepare/toy.json").read_text())
    assert (report["images"], report["skipped"]) == (10, 3)

    for command, *arguments in (
        ["train-teacher", "--set", "teacher_training.steps=4"],
        ["cache-teacher"],
        ["train-student", "--student", "erfnet", "--method", "intra", "--seed", "0"],
    ):
        result = damaged.run(command, *arguments)
        assert result.exit_code == 0, result.output
        assert result.stderr.count("3 of 13 images are left out, as skipped.tsv there says: ") == 1
    assert len(store_of(damaged, "targets").row_of) == 10


def test_the_record_stands_until_an_image_is_mended_or_the_record_is_cleared(damaged):
    damaged.do("prepare", "--skip-bad")
    skipped = damaged.store("prepared") / "skipped.tsv"
    record = skipped.read_bytes()
    assert "3 left out" in damaged.do("prepare") and skipped.read_bytes() == record  # as `dvc repro` runs it

    image, _ = frame(damaged, 7)  # a new fault is no old one
    whole = image.read_bytes()
    image.write_bytes(whole[:500])
    result = damaged.run("prepare")
    assert result.exit_code == 1 and image.name in result.stderr and "1 of 13 images can't be prepared" in result.stderr
    assert "4 left out" in damaged.do("prepare", "--skip-bad")
    image.write_bytes(whole)
    _, label = frame(damaged, 9)
    cv2.imwrite(str(label), np.where((values := cv2.imread(str(label), cv2.IMREAD_UNCHANGED)) == 77, 0, values))
    assert "11 images (2 left out" in damaged.do("prepare")
    assert len(store_of(damaged, "prepared").row_of) == 11

    assert damaged.run("prepare", "--no-skip-bad").exit_code == 1 and not skipped.exists()
    result = damaged.run("cache-teacher")
    assert result.exit_code == 1 and "2 of 13 images are not in it" in result.stderr


def test_when_no_image_can_be_read_there_is_nothing_to_skip_to(damaged):
    for number in range(13):
        frame(damaged, number)[0].write_bytes(b"")
    result = damaged.run("prepare", "--skip-bad")
    assert result.exit_code == 1 and "not one of 13 images can be read" in result.stderr


def classifier(experiment) -> str:
    """The name of the weights that end in the five classes' logits."""
    state = load_file(experiment.folder / "teachers/toy.safetensors")
    (name,) = (name for name, tensor in state.items() if tensor.ndim == 4 and len(tensor) == 5)
    return name


def spoiled(experiment, change):
    """The experiment with changed teacher weights and no cache."""
    path = experiment.folder / "teachers/toy.safetensors"
    state = load_file(path)
    for name, spoil in change.items():
        spoil(state[name])
    save_file(state, path)
    shutil.rmtree(experiment.store("targets"))
    return experiment


def refusal(experiment) -> str:
    result = experiment.run("cache-teacher")
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    folder = experiment.store("targets")
    assert not list(folder.rglob("done/*/*.json")) and not list(folder.rglob("c.*"))  # nothing was written
    return line


def test_a_teacher_that_answers_nan_stops_the_fill_at_the_first_block(experiment):
    line = refusal(spoiled(experiment, {"bn1.running_var": lambda tensor: tensor.fill_(-1.0)}))
    first = store_of(experiment, "targets").images[0].id
    assert f"image '{first}', view 0, target graph_mid: the teacher's 'mid' is not finite" in line
    assert "check the teacher's weights" in line


def test_a_teacher_with_a_dead_layer_stops_the_fill(experiment):
    line = refusal(
        spoiled(experiment, {"layer4.1.bn2.weight": torch.Tensor.zero_, "layer4.1.bn2.bias": lambda tensor: tensor.fill_(-1e6)})
    )
    assert "target attention_high, graph_high: the teacher's 'high' is the same at all positions" in line


def test_a_teacher_whose_logits_are_one_number_a_class_stops_the_fill(experiment):
    line = refusal(spoiled(experiment, {classifier(experiment): torch.Tensor.zero_}))
    assert "target logits: the teacher's 'logits' is the same at all positions" in line


def test_logits_that_do_not_fit_their_dtype_name_the_image(experiment):
    line = refusal(spoiled(experiment, {classifier(experiment): lambda tensor: tensor.mul_(1e6)}))
    assert "view 0, target logits: logits of" in line and "do not fit float16" in line


# The checks themselves, on answers made by hand


def made_by_hand():
    """A target that reads `high`, and four images' output: `high` varies, all else is zero."""
    target = SimpleNamespace(source_layers=lambda: {"high"}, uses_labels=True)
    context = Context(3, (1, 2), (8, 8), {"high": (4, 4)}, {"high": 2})
    high = torch.arange(4 * 2 * 16.0).reshape(4, 2, 4, 4)
    return target, context, Output(torch.zeros(4, 3, 4, 4), {"mid": torch.zeros(4, 1, 8, 8), "high": high})


def test_only_the_layers_that_a_target_reads_are_looked_at_and_each_image_by_itself():
    target, _, output = made_by_hand()
    cache.refuse_output(output, [target], 0)  # mid and logits are dead, but nobody asks
    output.features["high"][2, 1] = 5.0
    cache.refuse_output(output, [target], 0)  # one channel may be
    output.features["high"][2] = 5.0
    with pytest.raises(cache.BadTeacherOutput, match="the same at all positions") as caught:
        cache.refuse_output(output, [target], 8)
    assert (caught.value.image, caught.value.targets) == (10, [0])
    output.features["high"][1, 0, 3, 3] = torch.inf
    with pytest.raises(cache.BadTeacherOutput, match="not finite") as caught:
        cache.refuse_output(output, [target], 8)
    assert caught.value.image == 9


def test_zero_graphs_are_refused_unless_no_region_is_shown():
    target, context, _ = made_by_hand()
    labels = torch.zeros(4, 8, 8, dtype=torch.uint8)  # class 0 is no region
    graph = torch.zeros(4, 3, 2, 2)
    cache.refuse_values({"graph": graph}, target, 1, labels, context, 0)
    labels[:, 4, 4] = 1  # beside the middle of a cell: some targets see none of it
    cache.refuse_values({"graph": graph}, target, 1, labels, context, 0)
    labels[2, 5, 5] = 1
    with pytest.raises(cache.BadTeacherOutput, match="its graph is all zero") as caught:
        cache.refuse_values({"graph": graph}, target, 1, labels, context, 16)
    assert (caught.value.image, caught.value.targets) == (18, [1])
    labels[3, 1, 1] = 2
    graph[3, 0] = 0.5
    cache.refuse_values({"graph": graph}, target, 1, labels, context, 0)
    target.uses_labels = False
    with pytest.raises(cache.BadTeacherOutput):
        cache.refuse_values({"graph": torch.zeros(4, 3, 2, 2)}, target, 1, labels * 0, context, 0)
    graph[1, 1, 0, 0] = torch.nan
    with pytest.raises(cache.BadTeacherOutput, match="its graph is not finite") as caught:
        cache.refuse_values({"graph": graph}, target, 1, labels, context, 0)
    assert caught.value.image == 1
