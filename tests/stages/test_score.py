"""Predictions of any origin, scored by the command: a case worked by hand, and what it says when files are wrong."""

import json
import struct
import zlib

import layouts
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline import config
from pipeline.cli import main
from pipeline.datasets.apolloscape import MARKINGS
from pipeline.errors import DatasetError
from pipeline.metrics import culane, llamas


def score(*arguments):
    return CliRunner().invoke(main, ["score", *(str(argument) for argument in arguments)])


@pytest.fixture
def lines(tmp_path):
    """Two frames of two true lanes in `normal`, one of none in `cross`. Predicted: in the first frame one lane as it is
    and one 100 px off, in the second nothing, in the third one lane."""

    def lane(x):
        return np.array([(x + k, 589 - 20 * k) for k in range(10)])

    for name, truth, found in (
        ("a/0", [lane(300), lane(900)], [lane(300), lane(1000)]),
        ("a/1", [lane(300), lane(900)], None),
        ("a/2", [], [lane(600)]),
    ):
        culane.write_lines(tmp_path / f"truth/{name}.lines.txt", truth)
        if found is not None:
            culane.write_lines(tmp_path / f"found/{name}.lines.txt", found)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/test0_normal.txt").write_text("/a/0.jpg\n/a/1.jpg\n")
    (tmp_path / "lists/test7_cross.txt").write_text("/a/2.jpg\n")
    return tmp_path


def test_culane_counts_are_printed_by_category_and_missing_frames_are_told(lines):
    result = score("culane", lines / "found", lines / "truth", "--list", lines / "lists", "--workers", 1)
    assert result.exit_code == 0
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()[1:]}
    assert rows["normal"] == ["1", "1", "3", "0.500000", "0.250000", "0.333333"]
    assert rows["cross"] == ["0", "1", "0", "0.000000", "-1.000000", "-"]
    assert rows["total"] == ["1", "2", "3", "0.333333", "0.250000", "0.285714"]
    assert "1 of 3 frames have no .lines.txt" in result.stderr and str(lines / "found") in result.stderr


def test_culane_counts_come_as_json_too(lines):
    lists = lines / "lists/test0_normal.txt"
    result = score("culane", lines / "found", lines / "truth", "--list", lists, "--json", "--workers", 1)
    found = json.loads(result.stdout)
    assert found["total"]["f1"] == 1 / 3 and found["frames"] == 2 and found["missing"] == 1


def test_a_wider_stroke_and_a_lower_threshold_find_the_lane_100_pixels_off(lines):
    arguments = ("culane", lines / "found", lines / "truth", "--list", lines / "lists", "--json", "--workers", 1)
    assert json.loads(score(*arguments, "--width", 200).stdout)["total"]["tp"] == 1
    assert json.loads(score(*arguments, "--width", 200, "--iou", 0.3).stdout)["total"]["tp"] == 2
    both = json.loads(score(*arguments, "--width", 200, "--iou", 0.5, "--iou", 0.3).stdout)
    assert [found["total"]["tp"] for found in both.values()] == [1, 2] and list(both) == ["0.5", "0.3"]


def test_several_thresholds_are_a_table_each(lines):
    result = score(
        "culane",
        lines / "found",
        lines / "truth",
        "--list",
        lines / "lists",
        "--width",
        200,
        "--iou",
        0.5,
        "--iou",
        0.3,
        "--workers",
        1,
    )
    first, second = result.stdout.split("\n\n")
    assert first.startswith("IoU 0.5 ") and second.startswith("IoU 0.3 ")
    assert [text.split("total")[1].split()[0] for text in (first, second)] == ["1", "2"]


@pytest.mark.parametrize(
    "arguments, word",
    [
        (("elsewhere", "truth", "--list", "lists"), "elsewhere"),
        (("truth/a", "truth", "--list", "lists"), "for none of the 3 frames"),
        (("found", "found", "--list", "lists"), "a/1.lines.txt"),
        (("found", "truth", "--list", "lists/test9_none.txt"), "test9_none.txt"),
        (("found", "truth", "--list", "lists", "--list", "lists/test0_normal.txt"), "second list 'normal'"),
        (("found", "truth", "--list", "found"), "holds no *.txt"),
    ],
)
def test_what_culane_cannot_score_is_named_in_one_line(lines, monkeypatch, arguments, word):
    monkeypatch.chdir(lines)
    result = score("culane", *arguments, "--workers", 1)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1 and word in result.stderr


@pytest.mark.parametrize(
    "option, word",
    [
        (("--iou", "nan"), "iou: expected thresholds from 0 to 1, got nan"),
        (("--size", -1, 5), "size: expected a height and a width from 1 to 16384 pixels, got -1 and 5"),
        (("--size", 500_000, 500_000), "got 500000 and 500000"),
        (("--width", 32_768), "width: expected 1 to 32767 pixels, got 32768"),
    ],
)
def test_values_that_no_frame_has_are_refused_in_one_line(lines, option, word):
    result = score("culane", lines / "found", lines / "truth", "--list", lines / "lists", "--workers", 1, *option)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1 and word in result.stderr


def test_a_frame_of_another_size_than_the_lanes_are_drawn_in_is_told(lines):
    arguments = ("culane", lines / "found", lines / "truth", "--list", lines / "lists", "--workers", 1)
    assert "--size" not in score(*arguments).stderr
    Image.new("RGB", (1280, 720)).save(lines / "truth/a/0.jpg")
    said = score(*arguments).stderr
    assert "a/0.jpg: is 1280 x 720 pixels, but lanes are drawn in frames of 1640 x 590" in said and "--size 720 1280" in said
    assert "--size" not in score(*arguments, "--size", 720, 1280).stderr


def test_an_empty_list_is_said_to_be_empty_and_a_byte_order_mark_is_no_part_of_a_name(lines):
    empty = lines / "lists/empty.txt"
    empty.write_text("", encoding="utf-8-sig")
    result = score("culane", lines / "found", lines / "truth", "--list", empty, "--workers", 1)
    assert result.exit_code == 1 and f"{empty}: the list names no frame" in result.stderr
    (lines / "lists/test0_normal.txt").write_text("/a/0.jpg\n/a/1.jpg\n", encoding="utf-8-sig")
    result = score("culane", lines / "found", lines / "truth", "--list", lines / "lists/test0_normal.txt", "--workers", 1)
    assert result.exit_code == 0 and result.stdout.splitlines()[-1].split()[1] == "1"


@pytest.fixture
def maps(tmp_path):
    """The labels themselves as maps, of both recordings."""
    source = config.load(layouts.write("llamas", tmp_path)).dataset.build()
    for image_id in source.ids("val") + source.ids("test"):
        label = source.label(image_id)
        llamas.write_maps(tmp_path / "found", image_id.split("/", 1)[1], np.stack([label == c for c in range(5)]))
    return tmp_path, source


SIZE = ("--size", 180, 319, "--workers", 1)


def test_llamas_maps_that_are_the_labels_score_the_share_of_frames_with_the_lane(maps):
    folder, source = maps
    result = score("llamas", folder / "found", folder / "data/labels/valid", *SIZE)
    rows = {line.split("  ")[0].strip(): line.split() for line in result.stdout.splitlines()}
    labels = [source.label(image_id) for image_id in source.ids("val") + source.ids("test")]
    shares = [np.mean([(label == c).any() for label in labels]) for c in range(5)]
    assert [float(rows[name][1]) for name in llamas.CLASSES] == pytest.approx(shares, abs=1e-6)
    assert float(rows["mean of lanes"][3]) == pytest.approx(np.mean(shares[1:]), abs=1e-6)
    result = score("llamas", folder / "found", folder / "data/labels/valid", *SIZE, "--recording", "images-b", "--json")
    only = json.loads(result.stdout)
    assert only["images"] == 1 and only["ap"]["l0"] == float((labels[0] == 2).any())


def test_a_missing_llamas_map_is_an_error_that_names_it_and_counts_the_rest(maps):
    folder, _ = maps
    for path in sorted((folder / "found/images-c").glob("*_3.png"))[:2]:
        path.unlink()
    result = score("llamas", folder / "found", folder / "data/labels/valid", *SIZE)
    assert result.exit_code == 1 and "_3.png: no such file; 2 of 20 are missing" in result.stderr
    result = score("llamas", folder / "found", folder / "data/labels/valid", *SIZE, "--recording", "images-b")
    assert result.exit_code == 0


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda path: Image.new("RGB", (319, 180)).save(path), "'RGB' pixels"),
        (lambda path: Image.new("L", (319, 109)).save(path), "319 x 109"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "cannot be read"),
    ],
)
def test_a_llamas_map_of_the_wrong_form_is_named(maps, change, word):
    folder, _ = maps
    path = sorted((folder / "found/images-b").glob("*_2.png"))[0]
    change(path)
    result = score("llamas", folder / "found", folder / "data/labels/valid", *SIZE)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert path.name in result.stderr and word in result.stderr


def test_a_recording_that_is_not_there_is_named(maps):
    folder, _ = maps
    result = score("llamas", folder / "found", folder / "data/labels/valid", *SIZE, "--recording", "images-z")
    assert result.exit_code == 1 and "images-z: no such recording" in result.stderr


def test_llamas_maps_of_0_and_1_are_told(maps):
    folder, source = maps
    for path in folder.glob("found/*/*.png"):
        Image.fromarray((np.array(Image.open(path)) > 0).astype(np.uint8)).save(path)
    result = score("llamas", folder / "found", folder / "data/labels/valid", *SIZE)
    assert result.exit_code == 0 and "no map holds a value above 1" in result.stderr
    with pytest.raises(DatasetError, match="uint8 values from 0 to 255; give probabilities from 0 to 1"):
        llamas.write_maps(folder, "run/0", np.full((5, 4, 4), [[[0]], [[0]], [[255]], [[0]], [[0]]], np.uint8))


def test_llamas_labels_and_maps_that_cannot_be_read_are_one_line(maps):
    folder, _ = maps
    label = sorted(folder.glob("data/labels/valid/*/*.json"))[0]
    picture = sorted((folder / "found" / label.parent.name).glob("*.png"))[0]
    header, body = picture.read_bytes()[:16], picture.read_bytes()[24:29]
    ihdr = b"IHDR" + struct.pack(">II", 100_000, 100_000) + body
    for path, content, word in (
        (picture, header[:12] + ihdr + struct.pack(">I", zlib.crc32(ihdr)), "cannot be read"),
        (label, b"[" * 100_000, "is not a LLAMAS label (RecursionError"),
    ):
        path.write_bytes(content)
        result = score("llamas", folder / "found", folder / "data/labels/valid", *SIZE)
        assert result.exit_code == 1 and result.stderr.count("\n") == 1 and path.name in result.stderr and word in result.stderr
    result = score("llamas", folder / "found", folder / "data/labels/valid", "--size", -1, 5)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1 and "size: expected" in result.stderr


@pytest.fixture
def ids(tmp_path):
    """Official ids of two frames: right, but that every solid white line is taken for parking, which is evaluated."""
    path = layouts.write("apolloscape", tmp_path)
    source = config.load(path).dataset.build()
    for image_id in source.ids("val"):
        label = source.label(image_id)
        official = np.array([*source.official_ids, 255], np.uint8)[label]
        official[official == 200] = 210
        target = tmp_path / "found" / source.prediction_path(image_id)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(official).save(target)
    return path, tmp_path / "found", [source.label(image_id) for image_id in source.ids("val")]


def test_official_ids_are_scored_by_the_official_rules(ids):
    path, found, labels = ids
    result = score("segmentation", found, path, "--json", "--workers", 1)
    scores = json.loads(result.stdout)
    present = {t for label in labels for t in np.unique(label).tolist() if t < 36 and MARKINGS[t][4]}
    assert 1 in present and 16 not in present
    # s_w_d is 0, s_w_p (predicted, never true) is 0 and counts, all others are 1, the hood counts nowhere
    assert scores["apolloscape_iou"]["s_w_d"] == scores["apolloscape_iou"]["s_w_p"] == 0.0
    assert scores["apolloscape_miou"] == pytest.approx((len(present) - 1) / (len(present) + 1))
    assert scores["apolloscape_category_iou"]["parking"] == 0.0 and scores["apolloscape_category_iou"]["void"] == 1.0
    rows = score("segmentation", found, path, "--workers", 1).stdout.splitlines()
    (mean,) = [line.split()[-1] for line in rows if line.startswith("mean of classes")]
    assert mean == f"{scores['apolloscape_miou']:.6f}"


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: Image.new("L", (170, 135)).save(path), "170 x 135"),
        (lambda path: Image.new("RGB", (170, 136)).save(path), "'RGB' pixels"),
    ],
)
def test_a_picture_of_ids_that_cannot_be_scored_is_named(ids, change, word):
    path, found, _ = ids
    picture = sorted(found.rglob("*.png"))[0]
    change(picture)
    result = score("segmentation", found, path, "--workers", 1)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert picture.name in result.stderr and word in result.stderr


def test_train_ids_and_foreign_ids_are_told(ids):
    path, found, labels = ids
    assert "Warning" not in score("segmentation", found, path, "--workers", 1).stderr
    picture = sorted(found.rglob("*.png"))[0]
    official = np.array(Image.open(picture))
    Image.fromarray(np.where(official == official[0, 0], 7, official).astype(np.uint8)).save(picture)
    said = score("segmentation", found, path, "--workers", 1).stderr
    assert "of the pixels that count hold 7, official ids of apolloscape without a class, or none; they count as wrong" in said
    for picture in found.rglob("*.png"):
        Image.fromarray(np.full((136, 170), 1, np.uint8)).save(picture)
    said = score("segmentation", found, path, "--workers", 1).stderr
    assert "100.00% of the pixels that count hold 1, no official ids of apolloscape: all values are as low as train ids" in said


def test_frames_without_a_label_and_datasets_without_official_ids_are_refused(ids, tmp_path):
    path, found, _ = ids
    result = score("segmentation", found, path, "--split", "test")
    assert result.exit_code == 1 and "no such file" in result.stderr
    target = found / "test/road05/171206_025742296_Camera_5.png"
    target.parent.mkdir(parents=True)
    Image.new("L", (170, 136)).save(target)
    result = score("segmentation", found, path, "--split", "test", "--workers", 1)
    assert result.exit_code == 1 and "no label" in result.stderr
    (tmp_path / "own").mkdir()
    result = score("segmentation", found, layouts.write("folder", tmp_path / "own"))
    assert result.exit_code == 1 and "apolloscape and cityscapes" in result.stderr
