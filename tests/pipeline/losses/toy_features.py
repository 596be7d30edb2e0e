"""What the tests of losses on features share: two images of 24 x 40 pixels, a teacher's grid of 3 x 5 with 7 channels and a student
of twice the grid with 4."""

from types import SimpleNamespace

import numpy as np
import torch

from pipeline.losses.base import Batch
from pipeline.models.base import Output
from pipeline.targets._grid import on_grid
from pipeline.targets.base import Context
from pipeline.targets.features import Target

SIZE = (24, 40)
TEACHER = Context(num_classes=2, regions=(0, 1), size=SIZE, grids={"high": (3, 5), "logits": (3, 5)}, channels={"high": 7})
STUDENT = Context(num_classes=2, regions=(0, 1), size=SIZE, grids={"high": (6, 10), "logits": (6, 10)}, channels={"high": 4})


def network(context, seed):
    generator = torch.Generator().manual_seed(seed)
    features_BChw = torch.randn(2, context.channels["high"], *context.grids["high"], generator=generator)
    return Output(torch.empty(0), {"high": features_BChw})


def inside():
    """One view lacks most of column 4 of the teacher's cells."""
    inside_BHW = torch.ones(2, *SIZE, dtype=torch.bool)
    inside_BHW[0, :, 34:] = False
    return inside_BHW


def cells_inside():
    """The teacher's cells that count in `inside`."""
    inside_Bhw = np.ones((2, 3, 5), dtype=bool)
    inside_Bhw[0, :, 4] = False
    return inside_Bhw


def batch_of(teacher, inside_BHW=None, target=Target(layer="high"), context=TEACHER, step=0):
    inside_BHW = inside() if inside_BHW is None else inside_BHW
    return Batch(
        images_B3HW=torch.empty(0),
        labels_BHW=inside_BHW.to(torch.uint8),
        existence_BL=None,
        inside_BHW=inside_BHW,
        rows={"map": target.compute(teacher, None, context)},
        step=step,
    )


def loss_of(cls, student=STUDENT, target=Target(layer="high"), context=TEACHER, **keys):
    torch.manual_seed(0)
    return cls(reads={"map": target}, context=context, student=student, **keys)


def arrays(module):
    """Its parameters and buffers in float64."""
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


def adapted(loss, student):
    """[B, D, 3, 5]: the mean of the student's 2 x 2 cells behind the 1x1 convolution, in float64."""
    own = arrays(loss.adapters[0])
    means = student.features["high"].detach().double().numpy().reshape(2, 4, 3, 2, 5, 2).mean(axis=(3, 5))
    return np.einsum("dc,bchw->bdhw", own["weight"][..., 0, 0], means) + own["bias"][:, None, None]


def convolved(map_Chw, weight, bias=0.0):
    """A convolution of odd size with zeros around, cell by cell."""
    side = weight.shape[2] // 2
    padded, (_, h, w) = np.pad(map_Chw, ((0, 0), (side, side), (side, side))), map_Chw.shape
    out = np.zeros((len(weight), h, w))
    for y, x in np.ndindex(h, w):
        out[:, y, x] = (weight * padded[:, y : y + 2 * side + 1, x : x + 2 * side + 1]).sum(axis=(1, 2, 3)) + bias
    return out


def assert_outside_has_no_say(loss):
    """Neither value nor gradient."""
    student, teacher = network(STUDENT, 1), network(TEACHER, 0)
    before = loss(student, batch_of(teacher)).item()
    student.features["high"][0, :, :, 8:] += 50
    teacher.features["high"][0, :, :, 4] -= 50
    student.features["high"].requires_grad_()
    value = loss(student, batch_of(teacher))
    value.backward()
    slopes_BChw = student.features["high"].grad
    assert abs(value.item() - before) < 1e-5 * abs(before)
    assert (slopes_BChw[0, :, :, 8:] == 0).all() and (slopes_BChw != 0).any() and slopes_BChw.isfinite().all()


def assert_gradient_of_value(loss, student, batch, step=1e-3):
    """The student's gradient, and that of each parameter, in a random direction: central differences in float64."""
    stored_grid = SimpleNamespace(
        compute=lambda output, labels_BHW, context: {"features": on_grid(output.features["high"], (3, 5))}
    )
    loss.reads = {"map": stored_grid}  # the target itself computes in float32
    loss, leaf = loss.double().eval(), student.features["high"].double().requires_grad_()
    rows = {name: {field: value.double() for field, value in fields.items()} for name, fields in batch.rows.items()}
    batch = batch.with_rows(rows)

    def value():
        return loss(Output(torch.empty(0), {"high": leaf}), batch)

    value().backward()
    for tensor in (leaf, *loss.parameters()):
        direction = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        with torch.no_grad():
            tensor += step * direction
            above = value().item()
            tensor -= 2 * step * direction
            below = value().item()
            tensor += step * direction
        expected = (above - below) / (2 * step)
        assert abs((tensor.grad * direction).sum().item() - expected) < 1e-3 * abs(expected) + 1e-8, tensor.shape
