"""Anchors against a slow version, and what makes a choice of cells a good one."""

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.models.base import Output
from pipeline.targets.anchors import NONE, Target, chosen, mixed
from pipeline.targets.base import Context
from pipeline.targets.class_similarity import cell_labels

SIZE, GRID = (48, 80), (6, 10)
CONTEXT = Context(num_classes=5, regions=(0, 1, 2, 3, 4), size=SIZE, grids={"high": GRID, "logits": GRID}, channels={"high": 12})


def shown(num_images=3, channels=12, grid=GRID, seed=0):
    """Features, and labels with a class that fills half, one of a single cell, and ignored rows."""
    generator = torch.Generator().manual_seed(seed)
    labels_BHW = torch.full((num_images, *SIZE), 2, dtype=torch.uint8)
    labels_BHW[:, :, 40:], labels_BHW[:, 16:24, 8:16], labels_BHW[:, :8] = 0, 3, 255
    labels_BHW[:, 40:, 64:] = 1
    labels_BHW[1:2, 32:40] = 4
    return Output(torch.empty(0), {"high": torch.randn(num_images, channels, *grid, generator=generator)}), labels_BHW


def test_embeddings_and_means_are_the_loops():
    output, labels_BHW = shown()
    values = Target(layer="high", count=20).compute(output, labels_BHW, CONTEXT)
    classes_BP = cell_labels(labels_BHW, GRID).flatten(1).numpy()
    for b, cells in enumerate(output.features["high"].flatten(2).double().numpy()):
        units = cells / np.linalg.norm(cells, axis=0)
        for n in range(20):
            place, label = int(values["place"][b, n]), int(values["label"][b, n])
            assert classes_BP[b, place] == label
            assert values["embedding"][b, n].numpy() == pytest.approx(units[:, place], abs=1e-6)
        for k in range(5):
            mine = units[:, classes_BP[b] == k]
            assert values["cells"][b, k] == mine.shape[1]
            expected = mine.mean(axis=1) if mine.size else np.zeros(12)
            assert values["mean"][b, k].numpy() == pytest.approx(expected, abs=1e-6)


def test_classes_are_balanced_as_far_as_they_have_cells():
    _, labels_BHW = shown()
    labels_BP = cell_labels(labels_BHW, GRID).flatten(1)
    for count in (3, 7, 20, 50):
        place_BN, label_BN = chosen(labels_BP, count, 5, seed=0)
        for b in range(3):
            there = torch.bincount(labels_BP[b][labels_BP[b] < 5].long(), minlength=5)
            taken = torch.bincount(label_BN[b].long(), minlength=5)[:5]
            assert taken.sum() == min(count, there.sum()) and len(set(place_BN[b].tolist())) == count
            short = taken < there  # a class with cells left has at most one less than any other
            assert not short.any() or taken[short].min() >= taken.max() - 1


def test_more_anchors_than_labelled_cells_are_padded():
    output, labels_BHW = shown()
    labels_BHW[0, :, 8:] = 255
    values = Target(layer="high", count=60).compute(output, labels_BHW, CONTEXT)
    missing = values["label"][0] == NONE
    assert missing.sum() == 60 - 5 and not missing[:5].any()
    assert not values["embedding"][0][missing].any() and not values["place"][0][missing].any()


def test_the_choice_follows_from_labels_and_seed_alone():
    output, labels_BHW = shown()
    other, _ = shown(channels=4, grid=(12, 20), seed=1)  # a student of other channels on another grid
    teacher = Target(layer="high", count=20).compute(output, labels_BHW, CONTEXT)
    student = Target(layer="high", count=20).compute(other, labels_BHW, CONTEXT)
    again = Target(layer="high", count=20, seed=1).compute(output, labels_BHW, CONTEXT)
    assert torch.equal(teacher["place"], student["place"]) and not torch.equal(teacher["place"], again["place"])
    assert not torch.equal(teacher["place"][0], teacher["place"][1])


def test_every_cell_of_a_class_is_chosen_equally_often():
    """Over a thousand images that differ in one ignored corner, a class's cells are drawn as by lot (chi-squared)."""
    labels_BP = torch.zeros(1000, 60, dtype=torch.uint8)
    labels_BP[:, 50:] = torch.arange(1000)[:, None] // 4 ** torch.arange(10) % 4 + 100  # beyond the classes: ignored
    place_BN, label_BN = chosen(labels_BP, 10, 5, seed=0)
    assert (label_BN == 0).all()
    counts = torch.bincount(place_BN.flatten(), minlength=60)[:50].double()
    assert counts.sum() == 10_000
    statistic = float(((counts - 200) ** 2 / (200 * 0.8)).sum())  # drawn without repetition: less spread
    assert 49 - 4 * 98**0.5 < statistic < 49 + 4 * 98**0.5


def test_the_hash_repeats_no_number():
    numbers = mixed(torch.arange(2**16) * 65_537 % 2**32)
    assert len(numbers.unique()) == 2**16 and numbers.min() >= 0 and numbers.max() < 2**32


def test_wide_layers_are_projected_and_cosines_kept():
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(1, 1024, *GRID, generator=generator) + 0.5
    context = Context(
        num_classes=5, regions=tuple(range(5)), size=SIZE, grids={"high": GRID, "logits": GRID}, channels={"high": 1024}
    )
    _, labels_BHW = shown(1)
    whole, narrow = (
        Target(layer="high", count=30, channels=channels).compute(Output(torch.empty(0), {"high": wide}), labels_BHW, context)
        for channels in (1024, 256)
    )
    assert narrow["embedding"].shape == (1, 30, 256)
    lengths = narrow["embedding"].norm(dim=2)
    assert lengths.numpy() == pytest.approx(np.ones((1, 30)), abs=1e-5)
    error = narrow["embedding"] @ narrow["embedding"].mT - whole["embedding"] @ whole["embedding"].mT
    assert error.abs().mean() < 0.06  # 1 / sqrt(256)


def test_impossible_keys_are_refused():
    for keys in ({"count": 0}, {"channels": 0}, {"seed": -1}):
        with pytest.raises(ConfigError, match="write 1 or more"):
            Target(layer="high", **keys)
