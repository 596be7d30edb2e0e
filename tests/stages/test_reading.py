"""How pictures and labels are read, through the stages: nothing to learn is refused, and a store knows the rule it was read by."""

import io
import shutil
from pathlib import Path

import layouts
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline import config
from pipeline.cli import main
from pipeline.data import prepared
from pipeline.datasets import _images
from pipeline.datasets.folder import EXAMPLE
from pipeline.deployment.media import Pictures

ALONE = ("--set", "teacher.checkpoint=weights/teacher.safetensors")  # a teacher that was trained elsewhere


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """The configuration of a small set of own pictures, which lie in `data`."""
    path = layouts.write("folder", tmp_path)
    monkeypatch.chdir(tmp_path)
    return path


def run(command, path, *arguments, code=0):
    result = CliRunner().invoke(main, [command, str(path), *arguments])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def errors(result) -> str:
    return "\n".join(line for line in result.stderr.splitlines() if line.startswith("Error: "))


def change_labels(change) -> None:
    for path in Path("data/labels/train").glob("*.png"):
        change(path)


def masks(path: Path) -> None:
    """Of 0 and 255: what is marked is ignored."""
    values = np.array(Image.open(path))
    Image.fromarray(np.where(values > 0, 255, 0).astype(np.uint8)).save(path)


SPOILT = {
    "masks of 0 and 255": (masks, "of one class (background)"),
    "all ignored": (lambda path: Image.fromarray(np.full((61, 90), 255, np.uint8)).save(path), "labelled"),
    "no labels": (Path.unlink, "labelled"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_labels_of_which_nothing_can_be_learned_are_told_by_doctor_and_refused_by_prepare_and_training(own, kind):
    spoil, word = SPOILT[kind]
    change_labels(spoil)
    assert word in errors(run("doctor", own, "--workers", "1", code=1)) and "trained on labels" in errors(
        run("doctor", own, code=1)
    )
    said = errors(run("prepare", own, code=1))
    assert word in said and "the teacher is trained on labels" in said and "\n" not in said
    assert not Path("reports/prepare/folder.json").exists()
    assert word in errors(run("train-teacher", own, "--device", "cpu", code=1))


def test_pictures_without_labels_are_prepared_where_a_teacher_is_there_to_learn_from(own):
    change_labels(Path.unlink)
    run("doctor", own, *ALONE)
    run("prepare", own, *ALONE)
    train = ("--student", "erfnet", "--seed", "0", "--device", "cpu", *ALONE)
    assert "the method learns from labels alone" in errors(run("train-student", own, *train, "--method", "plain", code=1))
    assert "labelled" not in errors(run("train-student", own, *train, "--method", "kd", code=1))  # it lacks the teacher only
    only = yaml_of(own, methods={"plain": []})
    assert "every method learns from labels alone" in errors(run("prepare", only, *ALONE, code=1))


def yaml_of(path: Path, **sections) -> Path:
    import yaml

    changed = path.with_name("changed.yaml")
    changed.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | sections))
    return changed


def test_a_split_that_is_scored_needs_labels(own):
    shutil.rmtree("data/labels/test")
    said = errors(run("doctor", own, code=1))
    assert "not one pixel of test is labelled (0 of 3 images have a label), but it is the split that is scored" in said
    run("prepare", own)


def test_a_cut_that_leaves_almost_nothing_is_refused_by_every_reader_of_frames(own):
    Path("data/classes.yaml").write_text(EXAMPLE.replace("crop_top: 0", "crop_top: 58"))  # of 61 rows
    assert "removes 58 and leaves 3, below a tenth" in errors(run("doctor", own, code=1))
    assert "removes 58 and leaves 3, below a tenth" in errors(run("prepare", own, code=1))


# The rule of reading, in the prepared store's sources.tsv


def sources(dataset="folder") -> Path:
    (found,) = Path("cache").glob(f"{dataset}*/prepared-*/sources.tsv")
    return found


def as_an_earlier_version_wrote_it(dataset="folder") -> None:
    lines = [line.split("\t") for line in sources(dataset).read_text().splitlines()]
    assert all(note.startswith(f"r{_images.READING}") for _, note in lines)
    sources(dataset).write_text("".join(f"{image_id}\t{note.split(' ', 1)[1]}\n" for image_id, note in lines))


def test_a_store_that_an_earlier_rule_read_is_compared_once_and_then_used(own):
    run("prepare", own)
    as_an_earlier_version_wrote_it()
    before = {path: path.read_bytes() for path in Path("cache").rglob("*") if path.is_file() and "prepared.zarr" in path.parts}
    assert "were read by another version's rule" in errors(run("train-teacher", own, "--device", "cpu", code=1))
    assert "comparing the content of 2 images" in run("prepare", own).stderr
    assert before and before == {path: path.read_bytes() for path in before}
    assert "comparing" not in run("prepare", own).stderr


def test_a_store_whose_pictures_are_read_otherwise_now_is_refused(own, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 3
    for path in Path("data/images/train").glob("*.png"):
        Image.open(path).save(path, exif=exif)
    with monkeypatch.context() as earlier:
        earlier.setattr(_images, "orientation", lambda image: 1)
        run("prepare", own)
    as_an_earlier_version_wrote_it()
    said = errors(run("prepare", own, code=1))
    assert "2 prepared images have other content on disk now, or are read otherwise" in said and "delete that folder" in said


def test_a_changed_meaning_of_values_is_noticed(own):
    run("prepare", own)
    card = Path("data/classes.yaml")
    card.write_text(card.read_text().replace("ignore: [255]", "ignore: [254, 255]"))
    run("train-teacher", own, "--device", "cpu", code=1)
    run("prepare", own)  # no pixel is 254
    card.write_text(card.read_text().replace("[254, 255]", "[255]").replace("mirror:", "palette: value\nmirror:"))
    assert "comparing the content of 2 images" in run("prepare", own).stderr


def test_a_store_of_an_earlier_rule_without_its_files_is_refused(experiment, monkeypatch):
    monkeypatch.chdir(experiment.folder)
    for path in [*Path("data/toy").rglob("*.jpg"), *Path("data/toy").rglob("*.png"), *Path("data/toy").rglob("*.lines.txt")]:
        path.unlink()
    cfg = config.load(experiment.config)
    source = cfg.dataset.build()
    whole = ("cache", cfg.dataset, source, cfg.prepare, source.ids("train"))
    prepared.open_whole(Path(whole[0]), *whole[1:])  # the store speaks for them
    as_an_earlier_version_wrote_it("roads")
    with pytest.raises(prepared.StoreError, match="13 images were read by another version's rule .*their files are not here"):
        prepared.open_whole(Path(whole[0]), *whole[1:])


def test_predict_sees_a_turned_picture_upright(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(np.rot90(pixels)).save(stream, "PNG", exif=exif)
    (tmp_path / "a.jpg").write_bytes(stream.getvalue())
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        (sample,) = Pictures(tmp_path).read(pool, 1)
    assert np.array_equal(sample.image, pixels)
