"""Features: the common grid against loops, and what each codec keeps."""

import math

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.models.base import Output
from pipeline.targets.base import Context
from pipeline.targets.features import Target

CONTEXT = Context(num_classes=2, regions=(0, 1), size=(40, 56), grids={"high": (5, 7), "logits": (5, 7)}, channels={"high": 3})
LABELS = torch.zeros(2, 40, 56, dtype=torch.uint8)


def random_features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def computed(features_BChw, **keys):
    output = Output(torch.empty(0), {"high": features_BChw})
    return Target(layer="high", **keys).compute(output, LABELS, CONTEXT)["features"]


def stored(features_BChw, dtype):
    target = Target(layer="high", dtype=dtype)
    arrays = target.encode({"features": features_BChw})
    return target.decode({name: torch.from_numpy(array) for name, array in arrays.items()})["features"]


def slow_pool(map_hw, rows, columns):
    (h, w), found = map_hw.shape, np.zeros((rows, columns))
    for i, j in np.ndindex(rows, columns):
        down, right = math.ceil((i + 1) * h / rows), math.ceil((j + 1) * w / columns)
        found[i, j] = map_hw[i * h // rows : down, j * w // columns : right].mean()
    return found


@pytest.mark.parametrize("pool, rows, columns", [(1, 5, 7), (2, 3, 4), (3, 2, 3)])
@pytest.mark.parametrize("grid", [(5, 7), (10, 14), (9, 7)])
def test_features_are_averaged_over_the_areas_of_the_stored_cells(pool, rows, columns, grid):
    features_BChw = random_features(2, 3, *grid)
    found = computed(features_BChw, pool=pool)
    for b, c in np.ndindex(2, 3):
        expected = slow_pool(features_BChw[b, c].double().numpy(), rows, columns)
        np.testing.assert_allclose(found[b, c], expected, atol=1e-6)


def test_without_pooling_the_teachers_features_are_untouched():
    features_BChw = random_features(2, 3, 5, 7).bfloat16()
    assert torch.equal(computed(features_BChw), features_BChw.float())


def test_eight_bits_worked_by_hand():
    """A channel from 0 to 5.1: steps of 0.02, so 0.013 is stored as 1 and read as 0.02; a dead channel stays zero."""
    features_BChw = torch.tensor([[[[0.0, 5.1], [0.013, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    arrays = Target(layer="high", dtype="uint8").encode({"features": features_BChw})
    assert arrays["features"].tolist() == [[[[0, 255], [1, 50]], [[0, 0], [0, 0]]]]
    np.testing.assert_allclose(stored(features_BChw, "uint8").ravel(), [0, 5.1, 0.02, 1.0, 0, 0, 0, 0], atol=1e-6)


def test_eight_bits_err_by_half_a_step_of_each_channel():
    features_BChw = random_features(2, 3, 20, 30) * torch.tensor([0.1, 1.0, 10.0]).view(3, 1, 1) + 5
    error_BC = (stored(features_BChw, "uint8") - features_BChw).abs().amax(dim=(2, 3))
    half_step_BC = (features_BChw.amax(dim=(2, 3)) - features_BChw.amin(dim=(2, 3))) / 510
    assert (error_BC < half_step_BC + 1e-6).all() and (error_BC > 0.9 * half_step_BC).all()


def test_half_precision_errs_by_its_rounding():
    features_BChw = random_features(2, 3, 5, 7) * 1000
    errors = (stored(features_BChw, "float16") - features_BChw).abs() / features_BChw.abs()
    assert 0 < errors.max() <= 2**-11


@pytest.mark.parametrize(
    "dtype, value", [("float32", math.inf), ("float16", 65520.0), ("float16", math.nan), ("uint8", math.inf), ("uint8", math.nan)]
)
def test_what_does_not_fit_is_refused(dtype, value):
    features_BChw = torch.zeros(1, 3, 5, 7)
    features_BChw[0, 1, 1, 1] = value
    with pytest.raises(OverflowError, match=f"'high'.*do not fit {dtype}"):
        Target(layer="high", dtype=dtype).encode({"features": features_BChw})


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="features.pool: 0"):
        Target(layer="high", pool=0)
    with pytest.raises(ConfigError, match="features.layer.*'top'.*has high"):
        Target(layer="top").fields(CONTEXT)
