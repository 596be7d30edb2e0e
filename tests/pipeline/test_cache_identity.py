"""What a cache's identity holds of a mirrored look at the images, and what leaves it alone."""

from types import SimpleNamespace

import pytest

from pipeline.config import Plugin, Prepare, Teacher, Views
from pipeline.teacher import cache

UNCUT = {"crop_top": 0, "crop_bottom_rows": None, "crop_top_share": None}


def identity(mirror, flip_average, permutation, lanes=None):
    dataset = SimpleNamespace(classes=("a", "b", "c"), **UNCUT, lanes=2, regions=None, mirror=permutation, mirror_lanes=lanes)
    views = Views(count=2, seed=0, scale=(1.0, 1.0), rotate_deg=0.0, shift=0.0, mirror=mirror)
    teacher = Teacher(
        model=Plugin(kind="models", name="erfnet", args={}),
        checkpoint=None,
        backbone=None,
        precision="fp32",
        flip_average=flip_average,
    )
    return cache.identity(dataset, Prepare(size=(16, 16), codec="raw"), views, teacher, "1a2b")


@pytest.mark.parametrize("mirror, flip_average", [(False, False), (True, False), (False, True), (True, True)])
def test_the_permutation_of_classes_counts_where_something_is_mirrored(mirror, flip_average):
    same = identity(mirror, flip_average, (0, 2, 1)) == identity(mirror, flip_average, (0, 1, 2))
    assert same == (not mirror and not flip_average)


@pytest.mark.parametrize("flip_average", [False, True])
def test_the_permutation_of_lanes_counts_where_a_teacher_averages_over_it(flip_average):
    one, other = (identity(True, flip_average, (0, 2, 1), lanes) for lanes in [(0, 1), (1, 0)])
    assert (one == other) == (not flip_average)


@pytest.mark.parametrize("dilation, version", [("paper", 1), ("torchvision", 2)])
def test_the_version_is_that_of_the_option_so_that_other_caches_stay_valid(dilation, version):
    dataset = SimpleNamespace(classes=("a", "b"), **UNCUT, lanes=0, regions=None, mirror=None, mirror_lanes=None)
    views = Views(count=1, seed=0, scale=(1.0, 1.0), rotate_deg=0.0, shift=0.0, mirror=False)
    model = Plugin(kind="models", name="resnet18", args={"width": 64, "head": "plain", "dilation": dilation})
    teacher = Teacher(model=model, checkpoint=None, backbone=None, precision="fp32")
    record = cache.identity(dataset, Prepare(size=(16, 16), codec="raw"), views, teacher, "1a2b")["teacher"]
    assert record["version"] == version and list(record) == ["name", "args", "version", "layers", "weights", "precision"]
