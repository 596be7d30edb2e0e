"""The projected Gram matrix against loops, that its projection is fair, and what is stored."""

import math

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.models.base import Output
from pipeline.targets.base import Context
from pipeline.targets.gram import Target, gram

CONTEXT = Context(num_classes=2, regions=(0, 1), size=(16, 24), grids={"mid": (4, 6), "high": (2, 3), "logits": (2, 3)})
LABELS = torch.zeros(2, 16, 24, dtype=torch.uint8)


def output_of(mid, high):
    return Output(torch.empty(0), {"mid": mid, "high": high})


def random_output(num_images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return output_of(torch.randn(num_images, 5, 4, 6, generator=generator), torch.randn(num_images, 7, 2, 3, generator=generator))


def slow_gram(first_Chw, second_Chw):
    """Eq. 1, the first map averaged over 2 x 2 cells."""
    (m, _, _), (n, h, w) = first_Chw.shape, second_Chw.shape
    found = np.zeros((m, n))
    for i, j in np.ndindex(m, n):
        for y, x in np.ndindex(h, w):
            found[i, j] += first_Chw[i, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean() * second_Chw[j, y, x] / (h * w)
    return found


def test_the_projected_gram_matrix_equals_the_loops():
    target, output = Target(channels=3), random_output()
    first, second = (target.signs(place, channels, torch.device("cpu")).double().numpy() for place, channels in ((0, 5), (1, 7)))
    assert set(np.abs(first).ravel()) == {1} and not np.array_equal(first, second[:, :5])
    found = target.compute(output, LABELS, CONTEXT)["gram"]
    for b in range(2):
        whole = slow_gram(output.features["mid"][b].double().numpy(), output.features["high"][b].double().numpy())
        np.testing.assert_allclose(found[b], first @ whole @ second.T / math.sqrt(5 * 7), atol=1e-6)


def test_a_gram_matrix_worked_by_hand():
    """Two positions: channel (1, 2) times channel (3, -1) is (3 - 2) / 2."""
    assert gram(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, -1.0]]]])).tolist() == [[[0.5]]]


def test_the_projection_keeps_mean_squares_on_average():
    """Over 3000 seeds the mean square of P1 G P2^T is that of G, within four standard errors."""
    output = random_output(num_images=1)
    whole = gram(output.features["mid"], output.features["high"]).square().mean().item()
    found = np.array(
        [Target(channels=4, seed=seed).compute(output, LABELS, CONTEXT)["gram"].square().mean().item() for seed in range(3000)]
    )
    assert abs(found.mean() - whole) < 4 * found.std() / math.sqrt(3000) < 0.1 * whole


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_gram_matrices_of_any_size_are_stored_to_half_precision(scale):
    target = Target(channels=8)
    gram_BDD = target.compute(random_output(), LABELS, CONTEXT)["gram"] * scale
    arrays = target.encode({"gram": gram_BDD})
    decoded = target.decode({name: torch.from_numpy(array) for name, array in arrays.items()})["gram"]
    errors = (decoded - gram_BDD).abs() / gram_BDD.abs().amax(dim=(1, 2), keepdim=True)
    assert 0 < errors.max() <= 2**-12


def test_a_matrix_of_zeros_stays_zeros_and_has_a_finite_gradient():
    target, output = Target(channels=3), random_output()
    for features in output.features.values():
        features[0] = 0
        features.requires_grad_()
    values = target.compute(output, LABELS, CONTEXT)
    decoded = target.decode({name: torch.from_numpy(array) for name, array in target.encode(values).items()})
    assert (decoded["gram"][0] == 0).all() and (decoded["gram"][1] != 0).any()
    values["gram"].square().sum().backward()
    assert all(features.grad.isfinite().all() for features in output.features.values())


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="gram: channels 0"):
        Target(channels=0)
    with pytest.raises(ConfigError, match="gram.layers.*'top'.*mid, high"):
        Target(layers=("mid", "top")).fields(CONTEXT)
    with pytest.raises(OverflowError, match="mid and high: not finite"):
        Target().encode({"gram": torch.full((1, 64, 64), math.inf)})
