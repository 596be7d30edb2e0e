"""What the tests of losses on logits share: two images of 40 x 56 pixels with a teacher's grid of 5 x 7, slow resizing,
and the comparison of stored logits with live ones."""

import math

import numpy as np
import torch

from pipeline.losses.base import Batch
from pipeline.models.base import Output
from pipeline.targets.base import Context
from pipeline.targets.logits import Target
from pipeline.teacher.parity import loss_error

CONTEXT = Context(num_classes=4, regions=(0, 1, 2, 3), size=(40, 56), grids={"logits": (5, 7)})


def built(cls, **keys):
    return cls(reads={"logits": Target()}, context=CONTEXT, student=CONTEXT, **keys)


def batch_of(teacher_BKhw, inside_BHW=None, labels_BHW=None, size=CONTEXT.size, step=0):
    """Unlabelled and wholly inside, unless told otherwise."""
    everywhere = torch.ones(len(teacher_BKhw), *size, dtype=torch.bool)
    labels_BHW = torch.full(everywhere.shape, 255, dtype=torch.uint8) if labels_BHW is None else labels_BHW
    return Batch(
        images_B3HW=torch.empty(0),
        labels_BHW=labels_BHW,
        existence_BL=None,
        inside_BHW=everywhere if inside_BHW is None else inside_BHW,
        rows={"logits": {"logits": teacher_BKhw}},
        step=step,
    )


def toy(grid=(5, 7), seed=0):
    """Confident as trained networks are: the largest of 4 probabilities is 0.9 on average."""
    generator = torch.Generator().manual_seed(seed)
    teacher_BKhw = 6 * torch.randn(2, 4, 5, 7, generator=generator)
    return teacher_BKhw, (6 * torch.randn(2, 4, *grid, generator=generator)).requires_grad_()


def partly_outside():
    """One view lacks half of column 5 of the 8x8 cells (it stays) and column 6, the other half of row 1 and row 0."""
    inside_BHW = torch.ones(2, *CONTEXT.size, dtype=torch.bool)
    inside_BHW[0, :, 44:], inside_BHW[1, :12] = False, False
    return inside_BHW


def cells_inside():
    """The cells of `partly_outside` that count."""
    inside_Bhw = np.ones((2, 5, 7), dtype=bool)
    inside_Bhw[0, :, 6], inside_Bhw[1, 0] = False, False
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


def slow_means(map_hw, size):
    """The mean over all pixels that a cell touches."""
    (H, W), (h, w), out = map_hw.shape, size, np.zeros(size)
    for i, j in np.ndindex(h, w):
        out[i, j] = map_hw[i * H // h : -(-(i + 1) * H // h), j * W // w : -(-(j + 1) * W // w)].mean()
    return out


def slow_compared(student_Khw, teacher_Khw, inside_HW, grid):
    def resized(map_Khw, size):
        one = slow_means if size <= map_Khw.shape[1:] else slow_resize
        return np.stack([one(map_hw, size) for map_hw in map_Khw])

    if grid == "student":
        teacher_Khw = resized(teacher_Khw, student_Khw.shape[1:])
    else:
        student_Khw = resized(student_Khw, teacher_Khw.shape[1:])
    return student_Khw, teacher_Khw, slow_means(inside_HW.astype(float), student_Khw.shape[1:]) >= 0.5


def assert_offline_equals_online(loss, dtype, of_loss, of_gradient, grid=(5, 7), labels_BHW=None):
    """Stored in `dtype`, loss and gradient differ by less than these shares, and a neighbour's row by ten times as much."""
    teacher_BKhw, student_BKhw = toy(grid)
    assert 0.85 < teacher_BKhw.softmax(dim=1).amax(dim=1).mean() < 0.95
    target = Target(dtype=dtype)
    rows = {name: torch.from_numpy(array) for name, array in target.encode({"logits": teacher_BKhw}).items()}
    stored_BKhw = target.decode(rows)["logits"]
    output, online = Output(student_BKhw, {}), batch_of(teacher_BKhw, labels_BHW=labels_BHW)
    error = loss_error("loss", loss, output, batch_of(stored_BKhw, labels_BHW=labels_BHW), online)
    assert 0 < error.difference < of_loss and 0 < error.gradient_difference < of_gradient
    neighbour = loss_error("loss", loss, output, batch_of(stored_BKhw.roll(1, 0), labels_BHW=labels_BHW), online)
    assert neighbour.gradient_difference > 10 * of_gradient
