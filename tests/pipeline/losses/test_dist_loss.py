"""Pearson correlations over classes and over the pixels of a batch, against loops."""

import numpy as np
import pytest
import torch
from toy_logits import CONTEXT, assert_offline_equals_online, batch_of, built, cells_inside, partly_outside, toy

from pipeline.losses._logits import compared
from pipeline.losses.dist import Loss
from pipeline.models.base import Output


def loss_of(**keys):
    return built(Loss, **keys)


def slow_dist(student_BKhw, teacher_BKhw, inside_Bhw, inter=1.0, intra=1.0):
    """The official definition, with numpy's correlation, of the pixels inside the images."""
    pixels = np.argwhere(inside_Bhw)
    q_KP, p_KP = (
        np.stack([np.exp(logits_BKhw[b, :, i, j].astype(float)) for b, i, j in pixels], axis=1)
        for logits_BKhw in (student_BKhw, teacher_BKhw)
    )
    q_KP, p_KP = q_KP / q_KP.sum(axis=0), p_KP / p_KP.sum(axis=0)
    of_pixels = np.mean([1 - np.corrcoef(q_K, p_K)[0, 1] for q_K, p_K in zip(q_KP.T, p_KP.T)])
    of_classes = np.mean([1 - np.corrcoef(q_P, p_P)[0, 1] for q_P, p_P in zip(q_KP, p_KP)])
    return inter * of_pixels + intra * of_classes


@pytest.mark.parametrize("weights", [{}, {"inter": 2.0, "intra": 0.0}, {"inter": 0.0, "intra": 3.0}])
@pytest.mark.parametrize("inside", [True, False])
def test_the_loss_equals_the_loops(weights, inside):
    teacher_BKhw, student_BKhw = toy()
    batch = batch_of(teacher_BKhw) if inside else batch_of(teacher_BKhw, partly_outside())
    found = loss_of(**weights)(Output(student_BKhw, {}), batch).item()
    cells = np.ones((2, 5, 7), dtype=bool) if inside else cells_inside()
    expected = slow_dist(student_BKhw.detach().numpy(), teacher_BKhw.numpy(), cells, **weights)
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_gradient_is_that_of_the_definition():
    teacher_BKhw, student_BKhw = toy()
    loss_of()(Output(student_BKhw, {}), batch_of(teacher_BKhw, partly_outside())).backward()
    student = student_BKhw.detach().double().numpy()
    for place in ((0, 1, 2, 3), (1, 0, 1, 6), (0, 3, 4, 5), (1, 2, 0, 0)):
        above, below = student.copy(), student.copy()
        above[place], below[place] = student[place] + 1e-5, student[place] - 1e-5
        above, below = (slow_dist(logits, teacher_BKhw.numpy(), cells_inside()) for logits in (above, below))
        assert student_BKhw.grad[place].item() == pytest.approx((above - below) / 2e-5, rel=1e-3, abs=1e-7)


def test_a_loss_worked_by_hand():
    """Two classes, one image of two pixels: opposite orders correlate by -1 over classes and over pixels, so 2 + 2."""
    teacher_1212 = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).view(1, 2, 1, 2)
    assert loss_of()(Output(-3 * teacher_1212, {}), batch_of(teacher_1212)).item() == pytest.approx(4)


def test_classes_are_correlated_over_all_images_of_the_batch():
    teacher_BKhw, student_BKhw = toy()
    loss = loss_of(inter=0.0)
    together = loss(Output(student_BKhw, {}), batch_of(teacher_BKhw)).item()
    alone = [loss(Output(student_BKhw[i : i + 1], {}), batch_of(teacher_BKhw[i : i + 1])).item() for i in range(2)]
    assert abs(together - sum(alone) / 2) > 1e-3


@pytest.mark.parametrize("absent", [0.0, -10.0, -200.0])
def test_a_student_that_equals_the_teacher_loses_nothing_even_where_a_class_is_absent(absent):
    teacher_BKhw = toy()[0].clone()
    teacher_BKhw[:, 2] += absent
    teacher_BKhw[0, :, 1] = 0.5  # pixels that favour no class
    student_BKhw = teacher_BKhw.clone().requires_grad_()
    loss = loss_of()(Output(student_BKhw, {}), batch_of(teacher_BKhw, partly_outside()))
    loss.backward()
    assert abs(loss.item()) < 1e-6 and student_BKhw.grad.abs().max() < 1e-4


@pytest.mark.parametrize("grid", ["student", "teacher"])
def test_logits_are_compared_on_the_named_grid(grid):
    teacher_BKhw, student_BKhw = toy((7, 11))
    output, batch = Output(student_BKhw, {}), batch_of(teacher_BKhw, partly_outside())
    student, teacher, inside = (values.detach().numpy() for values in compared(output, batch, "logits", grid))
    assert loss_of(grid=grid)(output, batch).item() == pytest.approx(slow_dist(student, teacher, inside), rel=1e-5)


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
