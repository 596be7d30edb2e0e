"""Feature distillation against loops: the adapter, the common grid, what counts."""

import numpy as np
import pytest
import torch
from toy_features import SIZE, STUDENT, TEACHER, batch_of, inside, network

from pipeline.losses.fitnet import Loss
from pipeline.targets.features import Target


def loss_of(student=STUDENT, target=Target(layer="high"), **keys):
    torch.manual_seed(0)
    return Loss(reads={"map": target}, context=TEACHER, student=student, **keys)


@pytest.mark.parametrize("normalise", ["none", "teacher"])
def test_the_loss_equals_the_loops(normalise):
    loss, student, teacher = loss_of(normalise=normalise), network(STUDENT, 1), network(TEACHER, 0)
    weight, bias = (parameter.detach().double().squeeze().numpy() for parameter in loss.adapters[0].parameters())
    total = 0.0
    for b, columns in enumerate((4, 5)):
        student_Chw, teacher_Chw = (o.features["high"][b].double().numpy() for o in (student, teacher))
        differences, energies = [], []
        for y, x in np.ndindex(3, columns):
            said = weight @ student_Chw[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean(axis=(1, 2)) + bias
            differences.append(((said - teacher_Chw[:, y, x]) ** 2).mean())
            energies.append((teacher_Chw[:, y, x] ** 2).mean())
        total += np.mean(differences) / (np.mean(energies) if normalise == "teacher" else 1) / 2
    assert loss(student, batch_of(teacher)).item() == pytest.approx(total, rel=1e-5)


def test_a_pooled_target_is_compared_on_its_own_grid():
    target, teacher = Target(layer="high", pool=2), network(TEACHER, 0)
    loss, student = loss_of(target=target), network(STUDENT, 1)
    batch = batch_of(teacher, inside_BHW=torch.ones(2, *SIZE, dtype=torch.bool), target=target)
    student_BChw = loss.adapters[0](torch.nn.functional.adaptive_avg_pool2d(student.features["high"], (2, 3)))
    expected = (student_BChw - batch.rows["map"]["features"]).square().mean().item()
    assert loss(student, batch).item() == pytest.approx(expected, rel=1e-5)


def test_an_adapter_that_passes_everything_through_loses_nothing_at_equal_features():
    loss, teacher = loss_of(student=TEACHER), network(TEACHER, 0)
    with torch.no_grad():
        loss.adapters[0].weight.copy_(torch.eye(7)[..., None, None])
        loss.adapters[0].bias.zero_()
    assert loss(teacher, batch_of(teacher)).item() < 1e-10 < loss(network(TEACHER, 1), batch_of(teacher)).item()


def test_a_student_that_says_zero_costs_one_when_normalised_by_the_teacher():
    loss = loss_of(normalise="teacher")
    for parameter in loss.parameters():
        torch.nn.init.zeros_(parameter)
    assert loss(network(STUDENT, 1), batch_of(network(TEACHER, 0))).item() == pytest.approx(1, rel=1e-6)


def test_cells_outside_have_no_say():
    loss, student, teacher = loss_of(), network(STUDENT, 1), network(TEACHER, 0)
    before = loss(student, batch_of(teacher)).item()
    student.features["high"][0, :, :, 8:] += 50
    teacher.features["high"][0, :, :, 4] -= 50
    assert loss(student, batch_of(teacher)).item() == pytest.approx(before, rel=1e-6)


@pytest.mark.parametrize("normalise", ["none", "teacher"])
@pytest.mark.parametrize("case", ["zero", "all outside", "teacher is zero"])
def test_corner_cases_have_a_finite_gradient_and_leave_other_images_alone(case, normalise):
    student, teacher, inside_BHW = network(STUDENT, 1), network(TEACHER, 0), inside()
    if case == "zero":
        student.features["high"][0] = 0
    elif case == "teacher is zero":
        teacher.features["high"][0] = 0
    else:
        inside_BHW[0] = False
    student.features["high"].requires_grad_()
    value = loss_of(normalise=normalise)(student, batch_of(teacher, inside_BHW))
    value.backward()
    slopes = student.features["high"].grad
    assert value.isfinite() and slopes.isfinite().all() and (slopes[1] != 0).any()
    assert (slopes[0] == 0).all() == (case == "all outside")


def test_training_adapter_and_student_brings_the_loss_down():
    loss, student, batch = loss_of(student=TEACHER), network(TEACHER, 1), batch_of(network(TEACHER, 0))
    optimiser, values = torch.optim.Adam([student.features["high"].requires_grad_(), *loss.parameters()], lr=0.05), []
    for _ in range(100):
        optimiser.zero_grad()
        value = loss(student, batch)
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.02 * values[0]
