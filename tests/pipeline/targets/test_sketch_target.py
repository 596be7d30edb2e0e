"""Sketches: fair, of the spread that is declared, the same everywhere; transformations against loops."""

import hashlib
import math

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.models.base import Output
from pipeline.targets._signs import signs
from pipeline.targets.base import Context
from pipeline.targets.sketch import Target, change

CONTEXT = Context(num_classes=2, regions=(0, 1), size=(16, 24), grids={"mid": (4, 6), "high": (2, 3), "logits": (2, 3)})
LABELS = torch.zeros(2, 16, 24, dtype=torch.uint8)


def random_output(num_images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Output(
        torch.empty(0),
        {
            "mid": torch.randn(num_images, 4, 4, 6, generator=generator).relu(),
            "high": torch.randn(num_images, 8, 2, 3, generator=generator).relu(),
        },
    )


def test_a_sketch_equals_the_loops():
    """Value i of the flattened map goes to bucket i % size with its sign, over the square root of the map's size."""
    target, output = Target(size=5), random_output()
    found = target.compute(output, LABELS, CONTEXT)["sketch"]
    for place, layer in enumerate(("mid", "high")):
        values_BN = output.features[layer].double().flatten(1).numpy()
        count = values_BN.shape[1]
        given = signs(0, place, count, torch.device("cpu")).numpy()
        expected = np.zeros((2, 5))
        for b, i in np.ndindex(2, count):
            expected[b, i % 5] += given[i] * values_BN[b, i] / math.sqrt(count)
        np.testing.assert_allclose(found[:, place], expected, atol=1e-6)


def test_squared_distances_between_sketches_are_those_between_maps_on_average():
    """Over 2000 seeds: the mean within four standard errors, the spread near sqrt(2 / size) of the distance."""
    output, size = random_output(), 16
    exact = np.array([(f[0] - f[1]).square().mean().item() for f in output.features.values()])
    found = []
    for seed in range(2000):
        sketch_BLS = Target(size=size, seed=seed).compute(output, LABELS, CONTEXT)["sketch"]
        found.append((sketch_BLS[0] - sketch_BLS[1]).square().sum(dim=1).numpy())
    mean, spread = np.mean(found, axis=0), np.std(found, axis=0)
    assert (np.abs(mean - exact) < 4 * spread / math.sqrt(2000)).all()
    declared = exact * np.sqrt(2 / size)
    assert (spread < 1.3 * declared).all() and (spread > 0.5 * declared).all()


def test_a_map_no_larger_than_its_sketch_keeps_its_distances_exactly():
    output = random_output()
    sketch_BLS = Target(size=96).compute(output, LABELS, CONTEXT)["sketch"]
    exact = [(f[0] - f[1]).square().mean().item() for f in output.features.values()]
    np.testing.assert_allclose((sketch_BLS[0] - sketch_BLS[1]).square().sum(dim=1), exact, rtol=1e-5)


def slow_change(earlier_Chw, later_Chw):
    """Four channels against eight: pairs of channels, 2 x 2 cells averaged."""
    total = 0.0
    for c, y, x in np.ndindex(4, 2, 3):
        earlier = earlier_Chw[c, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean()
        total += (earlier - later_Chw[2 * c : 2 * c + 2, y, x].mean()) ** 2
    return total / (4 * 2 * 3)


def test_transformations_equal_the_loops():
    output = random_output()
    found = Target().compute(output, LABELS, CONTEXT)["transformation"]
    mid, high = (output.features[layer].double().numpy() for layer in ("mid", "high"))
    expected = [[slow_change(mid[b], high[b])] for b in range(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_transformation_worked_by_hand():
    """One cell: channel 3 against the mean of channels 1 and 2 is 1.5, squared."""
    assert change(torch.tensor([[[[3.0]]]]), torch.tensor([[[[1.0]], [[2.0]]]])).tolist() == [2.25]


def test_the_signs_are_the_same_everywhere_and_fair():
    found = signs(7, 1, 100_000, torch.device("cpu"))
    assert found.abs().eq(1).all() and abs(found.mean()) < 4 / math.sqrt(100_000)
    assert found[:10].tolist() == signs(7, 1, 10, torch.device("cpu")).tolist()
    assert not torch.equal(found, signs(7, 0, 100_000, torch.device("cpu")))
    assert hashlib.sha256(found.to(torch.int8).numpy().tobytes()).hexdigest()[:16] == "2e64416c0a397637"


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_each_layer_is_stored_to_half_precision_and_transformations_as_they_are(scale):
    target = Target(size=32)
    values = target.compute(random_output(), LABELS, CONTEXT)
    values["sketch"] = values["sketch"] * torch.tensor([scale, 1.0])[:, None]
    decoded = target.decode({name: torch.from_numpy(array) for name, array in target.encode(values).items()})
    errors = (decoded["sketch"] - values["sketch"]).abs() / values["sketch"].abs().amax(dim=2, keepdim=True)
    assert 0 < errors.max() <= 2**-12
    assert torch.equal(decoded["transformation"], values["transformation"])


def test_a_dead_layer_is_stored_as_zeros():
    output = random_output()
    output.features["mid"][0] = 0
    target = Target(size=32)
    arrays = target.encode(target.compute(output, LABELS, CONTEXT))
    decoded = target.decode({name: torch.from_numpy(array) for name, array in arrays.items()})["sketch"]
    assert (decoded[0, 0] == 0).all() and (decoded[0, 1] != 0).any()


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="sketch.layers: \\['mid'\\]"):
        Target(layers=("mid",))
    with pytest.raises(ConfigError, match="sketch: size 0"):
        Target(size=0)
    with pytest.raises(ConfigError, match="sketch.layers.*'top'"):
        Target(layers=("mid", "top")).fields(CONTEXT)
    with pytest.raises(OverflowError, match="mid, high: not finite"):
        Target(size=4).encode({"sketch": torch.full((1, 2, 4), math.nan), "transformation": torch.zeros(1, 1)})
