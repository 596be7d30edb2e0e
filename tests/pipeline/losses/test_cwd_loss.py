"""Distributions over positions against loops, on grids that do not divide one another."""

import math

import numpy as np
import pytest
import torch
from toy_logits import assert_offline_equals_online, batch_of, built, partly_outside, slow_compared, toy

from pipeline.losses._logits import compared, on_one_grid
from pipeline.losses.cwd import Loss
from pipeline.models.base import Output

FINE = (7, 11)  # of the student


def loss_of(temperature=2.0, **keys):
    return built(Loss, temperature=temperature, **keys)


def slow_cwd(student_BKhw, teacher_BKhw, inside_BHW, T, grid):
    total = 0.0
    for student_Khw, teacher_Khw, inside_HW in zip(student_BKhw.astype(float), teacher_BKhw.astype(float), inside_BHW):
        student_Khw, teacher_Khw, inside_hw = slow_compared(student_Khw, teacher_Khw, inside_HW, grid)
        for student_hw, teacher_hw in zip(student_Khw, teacher_Khw):
            p, q = (np.exp(logits_hw[inside_hw] / T) for logits_hw in (teacher_hw, student_hw))
            p, q = p / p.sum(), q / q.sum()
            total += T**2 * sum(p[i] * math.log(p[i] / q[i]) for i in range(len(p)))
    return total / len(student_BKhw) / student_BKhw.shape[1]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(
    "grid, students", [("student", (7, 11)), ("student", (5, 7)), ("student", (3, 4)), ("teacher", (13, 17)), ("teacher", (3, 4))]
)
def test_the_loss_equals_the_loops(temperature, grid, students):
    teacher_BKhw, student_BKhw = toy(students)
    found = loss_of(temperature, grid=grid)(Output(student_BKhw, {}), batch_of(teacher_BKhw, partly_outside())).item()
    expected = slow_cwd(student_BKhw.detach().numpy(), teacher_BKhw.numpy(), partly_outside().numpy(), temperature, grid)
    assert found == pytest.approx(expected, rel=1e-5) and found > 0


@pytest.mark.parametrize("grid", ["student", "teacher"])
def test_logits_are_compared_on_the_named_grid(grid):
    teacher_BKhw, student_BKhw = toy(FINE)
    found = compared(Output(student_BKhw, {}), batch_of(teacher_BKhw, partly_outside()), "logits", grid)
    expected = slow_compared(student_BKhw.detach().numpy()[1], teacher_BKhw.numpy()[1], partly_outside().numpy()[1], grid)
    for ours, teacher in zip(found, expected):
        np.testing.assert_allclose(ours.detach().numpy()[1], teacher, atol=1e-5)


def test_a_loss_worked_by_hand():
    """(3/4, 1/4) at T = 2 against (1/2, 1/2): T^2 (3/4 ln 3/2 + 1/4 ln 1/2) = 0.1308 T^2, and one class of two."""
    teacher_1212 = torch.tensor([[2 * math.log(3), 0.0], [5.0, 5.0]]).view(1, 2, 1, 2)
    found = loss_of(2.0)(Output(torch.ones(1, 2, 1, 2), {}), batch_of(teacher_1212)).item()
    assert found == pytest.approx(4 * 0.13081203594 / 2)


def test_the_gradient_is_temperature_times_the_difference_of_probabilities():
    teacher_BKhw, student_BKhw = toy((5, 7))
    loss_of(4.0)(Output(student_BKhw, {}), batch_of(teacher_BKhw)).backward()
    p, q = (
        (logits_BKhw.detach().double() / 4).flatten(2).softmax(2).view_as(student_BKhw)
        for logits_BKhw in (teacher_BKhw, student_BKhw)
    )
    np.testing.assert_allclose(student_BKhw.grad, 4 * (q - p) / 8, atol=1e-6)


def test_the_loss_sees_the_shift_of_a_pixel_but_not_of_a_class():
    teacher_BKhw, student_BKhw = toy((5, 7))
    class_shift, pixel_shift = torch.arange(4.0).view(1, 4, 1, 1), torch.arange(35.0).view(1, 1, 5, 7)
    plain, class_shifted, pixel_shifted = (
        loss_of()(Output(student_BKhw + shift, {}), batch_of(teacher_BKhw)).item() for shift in (0.0, class_shift, pixel_shift)
    )
    assert class_shifted == pytest.approx(plain, rel=1e-5) and abs(pixel_shifted - plain) > 0.1 * plain


def test_a_student_that_equals_the_teacher_loses_nothing():
    teacher_BKhw, _ = toy(FINE)
    assert loss_of()(Output(teacher_BKhw, {}), batch_of(teacher_BKhw, partly_outside())).item() == 0


def test_what_lies_outside_does_not_count():
    teacher_BKhw, student_BKhw = toy((5, 7))
    inside_BHW = partly_outside()
    inside_BHW[1] = False
    loss_of()(Output(student_BKhw, {}), batch_of(teacher_BKhw, inside_BHW)).backward()
    slopes_Bhw = student_BKhw.grad.abs().amax(dim=1)
    assert (slopes_Bhw[0, :, :6] > 0).all() and (slopes_Bhw[0, :, 6:] == 0).all() and (slopes_Bhw[1] == 0).all()


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
def test_constant_and_huge_logits_keep_the_gradient_finite(scale):
    teacher_BKhw, student_BKhw = toy(FINE)
    loss = loss_of(1.0)(Output(student_BKhw * scale, {}), batch_of(teacher_BKhw * scale, partly_outside()))
    loss.backward()
    assert loss.isfinite() and student_BKhw.grad.isfinite().all()


@pytest.mark.parametrize("dtype, of_loss, of_gradient", [("float16", 3e-4, 3e-3), ("uint8", 5e-3, 5e-2)])
def test_offline_equals_online_within_the_stored_dtype(dtype, of_loss, of_gradient):
    assert_offline_equals_online(loss_of(4.0), dtype, of_loss, of_gradient, grid=FINE)


def test_a_coarser_student_is_compared_with_the_mean_of_all_the_teachers_cells_under_its_own():
    teacher_BKhw = torch.zeros(1, 1, 8, 8)
    teacher_BKhw[0, 0, 0, 0] = 16  # bilinear sampling at a quarter of the size does not see this cell
    student, teacher, _ = on_one_grid(
        Output(torch.zeros(1, 1, 2, 2), {}), teacher_BKhw, torch.ones(1, 64, 64, dtype=torch.bool), "student"
    )
    assert teacher.flatten().tolist() == [1, 0, 0, 0]
    student, teacher, _ = on_one_grid(
        Output(torch.tensor([[[[0.0, 4.0]]]]), {}), torch.zeros(1, 1, 1, 4), torch.ones(1, 8, 32, dtype=torch.bool), "teacher"
    )
    assert student.flatten().tolist() == [0, 1, 3, 4]  # no steps, which repeating would leave
