"""The divergence of teacher and student against loops over pixels and classes."""

import math

import numpy as np
import pytest
import torch
from toy_logits import slow_means, slow_resize

from pipeline.losses import kd
from pipeline.losses.base import Batch
from pipeline.losses.kd import Loss
from pipeline.models.base import Output
from pipeline.targets.base import Context
from pipeline.targets.logits import Target

CONTEXT = Context(num_classes=3, regions=(0, 1, 2), size=(8, 12), grids={"mid": (4, 6), "high": (2, 3), "logits": (2, 3)})


def loss_of(temperature=2.0, **keys):
    return Loss(reads={"logits": Target()}, context=CONTEXT, student=CONTEXT, temperature=temperature, **keys)


def batch_of(teacher_BKhw, inside_BHW=None, label=255):
    everywhere = torch.ones(len(teacher_BKhw), *CONTEXT.size, dtype=torch.bool)
    return Batch(
        images_B3HW=torch.empty(0),
        labels_BHW=torch.full(everywhere.shape, label, dtype=torch.uint8),
        inside_BHW=everywhere if inside_BHW is None else inside_BHW,
        existence_BL=None,
        rows={"logits": {"logits": teacher_BKhw}},
        step=0,
    )


def toy(grid=(8, 12), seed=0):
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (3 * torch.randn(2, 3, *size, generator=generator) for size in ((2, 3), grid))
    return teacher, student.requires_grad_()


def slow_kd(student_BKhw, teacher_BKhw, inside_BHW, T, grid):
    images = []
    for student_Khw, teacher_Khw, inside_HW in zip(student_BKhw.astype(float), teacher_BKhw.astype(float), inside_BHW):
        if grid == "student":
            teacher_Khw = np.stack([slow_resize(teacher_hw, student_Khw.shape[1:]) for teacher_hw in teacher_Khw])
        else:
            student_Khw = np.stack([slow_means(student_hw, teacher_Khw.shape[1:]) for student_hw in student_Khw])
        h, w = student_Khw.shape[1:]
        inside_hw = slow_means(inside_HW.astype(float), (h, w)) >= 0.5
        total = 0.0
        for i, j in np.ndindex(h, w):
            if inside_hw[i, j]:
                p, q = (np.exp(logits[:, i, j] / T) for logits in (teacher_Khw, student_Khw))
                p, q = p / p.sum(), q / q.sum()
                total += sum(p[k] * math.log(p[k] / q[k]) for k in range(3))
        images.append(T**2 * total / inside_hw.sum())
    return sum(images) / len(images)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("grid, students", [("student", (8, 12)), ("student", (4, 6)), ("student", (2, 3)), ("teacher", (8, 12))])
def test_the_loss_equals_the_loops(temperature, grid, students):
    teacher_BKhw, student_BKhw = toy(students)
    inside_BHW = torch.ones(2, *CONTEXT.size, dtype=torch.bool)
    inside_BHW[0, :, 7:], inside_BHW[1, 5:] = False, False
    found = loss_of(temperature, grid=grid)(Output(student_BKhw, {}), batch_of(teacher_BKhw, inside_BHW)).item()
    expected = slow_kd(student_BKhw.detach().numpy(), teacher_BKhw.numpy(), inside_BHW.numpy(), temperature, grid)
    assert found == pytest.approx(expected, rel=1e-5) and found > 0


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_loss_worked_by_hand(temperature):
    """Probabilities (3/4, 1/4) at the temperature against (1/2, 1/2): T^2 (3/4 ln 3/2 + 1/4 ln 1/2) = 0.1308 T^2."""
    teacher_1211 = torch.tensor([temperature * math.log(3), 0.0]).view(1, 2, 1, 1)
    found = loss_of(temperature)(Output(torch.zeros(1, 2, 1, 1), {}), batch_of(teacher_1211)).item()
    assert found == pytest.approx(0.13081203594 * temperature**2)


def test_ignored_labels_count_and_what_lies_outside_does_not():
    teacher_BKhw, student_BKhw = toy()
    inside_BHW = torch.ones(2, *CONTEXT.size, dtype=torch.bool)
    inside_BHW[0, :, 7:], inside_BHW[1] = False, False
    found = [loss_of()(Output(student_BKhw, {}), batch_of(teacher_BKhw, inside_BHW, label)) for label in (0, 255)]
    assert found[0].item() == found[1].item() > 0
    found[1].backward()
    slopes = student_BKhw.grad.abs().amax(dim=1)
    assert (slopes[0, :, :7] > 0).all() and (slopes[0, :, 7:] == 0).all() and (slopes[1] == 0).all()


def test_the_gradient_is_that_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(2, 3, 2, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    assert torch.autograd.gradcheck(lambda logits: kd.divergence(logits, teacher), student.requires_grad_())


def test_large_logits_keep_the_gradient_finite():
    teacher_BKhw, student_BKhw = toy()
    loss = loss_of(1.0)(Output(student_BKhw * 1e4, {}), batch_of(teacher_BKhw * 1e4))
    loss.backward()
    assert loss.isfinite() and student_BKhw.grad.isfinite().all()
