"""Which training images keep their labels: a part of them, drawn, or a list."""

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from pipeline.config.keys import Faults
from pipeline.config.loading import read_dataset
from pipeline.datasets._lists import spelt
from pipeline.datasets.camvid import Dataset as CamVid
from pipeline.datasets.folder import EXAMPLE
from pipeline.datasets.folder import Dataset as Folder
from pipeline.errors import DatasetError


@pytest.fixture
def own(tmp_path):
    """Forty pictures, all but the last ten with a label, and a function that builds the dataset with further keys."""
    (tmp_path / "classes.yaml").write_text(EXAMPLE)
    for number in range(40):
        for folder, pixels in (("images", np.full((4, 6, 3), number, np.uint8)), ("labels", np.ones((4, 6), np.uint8))):
            (tmp_path / folder).mkdir(exist_ok=True)
            if folder == "images" or number < 30:
                Image.fromarray(pixels).save(tmp_path / folder / f"caf\u00e9-{number:02}.png")
    return lambda **keys: read_dataset({"name": "folder", "root": str(tmp_path), **keys}, "dataset", Faults("x.yaml")).build()


def test_the_part_is_of_the_images_that_have_a_label_and_smaller_parts_lie_within_larger_ones(own):
    labelled = {f"caf\u00e9-{number:02}" for number in range(30)}
    shown = {part: own(labelled_part=part).shown_labels() for part in (0.03, 0.1, 0.25, 0.9)}
    assert [len(found) for found in shown.values()] == [1, 3, 8, 27]
    assert shown[0.03] < shown[0.1] < shown[0.25] < shown[0.9] < labelled
    assert own(labelled_part=1.0).shown_labels() is None is own().shown_labels()
    other = own(labelled_part=0.25, labelled_seed=1).shown_labels()
    assert len(other) == 8 and other != shown[0.25] and other > own(labelled_part=0.1, labelled_seed=1).shown_labels()
    # pinned: another draw would be another experiment
    assert sorted(shown[0.1]) == ["caf\u00e9-07", "caf\u00e9-10", "caf\u00e9-18"]


def test_less_than_one_image_is_refused_and_the_least_part_is_said(own):
    with pytest.raises(DatasetError, match=r"dataset.labelled_part: 0.01 of 30 labelled training images .* write 0.04 or more"):
        own(labelled_part=0.01).shown_labels()
    assert len(own(labelled_part=0.04).shown_labels()) == 1


def test_a_list_names_the_images_in_either_unicode_form_and_with_a_byte_order_mark(own, tmp_path):
    path = tmp_path / "some.txt"
    path.write_text(unicodedata.normalize("NFD", "caf\u00e9-03\n\ncaf\u00e9-01\n"), encoding="utf-8-sig")
    assert own(labelled_part=str(path)).shown_labels() == {"caf\u00e9-03", "caf\u00e9-01"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("caf\u00e9-01\ngone-7\nalso-gone\n", r"some.txt: line 2: 'gone-7' is no training image.*2 of 3 lines: gone-7, also-gone"),
        ("caf\u00e9-31\n", r"line 1: 'café-31' has no label"),
        ("caf\u00e9-01\ncaf\u00e9-01\n", "line 2: 'café-01' a second time"),
        ("", "some.txt: is empty; write one image a line"),
    ],
)
def test_a_list_that_does_not_fit_is_named_with_what_is_missing(own, tmp_path, text, message):
    (tmp_path / "some.txt").write_text(text)
    with pytest.raises(DatasetError, match=message):
        own(labelled_part=str(tmp_path / "some.txt")).shown_labels()


def test_each_folder_of_a_path_may_be_stored_in_its_own_unicode_form(tmp_path):
    composed = "caf\u00e9/\u00e9t\u00e9.jpg"
    folder, name = composed.split("/")
    path = tmp_path / folder / unicodedata.normalize("NFD", name)
    path.parent.mkdir()
    path.touch()
    assert spelt(tmp_path, composed) == path and spelt(tmp_path, unicodedata.normalize("NFD", composed)) == path
    assert spelt(tmp_path, "caf\u00e9/gone\u00e9.jpg") == tmp_path / "caf\u00e9/gone\u00e9.jpg"


@pytest.mark.skipif("CAMVID_ROOT" not in os.environ, reason="needs CAMVID_ROOT, the folder of CamVid")
def test_a_tenth_of_camvids_labels_is_the_tenth_that_train_part_keeps():
    root = os.environ["CAMVID_ROOT"]
    dataset, tenth = CamVid(root=root), CamVid(root=root, train_part=0.1)
    dataset.labelled_part = 0.1
    assert dataset.shown_labels() == set(tenth.ids("train")) and len(dataset.shown_labels()) == 37
    assert len(dataset.ids("train")) == 367


@pytest.mark.skipif("IDD_LITE_ROOT" not in os.environ, reason="needs IDD_LITE_ROOT, the folder of IDD-Lite")
def test_parts_of_idd_lite_lie_within_one_another():
    dataset, found = Folder(root=os.environ["IDD_LITE_ROOT"]), []
    for part in (0.03, 0.1, 0.25):
        dataset.labelled_part = part
        found.append(dataset.shown_labels())
    assert found[0] < found[1] < found[2] and [len(shown) for shown in found] == [39, 129, 324]


@pytest.mark.parametrize(
    "keys, message",
    [
        (dict(labelled_part=0.0), "labelled_part: expected a part above 0"),
        (dict(labelled_part=1.5), "labelled_part: expected a part above 0"),
        (dict(labelled_part=""), "labelled_part: expected a part above 0"),
        (dict(labelled_seed=3), "labelled_seed: nothing is drawn without a number as labelled_part"),
        (dict(labelled_part="a.txt", labelled_seed=3), "labelled_seed: nothing is drawn"),
        (dict(labeled_part=0.1), "labeled_part: no such key; did you mean 'labelled_part'"),
    ],
)
def test_keys_that_say_nothing_are_faults(keys, message):
    faults = Faults("x.yaml")
    read_dataset({"name": "folder", "root": "x", **keys}, "dataset", faults)
    assert len(faults) == 1 and f"x.yaml: dataset.{message}" in faults[0]
