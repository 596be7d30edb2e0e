"""Gram matrices of the logits against loops."""

import math

import numpy as np
import pytest
import torch
from toy_logits import CONTEXT, assert_offline_equals_online, batch_of, built, cells_inside, partly_outside, toy

from pipeline.losses._logits import compared
from pipeline.losses.ickd import Loss
from pipeline.models.base import Output


def loss_of(**keys):
    return built(Loss, **keys)


def slow_ickd(student_BKhw, teacher_BKhw, inside_Bhw):
    total = 0.0
    for student_Khw, teacher_Khw, inside_hw in zip(student_BKhw.astype(float), teacher_BKhw.astype(float), inside_Bhw):
        for i in range(4):
            student_row, teacher_row = (
                np.array([sum((logits_Khw[i] * logits_Khw[j])[inside_hw]) for j in range(4)])
                for logits_Khw in (student_Khw, teacher_Khw)
            )
            total += ((student_row / math.hypot(*student_row) - teacher_row / math.hypot(*teacher_row)) ** 2).sum() / 4
    return total / len(student_BKhw)


def test_the_loss_equals_the_loops():
    teacher_BKhw, student_BKhw = toy()
    found = loss_of()(Output(student_BKhw, {}), batch_of(teacher_BKhw, partly_outside())).item()
    expected = slow_ickd(student_BKhw.detach().numpy(), teacher_BKhw.numpy(), cells_inside())
    assert found == pytest.approx(expected, rel=1e-5) and found > 0


def test_a_loss_worked_by_hand():
    """Classes (1, 0) and (0, 1) over two pixels: Gram 1; both (1, 1): all rows (1, 1) / sqrt 2. So 2 - sqrt 2."""
    teacher_1212, student_1212 = torch.eye(2).view(1, 2, 1, 2), torch.ones(1, 2, 1, 2)
    found = loss_of()(Output(student_1212, {}), batch_of(teacher_1212)).item()
    assert found == pytest.approx(2 - math.sqrt(2))


def test_the_size_of_the_logits_does_not_matter():
    teacher_BKhw, student_BKhw = toy()
    plain, tripled = (loss_of()(Output(scale * student_BKhw, {}), batch_of(teacher_BKhw)).item() for scale in (1, 3))
    assert tripled == pytest.approx(plain, rel=1e-5)


def test_a_student_that_equals_the_teacher_loses_nothing():
    teacher_BKhw, _ = toy()
    assert loss_of()(Output(teacher_BKhw, {}), batch_of(teacher_BKhw, partly_outside())).item() == 0


@pytest.mark.parametrize("grid", ["student", "teacher"])
def test_logits_are_compared_on_the_named_grid(grid):
    teacher_BKhw, student_BKhw = toy((7, 11))
    output, batch = Output(student_BKhw, {}), batch_of(teacher_BKhw, partly_outside())
    student, teacher, inside = (values.detach().numpy() for values in compared(output, batch, "logits", grid))
    assert loss_of(grid=grid)(output, batch).item() == pytest.approx(slow_ickd(student, teacher, inside), rel=1e-5)


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
