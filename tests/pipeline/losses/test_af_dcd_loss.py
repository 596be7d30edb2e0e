"""Contrast of groups and cells against loops, on a grid that pooling and patches do not divide."""

import math

import numpy as np
import pytest
import torch
from toy_features import STUDENT, assert_gradient_of_value, assert_outside_has_no_say, batch_of, cells_inside, loss_of, network

from pipeline.errors import ConfigError
from pipeline.losses.af_dcd import Loss
from pipeline.losses.mgd import Loss as Masked
from pipeline.targets.base import Context

TEACHER = Context(num_classes=2, regions=(0, 1), size=(24, 40), grids={"high": (3, 5), "logits": (3, 5)}, channels={"high": 6})
POOL, PATCH, GROUPS = 2, 2, 3


def loss_with(**keys):
    return loss_of(Loss, context=TEACHER, **{"pool": POOL, "patch": PATCH, "groups": GROUPS, "temperature": 0.5, **keys})


def slow_contrast(student_Dhw, teacher_Dhw, inside_hw):
    """Of one image, from both maps in float64."""
    cells = {}  # (row, column) of the pooled grid -> both pooled maps
    for y, x in np.ndindex(2, 3):
        window = [(r, c) for r in (2 * y, 2 * y + 1) for c in (2 * x, 2 * x + 1) if r < 3 and c < 5 and inside_hw[r, c]]
        if len(window) >= 2:
            cells[y, x] = [np.max([map_Dhw[:, r, c] for r, c in window], axis=0) for map_Dhw in (student_Dhw, teacher_Dhw)]
    total = 0.0
    for (y, x), (student_D, _) in cells.items():
        mates = [place for place in cells if (place[0] // PATCH, place[1] // PATCH) == (y // PATCH, x // PATCH)]
        for g in range(GROUPS):
            part = slice(2 * g, 2 * g + 2)
            own = math.exp(-np.abs(student_D[part] - cells[y, x][1][part]).sum() / 0.5)
            others = sum(
                math.exp(-np.abs(student_D[part] - cells[mate][1][2 * f : 2 * f + 2]).sum() / 0.5)
                for mate in mates
                for f in range(GROUPS)
                if f != g
            )
            total -= math.log(own / (own + others))
    return total / len(cells)


def test_the_contrast_equals_the_loops():
    loss, student, teacher = loss_with(), network(TEACHER, 1).features["high"], network(TEACHER, 0).features["high"]
    inside_B1hw = torch.from_numpy(cells_inside())[:, None]
    found = loss.contrast(student, teacher, inside_B1hw).tolist()
    for b in range(2):
        expected = slow_contrast(student[b].double().numpy(), teacher[b].double().numpy(), cells_inside()[b])
        assert found[b] == pytest.approx(expected, rel=1e-5)


def test_mimicry_is_masked_generation_and_both_are_weighed():
    student, batch = network(STUDENT, 1), batch_of(network(TEACHER, 0), context=TEACHER)
    mimicry, contrast, both = (loss_with(mimicry=m, contrast=c) for m, c in ((1.0, 0.0), (0.0, 1.0), (0.5, 2.0)))
    masked = loss_of(Masked, context=TEACHER)
    masked.load_state_dict(both.state_dict())
    values = [loss(student, batch).item() for loss in (mimicry, contrast, both)]
    assert values[0] == pytest.approx(masked(student, batch).item()) and values[1] > 0
    assert values[2] == pytest.approx(0.5 * values[0] + 2 * values[1], rel=1e-5)


def test_equal_maps_are_nearest_to_their_own_place():
    loss, teacher = loss_with(temperature=0.01), network(TEACHER, 0).features["high"]
    everywhere = torch.ones(2, 1, 3, 5, dtype=torch.bool)
    assert loss.contrast(teacher, teacher, everywhere).max() < 1e-3 < loss.contrast(teacher.roll(1, 1), teacher, everywhere).min()


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ConfigError, match="af_dcd.groups: 4 does not divide the 6 channels of map; write a divisor"):
        loss_with(groups=4)


def test_cells_outside_have_no_say():
    loss = loss_of(Loss, groups=7, pool=1, patch=2, masked=0.25, contrast=1.0)  # of a toy teacher of 7 channels
    assert_outside_has_no_say(loss)


def test_the_gradient_is_that_of_the_value():
    batch = batch_of(network(TEACHER, 0), context=TEACHER)
    assert_gradient_of_value(loss_with(masked=0.25, contrast=1.0), network(STUDENT, 1), batch, step=1e-6)
