"""IFVD against loops: which cells count, and corner cases."""

import numpy as np
import pytest
import torch

from pipeline.losses.base import Batch
from pipeline.losses.ifvd import Loss
from pipeline.models.base import Output
from pipeline.targets.base import Context
from pipeline.targets.class_similarity import Target

CONTEXT = Context(num_classes=3, regions=(0, 1, 2), size=(24, 40), grids={"high": (3, 5), "logits": (3, 5)})


def labels(num_images=2):
    labels_BHW = torch.zeros(num_images, 24, 40, dtype=torch.uint8)
    labels_BHW[:, 8:, 16:], labels_BHW[:, :8, :8] = 1, 255
    return labels_BHW


def inside(num_images=2):
    """Little of column 4, half of column 3 in the first row."""
    inside_BHW = torch.ones(num_images, 24, 40, dtype=torch.bool)
    inside_BHW[:, :, 34:], inside_BHW[:, :8, 28:] = False, False
    return inside_BHW


def output_of(features_BChw):
    return Output(torch.empty(0), {"high": features_BChw})


def random_features(seed, grid=(3, 5), channels=6, num_images=2):
    return torch.randn(num_images, channels, *grid, generator=torch.Generator().manual_seed(seed))


def loss(features_BChw, teacher_BChw, labels_BHW=None, inside_BHW=None):
    labels_BHW = labels(len(features_BChw)) if labels_BHW is None else labels_BHW
    target = Target(layer="high")
    batch = Batch(
        images_B3HW=torch.empty(0),
        labels_BHW=labels_BHW,
        existence_BL=None,
        inside_BHW=inside(len(features_BChw)) if inside_BHW is None else inside_BHW,
        rows={"map": target.compute(output_of(teacher_BChw), labels_BHW, CONTEXT)},
        step=0,
    )
    return Loss(reads={"map": target}, context=CONTEXT, student=CONTEXT)(output_of(features_BChw), batch)


def slow_similarity(features_Chw, labels_hw):
    found = np.zeros(labels_hw.shape)
    for place in np.ndindex(labels_hw.shape):
        mates = np.argwhere(labels_hw == labels_hw[place])
        mean = np.mean([features_Chw[:, i, j] for i, j in mates], axis=0)
        student = features_Chw[(slice(None), *place)]
        found[place] = student @ mean / np.sqrt(student @ student) / np.sqrt(mean @ mean)
    return found


def test_the_loss_equals_the_loops():
    """The student is twice as fine; 2 x 2 of its cells are averaged first."""
    student_BChw, teacher_BChw, total = random_features(1, (6, 10)), random_features(0, channels=9), 0.0
    for b in range(2):
        labels_hw = labels()[b].numpy()[4::8, 4::8]
        student_Chw = student_BChw[b].double().numpy().reshape(6, 3, 2, 5, 2).mean(axis=(2, 4))
        student, teacher = (slow_similarity(f, labels_hw) for f in (student_Chw, teacher_BChw[b].double().numpy()))
        shares = inside()[b].double().numpy().reshape(3, 8, 5, 8).mean(axis=(1, 3))
        cells = [(i, j) for i, j in np.ndindex(3, 5) if shares[i, j] >= 0.5 and labels_hw[i, j] != 255]
        total += sum((student[cell] - teacher[cell]) ** 2 for cell in cells) / len(cells) / 2
    assert len(cells) == 11 and loss(student_BChw, teacher_BChw).item() == pytest.approx(total, rel=1e-5)


def test_a_loss_worked_by_hand():
    """One class of two cells: the student's at right angles (cosines sqrt(1/2)), the teacher's equal (cosines 1)."""
    context = Context(num_classes=1, regions=(0,), size=(1, 2), grids={"high": (1, 2), "logits": (1, 2)})
    target, labels_BHW = Target(layer="high"), torch.zeros(1, 1, 2, dtype=torch.uint8)
    batch = Batch(
        images_B3HW=torch.empty(0),
        labels_BHW=labels_BHW,
        existence_BL=None,
        inside_BHW=labels_BHW == 0,
        rows={"map": {"similarity": torch.ones(1, 1, 2)}},
        step=0,
    )
    student = output_of(torch.tensor([[[[3.0, 0]], [[0, 3.0]]]]))
    found = Loss(reads={"map": target}, context=context, student=context)(student, batch)
    assert found.item() == pytest.approx((1 - 0.5**0.5) ** 2, rel=1e-5)


def test_cells_without_a_class_or_outside_have_no_say():
    student_BChw, teacher_BChw = random_features(1), random_features(0)
    before = loss(student_BChw, teacher_BChw).item()
    for features_BChw in (student_BChw, teacher_BChw):
        features_BChw[:, :, 0, 0] *= -1
    assert loss(student_BChw, teacher_BChw).item() == pytest.approx(before, rel=1e-6)
    everywhere = torch.ones(2, 24, 40, dtype=torch.bool)
    assert loss(student_BChw, teacher_BChw, inside_BHW=everywhere).item() != pytest.approx(before, rel=1e-3)


def test_a_student_that_equals_the_teacher_loses_nothing():
    assert loss(random_features(0), random_features(0)).item() == 0


@pytest.mark.parametrize("case", ["zero", "constant", "nothing labelled", "all outside", "teacher is zero"])
def test_corner_cases_have_a_finite_gradient_and_leave_other_images_alone(case):
    student_BChw, teacher_BChw, labels_BHW, inside_BHW = random_features(1), random_features(0), labels(), inside()
    if case == "zero":
        student_BChw[0] = 0
    elif case == "constant":
        student_BChw[0] = 2
    elif case == "nothing labelled":
        labels_BHW[0] = 255
    elif case == "all outside":
        inside_BHW[0] = False
    else:
        teacher_BChw[0] = 0
    student_BChw.requires_grad_()
    value = loss(student_BChw, teacher_BChw, labels_BHW, inside_BHW)
    value.backward()
    slopes = student_BChw.grad
    assert value.isfinite() and slopes.isfinite().all() and (slopes[1] != 0).any()
    if case in ("zero", "nothing labelled", "all outside"):
        assert (slopes[0] == 0).all()


def test_training_a_toy_student_brings_its_map_to_the_teachers():
    student_BChw, teacher_BChw = random_features(1, (6, 10)).requires_grad_(), random_features(0)
    optimiser, values = torch.optim.Adam([student_BChw], lr=0.05), []
    for _ in range(80):
        optimiser.zero_grad()
        value = loss(student_BChw, teacher_BChw)
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.01 * values[0]
