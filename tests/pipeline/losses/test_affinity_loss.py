"""Eq. 4 against loops; which pairs count, and what the gradient does where none does.

C channels, K = n regions.
"""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from pipeline.losses.affinity import Loss, MinCells, Moments
from pipeline.losses.base import Batch
from pipeline.models.base import Output
from pipeline.targets.affinity import Target
from pipeline.targets.base import Context

CONTEXT = Context(num_classes=5, regions=(0, 1, 2, 3), size=(16, 32), grids={"mid": (4, 8), "high": (4, 8), "logits": (4, 8)})
GRAPH = Target(layer="high", aoi_kernel=1)


def loss_of(**keys):
    return Loss(reads={"graph": GRAPH}, context=CONTEXT, student=CONTEXT, **keys)


def batch_of(labels_BHW, rows):
    everywhere = torch.ones(labels_BHW.shape, dtype=torch.bool)
    return Batch(images_B3HW=torch.empty(0), labels_BHW=labels_BHW, inside_BHW=everywhere, existence_BL=None, rows=rows, step=0)


def toy(num_images=3, seed=0):
    """Features of a teacher and of a student, and labels with regions of many sizes; region 3 is one cell or absent."""
    generator = torch.Generator().manual_seed(seed)
    labels_BHW = torch.zeros(num_images, 16, 32, dtype=torch.uint8)
    labels_BHW[:, :8, 12:] = 1  # 2 x 5 cells
    labels_BHW[:, 8:12, 4:28] = 2  # 6 cells
    labels_BHW[0, 12:16, 28:] = 3
    teacher = torch.randn(num_images, 9, 4, 8, generator=generator).relu()
    student = torch.randn(num_images, 5, 4, 8, generator=generator).relu()
    return teacher, student.requires_grad_(), labels_BHW


def rows_for(teacher, labels_BHW, target=GRAPH):
    return {"graph": target.graph(teacher, labels_BHW, CONTEXT)}


def slow_eq4(student, teacher, min_cells=(1, 2, 8), moments=(1, 2, 3), normalise="all"):
    B, _, n, _ = student["graph"].shape
    images = []
    for b in range(B):
        total, counted = 0.0, 0
        for r in moments:
            for k1 in range(n):
                for k2 in range(n):
                    cells = [float(side["cells"][b, k]) for side in (student, teacher) for k in (k1, k2)]
                    if k1 != k2 and min(cells) >= min_cells[r - 1]:
                        here = b, r - 1, k1, k2
                        total += (float(student["graph"][here]) - float(teacher["graph"][here])) ** 2
                        counted += 1
        images.append(total / (3 * n**2) if normalise == "all" else total / max(counted, 1))
    return sum(images) / B


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"normalise": "present"},
        {"moments": (1,)},
        {"moments": (2, 3)},
        {"min_cells": (1, 1, 1)},
        {"min_cells": (7, 7, 7), "normalise": "present"},
    ],
)
def test_the_loss_equals_the_loops(keys):
    teacher, student, labels_BHW = toy()
    rows = rows_for(teacher, labels_BHW)
    expected = slow_eq4(GRAPH.graph(student.detach(), labels_BHW, CONTEXT), rows["graph"], **keys)
    found = loss_of(**keys)(Output(torch.empty(0), {"high": student}), batch_of(labels_BHW, rows)).item()
    assert found == pytest.approx(expected, rel=1e-5) and found > 0


def test_a_loss_worked_by_hand():
    """Two regions of three cells with cosines 2 / sqrt(5), 1 / sqrt(2), -1 / sqrt(2) (see the target's test), against a
    teacher whose graph is the identity: two pairs of each moment, so 2 (4/5 + 1/2 + 1/2) / (3 * 2^2)."""
    context = Context(num_classes=2, regions=(0, 1), size=(1, 6), grids={"high": (1, 6)})
    target = Target(layer="high", aoi_kernel=1, eps=1e-9)
    features = torch.tensor([[[[0.0, 0, 3, 0, 3, 3]], [[0, 0, 0, 0, 0, 3]]]])
    rows = {"graph": {"graph": torch.eye(2).expand(1, 3, 2, 2), "cells": torch.tensor([[3.0, 3.0]])}}
    batch = batch_of(torch.tensor([[[0, 0, 0, 1, 1, 1]]], dtype=torch.uint8), rows)
    loss = Loss(reads={"graph": target}, context=context, student=context, min_cells=(1, 2, 3))
    assert loss(Output(torch.empty(0), {"high": features}), batch).item() == pytest.approx(0.3, abs=1e-6)


def test_two_layers_add_up():
    teacher, student, labels_BHW = toy()
    rows = rows_for(teacher, labels_BHW)
    output = Output(torch.empty(0), {"high": student, "mid": student})
    batch = batch_of(labels_BHW, rows | {"other": rows["graph"]})
    both = Loss(reads={"graph": GRAPH, "other": Target(layer="mid", aoi_kernel=1)}, context=CONTEXT, student=CONTEXT)
    assert both(output, batch).item() == pytest.approx(2 * loss_of()(output, batch).item())


@pytest.mark.parametrize("aoi_grid", ["teacher", "own"])
@pytest.mark.parametrize("num_classes", [4, 19])
def test_the_students_graph_is_the_targets_to_the_bit(aoi_grid, num_classes):
    """Areas of interest are made once for both layers, by another table look-up than the target's."""
    draw = torch.Generator().manual_seed(0)
    grids = {"mid": (8, 16), "high": (8, 16)}
    context = Context(num_classes=num_classes, regions=tuple(range(num_classes)), size=(32, 64), grids=grids)
    labels_BHW = torch.randint(num_classes + 1, (2, 32, 64), generator=draw, dtype=torch.uint8)
    labels_BHW[labels_BHW == num_classes] = 255
    loss = Loss(reads={}, context=context, student=context)
    made: dict = {}
    for layer, grid in (("mid", (16, 32)), ("high", (4, 8))):
        target = Target(layer=layer, aoi_grid=aoi_grid)
        features = torch.randn(2, 5, *grid, generator=draw)
        expected, found = target.graph(features, labels_BHW, context), loss.graph(target, features, labels_BHW, {}, made)
        assert all(torch.equal(found[name], expected[name]) for name in ("graph", "cells"))
    assert len(made) == (aoi_grid == "teacher")


@pytest.mark.parametrize("grid, counts", [((8, 16), (4, 16)), ((2, 4), (4, 1))])
def test_a_pair_needs_cells_on_both_grids(grid, counts):
    """Four of the teacher's cells are sixteen of a finer grid and one of a coarser: the smaller count decides."""
    teacher, _, labels_BHW = toy(num_images=1)
    labels_BHW[:, 8:16, 24:32] = 3
    student = torch.randn(1, 5, *grid, generator=torch.Generator().manual_seed(1)).relu()
    rows = rows_for(teacher, labels_BHW)
    assert (rows["graph"]["cells"][0, 3], GRAPH.graph(student, labels_BHW, CONTEXT)["cells"][0, 3]) == counts
    rows["graph"]["graph"][0, 0, 3] += 100.0
    rows["graph"]["graph"][0, 0, :, 3] += 100.0
    output, batch = Output(torch.empty(0), {"high": student}), batch_of(labels_BHW, rows)
    assert loss_of(moments=(1,), min_cells=(min(counts), 1, 1))(output, batch).item() > 100
    assert loss_of(moments=(1,), min_cells=(min(counts) + 1, 1, 1))(output, batch).item() < 1


@pytest.mark.parametrize("moment, least", [(1, 1), (2, 2), (3, 8)])
def test_by_default_a_region_counts_from_1_2_or_8_cells_on(moment, least):
    """Region 1 has `cells` cells and region 0 the others; cells of 4 x 4 pixels."""
    teacher, student, labels_BHW = toy(num_images=1)
    for cells in {least - 1, least} - {0}:
        labels_BHW[:] = 0
        labels_BHW[:, :4, : 4 * cells] = 1
        rows = rows_for(teacher, labels_BHW)
        assert rows["graph"]["cells"][0, 1] == cells
        found = loss_of(moments=(moment,))(Output(torch.empty(0), {"high": student}), batch_of(labels_BHW, rows))
        assert (found.item() > 0) == (cells == least)


def test_keys_take_one_cell_and_each_moment_alone_and_nothing_less():
    assert TypeAdapter(MinCells).validate_python([1, 1, 1]) == (1, 1, 1)
    assert [TypeAdapter(Moments).validate_python([moment]) for moment in (1, 2, 3)] == [(1,), (2,), (3,)]
    for kind, refused in ((MinCells, [0, 1, 1]), (MinCells, [1, 1]), (Moments, []), (Moments, [4])):
        with pytest.raises(ValidationError):
            TypeAdapter(kind).validate_python(refused)


def test_a_checkpoint_holds_nothing_of_the_loss():
    assert not loss_of().state_dict()


def test_pairs_that_do_not_count_have_no_gradient():
    """Regions 0 and 1 of four cells each, 2 of eight: with 1 / 2 / 8 the skewness has no pair."""
    labels_BHW = torch.full((1, 16, 32), 255, dtype=torch.uint8)
    labels_BHW[0, :4, :16], labels_BHW[0, :4, 16:], labels_BHW[0, 8:16, :16] = 0, 1, 2
    teacher, student, _ = toy(num_images=1)
    rows = rows_for(teacher, labels_BHW)
    output = Output(torch.empty(0), {"high": student})
    loss = loss_of(moments=(3,))(output, batch_of(labels_BHW, rows))
    loss.backward()
    assert loss.item() == 0 and (student.grad == 0).all()
    loss_of(moments=(3,), min_cells=(1, 2, 3))(output, batch_of(labels_BHW, rows)).backward()
    assert (student.grad[0, :, 0] != 0).any() and (student.grad[0, :, 1] == 0).all()  # row 1 is in no region


@pytest.mark.parametrize("reading", ["masked", "literal"])
def test_gradients_are_finite_for_dead_layers_and_images_without_labels(reading):
    teacher, student, labels_BHW = toy()
    with torch.no_grad():
        student[0], student[1] = 0, 0.5
    labels_BHW[2] = 255
    target = Target(layer="high", reading=reading)
    loss = Loss(reads={"graph": target}, context=CONTEXT, student=CONTEXT, min_cells=(1, 1, 1))
    loss(Output(torch.empty(0), {"high": student}), batch_of(labels_BHW, rows_for(teacher, labels_BHW, target))).backward()
    assert student.grad.isfinite().all() and (student.grad[2] == 0).all()


def test_the_loss_sees_the_teachers_regions_where_the_rows_say_so():
    teacher, student, labels_BHW = toy()
    target = Target(layer="high", regions="teacher")
    logits = torch.randn(3, 5, 4, 8, generator=torch.Generator().manual_seed(3))
    rows = {"graph": target.compute(Output(logits, {"high": teacher}), labels_BHW, CONTEXT)}
    loss = Loss(reads={"graph": target}, context=CONTEXT, student=CONTEXT)
    unlabelled = torch.full_like(labels_BHW, 255)
    output = Output(torch.empty(0), {"high": student})
    found = [loss(output, batch_of(labels, rows)).item() for labels in (labels_BHW, unlabelled)]
    assert found[0] == found[1] > 0
    assert loss(Output(torch.empty(0), {"high": teacher}), batch_of(unlabelled, rows)).item() == 0


def test_training_a_toy_student_brings_its_graph_to_the_teachers():
    teacher, student, labels_BHW = toy()
    rows, loss = rows_for(teacher, labels_BHW), loss_of()
    optimiser = torch.optim.Adam([student], lr=0.05)
    values = []
    for _ in range(60):
        optimiser.zero_grad()
        value = loss(Output(torch.empty(0), {"high": student}), batch_of(labels_BHW, rows))
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert np.isfinite(values).all() and values[-1] < 0.01 * values[0]
