"""SKD's pair-wise term against loops: nodes, pairs, the divisor, what lies outside."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.losses.base import Batch
from pipeline.losses.skd_pairwise import Loss
from pipeline.models.base import Output
from pipeline.targets.base import Context
from pipeline.targets.pairwise import Target

CONTEXT = Context(num_classes=3, regions=(0, 1, 2), size=(40, 56), grids={"high": (5, 7), "logits": (5, 7)}, channels={"high": 6})


def output_of(features_BChw):
    return Output(torch.empty(0), {"high": features_BChw})


def random_features(seed, grid=(5, 7), channels=6, num_images=2):
    return torch.randn(num_images, channels, *grid, generator=torch.Generator().manual_seed(seed))


def inside(num_images=2):
    inside_BHW = torch.ones(num_images, 40, 56, dtype=torch.bool)
    inside_BHW[0, :, 45:] = False
    inside_BHW[0, :20, :8] = False
    return inside_BHW


def loss(features_BChw, teacher_BChw, inside_BHW=None, gradient="formula", **keys):
    target = Target(layer="high", **keys)
    inside_BHW = inside(len(features_BChw)) if inside_BHW is None else inside_BHW
    batch = Batch(
        images_B3HW=torch.empty(0),
        labels_BHW=inside_BHW.to(torch.uint8),
        existence_BL=None,
        inside_BHW=inside_BHW,
        rows={"map": target.compute(output_of(teacher_BChw), None, CONTEXT)},
        step=0,
    )
    made = Loss(reads={"map": target}, context=CONTEXT, student=CONTEXT, gradient=gradient)
    return made(output_of(features_BChw), batch)


def slow_nodes(map_Chw, rows=3, columns=4):
    _, h, w = map_Chw.shape
    nodes = []
    for i, j in np.ndindex(rows, columns):
        down, right = math.ceil((i + 1) * h / rows), math.ceil((j + 1) * w / columns)
        nodes.append(map_Chw[:, i * h // rows : down, j * w // columns : right].mean(axis=(1, 2)))
    return nodes


def slow_loss(features_Chw, teacher_Chw, inside_HW):
    shares = slow_nodes(inside_HW[None].astype(float))
    kept = [i for i, share in enumerate(shares) if share[0] >= 0.5]
    student, teacher = slow_nodes(features_Chw), slow_nodes(teacher_Chw)
    total = 0.0
    for i in kept:
        for j in kept:
            a, b = (side[i] @ side[j] / math.sqrt((side[i] @ side[i]) * (side[j] @ side[j])) for side in (student, teacher))
            total += (a - b) ** 2
    return total / len(kept) ** 2, len(kept)


@pytest.mark.parametrize("keeps", ["cosines", "nodes"])
@pytest.mark.parametrize("grid", [(5, 7), (10, 14)])
def test_the_loss_equals_the_loops(keeps, grid):
    student_BChw, teacher_BChw = random_features(1, grid, channels=4), random_features(0)
    found = [slow_loss(student_BChw[b].double().numpy(), teacher_BChw[b].double().numpy(), inside()[b].numpy()) for b in range(2)]
    assert [nodes for _, nodes in found] == [8, 12]
    expected = (found[0][0] + found[1][0]) / 2
    assert loss(student_BChw, teacher_BChw, keeps=keeps).item() == pytest.approx(expected, rel=1e-5)


def test_a_loss_worked_by_hand():
    """Two nodes: parallel for the student, at right angles for the teacher: two of the four pairs differ by 1."""
    context = Context(num_classes=1, regions=(0,), size=(1, 2), grids={"high": (1, 2), "logits": (1, 2)}, channels={"high": 2})
    target, everywhere = Target(layer="high", patch=1), torch.ones(1, 1, 2, dtype=torch.bool)
    batch = Batch(
        images_B3HW=torch.empty(0),
        labels_BHW=everywhere.to(torch.uint8),
        existence_BL=None,
        inside_BHW=everywhere,
        rows={"map": {"cosines": torch.zeros(1, 1)}},
        step=0,
    )
    student = output_of(torch.tensor([[[[1.0, 2.0]], [[1.0, 2.0]]]]))
    found = Loss(reads={"map": target}, context=context, student=context)(student, batch)
    assert found.item() == pytest.approx(0.5)


def test_nodes_outside_have_no_say():
    """What lies left of pixel 45 is nodes 0 to 2 of each row; column 3 is mostly outside."""
    student_BChw, teacher_BChw = random_features(1), random_features(0)
    before = loss(student_BChw, teacher_BChw).item()
    teacher_BChw[0, :, :, 6] += 50
    student_BChw[0, :, :, 6] -= 50
    assert loss(student_BChw, teacher_BChw).item() == pytest.approx(before, rel=1e-6)


@pytest.mark.parametrize("keeps", ["cosines", "nodes"])
def test_a_student_that_equals_the_teacher_loses_nothing(keeps):
    assert loss(random_features(0), random_features(0), keeps=keeps).item() < 1e-12


@pytest.mark.parametrize("case", ["zero", "constant", "all outside", "teacher is zero"])
@pytest.mark.parametrize("pool", ["average", "max"])
def test_corner_cases_have_a_finite_gradient_and_leave_other_images_alone(case, pool):
    student_BChw, teacher_BChw, inside_BHW = random_features(1), random_features(0), inside()
    if case == "zero":
        student_BChw[0] = 0
    elif case == "constant":
        student_BChw[0] = 2
    elif case == "all outside":
        inside_BHW[0] = False
    else:
        teacher_BChw[0] = 0
    student_BChw.requires_grad_()
    value = loss(student_BChw, teacher_BChw, inside_BHW, pool=pool)
    value.backward()
    slopes = student_BChw.grad
    assert value.isfinite() and slopes.isfinite().all() and (slopes[1] != 0).any()
    if case in ("zero", "all outside"):
        assert (slopes[0] == 0).all()


def test_the_gradient_equals_differences_of_the_loops():
    student_BChw, teacher_BChw = random_features(1, num_images=1).requires_grad_(), random_features(0, num_images=1)
    loss(student_BChw, teacher_BChw).backward()
    features_Chw, teacher_Chw, step = student_BChw.detach()[0].double().numpy(), teacher_BChw[0].double().numpy(), 1e-6
    for place in list(np.ndindex(features_Chw.shape))[::7]:
        nudge = np.zeros_like(features_Chw)
        nudge[place] = step
        above, below = (slow_loss(features_Chw + way * nudge, teacher_Chw, inside()[0].numpy())[0] for way in (1, -1))
        assert student_BChw.grad[0][place].item() == pytest.approx((above - below) / (2 * step), abs=1e-6)


def published(student_BChw, teacher_BChw, patch, pool):
    """The loss of the authors' code: windows side by side, rounded up, and lengths that are constants."""
    graphs = []
    for features_BChw in (student_BChw, teacher_BChw):
        nodes_BCN = pool(features_BChw, patch, stride=patch, ceil_mode=True).flatten(2)
        nodes_BCN = nodes_BCN / nodes_BCN.detach().norm(dim=1, keepdim=True)
        graphs.append(nodes_BCN.mT @ nodes_BCN)
    return (graphs[0] - graphs[1]).square().sum() / graphs[0].shape[1] ** 2 / len(student_BChw)


@pytest.mark.parametrize("patch", [2, 3])  # 3 x 4 and 2 x 3 nodes on 5 x 7 cells: short ones below and on the right
@pytest.mark.parametrize("pool", ["average", "max"])
def test_the_published_reading_is_that_of_the_authors_code(patch, pool):
    student_BChw, teacher_BChw = random_features(1).requires_grad_(), random_features(0)
    everywhere = torch.ones(2, 40, 56, dtype=torch.bool)
    value = loss(student_BChw, teacher_BChw, everywhere, "published", patch=patch, pool=pool, short_last=True)
    expected = published(student_BChw, teacher_BChw, patch, {"average": F.avg_pool2d, "max": F.max_pool2d}[pool])
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    slopes, expected_slopes = (torch.autograd.grad(side, student_BChw)[0] for side in (value, expected))
    torch.testing.assert_close(slopes, expected_slopes, rtol=1e-5, atol=1e-7)


def test_gradients_past_the_lengths_have_the_same_value_and_another_direction():
    student_BChw, teacher_BChw = random_features(1).requires_grad_(), random_features(0)
    values = [loss(student_BChw, teacher_BChw, gradient=gradient) for gradient in ("formula", "published")]
    assert values[0].item() == values[1].item()
    slopes = [torch.autograd.grad(value, student_BChw)[0] for value in values]
    assert F.cosine_similarity(slopes[0].flatten(), slopes[1].flatten(), dim=0) < 0.99


def test_short_nodes_outside_have_no_say():
    """Columns 2 and 3 begin at pixels 32 and 48: of column 2 13 of 16 pixels lie inside, of column 3 none."""
    student_BChw, teacher_BChw = random_features(1), random_features(0)
    before = loss(student_BChw, teacher_BChw, short_last=True).item()
    teacher_BChw[0, :, :, 6] += 50
    student_BChw[0, :, :, 6] -= 50
    assert loss(student_BChw, teacher_BChw, short_last=True).item() == pytest.approx(before, rel=1e-6)
