"""Target and non-target divergences against loops over labelled pixels."""

import math

import numpy as np
import pytest
import torch
from toy_logits import CONTEXT, assert_offline_equals_online, batch_of, built, cells_inside, partly_outside, toy

from pipeline.losses._logits import compared
from pipeline.losses.dkd import Loss
from pipeline.losses.kd import Loss as KD
from pipeline.models.base import Output


def loss_of(**keys):
    return built(Loss, **keys)


def squares():
    """Labels of 8x8 px, so that a cell has one label; some are ignored."""
    labels_Bhw = torch.randint(0, 5, (2, 5, 7), generator=torch.Generator().manual_seed(7)).to(torch.uint8)
    labels_Bhw[labels_Bhw == 4] = 255
    return labels_Bhw.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)


def slow_dkd(student_BKhw, teacher_BKhw, labels_Bhw, inside_Bhw, T, alpha=1.0, beta=8.0):
    images = []
    for b, labels_hw in enumerate(labels_Bhw):
        terms = []
        for i, j in np.argwhere((labels_hw != 255) & inside_Bhw[b]):
            t = labels_hw[i, j]
            p, q = (np.exp(logits_BKhw[b, :, i, j].astype(float) / T) for logits_BKhw in (teacher_BKhw, student_BKhw))
            p, q = p / p.sum(), q / q.sum()
            rest_p, rest_q = 1 - p[t], 1 - q[t]
            own = p[t] * math.log(p[t] / q[t]) + rest_p * math.log(rest_p / rest_q)
            others = sum(p[k] / rest_p * math.log(p[k] / rest_p / (q[k] / rest_q)) for k in range(4) if k != t)
            terms.append(alpha * own + beta * others)
        images.append(T**2 * sum(terms) / len(terms))
    return sum(images) / len(images)


@pytest.mark.parametrize("weights", [{}, {"alpha": 2.0, "beta": 0.0}, {"alpha": 0.0, "beta": 1.0}])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_equals_the_loops(temperature, weights):
    teacher_BKhw, student_BKhw = toy()
    batch = batch_of(teacher_BKhw, partly_outside(), squares())
    found = loss_of(temperature=temperature, **weights)(Output(student_BKhw, {}), batch).item()
    expected = slow_dkd(
        student_BKhw.detach().numpy(), teacher_BKhw.numpy(), squares()[:, ::8, ::8].numpy(), cells_inside(), temperature, **weights
    )
    assert found == pytest.approx(expected, rel=1e-5) and found > 0


def test_kd_is_the_sum_of_the_decoupled_parts_weighted_by_the_teacher():
    """KL = TCKD + (1 - p_t) NCKD at a single pixel."""
    teacher, student = torch.tensor([2.0, 0.5, -1.0, 0.0]), torch.tensor([-0.5, 1.0, 0.2, 0.9])
    batch = batch_of(teacher.view(1, 4, 1, 1), labels_BHW=torch.full((1, *CONTEXT.size), 1, dtype=torch.uint8))
    own, others, kd = (
        loss(Output(student.view(1, 4, 1, 1), {}), batch).item()
        for loss in (
            loss_of(temperature=1.0, alpha=1.0, beta=0.0),
            loss_of(temperature=1.0, alpha=0.0, beta=1.0),
            built(KD, temperature=1.0),
        )
    )
    assert own + (1 - teacher.softmax(0)[1].item()) * others == pytest.approx(kd, rel=1e-5)


def test_a_cell_has_the_label_of_the_pixel_at_its_centre():
    """Cells of 8x8 px; the centre is at pixel (4, 4) of each."""
    teacher_BKhw, student_BKhw = toy()
    labels_BHW = torch.full((2, *CONTEXT.size), 255, dtype=torch.uint8)
    labels_BHW[0, 8 + 4, 16 + 4] = 3
    loss_of(temperature=1.0)(Output(student_BKhw, {}), batch_of(teacher_BKhw, labels_BHW=labels_BHW)).backward()
    assert student_BKhw.grad.abs().amax(dim=1).nonzero().tolist() == [[0, 1, 2]]


def test_an_image_without_labels_gives_nothing():
    teacher_BKhw, student_BKhw = toy()
    labels_BHW = squares()
    labels_BHW[1] = 255
    loss_of(temperature=1.0)(Output(student_BKhw, {}), batch_of(teacher_BKhw, labels_BHW=labels_BHW)).backward()
    assert student_BKhw.grad[0].abs().max() > 0 and (student_BKhw.grad[1] == 0).all()


def test_a_student_that_equals_the_teacher_loses_nothing():
    teacher_BKhw, _ = toy()
    batch = batch_of(teacher_BKhw, partly_outside(), squares())
    assert abs(loss_of(temperature=4.0)(Output(teacher_BKhw, {}), batch).item()) < 1e-6


@pytest.mark.parametrize("grid", ["student", "teacher"])
def test_logits_are_compared_on_the_named_grid(grid):
    teacher_BKhw, student_BKhw = toy((10, 14))
    output, batch = Output(student_BKhw, {}), batch_of(teacher_BKhw, partly_outside(), squares())
    student, teacher, inside = (values.detach().numpy() for values in compared(output, batch, "logits", grid))
    step = 40 // len(inside[0])
    expected = slow_dkd(student, teacher, squares()[:, step // 2 :: step, step // 2 :: step].numpy(), inside, 1.0)
    assert loss_of(temperature=1.0, grid=grid)(output, batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
def test_constant_and_huge_logits_keep_the_gradient_finite(scale):
    teacher_BKhw, student_BKhw = toy()
    for teacher_by, student_by in ((scale, scale), (1, scale), (scale, 1)):
        teacher, student = teacher_by * teacher_BKhw, student_by * student_BKhw
        loss = loss_of(temperature=4.0)(Output(student, {}), batch_of(teacher, partly_outside(), labels_BHW=squares()))
        (slope_BKhw,) = torch.autograd.grad(loss, student_BKhw)
        assert loss.isfinite() and slope_BKhw.isfinite().all()


def test_images_wholly_outside_give_nothing():
    teacher_BKhw, student_BKhw = toy()
    nowhere_BHW = torch.zeros(2, *CONTEXT.size, dtype=torch.bool)
    loss = loss_of(temperature=4.0)(Output(student_BKhw, {}), batch_of(teacher_BKhw, nowhere_BHW, labels_BHW=squares()))
    loss.backward()
    assert loss.item() == 0 and (student_BKhw.grad == 0).all()


@pytest.mark.parametrize("dtype, of_loss, of_gradient", [("float16", 3e-4, 3e-3), ("uint8", 5e-3, 5e-2)])
def test_offline_equals_online_within_the_stored_dtype(dtype, of_loss, of_gradient):
    assert_offline_equals_online(loss_of(temperature=4.0), dtype, of_loss, of_gradient, labels_BHW=squares())
