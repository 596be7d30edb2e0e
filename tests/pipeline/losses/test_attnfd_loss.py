"""Refined maps against loops."""

import numpy as np
import pytest
import torch
from toy_features import (
    STUDENT,
    TEACHER,
    arrays,
    assert_gradient_of_value,
    batch_of,
    cells_inside,
    convolved,
    loss_of,
    network,
)

from pipeline.losses.attnfd import Loss


def sigmoid(value):
    return 1 / (1 + np.exp(-value))


def trained(loss):
    """In evaluation, with batch norms that do something."""
    generator = torch.Generator().manual_seed(4)
    for module in loss.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return loss.eval()


def slow_refined(map_Chw, inside_hw, channel, spatial):
    cells_CP = map_Chw[:, inside_hw]
    gated_Chw = map_Chw * sigmoid(channel(cells_CP.mean(axis=1)) + channel(cells_CP.max(axis=1)))[:, None, None] * inside_hw
    return gated_Chw * sigmoid(spatial(np.stack([gated_Chw.max(axis=0), gated_Chw.mean(axis=0)])))


def normed(map_Chw, own, name):
    mean, variance, weight, bias = (
        own[f"{name}{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (map_Chw - mean) / np.sqrt(variance + 1e-5) * weight + bias


def test_the_loss_equals_the_loops():
    loss, student, teacher = trained(loss_of(Loss, reduction=2)), network(STUDENT, 1), network(TEACHER, 0)
    own, connector = arrays(loss.attentions[0]), arrays(loss.connectors[0])

    def channel(values_C):
        units = np.maximum(own["channel.0.weight"] @ values_C + own["channel.0.bias"], 0)
        return own["channel.2.weight"] @ units + own["channel.2.bias"]

    def spatial(two_2hw):
        return normed(convolved(two_2hw, own["spatial.weight"]), own, "norm.")[0]

    total = 0.0
    for b, inside_hw in enumerate(cells_inside()):
        means_Chw = student.features["high"][b].double().numpy().reshape(4, 3, 2, 5, 2).mean(axis=(2, 4))
        refined_Chw = slow_refined(means_Chw, inside_hw, channel, spatial)
        student_Dhw = normed(convolved(refined_Chw, connector["0.weight"]), connector, "1.")
        teacher_Dhw = slow_refined(
            teacher.features["high"][b].double().numpy(), inside_hw, lambda values_D: values_D, lambda two_2hw: two_2hw.sum(axis=0)
        )
        units = [map_Dhw[:, inside_hw] / np.linalg.norm(map_Dhw[:, inside_hw]) for map_Dhw in (student_Dhw, teacher_Dhw)]
        total += ((units[0] - units[1]) ** 2).sum() / 2
    assert loss(student, batch_of(teacher)).item() == pytest.approx(total, rel=1e-5)


def test_cells_outside_have_no_say():
    loss, student, teacher = trained(loss_of(Loss)), network(STUDENT, 1), network(TEACHER, 0)
    before = loss(student, batch_of(teacher)).item()
    student.features["high"][0, :, :, 8:] += 50
    teacher.features["high"][0, :, :, 4] -= 50
    assert loss(student, batch_of(teacher)).item() == pytest.approx(before, rel=1e-6)


def test_the_size_of_the_teachers_map_does_not_count_once_its_gates_are_open():
    loss, student, teacher = trained(loss_of(Loss)), network(STUDENT, 1), network(TEACHER, 0)
    teacher.features["high"] = teacher.features["high"].abs() * 1e3
    once = loss(student, batch_of(teacher)).item()
    teacher.features["high"] = teacher.features["high"] * 2
    assert loss(student, batch_of(teacher)).item() == pytest.approx(once, rel=1e-3) and 0 < once < 4


def test_the_gradient_is_that_of_the_value():
    loss = trained(loss_of(Loss, reduction=2))
    assert_gradient_of_value(loss, network(STUDENT, 1), batch_of(network(TEACHER, 0)), step=1e-6)
