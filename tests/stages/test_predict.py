"""A trained network on pictures and videos that are no dataset: the same answers as `evaluate`'s, at the frames' own size."""

import json
import re
import shutil
from pathlib import Path

import cv2
import layouts
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from test_evaluate import left_by_a_run, slow_answer, slow_lines

from pipeline import config, weights
from pipeline.cli import main
from pipeline.data.frames import canvas
from pipeline.datasets._images import read_index_png, read_rgb
from pipeline.metrics import llamas
from pipeline.scoring.predict import overlay

RUN = ("--student", "erfnet", "--method", "plain", "--seed", "0")
SMALL = ("--workers", "2", "--batch", "2")


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def student(request, tmp_path, monkeypatch):
    """The configuration of a layout, its dataset, and an ERFNet of random weights that is sure of itself."""
    path = layouts.write(request.param, tmp_path)
    monkeypatch.chdir(tmp_path)
    cfg = config.load(path)
    if request.param == "roads":
        run("synth", path, "--workers", 1)
    source = cfg.dataset.build()
    torch.manual_seed(0)
    network = cfg.student("erfnet").build(num_classes=len(source.classes), size=canvas(cfg.prepare.size), lanes=0).eval()
    with torch.no_grad():
        network.classifier.weight *= 30
    file = Path("runs") / cfg.name / "erfnet-plain-0/weights.safetensors"
    file.parent.mkdir(parents=True)
    left_by_a_run(file, network.state_dict())
    return path, cfg, source, network


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


on = pytest.mark.parametrize


@on("student", ["roads", "llamas", "apolloscape", "cityscapes"], indirect=True)
def test_the_files_for_the_evaluator_are_those_that_evaluate_writes(student, tmp_path):
    path, cfg, source, _ = student
    split = "val" if cfg.name == "cityscapes" else "test"
    run("evaluate", path, *RUN, *SMALL, "--set", f"evaluate.split={split}")
    written = files(tmp_path / "runs" / cfg.name / "erfnet-plain-0/predictions" / split)
    folder = source.files(source.ids(split)[0])[0].parent
    run("predict", path, source.root if cfg.name == "roads" else folder, *RUN, *SMALL, "--out", "seen", "--as", "submission")
    assert written and written.items() <= files(tmp_path / "seen/submission").items()


@on("student", ["roads"], indirect=True)
def test_pictures_of_any_name_and_size_keep_both(student, tmp_path):
    path, cfg, source, network = student
    names = {"night rain/é 1.JPG": (118, 328), "a.png": (130, 200), "deep/er/b.webp": (300, 700)}
    frames = [source.image(image_id) for image_id in source.ids("test")]
    for (name, size), image in zip(names.items(), frames):
        target = tmp_path / "input" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(cv2.resize(image, size[::-1])).save(target, quality=95)
    (tmp_path / "input/notes.txt").write_text("no picture")
    (tmp_path / "input/.hidden.png").write_bytes(b"")
    said = run(
        "predict",
        path,
        "input",
        *RUN,
        *SMALL,
        "--out",
        "seen",
        "--as",
        "ids",
        "--as",
        "colours",
        "--as",
        "overlay",
        "--as",
        "lanes",
    ).stdout
    assert "3 images as ids, colours, overlay, lanes" in said and "left 1 other files alone" in said
    for name, size in names.items():
        stem = Path(name).with_suffix("")
        image = read_rgb(tmp_path / "input" / name)
        logits, _ = slow_answer(network, source, image, cfg.prepare.size)
        expected = np.zeros(size, int)
        expected[source.crop_top :] = logits.argmax(0)
        ids = read_index_png(Path(f"seen/ids/{stem}.png"))
        assert ids.shape == size and (ids != expected).mean() < 2e-4 and len(np.unique(ids)) > 1
        assert (read_rgb(Path(f"seen/colours/{stem}.png")) == np.array(source.colours)[ids]).all()
        painted = read_rgb(Path(f"seen/overlay/{stem}.jpg")).astype(int)
        assert 2 * np.abs(painted - overlay(image, ids, source)).mean() < np.abs(painted - image).mean()  # JPEG
        assert Path(f"seen/lanes/{stem}.lines.txt").exists()


@on("student", ["roads"], indirect=True)
def test_what_was_written_below_the_input_is_no_input(student, tmp_path):
    path, cfg, source, _ = student
    (tmp_path / "input").mkdir()
    Image.fromarray(source.image(source.ids("test")[0])).save(tmp_path / "input/a.png")
    for _ in range(2):
        said = run("predict", path, "input", *RUN, *SMALL, "--out", "input/seen", "--as", "overlay", "--as", "ids").stdout
        assert "1 images as overlay, ids" in said and "other files" not in said
    assert set(files(tmp_path / "input")) == {"a.png", "seen/predict.json", "seen/overlay/a.jpg", "seen/ids/a.png"}


@on("student", ["cityscapes"], indirect=True)
def test_a_single_picture_is_written_in_the_datasets_own_ids_and_by_weights_of_any_file(student, tmp_path):
    path, cfg, source, network = student
    picture = source.files(source.ids("val")[0])[0]
    torch.save({"model": network.state_dict(), "steps": 3}, tmp_path / "other.pt")
    run("predict", path, picture, "--student", "erfnet", "--weights", "other.pt", *SMALL, "--out", "seen", "--as", "ids")
    (ids,) = Path("seen/ids").iterdir()
    assert ids.name == picture.name
    found = set(np.unique(read_index_png(ids)))
    assert found <= set(source.official_ids) and not found <= set(range(19))


def film(path, frames, fps=12.5):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(frame[:, :, ::-1])
    writer.release()


@on("student", ["roads"], indirect=True)
def test_a_video_becomes_a_video_of_overlays_frame_for_frame(student, tmp_path):
    path, cfg, source, network = student
    images = [source.image(image_id) for split in ("train", "test") for image_id in source.ids(split)]
    film(tmp_path / "drive.avi", images)
    run("predict", path, "drive.avi", *RUN, *SMALL, "--out", "seen", "--as", "overlay", "--as", "ids")
    assert sorted(file.name for file in Path("seen/overlay").iterdir()) == ["drive.mp4"]
    video = cv2.VideoCapture("seen/overlay/drive.mp4")
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)
    for number in range(len(images)):
        here, painted = video.read()
        assert here
        ids = read_index_png(Path(f"seen/ids/drive/{number:06d}.png"))
        wanted = [overlay(other, ids, source) for other in images]
        apart = [np.abs(painted[:, :, ::-1].astype(int) - other).mean() for other in wanted]
        assert int(np.argmin(apart)) == number and apart[number] < 12
    assert not video.read()[0] and len(list(Path("seen/ids/drive").iterdir())) == len(images)


@on("student", ["roads"], indirect=True)
def test_a_video_that_is_cut_off_is_named_and_what_came_is_kept(student, tmp_path):
    path, cfg, source, _ = student
    film(tmp_path / "whole.avi", [source.image(i) for i in source.ids("test")] * 10, fps=4)
    data = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    said = run("predict", path, "cut.avi", *RUN, *SMALL, "--out", "seen", code=1).stderr
    came = int(re.search(r"cut.avi: ends after (\d+) of the 40 frames", said)[1])
    assert f"cut.avi: {40 - came} of 40 frames can't be shown to the network" in said
    assert cv2.VideoCapture("seen/overlay/cut.mp4").read()[0]
    (tmp_path / "none.mp4").write_bytes(b"nothing")
    assert "none.mp4: cannot be read as a video" in run("predict", path, "none.mp4", *RUN, "--out", "b", code=1).stderr


@on("student", ["roads"], indirect=True)
def test_bad_pictures_are_named_at_the_end_and_the_others_are_done(student, tmp_path):
    path, cfg, source, _ = student
    folder = tmp_path / "input"
    folder.mkdir()
    for number, image_id in enumerate(source.ids("test")):
        shutil.copy(source.files(image_id)[0], folder / f"{number}.jpg")
    (folder / "1.jpg").write_bytes((folder / "0.jpg").read_bytes()[:2000])
    Image.fromarray(np.zeros((source.crop_top, 328, 3), np.uint8)).save(folder / "2.jpg")
    said = run("predict", path, "input", *RUN, *SMALL, "--out", "seen", code=1).stderr
    assert "1.jpg: is cut off" in said or "1.jpg: cannot be read" in said
    assert f"2: has {source.crop_top} rows" in said and "2 of 4 images can't be shown" in said
    assert sorted(file.name for file in Path("seen/overlay").iterdir()) == ["0.jpg", "3.jpg"]
    run("predict", path, folder / "2.jpg", *RUN, "--out", "other", "--crop-top", 0)


@on("student", ["roads"], indirect=True)
def test_a_folder_of_other_predictions_is_left_alone(student, tmp_path):
    path, cfg, source, network = student
    command = ("predict", path, source.root, *RUN, *SMALL, "--out", "seen")
    run(*command)
    before = files(tmp_path / "seen")
    run(*command)  # the same once more: the same files
    assert files(tmp_path / "seen") == before
    with torch.no_grad():
        network.classifier.bias += 1
    weights.save_file(Path("runs") / cfg.name / "erfnet-plain-0/weights.safetensors", network.state_dict())
    refused = run(*command, code=1).stderr
    assert "holds predictions of something else (weights:" in refused and "--out" in refused
    assert files(tmp_path / "seen") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/photo.jpg").write_bytes(b"mine")
    assert "did not write" in run(*command[:-1], "mine", code=1).stderr
    assert files(tmp_path / "mine") == {"photo.jpg": b"mine"}


@on("student", ["llamas"], indirect=True)
def test_lanes_of_llamas_go_into_one_file_by_label_and_row(student):
    path, cfg, source, network = student
    ids = source.ids("test")
    folder = source.files(ids[0])[0].parent
    run("predict", path, folder, *RUN, *SMALL, "--out", "seen", "--as", "lanes")
    assert [file.name for file in Path("seen/lanes").iterdir()] == ["lanes.json"]
    content = json.loads(Path("seen/lanes/lanes.json").read_text())
    assert len(content) == len(ids)
    seen = 0
    for image_id in ids:
        image = source.image(image_id)
        _, probabilities = slow_answer(network, source, image, cfg.prepare.size)
        for slot, name in enumerate(("l1", "l0", "r0", "r1")):
            xs = content[f"{image_id.split('/', 1)[1]}.json"][name]
            lane = slow_lines(probabilities, np.eye(4)[slot], image, source)
            points = lane[0] if lane else []
            assert len(xs) == len(image) and all(abs(xs[y] - x) <= 2 for x, y in points)
            assert xs.count(-1) == len(xs) - (points[0][1] - points[-1][1] + 1 if lane else 0)
            seen += len(points)
    assert seen > 0


def test_rows_of_a_lane_are_straight_between_its_points():
    lane = np.array([[10, 8], [20, 4], [21, 2]], np.int32)  # from the bottom up
    assert llamas.rows(lane, 11).tolist() == [-1, -1, 21, 20, 20, 18, 15, 12, 10, -1, -1]
    assert llamas.rows(np.empty((0, 2), np.int32), 3).tolist() == [-1, -1, -1]


@on("student", ["cityscapes"], indirect=True)
def test_what_cannot_be_is_said_before_any_work(student, tmp_path):
    path, cfg, source, _ = student
    picture = source.files(source.ids("val")[0])[0]
    assert "classes are no lanes" in run("predict", path, picture, *RUN, "--out", "a", "--as", "lanes", code=1).stderr
    for name in ("x/n.png", "x/n.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(picture, tmp_path / name)
    assert "differs only in its ending" in run("predict", path, "x", *RUN, "--out", "a", code=1).stderr
    assert "holds no picture" in run("predict", path, path, *RUN, "--out", "a", code=1).stderr
    (tmp_path / "y/other").mkdir(parents=True)
    shutil.copy(picture, tmp_path / "y/other")
    shutil.copy(picture, tmp_path / "y")
    said = run("predict", path, "y/other", *RUN, "--out", "b", "--as", "submission").stdout
    assert "1 images" in said
    assert "give either --teacher" in run("predict", path, picture, "--teacher", *RUN, "--out", "a", code=2).stderr
    assert "no trained weights" in run("predict", path, picture, "--teacher", "--out", "a", code=1).stderr
    misspelt = run("predict", path, picture, "--teacher", "--weights", "no.pt", "--out", "a", code=1)
    assert "--weights no.pt: no such file, seen from" in misspelt.stderr
    assert not (tmp_path / "a").exists()
