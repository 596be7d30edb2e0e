"""Divergences between spatial distributions against loops over pairs of classes."""

import math

import numpy as np
import pytest
import torch
from toy_logits import CONTEXT, assert_offline_equals_online, batch_of, built, cells_inside, partly_outside, toy

from pipeline.losses._logits import compared
from pipeline.losses.aicsd import Loss, unit_divergences
from pipeline.models.base import Output


def loss_of(**keys):
    return built(Loss, **keys)


def slow_aicsd(student_BKhw, teacher_BKhw, inside_Bhw, T=1.0):
    images = []
    for student_Khw, teacher_Khw, inside_hw in zip(student_BKhw.astype(float), teacher_BKhw.astype(float), inside_Bhw):
        matrices = []
        for logits_Khw in (student_Khw, teacher_Khw):
            p = [np.exp(logits_hw[inside_hw] / T) / np.exp(logits_hw[inside_hw] / T).sum() for logits_hw in logits_Khw]
            rows = [[sum(a * math.log(a / b) for a, b in zip(p[i], p[j])) for j in range(4)] for i in range(4)]
            matrices.append(np.array([np.array(row) / math.hypot(*row) for row in rows]))
        images.append(((matrices[0] - matrices[1]) ** 2).mean())
    return sum(images) / len(images)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_equals_the_loops(temperature):
    teacher_BKhw, student_BKhw = toy()
    found = loss_of(temperature=temperature)(Output(student_BKhw, {}), batch_of(teacher_BKhw, partly_outside())).item()
    expected = slow_aicsd(student_BKhw.detach().numpy(), teacher_BKhw.numpy(), cells_inside(), temperature)
    assert found == pytest.approx(expected, rel=1e-5) and found > 0


def test_a_divergence_worked_by_hand():
    """(3/4, 1/4) from (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2 = 0.1308; the other way 1/2 ln 2/3 + 1/2 ln 2 = 0.1438."""
    logits_1312 = torch.tensor([[math.log(3), 0.0], [0.0, 0.0], [0.0, 0.0]]).view(1, 3, 1, 2)
    found = unit_divergences(logits_1312, torch.ones(1, 1, 2, dtype=torch.bool))[0].tolist()
    half = 1 / math.sqrt(2)
    assert found[0] == pytest.approx([0, half, half], abs=1e-6) and found[1] == pytest.approx([1, 0, 0], abs=1e-6)


def test_rows_of_classes_that_look_alike_stay_short():
    """KL is about d^2 / 8 for two logits that differ by a small d: 1.25e-5 nats for 0.01, in units of 0.001."""
    logits_1212 = torch.tensor([[0.01, 0.0], [0.0, 0.0]]).view(1, 2, 1, 2)
    found = unit_divergences(logits_1212, torch.ones(1, 1, 2, dtype=torch.bool))[0]
    assert found[0, 1].item() == pytest.approx(0.0125, rel=0.05)


def test_a_student_that_equals_the_teacher_loses_nothing():
    teacher_BKhw, _ = toy()
    assert loss_of()(Output(teacher_BKhw, {}), batch_of(teacher_BKhw, partly_outside())).item() == 0


@pytest.mark.parametrize("grid", ["student", "teacher"])
def test_logits_are_compared_on_the_named_grid(grid):
    teacher_BKhw, student_BKhw = toy((7, 11))
    output, batch = Output(student_BKhw, {}), batch_of(teacher_BKhw, partly_outside())
    student, teacher, inside = (values.detach().numpy() for values in compared(output, batch, "logits", grid))
    assert loss_of(grid=grid)(output, batch).item() == pytest.approx(slow_aicsd(student, teacher, inside), rel=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
def test_constant_and_huge_logits_keep_the_gradient_finite(scale):
    teacher_BKhw, student_BKhw = toy()
    for teacher_by, student_by in ((scale, scale), (1, scale), (scale, 1)):
        teacher, student = teacher_by * teacher_BKhw, student_by * student_BKhw
        loss = loss_of()(Output(student, {}), batch_of(teacher, partly_outside()))
        (slope_BKhw,) = torch.autograd.grad(loss, student_BKhw)
        assert loss.isfinite() and slope_BKhw.isfinite().all()


def test_images_wholly_outside_give_nothing():
    teacher_BKhw, student_BKhw = toy()
    nowhere_BHW = torch.zeros(2, *CONTEXT.size, dtype=torch.bool)
    loss = loss_of()(Output(student_BKhw, {}), batch_of(teacher_BKhw, nowhere_BHW))
    loss.backward()
    assert loss.item() == 0 and (student_BKhw.grad == 0).all()


@pytest.mark.parametrize("dtype, of_loss, of_gradient", [("float16", 3e-4, 3e-3), ("uint8", 5e-3, 5e-2)])
def test_offline_equals_online_within_the_stored_dtype(dtype, of_loss, of_gradient):
    assert_offline_equals_online(loss_of(), dtype, of_loss, of_gradient)
