"""The road set as a dataset: generated, read through CULane's reader, refused when it is another one's."""

import numpy as np
import pytest

from pipeline.datasets.roads import Dataset
from pipeline.errors import ConfigError, DatasetError
from pipeline.synth.render import render
from pipeline.synth.sampling import draw_scene
from pipeline.synth.scene import CATEGORIES

KEYS = {"train": 6, "val": 2, "test": 12, "size": [118, 328], "seed": 3, "difficulty": 0.4}


def nothing(done, total):
    pass


@pytest.fixture(scope="module")
def roads(tmp_path_factory):
    data = Dataset(root=str(tmp_path_factory.mktemp("roads")), **KEYS)
    data.generate(workers=1, progress=nothing)
    return data


def test_what_is_read_is_what_was_rendered(roads):
    for split in ("train", "val", "test"):
        ids = roads.ids(split)
        assert len(ids) == KEYS[split]
        for index, image_id in enumerate(ids):
            frame = render(draw_scene(3, split, index, 0.4), (118, 328))
            assert np.array_equal(roads.label(image_id), frame.label)
            assert roads.existence(image_id).tolist() == frame.existence
            lines = roads.lines(image_id)
            assert len(lines) == len(frame.lines)
            for got, expected in zip(lines, frame.lines):
                np.testing.assert_allclose(got, expected, atol=5.1e-4)
            difference = np.abs(roads.image(image_id).astype(int) - frame.image)
            assert difference.mean() < 6  # JPEG
    assert len({image_id for split in roads.splits for image_id in roads.ids(split)}) == 20


def test_each_test_frame_is_in_its_one_category(roads):
    categories = roads.categories("test")
    assert tuple(categories) == CATEGORIES
    for index, image_id in enumerate(roads.ids("test")):
        expected = draw_scene(3, "test", index, 0.4).category
        assert [name for name, ids in categories.items() if image_id in ids] == [expected]


def test_the_crop_follows_the_size(roads):
    assert roads.crop_top == 48


def test_frames_that_are_not_drawn_yet_are_announced(tmp_path):
    with pytest.raises(DatasetError, match="not drawn yet.*pipeline synth"):
        Dataset(root=str(tmp_path), **KEYS).ids("train")


@pytest.mark.parametrize("change", [{"seed": 4}, {"difficulty": 0.5}, {"train": 5}, {"size": [118, 320]}])
def test_frames_of_other_settings_are_refused(roads, change):
    other = Dataset(root=str(roads.root), **{**KEYS, **change})
    with pytest.raises(DatasetError, match="pipeline synth"):
        other.ids("train")


def test_a_set_can_grow(tmp_path):
    small = Dataset(root=str(tmp_path), **{**KEYS, "train": 2, "val": 0, "test": 0})
    small.generate(workers=1, progress=nothing)
    assert len(small.ids("train")) == 2 and small.ids("val") == []
    larger = Dataset(root=str(tmp_path), **{**KEYS, "train": 3, "val": 0, "test": 0})
    larger.generate(workers=1, progress=nothing)
    assert larger.ids("train")[:2] == small.ids("train")


@pytest.mark.parametrize("change", [{"size": [40, 320]}, {"difficulty": 1.5}])
def test_impossible_settings_are_refused(tmp_path, change):
    with pytest.raises(ConfigError):
        Dataset(root=str(tmp_path), **{**KEYS, **change})
