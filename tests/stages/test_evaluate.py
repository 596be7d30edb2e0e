"""From a frame on disk to the official score, on the layout of every dataset; and a network that cannot be wrong."""

import json
import os
import shutil
from pathlib import Path

import cv2
import layouts
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image

from pipeline import config, weights
from pipeline.cli import main
from pipeline.config import Prepare
from pipeline.data.frames import canvas, frame
from pipeline.datasets.roads import Dataset as Roads
from pipeline.files import write_json
from pipeline.identity import sha256
from pipeline.metrics import culane, llamas
from pipeline.metrics.segmentation import Confusion
from pipeline.models.base import ModelBase, Output
from pipeline.scoring import score

NAMES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == "camvid" and "CAMVID_ROOT" not in os.environ, reason="CAMVID_ROOT does not name a copy of CamVid"
        ),
    )
    for name in layouts.LAYOUTS
]
RUN = ("--student", "erfnet", "--method", "plain", "--seed", "0")


def run(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def random_student(cfg, flags=(), sure=30.0):
    """An ERFNet of random weights that is sure of itself: lanes need probabilities above 0.3. `flags`: of its lanes."""
    source = cfg.dataset.build()
    torch.manual_seed(0)
    network = cfg.student("erfnet").build(num_classes=len(source.classes), size=canvas(cfg.prepare.size), lanes=len(flags))
    state = network.state_dict()
    state["classifier.weight"] *= sure
    if flags:
        state["existence.5.lanes.bias"] = torch.tensor(flags)
    network.load_state_dict(state)
    path = Path("runs") / cfg.name / "erfnet-plain-0/weights.safetensors"
    path.parent.mkdir(parents=True)
    left_by_a_run(path, state)
    return network.eval(), source


def left_by_a_run(path, state):
    weights.save_file(path, state)
    write_json(path.with_name("result.json"), {"weights": sha256(path.read_bytes())})


def slow_answer(network, source, image, size):
    """[K, H - crop, W] logits and [K, h, w] probabilities of one frame, a step a line."""
    below = image[source.crop_top :]
    shrinks = min(below.shape[0] / size[0], below.shape[1] / size[1]) > 2
    small = cv2.resize(below, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    rows, columns = -size[0] % 8, -size[1] % 8
    fill = frame(image, None, source.crop_top, size)[0][-1, -1]  # the mean colour; no size here is a multiple of 8
    padded = np.full((size[0] + rows, size[1] + columns, 3), fill, np.uint8)
    padded[: size[0], : size[1]] = small
    with torch.no_grad():
        output = network(torch.from_numpy(padded).permute(2, 0, 1)[None].float())
    logits = output.logits[:, :, : size[0], : size[1]]
    upsampled = F.interpolate(logits, below.shape[:2], mode="bilinear", align_corners=False)
    return upsampled[0].numpy(), logits.softmax(dim=1)[0].numpy()


def slow_lines(probabilities, flags, image, source):
    """By the official rule, on maps of the size it was made for."""
    maps = F.interpolate(torch.from_numpy(probabilities)[None], (208, 976), mode="bilinear")[0]
    return culane.probabilities_to_lines(maps.numpy(), flags, image.shape[:2], source.crop_top)


def slow_mean_iou(pairs, num_classes):
    ious = []
    for c in range(num_classes):
        hits = sum(int(((truth == c) & (found == c)).sum()) for truth, found in pairs)
        union = sum(int((((truth == c) | (found == c)) & (truth != 255)).sum()) for truth, found in pairs)
        if union:
            ious.append(hits / union)
    return float(np.mean(ious))


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_path_from_frames_to_the_official_score(name, tmp_path, monkeypatch):
    path = layouts.write(name, tmp_path)
    monkeypatch.chdir(tmp_path)
    cfg = config.load(path)
    if name == "roads":
        run("synth", path, "--workers", 1)
    run("prepare", path, "--workers", 1)
    network, source = random_student(cfg)
    said = run("evaluate", path, *RUN, "--batch", 2, "--workers", 2)
    scores = json.loads(Path(f"reports/scores/{name}/erfnet-plain-0.json").read_text())

    ids = source.ids(cfg.evaluate.split)
    pairs, answers = [], {}
    for image_id in ids:
        image, label = source.image(image_id), source.label(image_id)
        logits, probabilities = slow_answer(network, source, image, cfg.prepare.size)
        found = np.full(image.shape[:2], source.background or 0)
        found[source.crop_top :] = logits.argmax(0)
        answers[image_id] = image, label, found, probabilities
        if label is not None:
            pairs.append((label, found))
    assert scores["images"] == len(pairs) and len(scores["iou"]) == len(source.classes)
    assert scores["mean_iou"] == pytest.approx(slow_mean_iou(pairs, len(source.classes)), abs=2e-4)
    assert f"mean IoU {scores['mean_iou']:.4f} on {len(pairs)} images" in said
    assert Path(f"reports/scores/{name}/erfnet-plain-0.png").stat().st_size > 1000
    assert scores[scores["metric"]] is not None

    predictions = Path(f"runs/{name}/erfnet-plain-0/predictions/{cfg.evaluate.split}")
    if name == "roads":
        check_lines(predictions, source, answers, scores)
    elif name == "llamas":
        check_maps(predictions, source, answers, scores)
    elif name in ("apolloscape", "cityscapes"):
        check_ids(predictions, source, answers, scores, path)
    else:
        assert scores["metric"] == "mean_iou" and not predictions.exists()


def check_lines(predictions, source, answers, scores):
    found = 0
    for image_id, (image, _, _, probabilities) in answers.items():
        lanes = slow_lines(probabilities, [1, 1, 1, 1], image, source)
        written = culane.read_lines(predictions / f"{image_id}.lines.txt")
        assert len(written) == len(lanes)
        for mine, theirs in zip(written, lanes):
            assert np.abs(mine - theirs).max() <= 2  # resized by OpenCV there, by torch here
        found += len(lanes)
    assert found > 0
    lists = source.root / "list"
    said = json.loads(
        run(
            "score",
            "culane",
            predictions,
            source.root,
            "--list",
            lists / "test_split",
            "--json",
            "--size",
            118,
            328,
            "--width",
            6,
            "--workers",
            1,
        )
    )  # 30 of 590 rows
    assert said["total"]["f1"] == scores["culane_f1"] and scores["metric"] == "culane_f1"
    assert scores["culane"]["iou 0.5"] == {**said["categories"], "total": said["total"]}
    assert scores["culane_f1_30"] == scores["culane"]["iou 0.3"]["total"]["f1"]
    total = scores["culane"]["iou 0.5"]["total"]
    assert total["tp"] + total["fp"] == found
    assert total["tp"] + total["fn"] == sum(len(source.lines(image_id)) for image_id in answers) > 0


def check_maps(predictions, source, answers, scores):
    for image_id, (image, _, _, probabilities) in answers.items():
        maps = [llamas.read_map(predictions / source.prediction_path(image_id, c)) for c in range(5)]
        for c, (map_HW, small) in enumerate(zip(maps, probabilities)):
            assert map_HW.shape == image.shape[:2]
            assert (map_HW[: source.crop_top] == (255 if c == 0 else 0)).all()
            below = image.shape[0] - source.crop_top, image.shape[1]
            expected = 255 * F.interpolate(torch.from_numpy(small)[None, None], below, mode="bilinear")[0, 0].numpy()
            assert np.abs(map_HW[source.crop_top :] - expected).max() <= 3  # of 255; shifted rows would be 100 off
    said = json.loads(
        run(
            "score",
            "llamas",
            predictions,
            source.root / "labels/valid",
            "--recording",
            "images-c",
            "--size",
            180,
            319,
            "--json",
            "--workers",
            1,
        )
    )
    assert (said["map"], said["ap"]) == (scores["llamas_map"], scores["ap"])


def check_ids(predictions, source, answers, scores, path):
    ids = [*source.official_ids, 249]
    for image_id, (_, _, found, _) in answers.items():
        with Image.open(predictions / source.prediction_path(image_id)) as picture:
            assert picture.mode == "L"
            written = np.array(picture)
        assert (written != np.array(ids)[found]).mean() < 1e-3
    said = json.loads(run("score", "segmentation", predictions, path, "--json", "--workers", 1))
    assert {key: scores[key] for key in said} == said and f"{source.metric}_miou" in said


class Oracle(ModelBase):
    """Answers with the labels, shifted by whole pixels of the frame; beyond the frame it sees what is never there."""

    def __init__(self, source, ids, size, shift=(0, 0), flags=None):
        super().__init__()
        self.source, self.ids, self.size, self.shift, self.flags = source, iter(ids), size, shift, flags

    def forward(self, images_B3HW, labels_BHW=None):
        labels = []
        for image_id in (next(self.ids) for _ in images_B3HW):
            label = self.source.label(image_id)
            if label is None:
                label = np.zeros(self.source.image(image_id).shape[:2], np.uint8)
            moved = np.roll(label, self.shift, (0, 1))
            _, shown = frame(self.source.image(image_id), moved, self.source.crop_top, self.size)
            shown[self.size[0] :], shown[:, self.size[1] :] = 1, 1
            labels.append(np.where(shown == 255, 0, shown))
        classes = torch.from_numpy(np.stack(labels)).long()
        logits = 40.0 * F.one_hot(classes, len(self.source.classes)).permute(0, 3, 1, 2)
        return Output(logits, {}, None if self.flags is None else torch.tensor([self.flags] * len(images_B3HW)))


def oracle_scores(source, split, size, folder, **keys):
    ids = source.ids(split)
    oracle = Oracle(source, ids, size, **keys)
    passed = score.answer_all(oracle, source, ids, Prepare(size=size, codec="raw"), folder, device="cpu", batch=3, workers=2)
    return score.scores_of(source, split, ids, folder, passed, 1)


@pytest.mark.parametrize("name", NAMES[1:])  # roads: larger ones, below
def test_the_labels_as_answers_score_all_that_can_be_had(name, tmp_path):
    cfg = config.load(layouts.write(name, tmp_path))
    source, split, size = cfg.dataset.build(), cfg.evaluate.split, tuple(layouts.LAYOUTS[name][3])
    scores = oracle_scores(source, split, size, tmp_path / "predictions")
    assert scores["mean_iou"] == 1.0
    if name == "llamas":  # a frame without a lane gives 0 for it, as officially
        labels = [source.label(image_id) for image_id in source.ids(split)]
        shares = {lane: np.mean([(label == c).any() for label in labels]) for c, lane in enumerate(llamas.LANES, 1)}
        assert {lane: scores["ap"][lane] for lane in shares} == pytest.approx(shares)
        assert scores["llamas_map"] == pytest.approx(np.mean(list(shares.values()))) and scores["llamas_map"] > 0.3
    else:
        assert scores[scores["metric"]] == 1.0
    shifted = oracle_scores(source, split, size, tmp_path / "shifted", shift=(0, 40))
    assert shifted[shifted["metric"]] < 0.5 * scores[scores["metric"]]


@pytest.fixture(scope="module")
def large_roads(tmp_path_factory):
    return drawn_roads(tmp_path_factory.mktemp("roads"), [590, 1640])


def drawn_roads(root, size):
    source = Roads(root=str(root), train=0, val=0, test=10, size=size, seed=0, difficulty=0.2)
    source.generate(1, lambda done, total: None)
    return source


def test_the_labels_as_answers_find_every_line_of_culane_frames(large_roads, tmp_path):
    scores = oracle_scores(large_roads, "test", (180, 970), tmp_path)  # padded to 184 x 976
    assert scores["culane_f1"] > 0.98 and scores["culane_f1_30"] > 0.98 and scores["mean_iou"] > 0.9
    assert scores["culane"]["iou 0.5"]["total"]["tp"] > 20


def test_small_frames_and_a_small_network_do_not_bound_the_score(tmp_path):
    source = drawn_roads(tmp_path / "roads", [236, 656])
    assert oracle_scores(source, "test", (48, 216), tmp_path / "predictions")["culane_f1"] > 0.98


@pytest.mark.parametrize("shift", [(0, 40), (40, 0)])
def test_answers_that_are_40_pixels_off_find_hardly_a_line(large_roads, tmp_path, shift):
    assert oracle_scores(large_roads, "test", (180, 970), tmp_path, shift=shift)["culane_f1"] < 0.2


def test_the_existence_head_decides_which_lanes_are_written(large_roads, tmp_path):
    scores = oracle_scores(large_roads, "test", (180, 970), tmp_path, flags=[-9.0, 9.0, -9.0, -9.0])
    lanes = [culane.read_lines(tmp_path / f"{image_id}.lines.txt") for image_id in large_roads.ids("test")]
    existing = sum(int(large_roads.existence(image_id)[1]) for image_id in large_roads.ids("test"))
    assert sum(map(len, lanes)) == existing == scores["culane"]["iou 0.5"]["total"]["tp"]


def test_a_student_trained_with_the_existence_loss_is_asked_for_its_flags(tmp_path, monkeypatch):
    path = layouts.write("roads", tmp_path)
    monkeypatch.chdir(tmp_path)
    run("synth", path, "--workers", 1)
    network, source = random_student(config.load(path), flags=(-99.0, 99.0, -99.0, 99.0))
    run("evaluate", path, *RUN, "--workers", 1, "--set", "training.existence_weight=0.1")
    written = looked_at = 0
    for image_id in source.ids("test"):
        image = source.image(image_id)
        _, probabilities = slow_answer(network, source, image, (60, 250))
        lanes = [slow_lines(probabilities, flags, image, source) for flags in ([0, 1, 0, 1], [1, 1, 1, 1])]
        path = f"runs/roads/erfnet-plain-0/predictions/test/{image_id}.lines.txt"
        assert len(culane.read_lines(path)) == len(lanes[0])
        written, looked_at = written + len(lanes[0]), looked_at + len(lanes[1])
    assert written < looked_at


def test_a_prediction_of_one_class_only_is_told(large_roads):
    source = large_roads
    labels = [np.zeros((4, 6), np.uint8), np.ones((4, 6), np.uint8)]
    for predicted, expected in (([0, 0], source.classes[0]), ([0, 1], None), ([2, 2], source.classes[2])):
        confusion = Confusion(len(source.classes))
        for label, value in zip(labels, predicted):
            confusion.add(label, np.full((4, 6), value, np.uint8))
        assert score.only_class(source, confusion) == expected


def test_where_there_is_no_truth_the_files_for_the_server_are_written_all_the_same(tmp_path, monkeypatch):
    path = layouts.write("apolloscape", tmp_path)
    monkeypatch.chdir(tmp_path)
    _, source = random_student(config.load(path))
    said = run("evaluate", path, *RUN, "--set", "evaluate.split=test", "--workers", 1)
    scores = json.loads(Path("reports/scores/apolloscape/erfnet-plain-0.json").read_text())
    assert scores["apolloscape_miou"] is scores["mean_iou"] is None and scores["images"] == 0 and "no labels" in said
    (written,) = Path("runs/apolloscape/erfnet-plain-0/predictions/test").rglob("*.png")
    assert written.parent.parts[-2:] == ("test", "road05")


def test_own_data_without_labels_cannot_be_scored(tmp_path, monkeypatch):
    path = layouts.write("folder", tmp_path)
    monkeypatch.chdir(tmp_path)
    random_student(config.load(path))
    for label in (tmp_path / "data/labels").rglob("*.png"):
        label.unlink()
    result = CliRunner().invoke(main, ["evaluate", str(path), *RUN, "--workers", "1"])
    assert result.exit_code == 1 and "no labels to score against" in result.stderr


def test_frames_of_categories_that_are_not_the_split_are_scored_without_categories(large_roads, tmp_path, capsys):
    root = tmp_path / "roads"
    shutil.copytree(large_roads.root, root)
    first = next(path for path in sorted((root / "list/test_split").glob("*.txt")) if path.read_text())
    first.write_text("")
    source = Roads(root=str(root), train=0, val=0, test=10, size=[590, 1640], seed=0, difficulty=0.2)
    scores = oracle_scores(source, "test", (180, 970), tmp_path / "predictions")
    assert list(scores["culane"]["iou 0.5"]) == ["total"] and scores["culane_f1"] > 0.98
    assert "scored without them" in capsys.readouterr().err
