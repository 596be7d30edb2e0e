"""Neighbouring layers' maps against loops: which pairs count, on which grid."""

import math

import numpy as np
import pytest
import torch

from pipeline.losses import attention
from pipeline.losses.base import Batch
from pipeline.losses.bifpn import Loss
from pipeline.models.base import Output
from pipeline.targets.attention import Target
from pipeline.targets.base import Context

GRIDS = {"low": (6, 10), "mid": (6, 10), "high": (3, 5)}
CONTEXT = Context(num_classes=3, regions=(0, 1, 2), size=(24, 40), grids=GRIDS | {"logits": (3, 5)})
INSIDE = torch.ones(2, 24, 40, dtype=torch.bool)
INSIDE[:, :, 33:] = False


def toy(seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = {layer: torch.randn(2, 4, *grid, generator=generator) for layer, grid in GRIDS.items()}
    return Output(torch.empty(0), features)


def batch_of(layers, teacher):
    rows = {layer: Target(layer=layer).compute(teacher, None, CONTEXT) for layer in layers}
    return Batch(
        images_B3HW=torch.empty(0), labels_BHW=INSIDE.to(torch.uint8), existence_BL=None, inside_BHW=INSIDE, rows=rows, step=0
    )


def loss_of(layers, **keys):
    return Loss(reads={layer: Target(layer=layer) for layer in layers}, context=CONTEXT, student=CONTEXT, **keys)


def slow_resize(map_hw, size):
    """Bilinear between cell centres, edges repeated."""
    found = np.zeros(size)
    for place in np.ndindex(*size):
        corners = []
        for index, cells, cells_out in zip(place, map_hw.shape, size):
            x = min(max((index + 0.5) * cells / cells_out - 0.5, 0), cells - 1)
            lower = math.floor(x)
            corners.append(((lower, lower + 1 - x), (min(lower + 1, cells - 1), x - lower)))
        found[place] = sum(a * b * map_hw[y, x] for y, a in corners[0] for x, b in corners[1])
    return found


def slow_pair(features_BChw, energy_Bhw):
    total = 0.0
    for features_Chw, teacher_hw, inside_HW in zip(features_BChw.double().numpy(), energy_Bhw.numpy(), INSIDE.numpy()):
        (h, w), (H, W) = teacher_hw.shape, inside_HW.shape
        student_hw = slow_resize((features_Chw**2).mean(axis=0), (h, w))
        cells = [
            (i, j)
            for i, j in np.ndindex(h, w)
            if inside_HW[i * H // h : (i + 1) * H // h, j * W // w : (j + 1) * W // w].mean() >= 0.5
        ]
        sides = [np.array([float(side[cell]) for cell in cells]) for side in (student_hw, teacher_hw)]
        total += ((sides[0] / np.sqrt((sides[0] ** 2).sum()) - sides[1] / np.sqrt((sides[1] ** 2).sum())) ** 2).sum()
    return total / len(features_BChw)


@pytest.mark.parametrize(
    "layers, pairs",
    [
        (["low", "mid", "high"], ["low low", "low mid", "mid low", "mid mid", "mid high", "high mid", "high high"]),
        (["mid", "high"], ["mid mid", "mid high", "high mid", "high high"]),
        (["high"], ["high high"]),
    ],
)
def test_each_layer_matches_its_own_and_the_neighbouring_maps(layers, pairs):
    student, batch = toy(seed=1), batch_of(layers, toy())
    expected = sum(slow_pair(student.features[seen], batch.rows[stored]["energy"]) for seen, stored in map(str.split, pairs))
    assert loss_of(layers)(student, batch).item() == pytest.approx(expected, rel=1e-5)


def test_with_one_layer_it_is_the_attention_loss():
    student, batch = toy(seed=1), batch_of(["mid"], toy())
    for keys in ({}, {"reduction": "mean"}, {"normalise": "softmax"}):
        plain = attention.Loss(reads={"mid": Target(layer="mid")}, context=CONTEXT, student=CONTEXT, **keys)
        assert torch.equal(loss_of(["mid"], **keys)(student, batch), plain(student, batch))


def test_the_other_layers_map_pulls_too():
    """At equal networks the layer's own maps agree, so what is left is the neighbours'."""
    teacher = toy()
    batch = batch_of(["mid", "high"], teacher)
    expected = slow_pair(teacher.features["mid"], batch.rows["high"]["energy"]) + slow_pair(
        teacher.features["high"], batch.rows["mid"]["energy"]
    )
    assert loss_of(["mid", "high"])(teacher, batch).item() == pytest.approx(expected, rel=1e-5) and expected > 0.1


def test_gradients_are_finite_for_maps_of_zeros():
    student = toy(seed=1)
    for features in student.features.values():
        features[0] = 0
        features.requires_grad_()
    loss_of(["low", "mid", "high"])(student, batch_of(["low", "mid", "high"], toy())).backward()
    slopes = [features.grad for features in student.features.values()]
    assert all(slope.isfinite().all() and (slope[1] != 0).any() for slope in slopes)
