"""IRG against loops, its sketched edges against exact ones, and batches with nothing to relate."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.losses import irg
from pipeline.losses.base import Batch
from pipeline.models.base import Output
from pipeline.targets import features, logits, sketch
from pipeline.targets.base import Context

SIZE = (16, 24)
TEACHER = Context(
    num_classes=3,
    regions=(0, 1, 2),
    size=SIZE,
    grids={"mid": (2, 3), "high": (2, 3), "logits": (2, 3)},
    channels={"mid": 8, "high": 16},
)
STUDENT = Context(
    num_classes=3,
    regions=(0, 1, 2),
    size=SIZE,
    grids={"mid": (4, 6), "high": (2, 3), "logits": (4, 6)},
    channels={"mid": 4, "high": 8},
)
EXACT = sketch.Target(size=96)  # the teacher's largest map has 96 values, so nothing is lost


def network(context, seed, num_images=4):
    generator = torch.Generator().manual_seed(seed)
    features = {
        layer: torch.randn(num_images, context.channels[layer], *context.grids[layer], generator=generator)
        for layer in ("mid", "high")
    }
    return Output(torch.randn(num_images, 3, *context.grids["logits"], generator=generator), features)


def batch_of(teacher, target=EXACT, inside_BHW=None):
    num_images = len(teacher.logits)
    inside_BHW = torch.ones(num_images, *SIZE, dtype=torch.bool) if inside_BHW is None else inside_BHW
    return Batch(
        images_B3HW=torch.empty(0),
        labels_BHW=inside_BHW.to(torch.uint8),
        existence_BL=None,
        inside_BHW=inside_BHW,
        rows={"graph": target.compute(teacher, None, TEACHER)},
        step=0,
    )


def loss_of(target=EXACT, **keys):
    return irg.Loss(reads={"graph": target}, context=TEACHER, student=STUDENT, **keys)


def slow_edges(features_BChw):
    images = features_BChw.double().flatten(1).numpy()
    found = np.array([[((a - b) ** 2).sum() for b in images] for a in images])
    return found / found.max()


def slow_transformations(output):
    """The mid map averaged to 2 x 3 cells, the high map's channels averaged in pairs."""
    found = []
    for mid, high in zip(*(output.features[layer].double().numpy() for layer in ("mid", "high"))):
        C, h, _ = mid.shape
        pooled = mid.reshape(C, 2, h // 2, 3, h // 2).mean(axis=(2, 4))
        found.append(((pooled - high.reshape(C, 2, 2, 3).mean(axis=1)) ** 2).sum())
    return np.array(found) / max(found)


def test_the_loss_equals_the_loops():
    student, teacher = network(STUDENT, 1), network(TEACHER, 0)
    edges = sum(
        ((slow_edges(student.features[layer]) - slow_edges(teacher.features[layer])) ** 2).mean() for layer in ("mid", "high")
    )
    changes = ((slow_transformations(student) - slow_transformations(teacher)) ** 2).mean()
    for keys, expected in (({}, 5 * edges + 5 * changes), ({"edges": 2.0, "transformations": 0.0}, 2 * edges)):
        assert loss_of(**keys)(student, batch_of(teacher)).item() == pytest.approx(expected, rel=1e-4)


def test_edges_and_transformations_from_stored_features_are_exact():
    student, teacher = network(STUDENT, 1), network(TEACHER, 0)
    pooled = Output(student.logits, student.features | {"mid": F.avg_pool2d(student.features["mid"], 2)})
    edges = sum(
        ((slow_edges(pooled.features[layer]) - slow_edges(teacher.features[layer])) ** 2).mean() for layer in ("mid", "high")
    )
    changes = ((slow_transformations(pooled) - slow_transformations(teacher)) ** 2).mean()
    reads = {layer: features.Target(layer=layer, dtype="float32") for layer in ("mid", "high")}
    rows = {layer: {"features": teacher.features[layer]} for layer in reads}
    loss = irg.Loss(reads=reads, context=TEACHER, student=STUDENT)
    found = loss(student, batch_of(teacher).with_rows(rows)).item()
    assert found == pytest.approx(5 * edges + 5 * changes, rel=1e-4)


def test_edges_worked_by_hand():
    """Three images at 0, 1 and 3 on a line: squared distances 1, 9 and 4."""
    found = irg.distances(torch.tensor([[0.0, 7.0], [1.0, 7.0], [3.0, 7.0]]))
    np.testing.assert_allclose(found, [[0, 1, 9], [1, 0, 4], [9, 4, 0]], atol=1e-5)


def test_vertices_are_the_logits_on_the_students_grid():
    student, teacher = network(STUDENT, 1), network(TEACHER, 0)
    inside_BHW = torch.ones(4, *SIZE, dtype=torch.bool)
    inside_BHW[:, :, 20:] = False
    loss = irg.Loss(reads={"logits": logits.Target()}, context=TEACHER, student=STUDENT, vertices=0.5)
    batch = batch_of(teacher, inside_BHW=inside_BHW).with_rows({"logits": {"logits": teacher.logits}})
    fine = torch.nn.functional.interpolate(teacher.logits, (4, 6), mode="bilinear", align_corners=False)
    expected = 0.5 * (student.logits - fine)[..., :5].double().square().mean().item()
    assert loss(student, batch).item() == pytest.approx(expected, rel=1e-5)


def test_the_size_of_the_activations_does_not_matter():
    student, teacher = network(STUDENT, 1), network(TEACHER, 0)
    large = Output(student.logits, {layer: 1e8 * map_BChw for layer, map_BChw in student.features.items()})
    expected = loss_of()(student, batch_of(teacher)).item()
    assert loss_of()(large, batch_of(teacher)).item() == pytest.approx(expected, rel=1e-4)


def test_a_shared_offset_costs_no_precision():
    """Features of 1000 and a spread of 1: distances would lose half their digits without centring."""
    values_BN = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
    expected = torch.cdist(values_BN.double(), values_BN.double()).square()
    np.testing.assert_allclose(irg.distances(values_BN + 1000), expected, rtol=1e-3, atol=1e-3)


def test_a_student_that_equals_the_teacher_loses_nothing_where_the_sketch_is_exact():
    teacher = network(TEACHER, 0)
    other = loss_of()(teacher, batch_of(network(TEACHER, 1))).item()
    assert loss_of()(teacher, batch_of(teacher)).item() < 1e-8 * other


def test_the_sketched_loss_nears_the_exact_one_with_its_size():
    student, teacher = network(STUDENT, 1), network(TEACHER, 0)
    exact = loss_of()(student, batch_of(teacher)).item()

    def error(size):
        values = [loss_of()(student, batch_of(teacher, sketch.Target(size=size, seed=seed))).item() for seed in range(50)]
        return np.sqrt(np.mean((np.array(values) - exact) ** 2))

    assert error(4) > 1.5 * error(16) > 2 * error(48) > 0


@pytest.mark.parametrize("case", ["one image", "all equal", "all zero", "teacher all equal", "none seen", "one seen"])
def test_where_nothing_can_be_related_gradients_are_finite(case):
    num_images = 1 if case == "one image" else 4
    student, teacher = network(STUDENT, 1, num_images), network(TEACHER, 0, num_images)
    inside_BHW = torch.ones(num_images, *SIZE, dtype=torch.bool)
    for role in ("mid", "high"):
        if case == "all equal":
            student.features[role][:] = student.features[role][:1].clone() + 100
        elif case == "all zero":
            student.features[role][:] = 0
        elif case == "teacher all equal":
            teacher.features[role][:] = teacher.features[role][:1].clone()
        student.features[role].requires_grad_()
    if case == "none seen":
        inside_BHW[:] = False
    elif case == "one seen":
        inside_BHW[1:] = False
    value = loss_of()(student, batch_of(teacher, inside_BHW=inside_BHW))
    value.backward()
    slopes = [leaf.grad for leaf in student.features.values()]
    assert value.isfinite() and all(slope.isfinite().all() and slope.abs().max() < 10 for slope in slopes)
    if case in ("one image", "none seen", "one seen"):
        assert value.item() == 0 and all((slope == 0).all() for slope in slopes)


def test_images_that_see_nothing_are_in_no_edge():
    student, teacher = network(STUDENT, 1), network(TEACHER, 0)
    inside_BHW = torch.ones(4, *SIZE, dtype=torch.bool)
    inside_BHW[3] = False
    three = [Output(o.logits[:3], {layer: f[:3] for layer, f in o.features.items()}) for o in (student, teacher)]
    expected = loss_of()(three[0], batch_of(three[1])).item()
    assert loss_of()(student, batch_of(teacher, inside_BHW=inside_BHW)).item() == pytest.approx(expected, rel=1e-5)
