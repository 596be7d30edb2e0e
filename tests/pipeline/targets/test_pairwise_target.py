"""Pooled nodes and their cosines against loops, and what is stored of them."""

import math

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.models.base import Output
from pipeline.targets.base import Context
from pipeline.targets.pairwise import Target

LABELS = torch.zeros(2, 40, 56, dtype=torch.uint8)


def context(channels=4, grid=(5, 7)):
    return Context(
        num_classes=3, regions=(0, 1, 2), size=(40, 56), grids={"high": grid, "logits": grid}, channels={"high": channels}
    )


def output_of(features_BChw):
    return Output(torch.empty(0), {"high": features_BChw})


def random_features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_nodes(features_Chw, rows, columns, pool):
    """Areas from floor(i h / rows) to ceil((i + 1) h / rows), row by row."""
    _, h, w = features_Chw.shape
    nodes = []
    for i, j in np.ndindex(rows, columns):
        down, right = math.ceil((i + 1) * h / rows), math.ceil((j + 1) * w / columns)
        area = features_Chw[:, i * h // rows : down, j * w // columns : right]
        nodes.append(area.mean(axis=(1, 2)) if pool == "average" else area.max(axis=(1, 2)))
    return nodes


def slow_cosines(nodes):
    return np.array([[a @ b / math.sqrt(a @ a) / math.sqrt(b @ b) for b in nodes] for a in nodes])


@pytest.mark.parametrize("pool", ["average", "max"])
@pytest.mark.parametrize("keys, rows, columns", [({}, 3, 4), ({"patch": 1}, 5, 7), ({"nodes": (2, 3)}, 2, 3)])
@pytest.mark.parametrize("grid", [(5, 7), (10, 14)])
def test_cosines_equal_the_loops(pool, keys, rows, columns, grid):
    """For the teacher's grid of 5 x 7 and for a student's of twice as many cells a side."""
    target, features_BChw = Target(layer="high", pool=pool, keeps="cosines", **keys), random_features(2, 4, *grid)
    found = target.compute(output_of(features_BChw), LABELS, context())["cosines"]
    for row, features_Chw in zip(found, features_BChw.double().numpy()):
        expected = slow_cosines(slow_nodes(features_Chw, rows, columns, pool))[np.triu_indices(rows * columns, 1)]
        np.testing.assert_allclose(row, expected, atol=1e-6)


def test_cosines_worked_by_hand():
    """Nodes of single cells (1, 0), (1, 1), (0, 2): 45 degrees, 90, 45."""
    features_BChw = torch.tensor([[[[1.0, 1.0, 0.0]], [[0.0, 1.0, 2.0]]]])
    found = Target(layer="high", patch=1).compute(output_of(features_BChw), LABELS, context(2, (1, 3)))["cosines"]
    np.testing.assert_allclose(found, [[0.5**0.5, 0, 0.5**0.5]], atol=1e-7)


@pytest.mark.parametrize("dtype, error", [("float16", 1e-3), ("int8", 0.01)])
@pytest.mark.parametrize("keeps", ["cosines", "nodes"])
def test_both_stored_forms_give_the_same_cosines(keeps, dtype, error):
    target, features_BChw = Target(layer="high", keeps=keeps, dtype=dtype), random_features(2, 8, 5, 7)
    arrays = target.encode(target.compute(output_of(features_BChw), LABELS, context(8)))
    decoded = target.decode({name: torch.from_numpy(array) for name, array in arrays.items()})
    found = target.stored_graph(decoded, context(8))
    off_diagonal = ~np.eye(12, dtype=bool)
    for cosines, features_Chw in zip(found, features_BChw.double().numpy()):
        expected = slow_cosines(slow_nodes(features_Chw, 3, 4, "average"))
        np.testing.assert_allclose(cosines[off_diagonal], expected[off_diagonal], atol=error)


@pytest.mark.parametrize("channels, kept", [(5, "nodes"), (6, "cosines")])
def test_the_smaller_form_is_stored(channels, kept):
    """12 nodes: 66 cosines against 60 or 72 features."""
    fields = Target(layer="high").fields(context(channels))
    assert set(fields) == {kept} and np.prod(fields[kept].shape) == min(66, 12 * channels)


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_the_size_of_the_activations_does_not_matter(scale):
    features_BChw = random_features(2, 4, 5, 7)
    found, expected = (
        Target(layer="high").compute(output_of(f), LABELS, context(9))["cosines"] for f in (features_BChw * scale, features_BChw)
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("keeps", ["cosines", "nodes"])
def test_a_node_of_zeros_has_cosine_zero_and_no_gradient(keeps):
    features_BChw = random_features(2, 4, 5, 7)
    features_BChw[0] = 0
    features_BChw[1, :, :3, :3] = 0
    features_BChw.requires_grad_()
    target = Target(layer="high", keeps=keeps)
    values = target.compute(output_of(features_BChw), LABELS, context())
    cosines_BNN = target.stored_graph(values, context())
    assert (cosines_BNN[0] == 0).all() and (cosines_BNN[1, 0] == 0).all() and (cosines_BNN[1, 1:, 1:].abs() > 0).any()
    sum((value**2 + value).sum() for value in values.values()).backward()
    slopes = features_BChw.grad
    assert slopes.isfinite().all() and (slopes[1] != 0).any()
    assert (slopes[0] == 0).all() and (slopes[1, :, :1, :1] == 0).all()


def test_equal_nodes_have_cosine_one_and_a_finite_gradient():
    features_BChw = torch.ones(2, 4, 5, 7, requires_grad=True)
    cosines = Target(layer="high").compute(output_of(features_BChw), LABELS, context(9))["cosines"]
    cosines.sum().backward()
    np.testing.assert_allclose(cosines.detach(), 1, atol=1e-6)
    assert features_BChw.grad.abs().max() < 1e-5


def test_what_makes_no_pairs_is_refused():
    with pytest.raises(ConfigError, match="pairwise.nodes: 1 x 1 is one node"):
        Target(layer="high", patch=8).fields(context())
    with pytest.raises(ConfigError, match="pairwise: patch 0"):
        Target(layer="high", patch=0)
    with pytest.raises(ConfigError, match="nodes \\(0, 2\\)"):
        Target(layer="high", nodes=(0, 2))
    with pytest.raises(ConfigError, match="pairwise.layer.*'top'"):
        Target(layer="top").fields(context())
    with pytest.raises(OverflowError, match="not finite"):
        target = Target(layer="high")
        target.encode(target.compute(output_of(torch.full((1, 4, 5, 7), math.nan)), LABELS, context()))


def test_short_last_nodes_are_those_of_the_teachers_cells_on_either_grid():
    """A student of twice as many cells a side has the teacher's nodes when each of its cells is the teacher's."""
    target, teacher_BChw = Target(layer="high", short_last=True), random_features(2, 4, 5, 7)
    finer_BChw = teacher_BChw.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    found = [target.graph(features_BChw, context()) for features_BChw in (teacher_BChw, finer_BChw)]
    assert found[0].shape == (2, 12, 12)
    torch.testing.assert_close(*found)


def test_a_short_last_node_and_a_count_of_nodes_exclude_each_other():
    with pytest.raises(ConfigError, match="pairwise.short_last: it counts in patches"):
        Target(layer="high", nodes=(2, 2), short_last=True)


def test_records_of_before_short_last_stand():
    assert "short_last" not in Target(layer="high").record("pairwise")
    assert Target(layer="high", short_last=True).record("pairwise")["short_last"] is True
