"""Haar's bands against their definition, on a grid of odd sides."""

import numpy as np
import pytest
import torch
from toy_features import STUDENT, TEACHER, adapted, assert_outside_has_no_say, batch_of, cells_inside, loss_of, network

from pipeline.losses.wavelet import Loss, haar


def slow_wavelet(difference_Dhw, inside_hw, levels):
    """Of one image: coefficients summed up cell by cell, over squares of 2, 4, 8 cells."""
    (_, h, w), total = difference_Dhw.shape, 0.0
    difference_Dhw = np.where(inside_hw, difference_Dhw, 0)
    for level in range(1, levels + 1):
        side, found = 2**level, []
        for y, x in np.ndindex(-(-h // side), -(-w // side)):
            rows, columns = (slice(side * y, min(side * y + side, h)), slice(side * x, min(side * x + side, w)))
            if inside_hw[rows, columns].mean() < 0.5:
                continue
            down = np.where(np.arange(rows.start, rows.stop) - rows.start < side // 2, 1, -1)[:, None]
            right = np.where(np.arange(columns.start, columns.stop) - columns.start < side // 2, 1, -1)
            for signs in (down + 0 * right, right + 0 * down, down * right):
                found.append(np.abs((difference_Dhw[:, rows, columns] * signs).sum(axis=(1, 2))) / side)
        total += np.mean(found)
    return total


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_loss_equals_the_loops(levels):
    loss, student, teacher = loss_of(Loss, levels=levels), network(STUDENT, 1), network(TEACHER, 0)
    differences_BDhw = adapted(loss, student) - teacher.features["high"].double().numpy()
    expected = np.mean([slow_wavelet(d, i, levels) for d, i in zip(differences_BDhw, cells_inside())])
    assert loss(student, batch_of(teacher)).item() == pytest.approx(expected, rel=1e-5)


def test_the_transform_keeps_the_energy():
    map_BDhw = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    assert sum(band.square().sum() for band in haar(map_BDhw)).item() == pytest.approx(map_BDhw.square().sum().item(), rel=1e-5)


def test_a_constant_difference_costs_nothing_and_a_pattern_of_single_cells_only_at_the_first_scale():
    flat, teacher = network(TEACHER, 0), network(TEACHER, 0)
    flat.features["high"] = flat.features["high"] + 3
    everywhere = torch.ones(2, 24, 40, dtype=torch.bool)
    even = torch.zeros(2, 7, 4, 8)
    assert all(band.abs().max() == 0 for band in haar(even + 3)[1:])
    even[..., ::2] = 1
    low, *high = haar(even)
    assert max(band.abs().max() for band in high) == 1 and max(band.abs().max() for band in haar(low)[1:]) == 0
    loss = loss_of(Loss, student=TEACHER, levels=1)
    flat_value, other = (loss(o, batch_of(teacher, everywhere)).item() for o in (flat, network(TEACHER, 1)))
    assert loss(teacher, batch_of(teacher, everywhere)).item() == 0 and 0 < flat_value < other * 3  # the odd border is an edge


def test_cells_outside_have_no_say():
    assert_outside_has_no_say(loss_of(Loss))


def test_the_gradient_is_the_sign_of_each_coefficient():
    """On an even grid, one level: each cell's slope is that of its square's three coefficients, divided by their number."""
    difference = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    _, *high = haar(difference)
    (sum(band.abs().mean() for band in high) / 3).backward()
    (a, b), (c, d) = difference.detach()[0, 0].tolist()
    bands = ((a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2)
    signs = np.sign(bands) / 6
    expected = [[signs @ (1, 1, 1), signs @ (-1, 1, -1)], [signs @ (1, -1, -1), signs @ (-1, -1, 1)]]
    np.testing.assert_allclose(difference.grad[0, 0], expected, rtol=1e-6)
