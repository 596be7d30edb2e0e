"""Masked generation against loops, and masks that follow from the step."""

import dataclasses

import numpy as np
import pytest
import torch
from toy_features import (
    STUDENT,
    TEACHER,
    adapted,
    arrays,
    assert_gradient_of_value,
    assert_outside_has_no_say,
    batch_of,
    cells_inside,
    convolved,
    loss_of,
    network,
)

from pipeline.losses._random import generator_of
from pipeline.losses.mgd import Loss, hidden


def shown(loss, step):
    """[B, h, w]: the cells that the mask of this step leaves."""
    everywhere = torch.ones(2, 1, 3, 5, dtype=torch.bool)
    return hidden(torch.ones(2, 1, 3, 5), everywhere, loss.masked, generator_of(loss.seed, step))[:, 0].numpy() * cells_inside()


def generated(generator, map_Dhw):
    own = arrays(generator)
    return convolved(np.maximum(convolved(map_Dhw, own["0.weight"], own["0.bias"]), 0), own["2.weight"], own["2.bias"])


@pytest.mark.parametrize("normalise", ["none", "teacher"])
def test_the_loss_equals_the_loops(normalise):
    loss, student, teacher = loss_of(Loss, masked=0.5, normalise=normalise), network(STUDENT, 1), network(TEACHER, 0)
    shown_Bhw, total = shown(loss, step=5), 0.0
    assert 5 < shown_Bhw.sum() < 25
    for b, inside_hw in enumerate(cells_inside()):
        teacher_Dhw = teacher.features["high"][b].double().numpy()
        squares_Dhw = (generated(loss.generations[0], adapted(loss, student)[b] * shown_Bhw[b]) - teacher_Dhw) ** 2
        energy = (teacher_Dhw**2)[:, inside_hw].sum() if normalise == "teacher" else 1
        total += squares_Dhw[:, inside_hw].sum() / energy / 2
    assert loss(student, batch_of(teacher, step=5)).item() == pytest.approx(total, rel=1e-5)


def test_the_mask_follows_from_step_and_seed():
    loss, other = loss_of(Loss), loss_of(Loss, seed=1)
    student, batch = network(STUDENT, 1), batch_of(network(TEACHER, 0), step=5)
    value = loss(student, batch).item()
    assert loss(student, batch).item() == value
    assert loss(student, dataclasses.replace(batch, step=6)).item() != value != other(student, batch).item()


def test_the_part_that_is_masked_is_the_one_that_was_asked_for():
    everywhere = torch.ones(8, 1, 64, 64, dtype=torch.bool)
    left = hidden(torch.ones(8, 1, 64, 64), everywhere, 0.75, torch.Generator().manual_seed(0))
    assert left.mean().item() == pytest.approx(0.25, abs=0.01)


def test_a_network_that_says_zero_costs_one_when_normalised_by_the_teacher():
    loss = loss_of(Loss, normalise="teacher")
    for parameter in loss.generations.parameters():
        torch.nn.init.zeros_(parameter)
    assert loss(network(STUDENT, 1), batch_of(network(TEACHER, 0))).item() == pytest.approx(1, rel=1e-6)


def test_cells_outside_have_no_say():
    assert_outside_has_no_say(loss_of(Loss, masked=0.25))


def test_the_gradient_is_that_of_the_value():
    assert_gradient_of_value(loss_of(Loss, masked=0.25), network(STUDENT, 1), batch_of(network(TEACHER, 0)), step=1e-6)
