"""Distributions over positions against loops, on grids that do not divide one another."""

import math

import numpy as np
import pytest
import torch

from pipeline.losses.base import Batch
from pipeline.losses._logits import compared
from pipeline.losses.cwd import Loss
from pipeline.models.base import Output
from pipeline.parity import loss_error
from pipeline.targets.base import Context
from pipeline.targets.logits import Target

CONTEXT = Context(num_classes=4, regions=(0, 1, 2, 3), size=(40, 56), grids={"logits": (5, 7)})


def loss_of(temperature=2.0, **keys):
    return Loss(reads={"logits": Target()}, context=CONTEXT, student=CONTEXT, temperature=temperature, **keys)


def batch_of(theirs_BKhw, inside_BHW=None):
    everywhere = torch.ones(len(theirs_BKhw), *CONTEXT.size, dtype=torch.bool)
    return Batch(images_B3HW=torch.empty(0), labels_BHW=torch.full(everywhere.shape, 255, dtype=torch.uint8),
                 existence_BL=None, inside_BHW=everywhere if inside_BHW is None else inside_BHW,
                 rows={"logits": {"logits": theirs_BKhw}}, step=0)


def toy(grid=(7, 11), seed=0):
    """Confident as trained networks are: the largest of 4 probabilities is 0.9 on average."""
    generator = torch.Generator().manual_seed(seed)
    theirs_BKhw = 6 * torch.randn(2, 4, 5, 7, generator=generator)
    return theirs_BKhw, (6 * torch.randn(2, 4, *grid, generator=generator)).requires_grad_()


def partly_outside():
    """One view lacks half of column 5 of the 8x8 cells (it stays) and column 6, the other half of row 1 and row 0."""
    inside_BHW = torch.ones(2, *CONTEXT.size, dtype=torch.bool)
    inside_BHW[0, :, 44:], inside_BHW[1, :12] = False, False
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


def slow_means(map_hw, size):
    """The mean over all pixels that a cell touches."""
    (H, W), (h, w), out = map_hw.shape, size, np.zeros(size)
    for i, j in np.ndindex(h, w):
        out[i, j] = map_hw[i * H // h:-(-(i + 1) * H // h), j * W // w:-(-(j + 1) * W // w)].mean()
    return out


def slow_compared(mine_Khw, theirs_Khw, inside_HW, grid):
    if grid == "student":
        theirs_Khw = np.stack([slow_resize(theirs_hw, mine_Khw.shape[1:]) for theirs_hw in theirs_Khw])
    else:
        mine_Khw = np.stack([slow_means(mine_hw, theirs_Khw.shape[1:]) for mine_hw in mine_Khw])
    return mine_Khw, theirs_Khw, slow_means(inside_HW.astype(float), mine_Khw.shape[1:]) >= 0.5


def slow_cwd(mine_BKhw, theirs_BKhw, inside_BHW, T, grid):
    total = 0.0
    for mine_Khw, theirs_Khw, inside_HW in zip(mine_BKhw.astype(float), theirs_BKhw.astype(float), inside_BHW):
        mine_Khw, theirs_Khw, inside_hw = slow_compared(mine_Khw, theirs_Khw, inside_HW, grid)
        for mine_hw, theirs_hw in zip(mine_Khw, theirs_Khw):
            p, q = (np.exp(logits_hw[inside_hw] / T) for logits_hw in (theirs_hw, mine_hw))
            p, q = p / p.sum(), q / q.sum()
            total += T**2 * sum(p[i] * math.log(p[i] / q[i]) for i in range(len(p)))
    return total / len(mine_BKhw) / mine_BKhw.shape[1]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("grid, students", [("student", (7, 11)), ("student", (5, 7)), ("student", (3, 4)),
                                            ("teacher", (13, 17))])
def test_the_loss_equals_the_loops(temperature, grid, students):
    theirs_BKhw, mine_BKhw = toy(students)
    found = loss_of(temperature, grid=grid)(Output(mine_BKhw, {}), batch_of(theirs_BKhw, partly_outside())).item()
    expected = slow_cwd(mine_BKhw.detach().numpy(), theirs_BKhw.numpy(), partly_outside().numpy(), temperature, grid)
    assert found == pytest.approx(expected, rel=1e-5) and found > 0


@pytest.mark.parametrize("grid", ["student", "teacher"])
def test_logits_are_compared_on_the_named_grid(grid):
    theirs_BKhw, mine_BKhw = toy()
    found = compared(Output(mine_BKhw, {}), batch_of(theirs_BKhw, partly_outside()), "logits", grid)
    expected = slow_compared(mine_BKhw.detach().numpy()[1], theirs_BKhw.numpy()[1], partly_outside().numpy()[1], grid)
    for ours, theirs in zip(found, expected):
        np.testing.assert_allclose(ours.detach().numpy()[1], theirs, atol=1e-5)


def test_a_loss_worked_by_hand():
    """(3/4, 1/4) at T = 2 against (1/2, 1/2): T^2 (3/4 ln 3/2 + 1/4 ln 1/2) = 0.1308 T^2, and one class of two."""
    theirs_1212 = torch.tensor([[2 * math.log(3), 0.0], [5.0, 5.0]]).view(1, 2, 1, 2)
    found = loss_of(2.0)(Output(torch.ones(1, 2, 1, 2), {}), batch_of(theirs_1212)).item()
    assert found == pytest.approx(4 * 0.13081203594 / 2)


def test_the_gradient_is_temperature_times_the_difference_of_probabilities():
    theirs_BKhw, mine_BKhw = toy((5, 7))
    loss_of(4.0)(Output(mine_BKhw, {}), batch_of(theirs_BKhw)).backward()
    p, q = ((logits_BKhw.detach().double() / 4).flatten(2).softmax(2).view_as(mine_BKhw)
            for logits_BKhw in (theirs_BKhw, mine_BKhw))
    np.testing.assert_allclose(mine_BKhw.grad, 4 * (q - p) / 8, atol=1e-6)


def test_the_loss_sees_the_shift_of_a_pixel_but_not_of_a_class():
    theirs_BKhw, mine_BKhw = toy((5, 7))
    class_shift, pixel_shift = torch.arange(4.0).view(1, 4, 1, 1), torch.arange(35.0).view(1, 1, 5, 7)
    plain, class_shifted, pixel_shifted = (loss_of()(Output(mine_BKhw + shift, {}), batch_of(theirs_BKhw)).item()
                                           for shift in (0.0, class_shift, pixel_shift))
    assert class_shifted == pytest.approx(plain, rel=1e-5) and abs(pixel_shifted - plain) > 0.1 * plain


def test_a_student_that_equals_the_teacher_loses_nothing():
    theirs_BKhw, _ = toy()
    assert loss_of()(Output(theirs_BKhw, {}), batch_of(theirs_BKhw, partly_outside())).item() == 0


def test_what_lies_outside_does_not_count():
    theirs_BKhw, mine_BKhw = toy((5, 7))
    inside_BHW = partly_outside()
    inside_BHW[1] = False
    loss_of()(Output(mine_BKhw, {}), batch_of(theirs_BKhw, inside_BHW)).backward()
    slopes_Bhw = mine_BKhw.grad.abs().amax(dim=1)
    assert (slopes_Bhw[0, :, :6] > 0).all() and (slopes_Bhw[0, :, 6:] == 0).all() and (slopes_Bhw[1] == 0).all()


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
def test_constant_and_huge_logits_keep_the_gradient_finite(scale):
    theirs_BKhw, mine_BKhw = toy()
    loss = loss_of(1.0)(Output(mine_BKhw * scale, {}), batch_of(theirs_BKhw * scale, partly_outside()))
    loss.backward()
    assert loss.isfinite() and mine_BKhw.grad.isfinite().all()


@pytest.mark.parametrize("dtype, of_loss, of_gradient", [("float16", 3e-4, 3e-3), ("uint8", 5e-3, 5e-2)])
def test_offline_equals_online_within_the_stored_dtype(dtype, of_loss, of_gradient):
    theirs_BKhw, mine_BKhw = toy()
    assert 0.85 < theirs_BKhw.softmax(dim=1).amax(dim=1).mean() < 0.95
    arrays = Target(dtype=dtype).encode({"logits": theirs_BKhw})
    stored = Target(dtype=dtype).decode({name: torch.from_numpy(array) for name, array in arrays.items()})
    loss, output, online = loss_of(4.0), Output(mine_BKhw, {}), batch_of(theirs_BKhw)
    error = loss_error("cwd", loss, output, batch_of(stored["logits"]), online)
    assert 0 < error.difference < of_loss and 0 < error.gradient_difference < of_gradient
    neighbour = loss_error("cwd", loss, output, batch_of(stored["logits"].roll(1, 0)), online)
    assert neighbour.gradient_difference > 10 * of_gradient
