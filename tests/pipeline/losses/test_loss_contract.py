"""What every loss keeps to: one test per file in pipeline/losses, per type of target it reads and per value of its
Literal keys.

Rows go through `encode` and `decode`, as from the cache; the student is narrower than the teacher, and finer, or, as one of
a lower resolution is, coarser.
"""

import inspect
import typing

import pytest
import torch

from pipeline.lookup import find_class, names
from pipeline.losses.base import Batch
from pipeline.models.base import Output
from pipeline.targets.base import Context

REQUIRED_OF_TARGETS = {"layer": "high", "rank": 8, "count": 5, "lanes": 4}  # a value for each key that has no default
REQUIRED_OF_LOSSES = {"temperature": 2.0}
HARD = {"pseudo_labels"}  # whose loss is that of labels: above 0 for any student that is not quite sure
ABSOLUTE = {"wavelet"}  # which adds up the rounding of rows itself, where others add up squares of it
RELATE_IMAGES = {"irg", "dist"}  # whose loss of a batch is no mean over its images
TEACHER = Context(
    num_classes=6,
    regions=(0, 1, 3, 4),
    size=(32, 48),
    channels={"mid": 16, "high": 32, "logits": 6},
    grids={"mid": (4, 6), "high": (4, 6), "logits": (4, 6)},
)
STUDENT = Context(
    num_classes=6,
    regions=(0, 1, 3, 4),
    size=(32, 48),
    channels={"mid": 4, "high": 8, "logits": 6},
    grids={"mid": (8, 12), "high": (8, 12), "logits": (32, 48)},
)

COARSE = Context(
    num_classes=6,
    regions=(0, 1, 3, 4),
    size=(32, 48),
    channels=STUDENT.channels,
    grids={"mid": (4, 6), "high": (2, 3), "logits": (2, 3)},
)


def required(cls, values):
    """Values for the keys of `cls` that its YAML must give."""
    given_by_the_loop = ("self", "reads", "context", "student")
    parameters = [p for p in inspect.signature(cls).parameters.values() if p.name not in given_by_the_loop]
    return {p.name: values[p.name] for p in parameters if p.default is p.empty}


def cases():
    for name in names("losses"):
        cls = find_class("losses", name)
        keys = required(cls, REQUIRED_OF_LOSSES)
        variants = {name: keys}
        for key, hint in typing.get_type_hints(cls.__init__).items():
            choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
            default = inspect.signature(cls).parameters[key].default
            for value in (choice for choice in choices if choice != default):
                variants[f"{name}-{key}-{value}"] = keys | {key: value}
        for type_name in cls.reads_types or (None,):
            for title, chosen in variants.items():
                yield pytest.param(cls, type_name, chosen, id=f"{title}-reads-{type_name}")


each_student = pytest.mark.parametrize("context", [STUDENT, COARSE], ids=["finer", "coarser"])
each_loss = pytest.mark.parametrize("cls, type_name, keys", list(cases()))


def build(cls, type_name, keys, student=STUDENT):
    reads = {}
    if type_name is not None:
        target = find_class("targets", type_name)
        reads["read"] = target(**required(target, REQUIRED_OF_TARGETS))
    loss = cls(reads=reads, context=TEACHER, student=student, **keys)
    if loss.needs_scan:
        loss.scan([batch_of(loss, network(TEACHER, seed=5)).rows])
    return loss


def network(context, seed, num_images=3) -> Output:
    generator = torch.Generator().manual_seed(seed)
    maps = {
        name: torch.randn(num_images, context.channels[name], *context.grids[name], generator=generator)
        for name in ("mid", "high", "logits")
    }
    existence = torch.randn(num_images, 4, generator=generator)
    return Output(3 * maps.pop("logits"), {layer: map_BChw.relu() for layer, map_BChw in maps.items()}, existence)


def labels(num_images=3):
    labels_BHW = torch.zeros(num_images, *TEACHER.size, dtype=torch.uint8)
    labels_BHW[:, 4:22, 8:33], labels_BHW[:, 16:, 36:], labels_BHW[:, :3] = 1, 3, 255
    return labels_BHW


def batch_of(loss, teacher, labels_BHW=None, inside=True) -> Batch:
    labels_BHW = labels() if labels_BHW is None else labels_BHW
    rows = {}
    for name, target in loss.reads.items():
        arrays = target.encode(target.compute(teacher, labels_BHW, TEACHER))
        rows[name] = target.decode({field: torch.from_numpy(array) for field, array in arrays.items()})
    images = torch.rand(len(labels_BHW), 3, *TEACHER.size, generator=torch.Generator().manual_seed(9)) * 255
    return Batch(
        images_B3HW=images,
        labels_BHW=labels_BHW,
        inside_BHW=torch.full(labels_BHW.shape, inside),
        existence_BL=None,
        rows=rows,
        step=1000,
    )


def leaves(output: Output):
    return [leaf.requires_grad_() for leaf in (output.logits, output.existence, *output.features.values())]


def slopes(output: Output):
    return [leaf.grad for leaf in leaves(output) if leaf.grad is not None]


@each_loss
@each_student
def test_a_loss_is_a_scalar_with_finite_gradients_for_the_student(cls, type_name, keys, context):
    torch.manual_seed(0)
    loss, student = build(cls, type_name, keys, context), network(context, seed=1)
    leaves(student)
    value = loss(student, batch_of(loss, network(TEACHER, seed=0)))
    value.backward()
    assert value.shape == () and value.dtype == torch.float32 and value.isfinite() and value > 0
    found = slopes(student)
    assert all(slope.isfinite().all() for slope in found) and any((slope != 0).any() for slope in found)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in loss.parameters())


@each_loss
def test_a_student_that_equals_the_teacher_loses_nothing_and_one_shown_another_images_rows_does(cls, type_name, keys):
    loss = build(cls, type_name, keys, student=TEACHER)
    if not loss.reads or list(loss.parameters()) or cls.__module__.split(".")[-1] in HARD:
        pytest.skip("self-distillation, learnt projections and hard labels have no such zero")
    if type_name == "components":
        pytest.skip("some components of features are no copy of them")
    teacher = network(TEACHER, seed=0)
    equal = loss(teacher, batch_of(loss, teacher)).item()
    turned = Output(
        teacher.logits.roll(1, 0), {layer: f.roll(1, 0) for layer, f in teacher.features.items()}, teacher.existence.roll(1, 0)
    )
    other = loss(teacher, batch_of(loss, turned)).item()
    rounding = 1e-3 if cls.__module__.split(".")[-1] in ABSOLUTE else 1e-5
    assert other > 0 and abs(equal) < rounding * other


@each_loss
@each_student
def test_the_loss_of_a_batch_is_the_mean_over_its_images(cls, type_name, keys, context):
    loss = build(cls, type_name, keys, context)
    if not loss.reads or list(loss.parameters()) or cls.__module__.split(".")[-1] in RELATE_IMAGES:
        pytest.skip("a batch may count as one here")
    teacher, student = network(TEACHER, seed=0), network(context, seed=1)
    together = loss(student, batch_of(loss, teacher)).item()
    alone = []
    for i in range(3):
        one_teacher, one_student = (
            Output(o.logits[i : i + 1], {layer: f[i : i + 1] for layer, f in o.features.items()}, o.existence[i : i + 1])
            for o in (teacher, student)
        )
        alone.append(loss(one_student, batch_of(loss, one_teacher, labels(1))).item())
    assert together == pytest.approx(sum(alone) / 3, rel=1e-5)


@each_loss
@each_student
def test_where_nothing_can_be_compared_the_loss_is_zero_with_zero_gradient(cls, type_name, keys, context):
    loss, student = build(cls, type_name, keys, context), network(context, seed=1)
    if not loss.reads:
        pytest.skip("self-distillation compares with the student alone")
    leaves(student)
    unlabelled = torch.full((3, *TEACHER.size), 255, dtype=torch.uint8)
    value = loss(student, batch_of(loss, network(TEACHER, seed=0), unlabelled, inside=False))
    value.backward()
    assert value.item() == 0 and all((slope == 0).all() for slope in slopes(student))
