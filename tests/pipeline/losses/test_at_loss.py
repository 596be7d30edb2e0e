"""AT: the attention loss as a mean over the positions inside."""

import numpy as np
import pytest
import torch

from pipeline.losses.attention import Loss
from pipeline.losses.base import Batch
from pipeline.models.base import Output
from pipeline.targets.attention import Target
from pipeline.targets.base import Context

CONTEXT = Context(num_classes=3, regions=(0, 1, 2), size=(24, 40), grids={"high": (3, 5), "logits": (3, 5)})


def batch_of(energy_Bhw, inside_BHW):
    return Batch(
        images_B3HW=torch.empty(0),
        labels_BHW=inside_BHW.to(torch.uint8),
        existence_BL=None,
        inside_BHW=inside_BHW,
        rows={"map": {"energy": energy_Bhw}},
        step=0,
    )


def toy():
    generator = torch.Generator().manual_seed(0)
    return torch.empty(3, 3, 5).exponential_(generator=generator), torch.randn(3, 4, 3, 5, generator=generator)


def loss(features_BChw, energy_Bhw, inside_BHW, **keys):
    module = Loss(reads={"map": Target(layer="high")}, context=CONTEXT, student=CONTEXT, **keys)
    return module(Output(torch.empty(0), {"high": features_BChw}), batch_of(energy_Bhw, inside_BHW))


def slow_at(features_BChw, energy_Bhw, columns_inside):
    """Mean over images of the mean over the first columns of (Q_S / |Q_S| - Q_T / |Q_T|)^2."""
    total = 0.0
    for features_Chw, teacher_hw in zip(features_BChw.double().numpy(), energy_Bhw.double().numpy()):
        student, teacher = ((features_Chw**2).mean(axis=0)[:, :columns_inside], teacher_hw[:, :columns_inside])
        squares = (student / np.sqrt((student**2).sum()) - teacher / np.sqrt((teacher**2).sum())) ** 2
        total += squares.sum() / (3 * columns_inside)
    return total / len(features_BChw)


@pytest.mark.parametrize("columns", [5, 3])
def test_the_mean_is_over_the_positions_inside(columns):
    energy_Bhw, features_BChw = toy()
    inside_BHW = torch.ones(3, 24, 40, dtype=torch.bool)
    inside_BHW[:, :, 8 * columns :] = False
    found = loss(features_BChw, energy_Bhw, inside_BHW, reduction="mean").item()
    assert found == pytest.approx(slow_at(features_BChw, energy_Bhw, columns), rel=1e-5)
    assert found * 3 * columns == pytest.approx(loss(features_BChw, energy_Bhw, inside_BHW).item(), rel=1e-5)


def test_a_view_that_sees_nothing_is_zero_with_a_finite_gradient():
    energy_Bhw, features_BChw = toy()
    features_BChw.requires_grad_()
    value = loss(features_BChw, energy_Bhw, torch.zeros(3, 24, 40, dtype=torch.bool), reduction="mean")
    value.backward()
    assert value.item() == 0 and (features_BChw.grad == 0).all()
