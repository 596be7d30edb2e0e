"""Scenes in ApolloScape's and LLAMAS's layouts: what their readers read is what was drawn."""

import json

import numpy as np
import pytest

from pipeline.datasets import apolloscape as apolloscape_reader
from pipeline.datasets import llamas as llamas_reader
from pipeline.errors import DatasetError
from pipeline.synth import apolloscape, llamas
from pipeline.synth.facets import marking_map
from pipeline.synth.markings import KINDS
from pipeline.synth.sampling import draw_scene
from pipeline.synth.settings import Settings

SETTINGS = Settings(size=(271, 338), seed=5, difficulty=0.0)


@pytest.mark.parametrize("form", ["rgb", "palette"])
def test_apolloscape_reads_every_marking_under_its_own_name(tmp_path, form):
    apolloscape.write(tmp_path, SETTINGS, {"road02/Record001": 5, "road04/Record015": 1, "road05": 2}, form)
    data = apolloscape_reader.Dataset(root=str(tmp_path), roads=("road02", "road04"), val=["road04/Record015"])
    assert [len(data.ids(split)) for split in data.splits] == [5, 1, 2]
    assert (tmp_path / "Labels_road02/Label/Record001/Camera 5").is_dir()
    seen = set()
    for index, image_id in enumerate(data.ids("train")):
        label = data.label(image_id)
        drawn = marking_map(draw_scene(5, "road02/Record001", index, 0.0), SETTINGS.size)
        hood = label == data.classes.index("noise+ignored")
        assert 0.05 < hood.mean() < 0.15 and not hood[:230].any()
        for kind in KINDS[1:]:
            painted = (drawn == KINDS.index(kind)) & ~hood
            assert np.array_equal(label == data.classes.index(kind), painted), kind
            seen |= {kind} if (label == data.classes.index(kind)).any() else set()
    assert len(seen) >= 3
    assert data.label(data.ids("test")[0]) is None and data.image(data.ids("test")[0]).shape == (271, 338, 3)


def llamas_set(root, size=(360, 640), train=8):
    llamas.write(
        root,
        Settings(size=size, seed=5, difficulty=0.0),
        {"train/images-a": train, "valid/images-b": 1, "valid/images-c": 1, "test/images-d": 1},
    )
    return llamas_reader.Dataset(root=str(root), protocol="paper", size=size, crop_top=0)


def test_llamas_markers_project_to_their_pixels_and_begin_at_the_nearer_end(tmp_path):
    data, markers = llamas_set(tmp_path), 0
    for image_id in data.ids("train"):
        content = json.loads(data.files(image_id)[1].read_text())
        projection = np.array(content["projection_matrix"])
        assert projection[0, 0] == pytest.approx(projection[1, 1]) and projection[2].tolist() == [0, 0, 1]
        for marker in (marker for lane in content["lanes"] for marker in lane["markers"]):
            ends = {}
            for end in ("start", "end"):
                world = marker[f"world_{end}"]
                assert all(isinstance(value, str) for value in (*world.values(), *marker[f"pixel_{end}"].values()))
                ends[end] = projection @ [float(world[axis]) for axis in "xyz"]
                pixel = ends[end][:2] / ends[end][2]
                cut = [int(marker[f"pixel_{end}"][axis]) for axis in "xy"]
                assert abs(pixel - cut).max() <= 1.01
            assert ends["start"][2] < ends["end"][2]
            markers += 1
    assert markers > 50


def test_llamas_labels_lie_on_the_paint_and_are_left_and_right_of_the_car(tmp_path):
    data, on_paint, labelled = llamas_set(tmp_path), 0, 0
    for index, image_id in enumerate(data.ids("train")):
        scene, label = draw_scene(5, "train/images-a", index, 0.0), data.label(image_id)
        paint = marking_map(scene, data.size) > 0
        near = np.zeros_like(paint)  # within a pixel; double lines are labelled in their gap
        for dy, dx in ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)):
            near |= np.roll(paint, (dy, dx), (0, 1))
        on_paint, labelled = on_paint + near[label > 0].sum(), labelled + (label > 0).sum()
        columns = [np.nonzero(label[-90:] == c)[1] for c in (2, 3)]
        if len(columns[0]) and len(columns[1]):
            assert columns[0].mean() < columns[1].mean()
        assert data.existence(image_id).sum() == len(np.unique(label)) - 1
    assert labelled > 5000 and on_paint > 0.9 * labelled


def test_llamas_test_has_no_labels(tmp_path):
    llamas_set(tmp_path, size=(180, 320), train=1)
    data = llamas_reader.Dataset(root=str(tmp_path), protocol="official", size=(180, 320), crop_top=0)
    assert data.label(data.ids("test")[0]) is None and data.existence(data.ids("test")[0]) is None
    assert len(data.ids("valid")) == 2
    with pytest.raises(DatasetError):
        data.ids("val")
