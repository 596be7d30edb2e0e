"""Distributions of channels over positions against loops."""

import math

import numpy as np
import pytest
from toy_features import (
    STUDENT,
    TEACHER,
    adapted,
    assert_gradient_of_value,
    assert_outside_has_no_say,
    batch_of,
    cells_inside,
    loss_of,
    network,
)

from pipeline.losses.cwd_features import Loss


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_equals_the_loops(temperature):
    loss, student, teacher = loss_of(Loss, temperature=temperature), network(STUDENT, 1), network(TEACHER, 0)
    total = 0.0
    for said_Dhw, teacher_Dhw, inside_hw in zip(adapted(loss, student), teacher.features["high"].double().numpy(), cells_inside()):
        for said_hw, teacher_hw in zip(said_Dhw, teacher_Dhw):
            p, q = (np.exp(values_hw[inside_hw] / temperature) for values_hw in (teacher_hw, said_hw))
            p, q = p / p.sum(), q / q.sum()
            total += temperature**2 * sum(p[i] * math.log(p[i] / q[i]) for i in range(len(p))) / 7 / 2
    assert loss(student, batch_of(teacher)).item() == pytest.approx(total, rel=1e-5)


def test_a_network_of_the_teachers_channels_has_no_adapter_and_loses_nothing_at_equal_features():
    loss, teacher = loss_of(Loss, student=TEACHER, temperature=1.0), network(TEACHER, 0)
    assert not list(loss.parameters())
    assert loss(teacher, batch_of(teacher)).item() == 0 < loss(network(TEACHER, 1), batch_of(teacher)).item()


def test_cells_outside_have_no_say():
    assert_outside_has_no_say(loss_of(Loss, temperature=2.0))


def test_the_gradient_is_that_of_the_value():
    assert_gradient_of_value(loss_of(Loss, temperature=2.0), network(STUDENT, 1), batch_of(network(TEACHER, 0)))
