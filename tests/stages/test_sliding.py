"""Whole frames scored window by window: a slow mean over windows, one window that is the frame, and what can't be."""

import json
import shutil

import pytest
import torch
import yaml

import pipeline
from pipeline import config
from pipeline.config import Evaluate
from pipeline.errors import ConfigError
from pipeline.models._sliding import Sliding, starts
from pipeline.models.base import ModelBase, Output
from tests.conftest import EXPERIMENT

RUN = "erfnet-plain-0"
FIXED = '''
from torch import nn
import torch

class Fixed(nn.Module):
    """Takes images of 32 x 64 alone: a position embedding, as a vision transformer has."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.position = nn.Parameter(torch.randn(1, 8, 4, 8) * 0.1)
        self.mixed = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.classified = nn.Conv2d(8, 5, 1)

    def forward(self, images):
        return self.classified(self.mixed(self.patches(images) + self.position))
'''


class Lines(ModelBase):
    """Logits on a grid of 2 x 2 pixels, which depend on where in its input a pixel is; a lane where an input is bright."""

    def forward(self, images_B3HW, labels_BHW=None):
        if labels_BHW is not None:
            images_B3HW = images_B3HW + labels_BHW[:, None]
        coarse = torch.nn.functional.avg_pool2d(images_B3HW[:, :2], 2)
        ramp = torch.arange(coarse.shape[-1]).float()
        return Output(coarse * (1 + ramp), {}, images_B3HW.amax(dim=(1, 2, 3))[:, None])


@pytest.mark.parametrize(
    "side, window, stride, expected", [(10, 4, 3, [0, 3, 6]), (11, 4, 3, [0, 3, 6, 7]), (4, 4, 3, [0]), (4, 8, 5, [0])]
)
def test_windows_reach_the_end_and_none_lies_beyond_it(side, window, stride, expected):
    assert starts(side, window, stride) == expected


def test_a_pixel_has_the_mean_of_the_windows_that_show_it():
    images = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (2, 24, 40), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    network, content, window, stride = Lines(), (21, 37), (8, 16), (5, 11)
    found = Sliding(network, content, window, stride)(images, labels)
    sums, counts, flags = torch.zeros(2, 2, 24, 40), torch.zeros(24, 40), []
    for top in (0, 5, 10, 13):
        for left in (0, 11, 21):
            output = network(images[:, :, top : top + 8, left : left + 16], labels[:, top : top + 8, left : left + 16])
            fine = torch.nn.functional.interpolate(output.logits, window, mode="bilinear")
            place = torch.nn.functional.pad(torch.ones(window), (left, 24 - left, top, 16 - top)).bool()
            sums[:, :, place] += fine.flatten(2)
            counts += place
            flags.append(output.existence)
    assert counts[:21, :37].min() == 1 and counts[21:].max() == 0 and counts.max() > 3
    torch.testing.assert_close(found.logits[:, :, :21, :37], (sums / counts)[:, :, :21, :37])
    assert (found.logits[:, :, 21:] == 0).all() and torch.equal(found.existence, torch.stack(flags).amax(0))


@pytest.fixture(scope="module")
def trained(cached_experiment, tmp_path_factory):
    """A student of the whole canvas, scored whole."""
    experiment = type(cached_experiment)(tmp_path_factory.mktemp("windows") / "experiment")
    shutil.copytree(cached_experiment.folder, experiment.folder)
    assert experiment.train("plain", "--set", "training.validate_every=12").exit_code == 0
    experiment.do("evaluate", *NETWORK)
    return experiment


NETWORK = ("--student", "erfnet", "--method", "plain", "--seed", "0", "--set", "training.validate_every=12")
WHOLE, SMALL = ("--set", "evaluate.window=[48,128]"), ("--set", "evaluate.window=[32,64]")


def result(experiment) -> dict:
    return json.loads((experiment.folder / f"reports/scores/toy/{RUN}.json").read_text())


def files(folder) -> dict:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_one_window_that_is_the_frame_answers_as_the_whole_bit_for_bit(trained, tmp_path):
    before = result(trained)
    trained.do("evaluate", *NETWORK, *WHOLE)
    assert result(trained) == before | {"window": [48, 128], "stride": [32, 85]}
    for name, more in (("whole", ()), ("window", WHOLE), ("windows", SMALL)):
        trained.do("predict", "data/toy", *NETWORK, *more, "--out", str(tmp_path / name), "--as", "ids")
    whole, window, windows = (files(tmp_path / name) for name in ("whole", "window", "windows"))
    assert whole and whole == window and whole.keys() == windows.keys() and whole != windows
    refused = trained.run("predict", "data/toy", *NETWORK, *SMALL, "--out", str(tmp_path / "whole"), "--as", "ids")
    assert refused.exit_code == 1 and "window" in refused.stderr

    cfg, logits = trained.load(), []
    network = cfg.students["erfnet"].build(num_classes=5, size=(48, 128), lanes=0).eval()
    for shown in (network, Sliding(network, (44, 125), (48, 128), (32, 85))):
        with torch.no_grad():
            logits.append(shown(torch.full((1, 3, 48, 128), 7.0)).logits)
    assert torch.equal(*logits)


def test_commands_validations_and_python_give_windows_one_score(trained, tmp_path, monkeypatch):
    trained.do("evaluate", *NETWORK, *SMALL)
    found = result(trained)
    assert found["window"] == [32, 64] and found["stride"] == [21, 43]
    cfg = trained.load()
    network = cfg.students["erfnet"].build(num_classes=5, size=(32, 64), lanes=0)
    from safetensors.torch import load_file

    network.load_state_dict(load_file(trained.folder / f"runs/toy/{RUN}/weights.safetensors"))
    monkeypatch.chdir(trained.folder)
    said = pipeline.evaluate(network, "toy.yaml", overrides=["evaluate.window=[32,64]"])
    assert said["mean_iou"] == found["mean_iou"] and said["iou"] == found["iou"]
    assert pipeline.evaluate(network, "toy.yaml")["mean_iou"] != found["mean_iou"]

    before = (trained.folder / f"runs/toy/{RUN}/validation.tsv").read_text().splitlines()[-1].split("\t")
    again = type(trained)(tmp_path / "again")
    shutil.copytree(trained.folder, again.folder)
    done = again.train("plain", "--set", "training.validate_every=12", *SMALL)  # another run, since what is kept may differ
    assert done.exit_code == 0 and "window" in done.stderr, done.output
    after = (again.folder / f"runs/toy/{RUN}/validation.tsv").read_text().splitlines()[-1].split("\t")
    assert before[0] == after[0] and before != after


def test_a_network_of_one_size_is_trained_on_crops_and_scored_by_windows(experiment, monkeypatch):
    (experiment.folder / "fixed_network.py").write_text(FIXED)
    monkeypatch.syspath_prepend(experiment.folder)
    own = dict(factory="fixed_network:Fixed", arguments={}, mean=[124, 116, 104], std=[58, 57, 57], logits="output")
    own |= dict(layers=dict(mid="patches", high="mixed"))
    experiment.change(views=dict(crop=[32, 64], shift=0.0), evaluate=dict(window=[32, 64]), training=dict(steps=2))
    experiment.change(teacher_training=dict(steps=2), students=dict(erfnet=dict(model="adapter", **own)))
    raw = yaml.safe_load(experiment.config.read_text())
    raw["teacher"] = dict(name="adapter", checkpoint=None, backbone=None, precision="fp32", **own)
    experiment.config.write_text(yaml.safe_dump(raw))
    experiment.do("train-teacher")
    experiment.do("evaluate", "--teacher")
    experiment.do("cache-teacher")
    experiment.do("verify", "--recompute", "8")
    assert experiment.train("kd", "--set", "training.validate_every=2").exit_code == 0
    network = ("--student", "erfnet", "--method", "kd", "--seed", "0", "--set", "training.validate_every=2")
    experiment.do("evaluate", *network)
    experiment.do("predict", "data/toy", *network, "--out", "seen")
    experiment.do("report", "--pictures")
    assert json.loads((experiment.folder / "reports/scores/toy/teacher.json").read_text())["window"] == [32, 64]


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(window=[30, 64]), "evaluate.window: expected multiples of 8, got [30, 64]; write [32, 64]"),
        (dict(window=[56, 64]), "evaluate.window: 56 x 64 is larger than the prepared images, 48 x 128; write a smaller window"),
        (dict(stride=[8, 8]), "evaluate.stride: there are no windows; write evaluate.window, or null"),
        (dict(window=[32, 64], stride=[33, 8]), "evaluate.stride: [33, 8] leaves gaps between windows of [32, 64]"),
    ],
)
def test_windows_that_cannot_be_are_refused_in_one_line(tmp_path, changes, said):
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump({**EXPERIMENT, "evaluate": {"split": "test", **changes}}))
    with pytest.raises(ConfigError) as refused:
        config.load(path)
    assert said in str(refused.value)


def test_a_network_of_one_size_needs_a_window_as_large_as_its_crops(tmp_path):
    raw = {**EXPERIMENT, "views": {**EXPERIMENT["views"], "shift": 0.0, "crop": [40, 64]}}
    raw["training"] = {**raw["training"], "existence_weight": 0.1}
    path = tmp_path / "toy.yaml"
    for window, fits in ((None, False), ([32, 64], False), ([40, 64], True)):
        path.write_text(yaml.safe_dump(raw | {"evaluate": dict(split="test", window=window)}))
        if fits:
            assert config.load(path).evaluate.window == (40, 64)
        else:
            with pytest.raises(ConfigError, match=r"existence_weight: an existence head .* write evaluate.window: \[40, 64\]"):
                config.load(path)


def test_strides_are_two_thirds_of_the_window():
    assert Evaluate(split="test", window=(512, 1024)).steps == (341, 683)
    assert Evaluate(split="test", window=(512, 1024), stride=(256, 512)).windows == {"window": [512, 1024], "stride": [256, 512]}
    assert Evaluate(split="test").steps is None and Evaluate(split="test").windows == {}
