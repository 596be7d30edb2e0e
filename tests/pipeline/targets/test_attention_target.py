"""The attention energy against loops, and what its stored form keeps."""

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.models.base import Output
from pipeline.targets.attention import Target
from pipeline.targets.base import Context

CONTEXT = Context(num_classes=3, regions=(0, 1, 2), size=(24, 40), grids={"mid": (6, 10), "high": (3, 5), "logits": (3, 5)})
LABELS = torch.zeros(2, 24, 40, dtype=torch.uint8)


def energy_of(features_BChw, target=Target(layer="high")):
    return target.compute(Output(torch.empty(0), {"high": features_BChw}), LABELS, CONTEXT)["energy"]


def stored(energy_Bhw, dtype):
    target = Target(layer="high", dtype=dtype)
    rows = {name: torch.from_numpy(array) for name, array in target.encode({"energy": energy_Bhw}).items()}
    return target.decode(rows)["energy"]


def test_the_energy_is_the_mean_over_channels_of_squares():
    features_BChw = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 7, 3, 5)).astype(np.float32))
    expected_Bhw = np.zeros((2, 3, 5))
    for b, i, j in np.ndindex(2, 3, 5):
        expected_Bhw[b, i, j] = sum(float(value) ** 2 for value in features_BChw[b, :, i, j]) / 7
    np.testing.assert_allclose(energy_of(features_BChw), expected_Bhw, rtol=1e-6)


def test_an_energy_worked_by_hand_and_its_gradient():
    """Channels (3, 0) and (1, 2): energies (9 + 1) / 2 and (0 + 4) / 2; the slope is 2 F / C."""
    features_1C12 = torch.tensor([[[[3.0, 0.0]], [[1.0, 2.0]]]], requires_grad=True)
    energy = energy_of(features_1C12)
    assert energy.tolist() == [[[5.0, 2.0]]]
    energy.sum().backward()
    assert torch.equal(features_1C12.grad, features_1C12.detach())


def test_half_precision_features_are_squared_in_float32():
    features_BChw = torch.full((1, 4, 3, 5), 300.0, dtype=torch.float16)
    assert energy_of(features_BChw).unique().tolist() == [90000.0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_energies_of_any_size_keep_their_shape(dtype, scale):
    energy_Bhw = torch.from_numpy(np.random.default_rng(1).exponential(size=(2, 3, 5)).astype(np.float32)) * scale
    error = (stored(energy_Bhw, dtype) - energy_Bhw).abs().amax(dim=(1, 2)) / energy_Bhw.amax(dim=(1, 2))
    if dtype == "float32":
        assert error.max() == 0
    else:
        assert 0 < error.max() < (2**-11 if dtype == "float16" else 1 / 509)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_a_map_of_zeros_stays_zeros(dtype):
    energy_Bhw = torch.stack((torch.zeros(3, 5), torch.ones(3, 5)))
    assert torch.equal(stored(energy_Bhw, dtype), energy_Bhw)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_energies_that_are_not_finite_are_refused(value):
    with pytest.raises(OverflowError, match="'high': not finite"):
        Target(layer="high").encode({"energy": torch.full((1, 3, 5), value)})


def test_an_unknown_layer_names_the_key():
    with pytest.raises(ConfigError, match="attention.layer.*'top'.*mid, high"):
        Target(layer="top").fields(CONTEXT)
