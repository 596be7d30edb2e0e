"""A part of the labels, all images (`dataset.labelled_part`): what is hidden stays hidden, one cache serves any part, and batches
mix images with and without a label."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from pipeline.data import views as geometry
from pipeline.errors import ConfigError
from pipeline.store import Reader
from pipeline.teacher import cache
from pipeline.teacher.experiment import Experiment as Parts
from pipeline.training.loading import CachedTargets, Loader

SHOWN = 5  # of 13


@pytest.fixture(scope="module")
def few(cached_experiment, tmp_path_factory):
    """The cached experiment with a part of the labels, and its cache filled for them."""
    folder = tmp_path_factory.mktemp("few") / "experiment"
    shutil.copytree(cached_experiment.folder, folder)
    experiment = type(cached_experiment)(folder)
    raw = yaml.safe_load(experiment.config.read_text())
    raw["dataset"]["labelled_part"] = 0.4
    raw["targets"] = {
        "graph": dict(type="affinity", layer="high", regions="both"),
        "logits": dict(type="logits"),
        "pseudo": dict(type="pseudo_labels"),
    }
    raw["methods"] = {
        "plain": [],
        "pseudo": [dict(loss="pseudo_labels", reads=["pseudo"], weight=1.0)],
        "both": [
            dict(loss="affinity", reads=["graph"], weight=1.0),
            dict(loss="kd", reads=["logits"], weight=1.0, temperature=1.0),
        ],
    }
    raw["training"] |= dict(steps=6, labelled_per_batch=1, existence_weight=0.1)
    experiment.config.write_text(yaml.safe_dump(raw))
    experiment.do("cache-teacher")
    return experiment


def parts(experiment, monkeypatch, *overrides):
    from pipeline import config

    monkeypatch.chdir(experiment.folder)
    return Parts(config.load(experiment.config, overrides), Path("cache"), Path("teachers/toy.safetensors"))


def loader_of(found: Parts, method: str = "both", **keys) -> Loader:
    training = found.config.training
    return Loader.of(
        found,
        found.samples(),
        training,
        seed=0,
        device="cpu",
        labelled=found.labelled,
        labelled_per_batch=found.labelled_per_batch(training, from_labels=method == "plain"),
        **keys,
    )


def test_hidden_labels_and_flags_are_read_by_nobody_and_the_others_by_all(few, monkeypatch):
    found = parts(few, monkeypatch)
    whole = parts(few, monkeypatch, "dataset.labelled_part=null")
    every = np.arange(13), np.zeros(13, int)
    for how in (dict(memory="ram"), dict(memory="disk"), dict(memory="device", device="cpu")):
        rows, all_rows = (one.samples(**how).read(one.sample, *every) for one in (found, whole))
        shown = np.array([image_id in found.shown_labels for image_id in found.ids])
        assert shown.sum() == SHOWN
        for name in ("label", "existence"):
            mine, theirs = np.asarray(rows[name]), np.asarray(all_rows[name])
            assert (mine[~shown] == 255).all() and np.array_equal(mine[shown], theirs[shown])
            assert (theirs != 255).reshape(13, -1).any(axis=1).all()  # what is hidden is there
        assert np.array_equal(np.asarray(rows["image"]), np.asarray(all_rows["image"]))


def test_what_is_hidden_decides_nothing(few, tmp_path, monkeypatch):
    """Another dataset, with other labels where they are hidden: the same rows and the same student."""
    folder = tmp_path / "other"
    shutil.copytree(few.folder, folder)
    other = type(few)(folder)
    shown, root = parts(few, monkeypatch).shown_labels, folder / "data/toy"
    for path in [root / "list/train_gt.txt"]:
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            image, label, *flags = line.split()
            if image.strip("/").removesuffix(".jpg") not in shown:
                pixels = np.array(Image.open(root / label.lstrip("/")))
                Image.fromarray(np.where(pixels == 0, 3, 0).astype(np.uint8)).save(root / label.lstrip("/"))
                lines[number] = " ".join([image, label, *("01"[flag == "0"] for flag in flags)])
        path.write_text("\n".join(lines) + "\n")
    shutil.rmtree(folder / "cache")
    weights = []
    for experiment in (few, other):
        if experiment is other:
            experiment.do("prepare"), experiment.do("cache-teacher")
        result = experiment.train("both")
        assert result.exit_code == 0, result.output
        weights.append(load_file(experiment.folder / "runs/toy/erfnet-both-0/weights.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    rows = []
    for experiment in (few, other):
        found = parts(experiment, monkeypatch)
        store, passes = found.open_cache(found.targets)
        crcs = [store.stored_crcs("v001", pass_.folder, np.array([store.row_of[i] for i in found.ids])) for pass_ in passes]
        rows.append([{name: values.tolist() for name, values in crc.items()} for crc in crcs])
    assert rows[0] == rows[1]


def test_one_cache_serves_any_part_and_only_what_looks_at_labels_is_filled_again(few, monkeypatch):
    passes = {
        part: {name: pass_.folder for name, (_, pass_) in parts(few, monkeypatch, f"dataset.labelled_part={part}").targets.items()}
        for part in ("null", "0.4", "0.8", "1.0")
    }
    for name in ("logits", "pseudo"):
        assert len({found[name] for found in passes.values()}) == 1
    assert passes["null"]["graph"] == passes["1.0"]["graph"] and len({found["graph"] for found in passes.values()}) == 3

    marks = {path: path.stat().st_mtime_ns for path in few.store("targets").glob("done/*/*.json")}
    assert "blocks filled now" in few.do("cache-teacher", "--set", "dataset.labelled_part=0.8")
    after = set(few.store("targets").glob("done/*/*.json"))
    fresh = after - set(marks)
    assert len(fresh) == 3 * 2 and {path.name.split(".")[1] for path in fresh} == {passes["0.8"]["graph"][-8:]}
    assert all(path.stat().st_mtime_ns == time for path, time in marks.items())
    assert "0 blocks filled now" in few.do("cache-teacher")


def test_a_batch_has_so_many_labelled_images_evenly_spread_and_each_stream_goes_through_its_images(few, monkeypatch):
    found = parts(few, monkeypatch, "training.labelled_per_batch=2")
    loader = loader_of(found)
    has_label = np.array([image_id in found.shown_labels for image_id in found.ids])
    drawn = [loader.positions(step) for step in range(20)]
    assert all(has_label[positions].tolist() == [True, False, True, False] for positions, _ in drawn)
    for kind, count in ((True, SHOWN), (False, 13 - SHOWN)):
        shown = [(int(epoch), int(p)) for positions, epochs in drawn for p, epoch in zip(positions, epochs) if has_label[p] == kind]
        assert [epoch for epoch, _ in shown] == [n // count for n in range(40)]
        for epoch in range(40 // count):
            assert sorted(p for e, p in shown if e == epoch) == np.flatnonzero(has_label == kind).tolist()
    assert loader.partly_labelled
    halves = [loader_of(found, share=(i, 2)).batch(3).labels_BHW for i in (0, 1)]
    assert [int((half != 255).flatten(1).any(1).sum()) for half in halves] == [1, 1]


def test_a_method_that_learns_from_labels_alone_sees_no_other_images(few, monkeypatch):
    found = parts(few, monkeypatch)
    plain = loader_of(found, "plain")
    assert {
        found.ids[p] for step in range(10) for p in plain.positions(step)[0]
    } == found.shown_labels and not plain.partly_labelled
    alike = loader_of(parts(few, monkeypatch, "training.labelled_per_batch=null"))
    assert {int(p) for step in range(13) for p in alike.positions(step)[0]} == set(range(13)) and alike.partly_labelled
    with pytest.raises(ConfigError, match="all 13 images to train on have a label"):
        loader_of(parts(few, monkeypatch, "dataset.labelled_part=null"))


NEW_VIEWS = ("training.fresh_views=labelled", "training.labelled_per_batch=2")


def cached_of(found: Parts, *names: str) -> CachedTargets:
    targets = found.some_targets(names or found.targets)
    store, passes = found.open_cache(targets)
    reader = Reader(store, passes, found.ids, found.config.views.count, host=[cache.MATRIX])
    return CachedTargets(reader, cache.MATRIX, targets)


def test_labelled_images_are_shown_in_new_views_and_the_others_in_their_stored_ones_with_targets(few, monkeypatch):
    found = parts(few, monkeypatch, *NEW_VIEWS)
    count, cached = found.config.views.count, cached_of(found)
    loader = loader_of(found, cached=cached)
    has_label = np.array([image_id in found.shown_labels for image_id in found.ids])
    views = {}
    for step in range(3 * count):
        batch, (positions, epochs) = loader.batch(step), loader.positions(step)
        assert batch.stored == (1, 3) and has_label[positions].tolist() == [True, False, True, False]
        for image, (position, epoch) in enumerate(zip(positions, epochs)):
            view = batch.views[image]
            if image in batch.stored:
                assert 0 <= view < count
                expected = cached.matrices(np.array([position]), np.array([view]))[0]
            else:
                assert view == epoch + 1
                drawn = geometry.drawn(found.config.views, [found.ids[position]], [view], loader.size, None)
                expected = drawn[0]
                views.setdefault(position, set()).add(view)
            assert np.array_equal(batch.matrices_B23[image].numpy(), expected)
        rows = cached.rows(positions[[1, 3]], np.array(batch.views)[[1, 3]], torch.from_numpy)
        for name, fields in batch.rows.items():
            assert all(torch.equal(values, rows[name][field]) for field, values in fields.items())
    assert max(len(seen) for seen in views.values()) > count  # more than are stored


def test_a_loss_sees_the_images_with_targets_alone_also_in_parts_of_a_batch(few, monkeypatch):
    found = parts(few, monkeypatch, *NEW_VIEWS)
    batch = loader_of(found, cached=cached_of(found)).batch(0)
    torch.manual_seed(0)
    network = found.build(found.config.student("erfnet")).eval()
    (term,) = (term for term in found.config.method("both") if term.loss.name == "kd")
    own = found.student_context(found.config.student("erfnet"))
    loss = term.loss.build(reads={"logits": found.targets["logits"][0]}, context=found.context, student=own)
    with torch.no_grad():
        output = network(batch.images_B3HW)
        alone = network(batch.images_B3HW[[1, 3]])
        some, stored = batch.with_targets(output)
        assert torch.equal(some.logits, output.logits[[1, 3]]) and stored.ids == tuple(batch.ids[i] for i in (1, 3))
        assert torch.equal(stored.images_B3HW, batch.images_B3HW[[1, 3]]) and stored.stored is None
        assert loss(some, stored) == pytest.approx(float(loss(alone, stored)), rel=1e-5)
        halves = [loss(*part.with_targets(network(part.images_B3HW))) for part in batch.parts(2)]
        assert float(sum(halves)) / 2 == pytest.approx(float(loss(some, stored)), rel=1e-5)


def test_new_views_for_labelled_images_train_and_are_refused_where_they_have_no_meaning(few, monkeypatch):
    settings = [part for override in NEW_VIEWS for part in ("--set", override)]
    result = few.train("both", *settings)
    assert result.exit_code == 0, result.output
    fresh = few.train("plain", *settings)  # which sees labelled images only, all in new views
    assert fresh.exit_code == 0, fresh.output
    refused = few.train("both", *settings[:2], "--set", "training.labelled_per_batch=null")
    assert refused.exit_code == 1 and "write a number less than batch" in refused.stderr
    found = parts(few, monkeypatch, NEW_VIEWS[0], "training.labelled_per_batch=3", "training.accumulate=2")
    with pytest.raises(ConfigError, match="smaller training.labelled_per_batch"):
        loader_of(found, cached=cached_of(found))
    every = parts(few, monkeypatch, *NEW_VIEWS, "dataset.labelled_part=null")
    loader = loader_of(every, cached=cached_of(every, "logits"))  # all have a label: the others are drawn from all of them
    assert {int(p) for step in range(7) for p in loader.positions(step)[0][[1, 3]]} == set(range(13))


def test_runs_curves_and_the_commands_say_how_many_labels_there_are(few):
    assert f"train: 13 images, {SHOWN} labelled, {13 - SHOWN} with labels that labelled_part hides" in few.do("doctor")
    said = f"{SHOWN} of 13 training images have labels (dataset.labelled_part: 0.4)"
    for command in ("prepare", "plan", "inspect"):
        assert said in few.do(command), command
    for method in ("plain", "pseudo"):
        assert few.train(method).exit_code == 0
        few.do("evaluate", "--student", "erfnet", "--method", method, "--seed", "0")
    run = few.folder / "runs/toy/erfnet-pseudo-0"
    record = json.loads((run / "run.json").read_text())
    assert record["labelled"] == {"part": 0.4, "seed": 0, "images": SHOWN, "digest": record["labelled"]["digest"]}
    with open(run / "curves.tsv") as file:
        assert {float(row["labelled"]) for row in csv.DictReader(file, delimiter="\t")} == {0.25}
    assert "labelled" not in (few.folder / "runs/toy/erfnet-plain-0/curves.tsv").read_text()
    saw_all = "The teacher was trained here and saw all labels of the training images."
    said = few.do("report")
    assert saw_all in said and json.loads((few.folder / "reports/teacher/toy.json").read_text())["labels"] == "all"
    assert "Students saw the labels of 5 training images (dataset.labelled_part: 0.4, seed 0); the other images had none." in said
    assert "is allowed" in few.do("verify", "--recompute", "4")


def test_the_report_says_which_labels_the_teacher_saw(few):
    from pipeline.reporting.results import Results
    from pipeline.reporting.table import labels_used

    found = dict(runs=[], teacher=None, teacher_time=None, strays=[], stale=[])
    part = {"part": 0.4, "seed": 0, "images": 5, "digest": "0" * 16}
    said = "The teacher was trained here and saw the labels of 5 training images (dataset.labelled_part: 0.4, seed 0)."
    assert labels_used(Results(**found, teacher_labels=part), given=False) == [said]
    assert labels_used(Results(**found, teacher_labels={}), given=False) == []  # nothing is hidden
    assert labels_used(Results(**found, teacher_labels=None), given=False) == []
    raw = few.config.read_text()
    try:
        few.change(teacher=dict(checkpoint=str(few.folder / "teachers/toy.safetensors")))
        assert "The teacher's weights were given; which labels they were trained on is not known here." in few.do("report")
    finally:
        few.config.write_text(raw)


def test_a_folder_alone_does_not_know_which_labels_were_used(few):
    import pipeline

    with pytest.raises(pipeline.errors.StoreError, match="only the config says which"):
        pipeline.open_cache(few.store("targets"))
    cache = pipeline.open_cache(few.store("targets"), targets=[path for path in stored(few) if not path.startswith("affinity")])
    assert len(cache) == 13


def stored(experiment) -> list[str]:
    return [path.stem for path in experiment.store("targets").glob("passes/*.json") if not path.stem.startswith("matrix")]


def test_the_api_hides_what_training_does_not_see(few, monkeypatch):
    import pipeline

    monkeypatch.chdir(few.folder)
    cache, shown = pipeline.open_cache("toy.yaml"), parts(few, monkeypatch).shown_labels
    for image_id in cache.ids:
        assert bool((cache[image_id].label_HW != 255).any()) == (image_id in shown)


def test_a_part_of_less_than_one_image_stops_prepare(few):
    result = few.run("prepare", "--set", "dataset.labelled_part=0.01")
    assert result.exit_code == 1 and "is less than one; write 0.08 or more" in result.stderr
