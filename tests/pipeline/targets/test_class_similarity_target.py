"""Similarity to the class's mean against loops, on its own and on a finer grid, and its corner cases."""

import math

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.models.base import Output
from pipeline.targets.base import Context
from pipeline.targets.class_similarity import Target, cell_labels

CONTEXT = Context(num_classes=4, regions=(1, 2), size=(24, 40), grids={"mid": (6, 10), "high": (3, 5), "logits": (3, 5)})


def labels(num_images=2):
    """Classes 0, 1 and 3; class 2 nowhere, a band ignored."""
    labels_BHW = torch.zeros(num_images, 24, 40, dtype=torch.uint8)
    labels_BHW[:, 8:, 16:], labels_BHW[:, :8, 24:], labels_BHW[:, :, :8] = 1, 3, 255
    return labels_BHW


def similarity(features_BChw, labels_BHW=None):
    labels_BHW = labels(len(features_BChw)) if labels_BHW is None else labels_BHW
    output = Output(torch.empty(0), {"high": features_BChw})
    return Target(layer="high").compute(output, labels_BHW, CONTEXT)["similarity"]


def random_features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def slow_similarity(features_Chw, labels_hw):
    _, h, w = features_Chw.shape
    found = np.zeros((h, w))
    for k in set(labels_hw.ravel()) - {255}:
        cells = [(i, j) for i, j in np.ndindex(h, w) if labels_hw[i, j] == k]
        mean = [sum(features_Chw[c][cell] for cell in cells) / len(cells) for c in range(len(features_Chw))]
        for cell in cells:
            found[cell] = slow_cosine(features_Chw[(slice(None), *cell)], mean)
    return found


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_similarity_equals_the_loops(scale):
    features_BChw = random_features(2, 7, 3, 5)
    labels_HW = labels()[0].numpy()
    labels_hw = np.array([[labels_HW[8 * i + 4, 8 * j + 4] for j in range(5)] for i in range(3)])
    expected = [slow_similarity(features_Chw, labels_hw) for features_Chw in features_BChw.double().numpy()]
    np.testing.assert_allclose(similarity(features_BChw * scale), expected, atol=1e-6)


def test_similarities_worked_by_hand():
    """Two cells of a class, (1, 0) and (0, 1): each is at 45 degrees to their mean. A third class has one cell."""
    context = Context(num_classes=2, regions=(0, 1), size=(1, 3), grids={"high": (1, 3), "logits": (1, 3)})
    output = Output(torch.empty(0), {"high": torch.tensor([[[[1.0, 0.0, 2.0]], [[0.0, 1.0, 3.0]]]])})
    found = Target(layer="high").compute(output, torch.tensor([[[0, 0, 1]]], dtype=torch.uint8), context)["similarity"]
    np.testing.assert_allclose(found, [[[0.5**0.5, 0.5**0.5, 1.0]]], atol=1e-7)


def test_a_finer_map_is_averaged_onto_the_teachers_grid_first():
    features_BChw = random_features(2, 7, 6, 10)
    expected = similarity(features_BChw.unflatten(3, (5, 2)).unflatten(2, (3, 2)).mean(dim=(3, 5)))
    np.testing.assert_allclose(similarity(features_BChw), expected, atol=1e-6)


def test_a_coarser_map_is_resized_bilinearly():
    features_BChw = random_features(2, 7, 2, 3)
    fine = torch.nn.functional.interpolate(features_BChw, (3, 5), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(similarity(features_BChw), similarity(fine), atol=1e-6)


def test_a_cell_takes_the_label_of_its_middle_pixel():
    labels_BHW = torch.arange(35).view(1, 5, 7).to(torch.uint8)
    assert cell_labels(labels_BHW, (5, 7)).equal(labels_BHW)
    assert cell_labels(labels_BHW, (1, 1)).item() == 2 * 7 + 3
    # Middles at rows 1.25 and 3.75, columns 1.17, 3.5 and 5.83.
    assert cell_labels(labels_BHW, (2, 3)).tolist() == [[[8, 10, 12], [22, 24, 26]]]
    even = torch.arange(16).view(1, 4, 4).to(torch.uint8)
    assert cell_labels(even, (2, 2)).tolist() == [[[5, 7], [13, 15]]]


def test_ignored_cells_are_zero_and_touch_nothing():
    features_BChw = random_features(1, 7, 3, 5)
    before = similarity(features_BChw)
    features_BChw[:, :, :, 0] = 1e6
    after = similarity(features_BChw)
    assert (after[:, :, 0] == 0).all()
    np.testing.assert_allclose(after, before, atol=1e-4)


@pytest.mark.parametrize("case, expected", [("constant", 1.0), ("zero", 0.0), ("one cell lives", None), ("nothing labelled", 0.0)])
def test_corner_cases_have_a_value_and_a_finite_gradient(case, expected):
    features_BChw, labels_BHW = random_features(1, 7, 3, 5), labels(1)
    if case == "constant":
        features_BChw[:] = torch.linspace(-1, 2, 7).view(7, 1, 1)
    elif case == "zero":
        features_BChw[:] = 0
    elif case == "one cell lives":
        features_BChw[:, :, 1:] = 0
        features_BChw[:, :, 0, :4] = 0
    else:
        labels_BHW[:] = 255
    features_BChw.requires_grad_()
    found = similarity(features_BChw, labels_BHW)
    (found**2 + found).sum().backward()
    assert features_BChw.grad.isfinite().all() and found.isfinite().all()
    if expected is not None:
        labelled = cell_labels(labels_BHW, (3, 5)) != 255
        np.testing.assert_allclose(found.detach()[labelled], expected, atol=1e-6)


def test_the_gradient_equals_differences_of_the_loops():
    features_BChw = random_features(1, 3, 3, 5).requires_grad_()
    labels_hw = cell_labels(labels(1), (3, 5))[0].numpy()
    weights_hw = np.random.default_rng(0).normal(size=(3, 5))
    (similarity(features_BChw)[0] * torch.from_numpy(weights_hw)).sum().backward()
    features_Chw, step = features_BChw.detach()[0].double().numpy(), 1e-6
    for place in np.ndindex(features_Chw.shape):
        nudge = np.zeros_like(features_Chw)
        nudge[place] = step
        above, below = ((slow_similarity(features_Chw + way * nudge, labels_hw) * weights_hw).sum() for way in (1, -1))
        assert features_BChw.grad[0][place].item() == pytest.approx((above - below) / (2 * step), abs=1e-5)


@pytest.mark.parametrize("dtype, error", [("float16", 2**-12), ("int8", 1 / 253)])
def test_what_is_stored_keeps_minus_one_zero_and_one_and_errs_by_half_a_step(dtype, error):
    target = Target(layer="high", dtype=dtype)
    values_Bhw = (torch.arange(-2000, 2001) / 2000).view(1, 1, -1)
    arrays = target.encode({"similarity": values_Bhw})
    decoded = target.decode({name: torch.from_numpy(array) for name, array in arrays.items()})
    errors = (decoded["similarity"] - values_Bhw).abs().ravel()
    assert errors[[0, 2000, 4000]].tolist() == [0, 0, 0] and 0.9 * error < errors.max() <= error


def test_similarities_that_are_not_finite_are_refused():
    with pytest.raises(OverflowError, match="'high': not finite"):
        Target(layer="high").encode({"similarity": similarity(torch.full((1, 7, 3, 5), math.nan))})


def test_an_unknown_layer_names_the_key():
    with pytest.raises(ConfigError, match="class_similarity.layer.*'logits'.*mid, high"):
        Target(layer="logits").fields(CONTEXT)
