import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.cityscapes import Dataset
from pipeline.errors import DatasetError

TRAIN_ID_OF = {
    7: 0,
    8: 1,
    11: 2,
    12: 3,
    13: 4,
    17: 5,
    19: 6,
    20: 7,
    21: 8,
    22: 9,
    23: 10,
    24: 11,
    25: 12,
    26: 13,
    27: 14,
    28: 15,
    31: 16,
    32: 17,
    33: 18,
}
AACHEN = "train/aachen/aachen_000000_000019"
FRANKFURT = "val/frankfurt/frankfurt_000001_007973"
BERLIN = "test/berlin/berlin_000000_000019"


@pytest.fixture
def root(tmp_path):
    ids = np.append(np.arange(34), [255, 0]).astype(np.uint8).reshape(4, 9)
    for image_id in (AACHEN, FRANKFURT, BERLIN):
        image = tmp_path / f"leftImg8bit/{image_id}_leftImg8bit.png"
        label = tmp_path / f"gtFine/{image_id}_gtFine_labelIds.png"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 9, 3), (10, 20, 30), np.uint8)).save(image)
        Image.fromarray(ids).save(label)
        label.with_name(label.name.replace("labelIds", "color")).write_bytes(b"not read")
    return tmp_path


def test_label_ids_become_train_ids_and_go_back(root):
    dataset = Dataset(root=root)
    assert [dataset.ids(split) for split in dataset.splits] == [[AACHEN], [FRANKFURT], [BERLIN]]
    label = dataset.label(FRANKFURT)
    assert label.ravel().tolist() == [TRAIN_ID_OF.get(value, 255) for value in [*range(34), 255, 0]]
    assert dataset.image(FRANKFURT)[0, 0].tolist() == [10, 20, 30]
    back = dataset.prediction_ids(np.arange(19, dtype=np.uint8))
    assert back.dtype == np.uint8 and back.tolist() == list(TRAIN_ID_OF)
    assert str(dataset.prediction_path(FRANKFURT)) == "frankfurt_000001_007973.png"


def test_dummy_labels_of_test_are_not_read(root):
    assert Dataset(root=root).label(BERLIN) is None and len(Dataset(root=root).files(BERLIN)) == 1


def test_classes_colours_and_a_mirror_that_changes_nothing():
    assert len(Dataset.classes) == len(Dataset.colours) == len(set(Dataset.colours)) == 19
    assert Dataset.classes[13] == "car" and Dataset.colours[13] == (0, 0, 142) and Dataset.colours[0] == (128, 64, 128)
    assert Dataset.mirror == tuple(range(19)) and Dataset.background is None and Dataset.crop_top == 0


def test_faulty_files_are_named(root):
    dataset = Dataset(root=root)
    label = dataset.files(AACHEN)[1]
    values = np.zeros((4, 9), np.uint8)
    values[3, 2] = 34
    Image.fromarray(values).save(label)
    with pytest.raises(DatasetError, match=r"aachen_000000_000019_gtFine_labelIds\.png: value 34 at x=2, y=3"):
        dataset.label(AACHEN)
    Image.fromarray(np.zeros((4, 9, 3), np.uint8)).save(label)
    with pytest.raises(DatasetError, match=r"labelIds\.png: has 'RGB' pixels"):
        dataset.label(AACHEN)
    Image.fromarray(np.zeros((4, 8), np.uint8)).save(label)
    with pytest.raises(DatasetError, match=r"labelIds\.png: is 8 x 4 pixels, but .* 9 x 4"):
        dataset.label(AACHEN)
    label.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"labelIds\.png: not a picture"):
        dataset.label(AACHEN)
    label.unlink()
    with pytest.raises(DatasetError, match=r"labelIds\.png: no such file"):
        dataset.label(AACHEN)
    with pytest.raises(DatasetError, match="leftImg8bit/train: holds no"):
        Dataset(root=root / "elsewhere").ids("train")
    with pytest.raises(DatasetError, match="no split 'train_extra'"):
        dataset.ids("train_extra")
