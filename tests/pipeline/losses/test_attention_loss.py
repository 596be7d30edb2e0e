"""Eq. 6 against loops, with resizing and cells outside the image."""

import math

import numpy as np
import pytest
import torch

from pipeline.losses import attention
from pipeline.losses.attention import Loss
from pipeline.losses.base import Batch
from pipeline.models.base import Output
from pipeline.targets.attention import Target
from pipeline.targets.base import Context

CONTEXT = Context(num_classes=3, regions=(0, 1, 2), size=(24, 40), grids={"mid": (6, 10), "high": (3, 5), "logits": (3, 5)})


def loss_of(**keys):
    return Loss(reads={"map": Target(layer="high")}, context=CONTEXT, student=CONTEXT, **keys)


def batch_of(energy_Bhw, inside_BHW=None):
    everywhere = torch.ones(len(energy_Bhw), *CONTEXT.size, dtype=torch.bool)
    return Batch(
        images_B3HW=torch.empty(0),
        labels_BHW=torch.zeros(everywhere.shape, dtype=torch.uint8),
        inside_BHW=everywhere if inside_BHW is None else inside_BHW,
        existence_BL=None,
        rows={"map": {"energy": energy_Bhw}},
        step=0,
    )


def student(features_BChw):
    return Output(torch.empty(0), {"high": features_BChw})


def toy(num_images=2, grid=(3, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    teacher_Bhw = torch.empty(num_images, 3, 5).exponential_(generator=generator)
    return teacher_Bhw, torch.randn(num_images, 4, *grid, generator=generator).requires_grad_()


def partly_outside(num_images=2):
    """Column 4 is more than half outside, cell (0, 3) exactly half (it stays), cell (0, 0) more than half."""
    inside_BHW = torch.ones(num_images, *CONTEXT.size, dtype=torch.bool)
    inside_BHW[:, :, 34:] = False
    inside_BHW[:, 0:5, 0:8] = False
    inside_BHW[:, 0:8, 28:32] = False
    return inside_BHW


def slow_resize(map_hw, size):
    """Bilinear between pixel centres, edges repeated."""
    (h, w), out = map_hw.shape, np.zeros(size)
    for i, j in np.ndindex(*size):
        y = min(max((i + 0.5) * h / size[0] - 0.5, 0), h - 1)
        x = min(max((j + 0.5) * w / size[1] - 0.5, 0), w - 1)
        y0, x0 = math.floor(y), math.floor(x)
        y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
        top, bottom = (map_hw[row, x0] * (x0 + 1 - x) + map_hw[row, x1] * (x - x0) for row in (y0, y1))
        out[i, j] = top * (y0 + 1 - y) + bottom * (y - y0)
    return out


def slow_eq6(features_BChw, energy_Bhw, inside_BHW, normalise):
    total = 0.0
    for features_Chw, teacher_hw, inside_HW in zip(features_BChw.astype(float), energy_Bhw.astype(float), inside_BHW):
        maps = [slow_resize((features_Chw**2).mean(axis=0), teacher_hw.shape), teacher_hw]
        cells = [(i, j) for i, j in np.ndindex(3, 5) if inside_HW[8 * i : 8 * i + 8, 8 * j : 8 * j + 8].mean() >= 0.5]
        values = [[m[cell] for cell in cells] for m in maps]
        if normalise == "l2":
            values = [[v / math.sqrt(sum(u * u for u in side)) for v in side] for side in values]
        else:
            values = [[math.exp(v) / sum(math.exp(u) for u in side) for v in side] for side in values]
        total += sum((a - b) ** 2 for a, b in zip(*values))
    return total / len(features_BChw)


@pytest.mark.parametrize("normalise", ["l2", "softmax"])
@pytest.mark.parametrize("view", ["whole", "partly outside"])
@pytest.mark.parametrize("grid", [(3, 5), (6, 10), (2, 4)])
def test_the_loss_equals_the_loops(normalise, view, grid):
    teacher_Bhw, features_BChw = toy(grid=grid)
    inside_BHW = partly_outside() if view == "partly outside" else torch.ones(2, *CONTEXT.size, dtype=torch.bool)
    found = loss_of(normalise=normalise)(student(features_BChw), batch_of(teacher_Bhw, inside_BHW)).item()
    expected = slow_eq6(features_BChw.detach().numpy(), teacher_Bhw.numpy(), inside_BHW.numpy(), normalise)
    assert found == pytest.approx(expected, rel=1e-5) and found > 0


def test_a_loss_worked_by_hand():
    """Energies (3, 4) against (1, 0): (0.6 - 1)^2 + 0.8^2 = 0.8, summed and not averaged over positions."""
    context = Context(num_classes=2, regions=(0, 1), size=(1, 2), grids={"high": (1, 2)})
    loss = Loss(reads={"map": Target(layer="high")}, context=context, student=context)
    batch = Batch(
        images_B3HW=torch.empty(0),
        labels_BHW=torch.zeros(1, 1, 2, dtype=torch.uint8),
        inside_BHW=torch.ones(1, 1, 2, dtype=torch.bool),
        existence_BL=None,
        rows={"map": {"energy": torch.tensor([[[3.0, 4.0]]])}},
        step=0,
    )
    assert loss(student(torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])), batch).item() == pytest.approx(0.8)


def test_the_mean_is_the_sum_over_the_positions_inside():
    """Of 15 cells, 11 lie inside (see `partly_outside`)."""
    (teacher_Bhw, features_BChw), inside_BHW = toy(), partly_outside()
    total, mean = (
        loss_of(reduction=reduction)(student(features_BChw), batch_of(teacher_Bhw, inside_BHW)) for reduction in ("sum", "mean")
    )
    assert mean.item() == pytest.approx(total.item() / 11)


@pytest.mark.parametrize("normalise", ["l2", "softmax"])
def test_what_lies_outside_counts_on_neither_side(normalise):
    teacher_Bhw, features_BChw = toy()
    loss, output = loss_of(normalise=normalise), student(features_BChw)
    before = loss(output, batch_of(teacher_Bhw, partly_outside()))
    before.backward()
    outside = (slice(None), slice(None), 4)
    assert (features_BChw.grad[:, :, :, 4] == 0).all() and (features_BChw.grad[:, :, 1:, 3] != 0).any()
    teacher_Bhw[outside] += 50
    with torch.no_grad():
        features_BChw[:, :, :, 4] += 50
    assert loss(output, batch_of(teacher_Bhw, partly_outside())).item() == pytest.approx(before.item())


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_size_of_the_activations_does_not_matter(scale):
    teacher_Bhw, features_BChw = toy()
    expected = loss_of()(student(features_BChw), batch_of(teacher_Bhw)).item()
    found = loss_of()(student(features_BChw * scale), batch_of(teacher_Bhw / scale)).item()
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("normalise", ["l2", "softmax"])
def test_gradients_are_finite_for_maps_of_zeros_and_views_that_see_nothing(normalise):
    teacher_Bhw, features_BChw = toy(num_images=3)
    inside_BHW = torch.ones(3, *CONTEXT.size, dtype=torch.bool)
    inside_BHW[2] = False
    teacher_Bhw[1] = 0
    with torch.no_grad():
        features_BChw[0] = 0
    loss_of(normalise=normalise)(student(features_BChw), batch_of(teacher_Bhw, inside_BHW)).backward()
    assert features_BChw.grad.isfinite().all() and (features_BChw.grad[2] == 0).all()


@pytest.mark.parametrize("normalised", [attention.unit, attention.softmax])
def test_the_normalised_maps_have_the_right_gradient(normalised):
    energy_Bhw = torch.rand(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    inside_Bhw = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(1)) > 0.3
    assert torch.autograd.gradcheck(lambda energy: normalised(energy, inside_Bhw), energy_Bhw)


def test_training_a_toy_student_brings_its_map_to_the_teachers():
    teacher_Bhw, features_BChw = toy(grid=(6, 10))
    optimiser = torch.optim.Adam([features_BChw], lr=0.05)
    values = []
    for _ in range(80):
        optimiser.zero_grad()
        value = loss_of()(student(features_BChw), batch_of(teacher_Bhw))
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.01 * values[0]
