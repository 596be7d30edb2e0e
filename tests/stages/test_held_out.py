"""Images kept from training, on which every term is measured: also terms that a student was not trained with."""

import csv

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import term_name
from pipeline.data import prepared
from pipeline.errors import ConfigError
from pipeline.store import Reader, Store
from pipeline.teacher import cache
from pipeline.training.loading import CachedTargets, Loader, scan_order


def loader_of(experiment, names=()):
    cfg = experiment.load()
    cfg.dataset.args["root"] = str(experiment.folder / cfg.dataset.args["root"])
    source = cfg.dataset.build()
    ids, sample = source.ids("train"), prepared.sample_pass(cfg.prepare.size, source.lanes)
    context = cache.context(cfg.teacher.model, source, cfg.prepare.size)
    named = cache.target_passes({name: cfg.targets[name] for name in names}, context)
    reader = Reader(Store.open(experiment.store("targets")), [cache.MATRIX, *(pass_ for _, pass_ in named.values())], ids, 3)
    samples = Reader(Store.open(experiment.store("prepared")), [sample], ids, 1)
    return (
        Loader(
            samples,
            sample,
            ids,
            dataset=source,
            content=cfg.prepare.size,
            views=cfg.views,
            training=cfg.training,
            seed=0,
            device="cpu",
            cached=CachedTargets(reader, cache.MATRIX, named),
        ),
        cfg,
        context,
        source,
    )


def table(run):
    with open(run / "held_out.tsv") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file, delimiter="\t")]


def test_images_held_out_are_never_trained_on_and_all_others_are(experiment):
    experiment.change(training=dict(held_out=4))
    loader = loader_of(experiment)[0]
    seen = {int(position) for step in range(9) for position in loader.positions(step)[0]}  # 36 of 9 images: 4 epochs
    assert seen == set(range(13)) - set(loader.held_out.tolist()) and len(loader.held_out) == 4
    assert loader.held_out.tolist() == scan_order(loader.ids)[:4]
    assert sum(len(batch.labels_BHW) for batch in loader.held_out_batches(0)) == 4
    experiment.change(training=dict(held_out=13))
    with pytest.raises(ConfigError, match="13 of 13 images leave none"):
        loader_of(experiment)


def test_a_term_of_weight_zero_is_watched_and_changes_nothing(experiment):
    """By this a plain student's distilled terms can be held against those of a student that was trained with them."""
    watched = [
        dict(loss="affinity", reads=["graph_mid", "graph_high"], weight=0.0),
        dict(loss="attention", reads=["attention_high"], weight=0.0),
    ]
    experiment.change(training=dict(held_out=5), methods=dict(watched=watched))
    for method in ("plain", "watched"):
        assert experiment.train(method).exit_code == 0
    plain, run = (experiment.folder / f"runs/toy/erfnet-{method}-0" for method in ("plain", "watched"))
    before, after = (load_file(folder / "weights.safetensors") for folder in (plain, run))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert list(table(plain)[0]) == ["step", "ce"] and list(table(run)[0]) == ["step", "ce", "affinity", "attention"]
    assert [row["step"] for row in table(run)] == [4, 8, 12]

    # the last line by hand: the trained weights, image by image
    loader, cfg, context, source = loader_of(experiment, ["graph_mid", "graph_high", "attention_high"])
    model = cfg.students["erfnet"].build(num_classes=5, size=context.size, lanes=0)
    model.load_state_dict(after)
    model.eval()
    own, terms = cache.context(cfg.students["erfnet"], source, cfg.prepare.size), cfg.methods["watched"]
    (batch, last) = loader.held_out_batches(11)
    assert (len(batch.labels_BHW), len(last.labels_BHW)) == (4, 1)
    for i, term in enumerate(terms):
        loss = term.loss.build(reads={n: cfg.targets[n].build() for n in term.reads}, context=context, student=own)
        with torch.no_grad():
            values = [float(loss(model(part.images_B3HW), part)) * len(part.labels_BHW) for part in (batch, last)]
        assert table(run)[-1][term_name(terms, i)] == pytest.approx(np.sum(values) / 5, rel=1e-4)


def test_a_resumed_run_writes_the_same_table(experiment, power_cut):
    experiment.change(training=dict(held_out=5))
    assert experiment.train().exit_code == 0
    run = experiment.folder / "runs/toy/erfnet-intra-0"
    unbroken = {name: (run / name).read_bytes() for name in ("weights.safetensors", "held_out.tsv")}
    run.rename(run.with_name("unbroken"))
    with power_cut(7):
        assert experiment.train().exit_code == 130
    assert experiment.train().exit_code == 0
    assert {name: (run / name).read_bytes() for name in unbroken} == unbroken
