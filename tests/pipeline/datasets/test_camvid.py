"""CamVid in SegNet's layout: toy files always, the real data where CAMVID_ROOT names it."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.camvid import Dataset
from pipeline.errors import ConfigError, DatasetError

PIXELS_OF_TRAIN = [10682767, 14750079, 623349, 20076880, 2845085, 6166762, 743859, 714595, 3719877, 405385, 184967]


def make(root: Path, line="{split}/{name}.png {split}annot/{name}.png", suffix=".png") -> Dataset:
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        names = [f"{split}_{k}" for k in (2, 1)]
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            Image.fromarray(rng.integers(0, 256, (36, 48, 3), np.uint8)).save(root / split / f"{name}{suffix}")
            Image.fromarray(rng.integers(0, 12, (36, 48), np.uint8)).save(root / f"{split}annot" / f"{name}.png")
        (root / f"{split}.txt").write_text("".join(line.format(split=split, name=name) + "\n" for name in names))
    return Dataset(root=str(root))


@pytest.mark.parametrize(
    "line, suffix",
    [
        ("{split}/{name}.png {split}annot/{name}.png", ".png"),
        ("{split}/{name}.jpg {split}annot/{name}.png", ".jpg"),
        ("/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png", ".png"),
    ],
)
def test_lists_of_either_syntax_are_read(tmp_path, line, suffix):
    data = make(tmp_path, line, suffix)
    assert data.ids("val") == ["val/val_2", "val/val_1"]
    assert data.image("val/val_1").shape == (36, 48, 3)
    assert data.files("val/val_1") == [tmp_path / f"val/val_1{suffix}", tmp_path / "valannot/val_1.png"]


def test_a_sequence_of_a_split_can_be_asked_for(tmp_path):
    data = make(tmp_path)
    assert data.ids("val/val_1") == ["val/val_1"]
    with pytest.raises(DatasetError, match="names no frame of the sequence 'Seq05VD'"):
        data.ids("test/Seq05VD")


def test_a_part_of_the_training_images_lies_within_a_larger_part(tmp_path):
    data = make(tmp_path)
    (tmp_path / "train.txt").write_text("".join(f"train/{k}.png trainannot/{k}.png\n" for k in range(40)))
    parts = {part: Dataset(root=str(tmp_path), train_part=part).ids("train") for part in (0.1, 0.25, 1.0)}
    assert [len(ids) for ids in parts.values()] == [4, 10, 40]
    assert parts[0.1] == [i for i in parts[0.25] if i in parts[0.1]] and parts[0.25] == [i for i in parts[1.0] if i in parts[0.25]]
    assert parts[0.25] != parts[1.0][:10]  # neighbours in a list are neighbours in a film
    assert Dataset(root=str(tmp_path), train_part=0.1).ids("val") == data.ids("val")
    (tmp_path / "train.txt").write_text("".join(f"train/{k}.png trainannot/{k}.png\n" for k in reversed(range(39))))
    assert set(Dataset(root=str(tmp_path), train_part=0.1).ids("train")) <= {*parts[0.25]}  # and hardly changes with the list
    with pytest.raises(ConfigError, match="train_part: 0 is not above 0"):
        Dataset(root=str(tmp_path), train_part=0)


def test_void_is_ignored_and_the_rest_is_kept(tmp_path):
    data = make(tmp_path)
    raw = np.array(Image.open(tmp_path / "trainannot/train_1.png"))
    label = data.label("train/train_1")
    assert (raw == 11).any() and np.array_equal(label == 255, raw == 11)
    assert np.array_equal(label[raw < 11], raw[raw < 11])


def test_a_label_with_another_value_is_refused(tmp_path):
    data = make(tmp_path)
    Image.fromarray(np.full((36, 48), 12, np.uint8)).save(tmp_path / "trainannot/train_1.png")
    with pytest.raises(DatasetError, match="train_1.png: value 12"):
        data.label("train/train_1")


@pytest.mark.parametrize(
    "text, word",
    [
        ("train/a.png trainannot/a.png\ntrain/a.png trainannot/a.png\n", "train.txt: line 2"),
        ("train/a.png\n", "train.txt: line 1"),
        ("val/a.png valannot/a.png\n", "train.txt: line 1"),
    ],
)
def test_a_broken_list_is_refused(tmp_path, text, word):
    data = make(tmp_path)
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(DatasetError, match=word):
        data.ids("train")


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(DatasetError, match="train.txt"):
        Dataset(root=str(tmp_path)).ids("train")


@pytest.fixture(scope="module")
def camvid():
    if "CAMVID_ROOT" not in os.environ:
        pytest.skip("CAMVID_ROOT does not name a copy of CamVid")
    return Dataset(root=os.environ["CAMVID_ROOT"])


def test_the_real_splits_have_their_sizes(camvid):
    counts = {split: len(camvid.ids(split)) for split in camvid.splits}
    assert counts == {"train": 367, "val": 101, "test": 233}
    assert len({image_id for split in camvid.splits for image_id in camvid.ids(split)}) == 701
    assert len(camvid.ids("test/Seq05VD")) == 171 and not any("Seq05VD" in image_id for image_id in camvid.ids("train"))
    assert camvid.ids("train")[0] == "train/0001TP_006690"


def test_the_real_labels_have_the_published_class_counts(camvid):
    counts = np.zeros(256, np.int64)
    for image_id in camvid.ids("train"):
        counts += np.bincount(camvid.label(image_id).ravel(), minlength=256)
    assert counts[:11].tolist() == PIXELS_OF_TRAIN and counts[255] == 2503995 and counts[11:255].sum() == 0


def test_real_images_and_labels_match(camvid):
    for image_id in camvid.ids("test")[::60]:
        image, label = camvid.image(image_id), camvid.label(image_id)
        assert image.shape == (360, 480, 3) and label.shape == (360, 480)
        sky = image[label == 0]
        assert len(sky) == 0 or sky.mean() > image.mean()  # the sky is bright: label and image belong together
