"""The student's attention maps against one another, with loops; and the step at which it begins."""

import math

import numpy as np
import pytest
import torch
from conftest import plain_training

from pipeline.config import Plugin, Term
from pipeline.losses.base import Batch
from pipeline.losses.sad import Loss
from pipeline.models.base import Output
from pipeline.targets.base import Context
from pipeline.training.step import Step

CONTEXT = Context(
    num_classes=3, regions=(0, 1, 2), size=(24, 40), grids={"mid": (6, 10), "high": (3, 5)}, channels={"mid": 4, "high": 7}
)


def loss_of(**keys):
    return Loss(reads={}, context=None, student=CONTEXT, **keys)


def batch_of(inside_BHW=None, num_images=2):
    everywhere = torch.ones(num_images, *CONTEXT.size, dtype=torch.bool)
    labels_BHW = torch.zeros(everywhere.shape, dtype=torch.uint8)
    return Batch(
        images_B3HW=torch.empty(0),
        labels_BHW=labels_BHW,
        existence_BL=None,
        inside_BHW=everywhere if inside_BHW is None else inside_BHW,
        rows={},
        step=0,
    )


def student(mid=(6, 10), high=(3, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = {
        "mid": torch.randn(2, 4, *mid, generator=generator).requires_grad_(),
        "high": torch.randn(2, 7, *high, generator=generator).requires_grad_(),
    }
    return Output(torch.empty(0), features)


def partly_outside():
    """One view lacks the last two columns of 4x4 cells, the other half of row 1 (it stays) and row 0."""
    inside_BHW = torch.ones(2, *CONTEXT.size, dtype=torch.bool)
    inside_BHW[0, :, 32:], inside_BHW[1, :6] = False, False
    return inside_BHW


def cells_inside():
    inside_Bhw = np.ones((2, 6, 10), dtype=bool)
    inside_Bhw[0, :, 8:], inside_Bhw[1, 0] = False, False
    return inside_Bhw


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


def slow_sad(output, inside_Bhw, normalise, energy):
    total = 0.0
    for b, inside_hw in enumerate(inside_Bhw):
        maps = []
        for role in ("mid", "high"):
            features_Chw = output.features[role][b].detach().double().numpy()
            energy_hw = (features_Chw**2).mean(axis=0) if energy == "mean" else (features_Chw**2).sum(axis=0)
            values = slow_resize(energy_hw, (6, 10))[inside_hw]
            values = np.exp(values) if normalise == "softmax" else values
            maps.append(values / (values.sum() if normalise == "softmax" else math.hypot(*values)))
        total += sum((a - b) ** 2 for a, b in zip(*maps))
    return total / len(inside_Bhw)


@pytest.mark.parametrize("energy", ["mean", "sum"])
@pytest.mark.parametrize("normalise", ["softmax", "l2"])
@pytest.mark.parametrize("high", [(3, 5), (5, 7), (6, 10)])
def test_the_loss_equals_the_loops(normalise, energy, high):
    output = student(high=high)
    found = loss_of(normalise=normalise, energy=energy)(output, batch_of(partly_outside())).item()
    assert found == pytest.approx(slow_sad(output, cells_inside(), normalise, energy), rel=1e-5) and found > 0


def test_a_loss_worked_by_hand():
    """Energies (ln 3, 0) and (0, 0) at two positions: probabilities (3/4, 1/4) and (1/2, 1/2), so 2 / 16."""
    mid_1112 = torch.tensor([math.sqrt(math.log(3)), 0.0]).view(1, 1, 1, 2)
    output = Output(torch.empty(0), {"mid": mid_1112, "high": torch.zeros(1, 3, 1, 2)})
    assert loss_of()(output, batch_of(num_images=1)).item() == pytest.approx(2 / 16)


def test_the_deeper_layer_teaches_and_does_not_learn():
    output = student()
    loss_of()(output, batch_of(partly_outside())).backward()
    slopes_Bhw = output.features["mid"].grad.abs().amax(dim=1).numpy()
    assert ((slopes_Bhw > 0) == cells_inside()).all() and output.features["high"].grad is None


def test_equal_maps_lose_nothing():
    map_BChw = student().features["mid"]
    output = Output(torch.empty(0), {"mid": map_BChw, "high": map_BChw})
    assert loss_of()(output, batch_of(partly_outside())).item() == 0


@pytest.mark.parametrize("normalise", ["softmax", "l2"])
@pytest.mark.parametrize("scale, everywhere", [(0.0, True), (1e4, True), (1.0, False)])
def test_dead_huge_and_unseen_maps_keep_the_gradient_finite(normalise, scale, everywhere):
    output = student()
    scaled = Output(output.logits, {role: scale * map_BChw for role, map_BChw in output.features.items()})
    loss = loss_of(normalise=normalise)(scaled, batch_of(torch.full((2, *CONTEXT.size), everywhere)))
    loss.backward()
    assert loss.isfinite() and output.features["mid"].grad.isfinite().all()
    assert everywhere or loss.item() == 0 and (output.features["mid"].grad == 0).all()


def trained(terms):
    """Weights of a small student after two steps."""
    settings = plain_training(steps=4, batch=2, lr=0.1, background_weight=1.0, norm_every=1)
    torch.manual_seed(0)
    model = Plugin(kind="models", name="erfnet", args={"width": 4}).build(num_classes=3, size=CONTEXT.size, lanes=0)
    step = Step(model, terms, [loss_of() for _ in terms], settings, torch.ones(3), seed=0)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *CONTEXT.size, generator=generator) * 255
    labels = torch.zeros(2, *CONTEXT.size, dtype=torch.uint8)
    for number in range(2):
        step(Batch(images, labels, labels == 0, None, {}, number))
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_it_begins_at_the_step_its_term_says():
    term = {"loss": Plugin(kind="losses", name="sad", args={}), "reads": (), "weight": 0.1}
    plain, later, now = trained([]), trained([Term(**term, start=2)]), trained([Term(**term, start=1)])
    assert torch.equal(plain, later) and not torch.equal(plain, now)
