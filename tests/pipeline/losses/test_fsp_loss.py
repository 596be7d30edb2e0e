"""FSP against loops: adapters, reduction, and where there is nothing to compare."""

import numpy as np
import pytest
import torch

from pipeline.losses.base import Batch
from pipeline.losses.fsp import Loss
from pipeline.models.base import Output
from pipeline.targets.base import Context
from pipeline.targets.gram import Target

SIZE = (16, 24)
TEACHER = Context(
    num_classes=2,
    regions=(0, 1),
    size=SIZE,
    grids={"mid": (2, 3), "high": (2, 3), "logits": (2, 3)},
    channels={"mid": 9, "high": 12},
)
STUDENT = Context(
    num_classes=2,
    regions=(0, 1),
    size=SIZE,
    grids={"mid": (4, 6), "high": (2, 3), "logits": (2, 3)},
    channels={"mid": 4, "high": 6},
)
TARGET = Target(channels=5)


def network(context, seed, num_images=2):
    generator = torch.Generator().manual_seed(seed)
    features = {
        layer: torch.randn(num_images, context.channels[layer], *context.grids[layer], generator=generator)
        for layer in ("mid", "high")
    }
    return Output(torch.empty(0), features)


def batch_of(teacher, inside_BHW=None):
    inside_BHW = torch.ones(2, *SIZE, dtype=torch.bool) if inside_BHW is None else inside_BHW
    return Batch(
        images_B3HW=torch.empty(0),
        labels_BHW=inside_BHW.to(torch.uint8),
        existence_BL=None,
        inside_BHW=inside_BHW,
        rows={"flow": TARGET.compute(teacher, None, TEACHER)},
        step=0,
    )


def loss_of(student=STUDENT, **keys):
    return Loss(reads={"flow": TARGET}, context=TEACHER, student=student, **keys)


@pytest.mark.parametrize("normalise", ["none", "teacher"])
def test_the_loss_equals_the_loops(normalise):
    torch.manual_seed(0)
    loss, student, teacher = loss_of(normalise=normalise), network(STUDENT, 1), network(TEACHER, 0)
    for parameter in loss.parameters():
        torch.nn.init.normal_(parameter)
    mid, high = (adapter.weight.detach()[..., 0, 0].double().numpy() for adapter in loss.adapters[0])
    total = 0.0
    for b in range(2):
        features = {layer: map_BChw[b].double().numpy() for layer, map_BChw in student.features.items()}
        student_DD = np.zeros((5, 5))
        for y, x in np.ndindex(2, 3):
            pooled = features["mid"][:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean(axis=(1, 2))
            student_DD += np.outer(mid @ pooled, high @ features["high"][:, y, x]) / 6
        teacher_DD = TARGET.compute(teacher, None, TEACHER)["gram"][b].double().numpy()
        unit = (teacher_DD**2).mean() if normalise == "teacher" else 1
        total += ((student_DD - teacher_DD) ** 2).mean() / unit / 2
    assert loss(student, batch_of(teacher)).item() == pytest.approx(total, rel=1e-5)


def test_the_adapters_begin_as_the_teachers_projection_so_that_equal_networks_lose_nothing():
    loss, teacher = loss_of(student=TEACHER), network(TEACHER, 0)
    other = loss(teacher, batch_of(network(TEACHER, 1))).item()
    assert other > 0 and loss(teacher, batch_of(teacher)).item() < 1e-10 * other


def test_the_adapters_are_trained_with_the_student():
    loss, student = loss_of(), network(STUDENT, 1)
    for features in student.features.values():
        features.requires_grad_()
    loss(student, batch_of(network(TEACHER, 0))).backward()
    assert len(list(loss.parameters())) == 2
    assert all((leaf.grad != 0).any() for leaf in [*loss.parameters(), *student.features.values()])


def test_a_matrix_of_zeros_costs_one_when_normalised_by_the_teacher():
    student = Output(torch.empty(0), {layer: torch.zeros_like(f) for layer, f in network(STUDENT, 1).features.items()})
    assert loss_of(normalise="teacher")(student, batch_of(network(TEACHER, 0))).item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("normalise", ["none", "teacher"])
@pytest.mark.parametrize("case", ["zero", "sees nothing", "teacher is zero"])
def test_corner_cases_have_a_finite_gradient_and_leave_other_images_alone(case, normalise):
    student, teacher, inside_BHW = network(STUDENT, 1), network(TEACHER, 0), torch.ones(2, *SIZE, dtype=torch.bool)
    for role in ("mid", "high"):
        if case == "zero":
            student.features[role][0] = 0
        elif case == "teacher is zero":
            teacher.features[role][0] = 0
        student.features[role].requires_grad_()
    if case == "sees nothing":
        inside_BHW[0] = False
    value = loss_of(normalise=normalise)(student, batch_of(teacher, inside_BHW))
    value.backward()
    slopes = [features.grad for features in student.features.values()]
    assert value.isfinite() and all(slope.isfinite().all() and (slope[1] != 0).any() for slope in slopes)
    if case != "teacher is zero":
        assert all((slope[0] == 0).all() for slope in slopes)


def test_training_adapters_and_student_brings_the_loss_down():
    loss, student, batch = loss_of(), network(STUDENT, 1), batch_of(network(TEACHER, 0))
    leaves = [features.requires_grad_() for features in student.features.values()]
    optimiser, values = torch.optim.Adam([*leaves, *loss.parameters()], lr=0.02), []
    for _ in range(100):
        optimiser.zero_grad()
        value = loss(student, batch)
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.05 * values[0]
