"""Data that lie as companies have them: values, colours, suffixes, parallel trees, 16-bit labels."""

import os

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.datasets.folder import Dataset
from pipeline.errors import DatasetError

CLASSES = [{"name": "road", "colour": [128, 64, 128]}, {"name": "line", "colour": [255, 255, 255]}]
NUMBERS = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)


def make(root, label, *, image="images/drive/1.png", place="labels/drive/1.png", classes=CLASSES, **card):
    content = {"classes": classes, "ignore": [255], "background": None, **card}
    (root / "classes.yaml").write_text(yaml.safe_dump(content))
    for path, pixels in ((root / image, np.full((2, 3, 3), 90, np.uint8)), (root / place, label)):
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(pixels, Image.Image):
            pixels.save(path)
        else:
            cv2.imwrite(str(path), pixels if pixels.ndim == 2 else pixels[..., ::-1])
    return Dataset(root=str(root))


def valued(*values):
    return [{**entry, "value": value} for entry, value in zip(CLASSES, values)]


def complaint(work) -> str:
    with pytest.raises(DatasetError) as caught:
        work()
    return str(caught.value).splitlines()[0]


def test_values_need_not_count_from_zero_and_several_may_be_one_class(tmp_path):
    dataset = make(tmp_path, np.array([[7, 40, 41], [41, 7, 0]], np.uint8), classes=valued(7, [40, 41]), ignore=[0, 255])
    assert dataset.label("drive/1").tolist() == [[0, 1, 1], [1, 0, 255]]


def test_a_value_of_no_class_is_refused(tmp_path):
    dataset = make(tmp_path, NUMBERS, classes=valued(7, 0))
    assert "value 1 at x=1, y=0 is no class" in complaint(lambda: dataset.label("drive/1"))


@pytest.mark.parametrize(
    "classes, ignore, said",
    [
        ([valued(7, 0)[0], CLASSES[1]], [255], "class 'line' has no 'value', but others have"),
        (valued(7, [7, 8]), [255], "label value 7 is given twice"),
        (valued(7, 8), [8], "label value 8 is given twice"),
        (valued(7, 256), [255], "'value' of 'line' must be a number 0..255 or a list of them, not 256"),
        (valued(7, []), [255], "'value' of 'line' must be"),
        (valued(7, True), [255], "'value' of 'line' must be"),
    ],
)
def test_values_that_contradict_each_other_are_refused(tmp_path, classes, ignore, said):
    assert said in complaint(lambda: make(tmp_path, NUMBERS, classes=classes, ignore=ignore))


@pytest.mark.parametrize("form", ["rgb", "palette"])
def test_labels_in_the_colours_of_the_classes(tmp_path, form):
    colours = np.array([*(entry["colour"] for entry in CLASSES), [9, 9, 9]], np.uint8)
    picture = Image.fromarray(colours[[[0, 1, 1], [1, 0, 2]]])
    if form == "palette":
        picture = picture.quantize(3)
    keys = {"labels": "colour", "ignore_colours": [[9, 9, 9]]}
    assert make(tmp_path, picture, **keys).label("drive/1").tolist() == [[0, 1, 1], [1, 0, 255]]
    other = make(tmp_path, picture, labels="colour")
    assert "colour (9, 9, 9) at x=2, y=1 is no class" in complaint(lambda: other.label("drive/1"))
    assert other.reading != make(tmp_path, picture, **keys).reading


@pytest.mark.parametrize(
    "card, said",
    [
        ({"labels": "rgb"}, "'labels' must be value or colour"),
        ({"ignore_colours": [[1, 2, 3]]}, "'ignore_colours' is for 'labels: colour'"),
        ({"labels": "colour", "ignore_colours": [1, 2, 3]}, "must hold colours like"),
        ({"labels": "colour", "ignore_colours": [[128, 64, 128]]}, "colour [128, 64, 128] is given twice"),
        ({"labels": "colour", "classes": valued(1, 2)}, "'labels' is colour"),
        ({"label_folder": "../labels"}, "'label_folder' must be a folder below classes.yaml"),
        ({"image_folder": "labels"}, "need suffixes that tell them apart"),
        ({"label_suffix": 7}, "'label_suffix' must be what names end in"),
    ],
)
def test_keys_that_say_nothing_sensible_are_refused(tmp_path, card, said):
    assert said in complaint(lambda: make(tmp_path, NUMBERS, **card))


@pytest.mark.parametrize(
    "image, place, card",
    [
        ("rgb/drive/1.jpg", "masks/drive/1_mask.png", {"image_folder": "rgb", "label_folder": "masks", "label_suffix": "_mask"}),
        ("images/drive/1_rgb.png", "labels/drive/1_gt.png", {"image_suffix": "_rgb", "label_suffix": "_gt"}),
        ("all/drive/1.png", "all/drive/1_gt.png", {"image_folder": "all", "label_folder": "all", "label_suffix": "_gt"}),
        ("all/drive/1_rgb.png", "all/drive/1.png", {"image_folder": "all", "label_folder": "all", "image_suffix": "_rgb"}),
    ],
)
def test_suffixes_and_parallel_trees(tmp_path, image, place, card):
    dataset = make(tmp_path, NUMBERS, image=image, place=place, **card)
    assert dataset.ids("train") == ["drive/1"] and dataset.label("drive/1").tolist() == NUMBERS.tolist()
    assert dataset.files("drive/1") == [tmp_path / image, tmp_path / place]


def test_a_suffix_that_no_name_has_is_refused(tmp_path):
    assert "correct 'label_suffix'" in complaint(lambda: make(tmp_path, NUMBERS, label_suffix="_mask").ids("train"))
    assert "correct 'image_suffix'" in complaint(lambda: make(tmp_path, NUMBERS, image_suffix="_rgb").ids("train"))


def test_labels_of_16_bits_are_read_where_their_values_are_small(tmp_path):
    assert make(tmp_path, NUMBERS.astype(np.uint16)).label("drive/1").tolist() == NUMBERS.tolist()
    large = make(tmp_path, NUMBERS.astype(np.uint16) * 300)
    assert "value 300 at x=1, y=0; class values must be 0 to 255" in complaint(lambda: large.label("drive/1"))


def test_data_as_before_are_read_by_the_rule_as_before(tmp_path):
    assert make(tmp_path, NUMBERS).reading == "ignore [255] palette None bits None"


@pytest.mark.skipif("IDD_LITE_ROOT" not in os.environ, reason="IDD_LITE_ROOT does not name real frames of IDD-Lite")
def test_real_frames_with_two_values_to_a_class(tmp_path):
    """Seven classes become two by keys alone: what one drives on, and all else."""
    for folder in ("images", "labels"):
        (tmp_path / folder).symlink_to(os.path.join(os.environ["IDD_LITE_ROOT"], folder))
    whole = Dataset(root=os.environ["IDD_LITE_ROOT"])
    classes = valued(0, [1, 2, 3, 4, 5, 6])
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump({"classes": classes, "ignore": [255], "background": None}))
    image_id = whole.ids("val")[0]
    label, merged = whole.label(image_id), Dataset(root=str(tmp_path)).label(image_id)
    assert len(np.unique(label)) > 3 and set(np.unique(merged)) <= {0, 1, 255}
    assert ((merged == 0) == (label == 0)).all() and ((merged == 255) == (label == 255)).all()
