"""A wrong cache is refused, in one line that names what differs. Nothing here trains."""

import os
import shutil

import cv2
import numpy as np
import pytest
from safetensors.torch import load_file, save_file


def refused(experiment, *words, method="intra"):
    result = experiment.train(method)
    assert result.exit_code == 1, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0], lines[0]
    assert not (experiment.folder / "runs/toy/erfnet-intra-0").exists()


def test_other_teacher_weights_are_refused(experiment):
    path = experiment.folder / "teachers/toy.safetensors"
    state = load_file(path)
    state["conv1.weight"][0, 0, 0, 0] += 1e-3
    save_file(state, path)
    refused(experiment, "teacher.weights", "cache-teacher")


def test_missing_teacher_weights_are_named(experiment):
    (experiment.folder / "teachers/toy.safetensors").unlink()
    refused(experiment, "teachers/toy.safetensors", "train-teacher")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (dict(seed=7), "views.seed"),
        (dict(rotate_deg=5.0), "views.rotate_deg"),
        (dict(scale=[0.8, 1.2]), "views.scale"),
        (dict(mirror=False), "views"),
    ],
)
def test_other_view_parameters_are_refused(experiment, change, word):
    experiment.change(views=change)
    refused(experiment, word, "cache-teacher")


def test_more_views_than_were_cached_are_refused_and_then_filled(experiment):
    experiment.change(views=dict(count=4))
    refused(experiment, "cache-teacher")
    assert "2 blocks filled now" in experiment.do("cache-teacher")
    assert experiment.train().exit_code == 0


def test_fewer_views_than_were_cached_are_served(experiment):
    experiment.change(views=dict(count=2))
    assert experiment.train().exit_code == 0


def test_other_target_parameters_are_refused(experiment):
    experiment.change(targets=dict(graph_mid=dict(type="affinity", layer="mid", aoi_kernel=7)))
    refused(experiment, "aoi_kernel", "cache-teacher")


def test_a_target_that_no_loss_reads_may_be_missing(experiment):
    experiment.change(targets=dict(logits=dict(type="logits", dtype="uint8")))
    assert experiment.train().exit_code == 0
    refused_kd = experiment.train("kd")
    assert refused_kd.exit_code == 1 and "logits" in refused_kd.stderr


def test_other_preprocessing_is_refused_by_name(experiment):
    experiment.change(prepare=dict(size=[48, 128]))
    refused(experiment, "size", "pipeline prepare")


def test_a_changed_image_is_refused(experiment):
    path = next((experiment.folder / "data/toy").rglob("*.jpg"))
    train = (experiment.folder / "data/toy/list/train.txt").read_text()
    path = experiment.folder / "data/toy" / train.split()[0].lstrip("/")
    image = cv2.imread(str(path))
    cv2.imwrite(str(path), 255 - image)
    result = experiment.run("prepare")
    assert result.exit_code == 1 and "other content" in result.stderr
    shutil.rmtree(experiment.store("prepared"))
    experiment.do("prepare")
    refused(experiment, "image", "cache-teacher")


def test_a_changed_label_is_refused_by_targets_that_use_labels_and_only_by_them(experiment):
    train = (experiment.folder / "data/toy/list/train_gt.txt").read_text()
    path = experiment.folder / "data/toy" / train.split()[1].lstrip("/")
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(path), np.where(label == 1, 0, label).astype(np.uint8) if (label == 1).any() else np.full_like(label, 1))
    shutil.rmtree(experiment.store("prepared"))
    experiment.do("prepare")
    refused(experiment, "label", "cache-teacher")
    assert experiment.train("kd").exit_code == 0  # logits do not depend on labels


def test_a_new_image_is_asked_for_and_then_added(experiment):
    experiment.change(dataset=dict(train=17))
    experiment.do("synth")
    refused(experiment, "pipeline prepare")
    experiment.do("prepare")
    refused(experiment, "cache-teacher")
    out = experiment.do("cache-teacher")
    assert "17 images" in out
    assert experiment.train().exit_code == 0


def test_a_missing_cache_names_the_command(experiment):
    shutil.rmtree(experiment.store("targets"))
    refused(experiment, "cache-teacher")


def test_a_deleted_chunk_file_is_refused_not_read_as_fill(experiment):
    folder = experiment.store("targets")
    chunk = next(path for path in sorted(folder.rglob("c.*")) if "affinity" in str(path) and "graph" in str(path))
    chunk.unlink()
    refused(experiment, "cache-teacher")
    assert "blocks filled now" in experiment.do("cache-teacher")
    assert experiment.train().exit_code == 0


def test_a_flipped_bit_is_refused(experiment):
    folder = experiment.store("targets")
    for chunk in sorted(folder.rglob("c.*")):
        if "affinity" in str(chunk) and "graph" in str(chunk):
            data = bytearray(chunk.read_bytes())
            data[len(data) // 2] ^= 4
            chunk.write_bytes(bytes(data))
    result = experiment.train()
    assert result.exit_code == 1 and "graph" in result.stderr
    assert experiment.run("verify").exit_code == 1


def test_a_mirror_needs_a_permutation(experiment, monkeypatch):
    from pipeline.datasets import culane

    monkeypatch.setattr(culane.Dataset, "mirror", None)
    result = experiment.run("cache-teacher")
    assert result.exit_code == 1 and "views.mirror" in result.stderr


def test_a_dataset_changed_since_it_was_prepared_is_refused_before_anything_is_read(experiment):
    train = (experiment.folder / "data/toy/list/train_gt.txt").read_text()
    path = experiment.folder / "data/toy" / train.split()[1].lstrip("/")
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(path), np.where(label == 0, 1, label).astype(np.uint8))
    for method in ("intra", "plain"):
        refused(experiment, "touched", "pipeline prepare", method=method)


def test_a_copied_dataset_is_compared_once_and_its_cache_and_runs_stay(experiment):
    weights = experiment.folder / "teachers/toy.safetensors"
    before = weights.stat().st_mtime_ns, sorted(path.name for path in experiment.store("targets").parent.iterdir())
    for path in (experiment.folder / "data/toy").rglob("*.jpg"):
        os.utime(path, (1, 1))
    refused(experiment, "13 images were touched", "copying them does too", "nothing is filled or trained again")
    assert "comparing the content of 13 images whose files were touched" in experiment.run("prepare").stderr
    assert experiment.train().exit_code == 0
    assert before == (weights.stat().st_mtime_ns, sorted(path.name for path in experiment.store("targets").parent.iterdir()))
    assert "comparing" not in experiment.run("prepare").stderr


def test_a_dataset_that_is_not_at_hand_is_not_missed(experiment):
    for path in (experiment.folder / "data/toy").rglob("*.jpg"):
        path.unlink()
    for path in (experiment.folder / "data/toy").rglob("*.png"):
        path.unlink()
    for path in (experiment.folder / "data/toy").rglob("*.lines.txt"):
        path.unlink()
    assert experiment.train().exit_code == 0


def test_another_checkpoint_than_was_copied_is_refused(experiment):
    state = load_file(experiment.folder / "teachers/toy.safetensors")
    state["conv1.weight"] += 1e-3
    save_file(state, experiment.folder / "other.safetensors")
    experiment.change(teacher=dict(checkpoint=str(experiment.folder / "other.safetensors")))
    refused(experiment, "teacher.weights", "train-teacher")
    assert experiment.run("cache-teacher").exit_code == 1
    experiment.do("train-teacher")
    refused(experiment, "teacher.weights", "cache-teacher")


def test_relabelled_rows_say_what_helps(experiment):
    train = (experiment.folder / "data/toy/list/train_gt.txt").read_text()
    path = experiment.folder / "data/toy" / train.split()[1].lstrip("/")
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(path), np.where(label == 0, 1, label).astype(np.uint8))
    shutil.rmtree(experiment.store("prepared"))
    experiment.do("prepare")
    result = experiment.run("cache-teacher")
    assert result.exit_code == 1 and "label" in result.stderr and "pipeline cache rm" in result.stderr


def test_a_batch_of_one_with_a_pyramid_is_refused_in_one_line_and_nothing_is_moved(experiment):
    experiment.change(students={"pyramid": {"model": "resnet18", "width": 8, "head": "pyramid"}})
    student = ("train-student", "--student", "pyramid", "--method", "plain", "--seed", "0", "--set", "training.steps=2")
    experiment.do(*student)
    for section, command in (("teacher_training", ("train-teacher",)), ("training", student)):
        for values in ((f"{section}.batch=1",), (f"{section}.batch=4", f"{section}.accumulate=4")):
            result = experiment.run(*command, *(word for value in values for word in ("--set", value)))
            assert result.exit_code == 1 and f"{section}.batch: " in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert not list((experiment.folder / "runs/toy").glob("*.before-*"))
    assert "is allowed" in experiment.do("verify", "--recompute", "2", "--set", "training.batch=1")
