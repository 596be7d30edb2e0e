"""Edges, bodies and both terms against loops."""

import math

import numpy as np
import pytest
import torch
from toy_logits import assert_offline_equals_online, batch_of, built, partly_outside, slow_compared, toy

from pipeline.losses.bpkd import Loss, edges
from pipeline.models.base import Output

T = 2.0


def loss_of(**keys):
    return built(Loss, temperature=T, **keys)


def labels():
    """Three areas, a hole of another class, and a stripe without labels."""
    labels_BHW = torch.zeros(2, 40, 56, dtype=torch.uint8)
    labels_BHW[:, 18:, 30:], labels_BHW[1, 30:] = 1, 2
    labels_BHW[0, 6:11, 10:14] = 3
    labels_BHW[0, :, 20:24] = 255
    return labels_BHW


def slow_edges(labels_HW, radius):
    (H, W), found = labels_HW.shape, np.zeros(labels_HW.shape, dtype=bool)
    for y, x in np.ndindex(H, W):
        near = labels_HW[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
        found[y, x] = labels_HW[y, x] != 255 and len(set(near.flatten().tolist()) - {255}) > 1
    return found


@pytest.mark.parametrize("radius", [1, 3])
def test_edges_are_where_labels_of_two_classes_are_near(radius):
    found_BHW = edges(labels(), radius).numpy()
    for found_HW, labels_HW in zip(found_BHW, labels().numpy()):
        np.testing.assert_array_equal(found_HW, slow_edges(labels_HW, radius))
    assert 0.05 < found_BHW.mean() < 0.4


def kl(teacher_K, student_K):
    p, q = (np.exp(values - values.max()) / np.exp(values - values.max()).sum() for values in (teacher_K, student_K))
    return sum(p[i] * math.log(p[i] / q[i]) for i in range(len(p)))


def share(pixels_HW, h, w):
    (H, W), out = pixels_HW.shape, np.zeros((h, w))
    for i, j in np.ndindex(h, w):
        out[i, j] = pixels_HW[i * H // h : -(-(i + 1) * H // h), j * W // w : -(-(j + 1) * W // w)].mean()
    return out


@pytest.mark.parametrize("grid, students", [("student", (20, 28)), ("student", (5, 7)), ("teacher", (20, 28))])
def test_the_loss_equals_the_loops(grid, students):
    teacher_BKhw, student_BKhw = toy(students)
    inside_BHW, labels_BHW, edge, body = partly_outside(), labels(), 0.0, 0.0
    for b in range(2):
        compared = slow_compared(
            student_BKhw.detach().double().numpy()[b], teacher_BKhw.double().numpy()[b], inside_BHW.numpy()[b], grid
        )
        student_Khw, teacher_Khw, inside_hw = compared
        labels_HW, (h, w) = labels_BHW.numpy()[b], inside_hw.shape
        counts_hw = inside_hw & (share(inside_BHW.numpy()[b] & (labels_HW != 255), h, w) >= 0.5)
        edge_hw = share(slow_edges(labels_HW, 3), h, w) * counts_hw
        divergences_hw = np.array([[kl(teacher_Khw[:, i, j] / T, student_Khw[:, i, j] / T) for j in range(w)] for i in range(h)])
        edge += T**2 * (edge_hw * divergences_hw).sum() / edge_hw.sum() / 2
        body_hw = counts_hw & (edge_hw < 0.5)
        body += T**2 * np.mean([kl(t[body_hw] / T, s[body_hw] / T) for t, s in zip(teacher_Khw, student_Khw)]) / 2
    batch = batch_of(teacher_BKhw, inside_BHW, labels_BHW)
    found = [
        loss_of(grid=grid, edge=e, body=o)(Output(student_BKhw, {}), batch).item()
        for e, o in ((1.0, 0.0), (0.0, 1.0), (50.0, 20.0))
    ]
    assert found == pytest.approx([edge, body, 50 * edge + 20 * body], rel=1e-5)


def test_the_gradient_is_that_of_the_value():
    teacher_BKhw, student_BKhw = toy((5, 7))
    batch = batch_of(teacher_BKhw.double(), partly_outside(), labels())
    loss, leaf = loss_of(), student_BKhw.detach().double().requires_grad_()
    loss(Output(leaf.float(), {}), batch.with_rows({"logits": {"logits": teacher_BKhw}})).backward()
    direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = batch.with_rows({"logits": {"logits": teacher_BKhw}})
    above, below = (loss(Output((leaf.detach() + step * direction).float(), {}), rows).item() for step in (1e-2, -1e-2))
    assert (leaf.grad * direction).sum().item() == pytest.approx((above - below) / 2e-2, rel=1e-2)


def test_an_image_without_edges_or_labels_adds_nothing_at_edges():
    teacher_BKhw, student_BKhw = toy((5, 7))
    flat = torch.zeros(2, 40, 56, dtype=torch.uint8)
    flat[1] = 255
    value = loss_of(body=0.0)(Output(student_BKhw, {}), batch_of(teacher_BKhw, labels_BHW=flat))
    value.backward()
    assert value.item() == 0 and (student_BKhw.grad == 0).all()
    value = loss_of()(Output(student_BKhw, {}), batch_of(teacher_BKhw, labels_BHW=flat))
    assert value > 0


@pytest.mark.parametrize("dtype, of_loss, of_gradient", [("float16", 3e-4, 3e-3), ("uint8", 5e-3, 5e-2)])
def test_offline_equals_online_within_the_stored_dtype(dtype, of_loss, of_gradient):
    assert_offline_equals_online(loss_of(), dtype, of_loss, of_gradient, labels_BHW=labels())
