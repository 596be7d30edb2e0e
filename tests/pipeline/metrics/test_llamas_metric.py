import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DatasetError
from pipeline.metrics import llamas

SIZE = (24, 31)


def slow_curve(map_HW, truth_HW):
    """The definition, one pass over the pixels a threshold: (auc, precision, recall, threshold)."""
    scores_HW = map_HW.astype(float) / 255
    auc, best, precisions, recalls = 0, (0, 0, 0, 0), [1], [0]
    for step in range(101):
        threshold = (100 - step) / 100
        predicted_HW = scores_HW >= threshold
        tp = np.sum(predicted_HW & truth_HW)
        fp = np.sum(predicted_HW & ~truth_HW)
        fn = np.sum(~predicted_HW & truth_HW)
        precisions.append(0 if tp + fp == 0 else tp / (tp + fp))
        recalls.append(0 if tp + fn == 0 else tp / (tp + fn))
        auc += (recalls[-1] - recalls[-2]) * precisions[-2]
        if precisions[-1] * recalls[-1] > best[0]:
            best = precisions[-1] * recalls[-1], precisions[-1], recalls[-1], threshold
    return auc, *best[1:]


def frame_of(rng, size=SIZE):
    """A label with a few pixels of each lane, and maps that know something about it."""
    label = np.where(rng.random(size) < 0.3, rng.integers(0, 5, size), 0).astype(np.uint8)
    maps = [np.clip(rng.normal(60 + 120 * (label == c), 60), 0, 255).astype(np.uint8) for c in range(5)]
    return label, maps


def written(folder, rng, names):
    labels = {}
    for name in names:
        labels[name], maps = frame_of(rng)
        for index, map_HW in enumerate(maps):
            path = llamas.map_path(folder, name, index)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(map_HW).save(path)
    return labels


def test_histograms_equal_a_pass_a_threshold_to_the_last_bit():
    rng = np.random.default_rng(0)
    for trial in range(60):
        truth = rng.random(SIZE) < rng.choice([0.0, 0.02, 0.5, 1.0])
        values = rng.integers(0, 256, SIZE) if trial % 2 else rng.choice([0, 1, 51, 76, 77, 128, 254, 255], SIZE)
        map_HW = np.where(rng.random(SIZE) < 0.4, 255 * truth, values).astype(np.uint8)
        assert tuple(llamas.curve(map_HW, truth)) == slow_curve(map_HW, truth)


def test_each_8_bit_value_passes_the_thresholds_that_its_float_passes():
    for threshold, cut in zip(llamas.THRESHOLDS, llamas.CUTS):
        assert [v >= cut for v in range(256)] == (np.arange(256).astype(float) / 255 >= threshold).tolist()


def test_a_case_worked_by_hand():
    """Values 255 204 102 0, truth 1 0 1 0.

    t = 1.00: r 1/2, p 1     auc = 1/2 * 1 (the precision before is 1)
    t = 0.80: r 1/2, p 1/2   nothing gained
    t = 0.40: r 1,   p 2/3   auc += 1/2 * 1/2
    """
    curve = llamas.curve(np.array([[255, 204, 102, 0]], np.uint8), np.array([[True, False, True, False]]))
    assert curve == (0.75, 2 / 3, 1.0, 0.4)


def test_a_hard_mask_scores_nearly_its_recall():
    truth = np.zeros((20, 50), bool)
    truth[:2] = True  # 100 true pixels
    hard = np.zeros((20, 50), np.uint8)
    hard[1:6] = 255  # 250 predicted, 50 of them true: r = 1/2, p = 1/5
    assert llamas.curve(hard, truth).auc == pytest.approx(0.5 + 0.5 * 0.2, abs=1e-15)


def test_a_map_of_zeros_and_an_image_without_the_lane_score_zero():
    zeros, truth = np.zeros(SIZE, np.uint8), np.ones(SIZE, bool)
    assert llamas.curve(zeros, truth).auc == 0
    assert llamas.curve(zeros + 255, ~truth) == (0, 0, 0, 0)


def test_the_published_ap_of_enet_sad_gives_its_published_map():
    ap = {"background": 0.9985, "l1": 0.26641, "l0": 0.89644, "r0": 0.88042, "r1": 0.49823}
    assert round(llamas.mean_average_precision(ap), 3) == 0.635


def test_a_folder_scores_as_the_mean_over_its_images(tmp_path):
    names = ["run-a/1_1", "run-a/1_2", "run-b/7_0"]
    labels = written(tmp_path, np.random.default_rng(1), names)
    slow = [
        [slow_curve(llamas.read_map(llamas.map_path(tmp_path, name, c)), labels[name] == c) for c in range(5)] for name in names
    ]
    for label in (labels, labels.get):
        result = llamas.score(tmp_path, names, label, workers=2)
        for c, class_name in enumerate(("background", "l1", "l0", "r0", "r1")):
            mean = [(slow[0][c][k] + slow[1][c][k] + slow[2][c][k]) / 3 for k in range(4)]
            assert result["ap"][class_name] == mean[0]
            assert list(result["best"][class_name].values()) == mean[1:]
        ap = result["ap"]
        assert result["map"] == (ap["l1"] + ap["l0"] + ap["r0"] + ap["r1"]) / 4
        assert result["images"] == 3


def test_written_maps_are_cut_to_8_bits_and_read_back(tmp_path):
    probabilities = np.random.default_rng(2).dirichlet(np.ones(5), SIZE).transpose(2, 0, 1).astype(np.float32)
    llamas.write_maps(tmp_path, "run/5_5", probabilities)
    for index, map_HW in enumerate(probabilities):
        path = tmp_path / "run" / f"5_5.json_{index}.png"
        assert np.array_equal(llamas.read_map(path), np.floor(map_HW * np.float32(255)))


def test_a_missing_damaged_or_unfit_map_is_an_error_that_names_it(tmp_path):
    labels = written(tmp_path, np.random.default_rng(3), ["run/1_1"])
    path = llamas.map_path(tmp_path, "run/1_1", 3)
    good = path.read_bytes()

    def message():
        with pytest.raises(DatasetError) as error:
            llamas.score(tmp_path, ["run/1_1"], labels, workers=1)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        return str(error.value)

    path.unlink()
    assert "no such file" in message()
    path.write_bytes(good[: len(good) // 2])
    assert "cannot be read" in message()
    path.write_text("no picture")
    assert "cannot be read" in message()
    Image.new("RGB", SIZE[::-1]).save(path)
    assert "'RGB'" in message()
    Image.new("L", (10, 10)).save(path)
    assert "10 x 10" in message() and "31 x 24" in message()
    path.write_bytes(good)
    llamas.score(tmp_path, ["run/1_1"], labels, workers=1)
