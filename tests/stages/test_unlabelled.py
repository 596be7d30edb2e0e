"""A dataset in which only some pictures have a label: from doctor to scores, and where the student's regions come from."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipeline.data import prepared
from pipeline.datasets.folder import EXAMPLE
from pipeline.datasets.roads import Dataset as Roads
from pipeline.losses.affinity import Loss
from pipeline.store import Reader, Store
from pipeline.teacher import cache
from pipeline.training.loading import CachedTargets, Loader

LABELLED = 3


@pytest.fixture
def half_labelled(experiment):
    """The experiment's pictures in the layout of `folder`: two lanes are one class; all but three of train have no label."""
    roads = yaml.safe_load(experiment.config.read_text())["dataset"]
    roads.pop("name")
    source = Roads(**roads | {"root": str(experiment.folder / roads["root"])})
    root = experiment.folder / "data" / "own"
    for split in ("train", "test"):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for number, image_id in enumerate(source.ids(split)):
            Image.fromarray(source.image(image_id)).save(root / "images" / split / f"{number:02}.png")
            if split == "test" or number < LABELLED:
                halves = np.array([0, 1, 1, 2, 2], np.uint8)
                Image.fromarray(halves[source.label(image_id)]).save(root / "labels" / split / f"{number:02}.png")
    (root / "classes.yaml").write_text(EXAMPLE)
    raw = yaml.safe_load(experiment.config.read_text())
    short = {"steps": 6, "checkpoint_every": 100, "norm_every": 100, "background_weight": 0.4}
    kinds = {kind: dict(type="affinity", layer="high", regions=kind) for kind in ("label", "teacher", "both")}
    raw |= {
        "dataset": {"name": "folder", "root": "data/own"},
        "targets": kinds | {"logits": {"type": "logits"}},
        "teacher_training": raw["teacher_training"] | short | {"steps": 60, "background_weight": 0.02},
        "training": raw["training"] | short,
        "methods": {
            "plain": [],
            **{kind: [dict(loss="affinity", reads=[kind], weight=1.0)] for kind in kinds},
            "kd": [dict(loss="kd", reads=["logits"], weight=1.0, temperature=1.0)],
        },
    }
    experiment.config.write_text(yaml.safe_dump(raw))
    for command in ("prepare", "train-teacher", "cache-teacher"):
        experiment.do(command)
    return experiment


def test_a_student_learns_from_pictures_without_labels(half_labelled, monkeypatch):
    experiment = half_labelled
    assert f"{LABELLED}" in experiment.do("doctor")
    for method in ("both", "kd"):
        assert experiment.train(method).exit_code == 0
    assert "on 3 images" in experiment.do("evaluate", "--student", "erfnet", "--method", "both", "--seed", "0")
    assert "is allowed" in experiment.do("verify", "--recompute", "6")

    monkeypatch.chdir(experiment.folder)
    cfg = experiment.load()
    source = cfg.dataset.build()
    context = cache.context(cfg.teacher.model, source, cfg.prepare.size)
    store, sample, images = prepared.open_whole(experiment.folder / "cache", cfg.dataset, source, cfg.prepare, source.ids("train"))
    ids = [image.id for image in images]
    labels = Reader(store, [sample], ids, 1).read(sample, np.arange(13), np.zeros(13, int))["label"]
    assert [bool((label != 255).any()) for label in labels] == [True] * LABELLED + [False] * 10

    (folder,) = (experiment.folder / "cache").glob("folder-*/targets-*")
    named = cache.target_passes(cfg.targets, context)
    reader = Reader(Store.open(folder), [cache.MATRIX, *(pass_ for _, pass_ in named.values())], ids, cfg.views.count)
    plain = {name: reader.read(pass_, np.arange(13), np.zeros(13, int)) for name, (_, pass_) in named.items()}
    assert (plain["label"]["cells"][LABELLED:] == 0).all() and (plain["label"]["graph"][LABELLED:] == 0).all()
    for field in ("graph", "cells"):  # both: by label where there is one, as the teacher sees it elsewhere
        assert np.array_equal(plain["both"][field][:LABELLED], plain["label"][field][:LABELLED])
        assert np.array_equal(plain["both"][field][LABELLED:], plain["teacher"][field][LABELLED:])
    assert (plain["both"]["cells"][LABELLED:] > 0).any()

    loader = Loader(
        Reader(store, [sample], ids, 1),
        sample,
        ids,
        dataset=source,
        content=cfg.prepare.size,
        views=cfg.views,
        training=cfg.training,
        seed=0,
        device="cpu",
        cached=CachedTargets(reader, cache.MATRIX, named),
    )
    batch = next(
        batch
        for batch in map(loader.batch, range(40))
        if not (batch.labels_BHW != 255).any() and ((batch.rows["teacher"]["cells"] > 0).sum(1) > 1).any()
    )  # two regions make a graph
    own = cache.context(cfg.students["erfnet"], source, cfg.prepare.size)
    torch.manual_seed(0)
    student = cfg.students["erfnet"].build(num_classes=3, size=context.size, lanes=0)
    for kind in ("label", "both"):  # without labels the graph of labels says nothing; the teacher's regions do
        loss = Loss(reads={kind: named[kind][0]}, context=context, student=own)
        value = loss(student(batch.images_B3HW), batch)
        assert (value > 0) == (kind == "both")
