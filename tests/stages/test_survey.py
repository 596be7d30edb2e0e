"""What is learnt of a dataset before the first step: CIRKD's bank, and weights of classes, through the stages."""

import pytest
import torch

from pipeline import api
from pipeline.data import prepared
from pipeline.data.frames import frame
from pipeline.store import Reader, Store
from pipeline.training.loading import Loader, scan_order


@pytest.fixture
def with_anchors(experiment):
    experiment.change(
        targets={"anchors": dict(type="anchors", layer="high", count=24)},
        methods={
            "cirkd": [
                dict(
                    loss="cirkd",
                    reads=["anchors"],
                    weight=1.0,
                    bank_pixels=40,
                    bank_regions=20,
                    contrast_pixels=60,
                    contrast_regions=20,
                )
            ]
        },
    )
    experiment.do("cache-teacher")
    return experiment


def bank(run):
    state = torch.load(run / "checkpoint.pt", weights_only=True)["losses"]
    return {name: values for name, values in state.items() if "projection" not in name}


def test_a_resumed_run_has_the_bank_and_the_weights_of_an_unbroken_one(with_anchors, power_cut):
    assert with_anchors.train("cirkd").exit_code == 0
    run = with_anchors.folder / "runs/toy/erfnet-cirkd-0"
    unbroken, weights = bank(run), (run / "weights.safetensors").read_bytes()
    assert unbroken["0.num_regions"].sum() > 13 and unbroken["0.pixels"].any()
    run.rename(run.with_name("unbroken"))
    with power_cut(7):
        assert with_anchors.train("cirkd").exit_code == 130
    assert with_anchors.train("cirkd").exit_code == 0
    resumed = bank(run)
    assert unbroken.keys() == resumed.keys() and all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    assert (run / "weights.safetensors").read_bytes() == weights


def test_offline_equals_online_by_the_command(with_anchors):
    said = with_anchors.do("verify", "--recompute", "8")
    (row,) = (line for line in said.splitlines() if "erfnet cirkd cirkd" in line)
    online, difference, gradient = (float(cell) for cell in row.split("|")[2:5])
    assert online > 0 and difference < 1e-2 and gradient < 1e-2


def test_a_loop_of_ones_own_has_the_same_bank(with_anchors, monkeypatch):
    assert with_anchors.train("cirkd").exit_code == 0
    monkeypatch.chdir(with_anchors.folder)
    cache = api.open_cache("toy.yaml")
    student = with_anchors.load().students["erfnet"].build(num_classes=5, size=cache.size, lanes=0)
    loss = api.make_loss("cirkd", cache, student=student, reads=["anchors"], bank_pixels=40, bank_regions=20)
    stored = bank(with_anchors.folder / "runs/toy/erfnet-cirkd-0")
    assert torch.equal(loss.pixels, stored["0.pixels"]) and torch.equal(loss.regions, stored["0.regions"])


def test_the_order_of_a_survey_follows_from_the_ids_alone():
    ids = [f"image-{number}" for number in range(50)]
    order = [ids[position] for position in scan_order(ids)]
    assert order == [ids[::-1][position] for position in scan_order(ids[::-1])]
    assert sorted(order) == sorted(ids) and order != ids


def test_class_weights_come_from_the_prepared_labels(experiment):
    """ENet's weights through the command, and each class's share counted pixel by pixel."""
    cfg = experiment.load()
    cfg.dataset.args["root"] = str(experiment.folder / cfg.dataset.args["root"])
    source = cfg.dataset.build()
    pixels = Store.find(experiment.folder / "cache", "prepared", "roads", prepared.identity(source, cfg.prepare))
    sample, ids = prepared.sample_pass(cfg.prepare.size, source.lanes), source.ids("train")
    loader = Loader(
        Reader(pixels, [sample], ids, 1),
        sample,
        ids,
        dataset=source,
        content=cfg.prepare.size,
        views=cfg.views,
        training=cfg.training,
        seed=0,
        device="cpu",
    )
    counts = [0] * 5
    for image_id in ids:
        label = frame(source.image(image_id), source.label(image_id), source.crop_top, cfg.prepare.size)[1]
        for k in range(5):
            counts[k] += int((label == k).sum())
    assert loader.class_shares().tolist() == pytest.approx([count / sum(counts) for count in counts], rel=1e-6)
    experiment.change(training=dict(class_weights="enet", background_weight=1.0, warmup_steps=3, nesterov=True))
    assert experiment.train("plain").exit_code == 0
