"""The teacher's hard labels, and the cross-entropy on them, against loops over pixels."""

import math

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.losses.base import Batch
from pipeline.losses.pseudo_labels import Loss
from pipeline.models.base import Output
from pipeline.targets.base import Context
from pipeline.targets.pseudo_labels import Target
from pipeline.teacher.parity import row_error

CONTEXT = Context(num_classes=3, regions=(0, 1, 2), size=(8, 12), grids={"mid": (4, 6), "high": (2, 3), "logits": (2, 3)})
NO_LABELS = torch.full((2, 8, 12), 255, dtype=torch.uint8)


def teacher(seed=0) -> Output:
    return Output(3 * torch.randn(2, 3, 2, 3, generator=torch.Generator().manual_seed(seed)), {})


def batch_of(rows, labels_BHW=NO_LABELS, inside_BHW=None):
    inside_BHW = torch.ones(2, 8, 12, dtype=torch.bool) if inside_BHW is None else inside_BHW
    return Batch(torch.empty(0), labels_BHW, inside_BHW, None, {"pseudo": rows}, 0)


def loss_of(target=None, **keys):
    return Loss(reads={"pseudo": target or Target()}, context=CONTEXT, student=CONTEXT, **keys)


def slow(student_BKHW, labels_BHW, inside_BHW, weights=(1.0, 1.0, 1.0), counted=(True, True)):
    images = []
    for image in np.flatnonzero(counted):
        total = divisor = 0.0
        for y, x in np.ndindex(8, 12):
            if inside_BHW[image, y, x]:
                label = int(labels_BHW[image, y, x])
                z = student_BKHW[image, :, y, x].double().exp()
                divisor += 1.0 if label == 255 else weights[label]
                total -= 0.0 if label == 255 else weights[label] * math.log(z[label] / z.sum())
        images.append(total / divisor)
    return sum(images) / len(images)


def test_labels_are_the_prediction_at_the_input_and_unsure_pixels_have_none():
    output = teacher()
    up_BKHW = torch.nn.functional.interpolate(output.logits, (8, 12), mode="bilinear", align_corners=False)
    labels = Target().compute(output, NO_LABELS, CONTEXT)["labels"]
    assert labels.dtype == torch.uint8 and torch.equal(labels, up_BKHW.argmax(1).to(torch.uint8))
    coarse = Target(grid="teacher").compute(output, NO_LABELS, CONTEXT)["labels"]
    assert torch.equal(coarse, output.logits.argmax(1).to(torch.uint8))
    sure = Target(threshold=0.8).compute(output, NO_LABELS, CONTEXT)["labels"]
    unsure = up_BKHW.softmax(1).amax(1) < 0.8
    assert 0.1 < unsure.float().mean() < 0.9 and torch.equal(sure == 255, unsure) and torch.equal(sure[~unsure], labels[~unsure])
    assert Target().fields(CONTEXT)["labels"].shape == (8, 12) and Target(grid="teacher").fields(CONTEXT)["labels"].shape == (2, 3)


@pytest.mark.parametrize("weights", [None, (0.4, 1.0, 2.0)])
def test_the_loss_equals_a_loop_over_pixels(weights):
    target = Target(threshold=0.6)
    rows = target.compute(teacher(), NO_LABELS, CONTEXT)
    student = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    inside = torch.ones(2, 8, 12, dtype=torch.bool)
    inside[0, :3], inside[1, :, 7:] = False, False
    value = loss_of(target, class_weights=weights)(Output(student, {}), batch_of(rows, inside_BHW=inside))
    assert float(value) == pytest.approx(slow(student, rows["labels"], inside, weights or (1.0, 1.0, 1.0)), rel=1e-5)


def test_coarse_labels_are_repeated_and_coarse_students_upsampled():
    rows = Target(grid="teacher").compute(teacher(), NO_LABELS, CONTEXT)
    student = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    up = torch.nn.functional.interpolate(student, (8, 12), mode="bilinear", align_corners=False)
    repeated = rows["labels"].repeat_interleave(4, 1).repeat_interleave(4, 2)
    value = loss_of(Target(grid="teacher"))(Output(student, {}), batch_of(rows))
    assert float(value) == pytest.approx(slow(up, repeated, torch.ones(2, 8, 12, dtype=torch.bool)), rel=1e-5)


def test_labelled_images_may_be_left_to_their_labels():
    rows, labels = Target().compute(teacher(), NO_LABELS, CONTEXT), NO_LABELS.clone()
    labels[0, 5, 5] = 1
    student = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
    everywhere = torch.ones(2, 8, 12, dtype=torch.bool)
    value = loss_of(skip_labelled=True)(Output(student, {}), batch_of(rows, labels))
    assert value.item() == pytest.approx(slow(student.detach(), rows["labels"], everywhere, counted=(False, True)), rel=1e-5)
    labels[1, 0, 0] = 0  # now all are labelled
    value = loss_of(skip_labelled=True)(Output(student, {}), batch_of(rows, labels))
    value.backward()
    assert value == 0 and student.grad.abs().max() == 0


def test_a_class_that_another_batch_sees_at_a_near_tie_is_within_tolerance_and_other_rows_are_not():
    target = Target()
    stored = target.compute(teacher(), NO_LABELS, CONTEXT)
    live = {"labels": stored["labels"].clone()}
    live["labels"][1, 4, 4] = 2 - live["labels"][1, 4, 4]
    live["labels"][1, 4, 4] += stored["labels"][1, 4, 4] == live["labels"][1, 4, 4]
    assert row_error("pseudo", target, stored, live, CONTEXT).excess == pytest.approx(1.0)  # one cell of 96
    neighbour = {"labels": stored["labels"].flip(0)}
    assert row_error("pseudo", target, stored, neighbour, CONTEXT).excess > 10


def test_keys_that_can_not_be():
    with pytest.raises(ConfigError, match="2 weights for 3 classes"):
        loss_of(class_weights=(1.0, 2.0))
    with pytest.raises(ConfigError, match="no probability"):
        Target(threshold=1.0)
