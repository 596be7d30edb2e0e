"""Views that are crops of the prepared image: where they lie, and what they show."""

import numpy as np
import pytest
import torch
import yaml

from pipeline import config
from pipeline.config import Views
from pipeline.data import views
from pipeline.errors import ConfigError
from tests.conftest import EXPERIMENT
from tests.pipeline.test_views import SWAP, matrices, pictures, slow_apply

SIZE, CROP = (16, 24), (8, 16)
ADAPTER = dict(
    name="adapter", factory="a:b", arguments={}, layers=dict(mid="c", high="d"), logits="output", mean=[0, 0, 0], std=[1, 1, 1]
)


def section(**changed):
    drawn = {"count": 4, "seed": 3, "scale": (0.5, 2.0), "rotate_deg": 0.0, "shift": 0.0, "mirror": True, "crop": CROP}
    return Views(**drawn | changed)


def test_crops_equal_a_slow_exact_warp():
    images, labels = pictures()
    drawn = [views.draw(section(rotate_deg=10.0), f"image {i}", i, SIZE) for i in range(3)]  # the plain one, too
    shown, warped, inside = views.apply(images, labels, matrices(*drawn), content=SIZE, permutation=SWAP, size=CROP)
    assert shown.shape == (3, 3, *CROP) and warped.shape == inside.shape == (3, *CROP)
    for i in range(3):
        expected = slow_apply(images[i].numpy(), labels[i].numpy(), drawn[i], SIZE, SWAP, CROP)
        np.testing.assert_allclose(shown[i].permute(1, 2, 0).numpy(), expected[0], atol=1e-3)
        assert np.array_equal(warped[i].numpy(), expected[1]) and np.array_equal(inside[i].numpy(), expected[2])


def test_the_plain_crop_is_a_cut_of_whole_pixels_anywhere_in_the_image():
    images, labels = pictures(1)
    corners = set()
    for i in range(300):
        matrix = views.draw(section(), f"image {i}", 0, SIZE)
        x, y = (int(v) for v in matrix[:, 2])
        shown, warped, inside = views.apply(images, labels, matrices(matrix), content=SIZE, size=CROP)
        assert torch.equal(warped[0], labels[0, y : y + CROP[0], x : x + CROP[1]]) and inside.all()
        assert torch.equal(shown[0].permute(1, 2, 0), images[0, y : y + CROP[0], x : x + CROP[1]].float())
        corners.add((y, x))
    assert {y for y, _ in corners} == set(range(9)) and {x for _, x in corners} == set(range(9))  # both ends are reached


@pytest.mark.parametrize(
    "zoom, padded", [(1.0, False), (2.0, False), (0.5, True)], ids=["as large", "twice as large", "smaller than the crop"]
)
def test_a_crop_lies_in_the_zoomed_image_and_a_smaller_image_lies_in_the_crop(zoom, padded):
    images, labels = pictures(1)
    for i in range(100):
        matrix = views.draw(section(scale=(zoom, zoom), mirror=i % 2 == 1), f"image {i}", 1, SIZE)
        _, warped, inside = views.apply(images, labels, matrices(matrix), content=SIZE, permutation=SWAP, size=CROP)
        assert inside.all() != padded
        if padded:  # 8 x 12 of 8 x 16 pixels: all rows, and the columns of the whole image
            assert 7 * 11 <= inside.sum() <= 8 * 12 and (warped[~inside] == 255).all()


@pytest.mark.parametrize("content", [(16, 12), (16, 20), (9, 24), (5, 24)], ids=str)  # of 16 x 24, crops are 8 x 16
def test_with_padding_a_crop_lies_in_what_the_image_fills(content):
    images, labels = pictures(200)
    names, numbers = [f"image {i}" for i in range(200)], [i % 2 for i in range(200)]
    views_drawn = section(scale=(1.0, 1.0), mirror=False)
    drawn = views.drawn(views_drawn, names, numbers, SIZE, np.tile(content, (200, 1)))
    _, warped, inside = views.apply(images, labels, matrices(*drawn), content=content, size=CROP)
    most = min(CROP[0], content[0]) * min(CROP[1], content[1])
    assert (warped[~inside] == 255).all() and (inside[::2].sum((1, 2)) == most).all()  # in whole pixels, all that can be seen
    least = (min(CROP[0], content[0]) - 1) * (min(CROP[1], content[1]) - 1)
    assert (inside[1::2].sum((1, 2)) >= least).all()
    assert len({tuple(matrix[:, 2]) for matrix in drawn[::2]}) > 2  # at several places
    plain = views.drawn(section(crop=None), names, numbers, SIZE, np.tile(content, (200, 1)))
    assert np.array_equal(plain, views.drawn(section(crop=None), names, numbers, SIZE))  # whole views stay as they were


def test_crops_are_drawn_per_image_and_view_and_follow_the_seed():
    drawn = [views.draw(section(), name, view, SIZE) for name in "ab" for view in (0, 1)]
    assert len({matrix.tobytes() for matrix in drawn}) == 4
    assert np.array_equal(drawn[3], views.draw(section(), "b", 1, SIZE))
    assert not np.array_equal(drawn[3], views.draw(section(seed=4), "b", 1, SIZE))


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(views=dict(crop=[56, 64])), "views.crop: 56 x 64 is larger than the prepared images, 44 x 125; write a smaller crop"),
        (dict(views=dict(crop=[30, 64])), "views.crop: expected multiples of 8, got [30, 64]; write [32, 64]"),
        (dict(views=dict(shift=0.1)), "views.crop: a crop's place is drawn already; write views.shift: 0.0"),
        (
            dict(students=dict(erfnet=dict(width=4, input_scale=0.5))),
            "students.erfnet.input_scale: 0.5 of images of 40 x 64 (height x width) does not fit erfnet: both axes must be "
            "multiples of 16; write views.crop: [48, 64]",
        ),
        (
            dict(training=dict(existence_weight=0.1)),
            "training.existence_weight: an existence head fits one input size, and would be trained on 40 x 64 pixels and "
            "scored on 48 x 128; write evaluate.window: [40, 64], or existence_weight: 0.0",
        ),
        (
            dict(teacher=ADAPTER | dict(multiple=32)),
            "teacher: adapter takes heights and widths that are multiples of 32, and views.crop gives 40 x 64; write views.crop: "
            "[64, 64]",
        ),
        (
            dict(teacher=ADAPTER | dict(input_size=[32, 64])),
            "teacher.input_size: a network that resizes what it sees would be trained on 40 x 64 pixels and scored on "
            "48 x 128; write evaluate.window: [40, 64]",
        ),
    ],
)
def test_a_crop_that_cannot_be_is_refused_in_one_line(tmp_path, changes, said):
    raw = {**EXPERIMENT, "views": {**EXPERIMENT["views"], "shift": 0.0, "crop": [40, 64]}}
    for name, values in changes.items():
        base = {key: raw["teacher"][key] for key in ("checkpoint", "backbone", "precision")} if name == "teacher" else raw[name]
        raw[name] = {**base, **values}
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError) as refused:
        config.load(path)
    assert said in str(refused.value)
