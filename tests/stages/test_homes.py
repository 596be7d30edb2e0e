"""Where stores of one's own datasets lie: each dataset in a folder of its own, those of earlier versions where they were."""

import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from conftest import EXPERIMENT
from PIL import Image

from pipeline import config
from pipeline.cli import main
from pipeline.datasets.folder import EXAMPLE

CONFIGS = Path(__file__).parents[2] / "configs"


def write(root, seed, names=("a", "b")):
    rng = np.random.default_rng(seed)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    (root / "classes.yaml").write_text(EXAMPLE)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (12, 16 + seed, 3)).astype(np.uint8)).save(root / f"images/{name}.png")
        Image.fromarray(rng.integers(0, 3, (12, 16 + seed)).astype(np.uint8)).save(root / f"labels/{name}.png")


def prepare(folder, root, **keys):
    """Store folders below the cache that a prepare leaves, and what it said on stderr."""
    raw = EXPERIMENT | {"dataset": dict(name="folder", root=root, **keys), "prepare": dict(size=[12, 16], codec="raw")}
    raw["views"] = EXPERIMENT["views"] | {"mirror": False}
    (folder / "own.yaml").write_text(yaml.safe_dump(raw | {"evaluate": {"split": "train"}}))
    before = os.getcwd()
    os.chdir(folder)
    try:
        result = CliRunner().invoke(main, ["prepare", "own.yaml", "--workers", "1"])
    finally:
        os.chdir(before)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return sorted(path.parent.name for path in (folder / "cache").glob("*/prepared-*")), result.stderr


@pytest.fixture
def two(tmp_path):
    """Two datasets of equal classes, and images of equal names."""
    write(tmp_path / "first", 0)
    write(tmp_path / "second", 1)
    return tmp_path


def test_two_own_datasets_lie_apart_and_a_title_says_where(two):
    assert prepare(two, "first")[0] == ["folder-first"]
    assert prepare(two, "second")[0] == ["folder-first", "folder-second"]
    assert prepare(two, str(two / "second"))[0] == ["folder-first", "folder-second"]  # by another path
    assert prepare(two, "first", title="roads of 2024")[0] == ["folder-first", "folder-second", "roads of 2024"]
    assert len({path.name for path in (two / "cache").glob("*/prepared-*")}) == 1  # nothing of it is in the identity


def test_a_store_of_an_earlier_version_is_found_and_taken_by_no_other_dataset(two):
    prepare(two, "first")
    (two / "cache/folder-first").rename(two / "cache/folder")
    (notes,) = (two / "cache/folder").glob("prepared-*/sources.tsv")
    before = notes.read_bytes()
    assert prepare(two, "first")[0] == ["folder"] and notes.read_bytes() == before
    assert prepare(two, "second")[0] == ["folder", "folder-second"]
    for path in (two / "first").rglob("*.png"):  # copied since: other times, the same sizes
        os.utime(path, (1, 1))
    assert prepare(two, "first")[0] == ["folder", "folder-second"]


def test_folders_of_one_name_whose_images_differ_are_refused(two):
    write(two / "other/first", 2, names=("c", "d"))
    prepare(two, "first")
    folders, said = prepare(two, "other/first")
    assert folders == ["folder-first"] and "holds 2 images, none of them of this dataset (c, d)" in said and "dataset.title" in said


@pytest.mark.parametrize(
    "title, said", [("a/b", "'a/b' is no name"), (3, "expected a text or null, got 3"), ("..", "'..' is no name")]
)
def test_a_title_is_a_name(two, title, said):
    assert f"dataset.title: {said}" in prepare(two, "first", title=title)[1]


def test_a_dataset_that_a_reader_of_the_package_knows_keeps_its_place():
    assert config.load(CONFIGS / "camvid.yaml").dataset.homes == ("camvid",)
    assert config.load(CONFIGS / "own-data.yaml").dataset.homes == ("folder-own-data", "folder")
