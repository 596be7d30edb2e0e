"""Messages name the cause: what is missing, closed, read-only, lost or as large as what it replaces."""

import ast
import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import pipeline
from pipeline import paths
from pipeline.cli.group import in_words
from pipeline.deployment import media
from pipeline.errors import DatasetError, StoreError
from pipeline.store import files
from stages import cache as stores
from tests.mounts import read_only

ROOT = Path(__file__).parents[2]


def test_plan_names_a_target_that_is_as_large_as_probability_maps_and_what_makes_it_smaller(cached_experiment):
    fine = cached_experiment.do("plan", "--images", "4")
    assert "Warning" not in fine
    raw = yaml.safe_load(cached_experiment.config.read_text())
    large = {**raw, "targets": {**raw["targets"], "wide": {"type": "features", "layer": "mid", "dtype": "float32"}}}
    large["teacher"] = {**raw["teacher"], "name": "erfnet", "width": 32, "head": None}
    large["teacher"].pop("head")
    (cached_experiment.folder / "large.yaml").write_text(yaml.safe_dump(large))
    from pipeline import config
    from pipeline.teacher.experiment import Experiment
    from stages import plan

    experiment = Experiment(config.load(cached_experiment.folder / "large.yaml"), Path("cache"), Path("teachers/large.safetensors"))
    said = plan.run(experiment, images=4, measure=False, device="cpu", batch=1)
    lines = [line for line in said.splitlines() if line.startswith("Warning: ")]
    assert [line.split(":")[1].strip() for line in lines] == ["targets.logits", "targets.wide"]
    assert "1.0x a map of class probabilities of every pixel (61.4 kB); a quarter of the bytes at `pool: 2`, half at" in lines[0]
    assert "dtype: uint8" in lines[0] and "`pool: 2`" in lines[1] and "uint8" not in lines[1]


def test_a_cache_without_its_last_list_is_not_opened_as_a_smaller_one(experiment):
    store = experiment.store("targets")
    whole = pipeline.open_cache(store)
    lists = sorted((store / "images").glob("*.tsv"))
    lists[-1].rename(store / "elsewhere")
    with pytest.raises(StoreError, match=rf"{lists[-1].name}: missing; manifest.json knows {len(whole)} images, .* name 8; bring"):
        pipeline.open_cache(store)
    refused = experiment.run("inspect")
    assert refused.exit_code == 1 and "missing; manifest.json knows" in refused.output


def test_a_read_only_cache_beside_a_copied_dataset_trains(experiment):
    for path in (experiment.folder / "data").rglob("*.jpg"):
        os.utime(path, ns=(1, 1))
    with read_only(experiment.folder / "cache"):
        assert "13 images" in experiment.do("prepare")
        trained = experiment.train("plain", "--set", "training.steps=2")
        assert trained.exit_code == 0 and "comparing the content of 13 images whose files were touched" in trained.stderr
        changed = next((experiment.folder / "data").rglob("*.jpg"))
        other = next(path for path in (experiment.folder / "data").rglob("*.jpg") if path.read_bytes() != changed.read_bytes())
        train = [line.split()[0] for line in (next((experiment.folder / "data").rglob("train*.txt"))).read_text().splitlines()]
        first = experiment.folder / "data" / "toy" / train[0].lstrip("/")
        shutil.copy(other if other != first else changed, first)
        refused = experiment.train("plain", "--set", "training.steps=2")
        assert refused.exit_code == 1 and "the files of 1 images were touched" in refused.output


def test_an_edit_that_kept_size_and_time_is_found_on_demand(experiment, monkeypatch):
    train = [line.split()[0] for line in (next((experiment.folder / "data").rglob("train*.txt"))).read_text().splitlines()]
    first = experiment.folder / "data" / "toy" / train[0].lstrip("/")
    import cv2

    from pipeline.data import doctor

    image, before = cv2.imread(str(first)), first.stat()
    assert "13 of 13 training images compared" in experiment.do("doctor", "--deep", "--workers", "1", "--split", "train")
    for quality in range(100, 1, -1):
        data = cv2.imencode(".jpg", 255 - image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(data) <= before.st_size:
            break
    first.write_bytes(data + b"\0" * (before.st_size - len(data)))
    os.utime(first, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert experiment.run("doctor", "--workers", "1", "--split", "train").exit_code == 0
    found = experiment.run("doctor", "--deep", "--workers", "1", "--split", "train")
    assert found.exit_code == 1 and f"{first.name}: or its label, has other content than" in found.stderr
    monkeypatch.setattr(doctor, "check", None)  # which reads every file
    found = experiment.run("doctor", "--deep", "--set", "prepare.size=[64,96]")
    assert found.exit_code == 1 and "leave out --deep" in found.stderr


@pytest.fixture
def closed(tmp_path, monkeypatch):
    """A folder that this user may not read; the tests' own user may read anything."""
    folder = tmp_path / "cache" / "roads" / "targets-0123456789ab"
    folder.mkdir(parents=True)
    real = os.access
    monkeypatch.setattr(paths.os, "access", lambda path, mode: Path(path) != folder and real(path, mode))
    return folder


def test_a_cache_that_another_user_closed_is_named_with_the_command_that_opens_it(closed, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    line = f"{closed}: Permission denied; this user may not read it; ask its owner for `chmod -R a+rX {closed}`"
    assert in_words(PermissionError(errno.EACCES, "Permission denied", str(closed / "store.json"))).startswith(line)
    writing = in_words(PermissionError(errno.EACCES, "Permission denied", str(closed.parent / "new")))
    assert "give the right to write" in writing
    with pytest.raises(StoreError, match="chmod -R a"):
        stores.run(root=closed.parents[1], configs=Path("configs"), runs=Path("runs"))
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(StoreError, match=r"store.json: Permission denied; this user may not read it; .*chmod"):
        files.read(closed / "store.json")


def test_a_full_disk_leaves_no_half_written_file(tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write([(tmp_path / "a", b"1"), (tmp_path / "b", b"2")])
    assert list(tmp_path.iterdir()) == []


class Film:
    """A video of which fewer frames come than it promises."""

    def __init__(self, path):
        self.left = 7

    def isOpened(self):  # noqa: N802
        return True

    def get(self, what):
        return {media.cv2.CAP_PROP_FPS: 25.0, media.cv2.CAP_PROP_FRAME_COUNT: 12.0}[what]

    def read(self):
        self.left -= 1
        return (True, np.zeros((4, 4, 3), np.uint8)) if self.left >= 0 else (False, None)


def test_a_video_of_which_frames_are_missing_says_so(tmp_path, monkeypatch, capsys):
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(media.cv2, "VideoCapture", Film)
    with ThreadPoolExecutor(1) as pool:
        found = list(media.Video(tmp_path / "film.mp4").read(pool, 1))
        assert len(found) == 7 and not any(isinstance(frame, DatasetError) for frame in found)
        assert "film.mp4: ends after 7 of the 12 frames it promises" in capsys.readouterr().err


def test_text_files_are_utf_8_whatever_the_locale():
    """A locale such as de_DE.ISO-8859-1 would write a class name that no other machine reads."""
    for path in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("read_text", "write_text")
            ):
                assert any(keyword.arg == "encoding" for keyword in node.keywords), f"{path}: line {node.lineno}: no encoding"
