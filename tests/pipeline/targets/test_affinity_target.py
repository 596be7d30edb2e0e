"""The affinity graph against slow float64 loops over pixels, cells and channels.

H W labels, h w a layer's grid, C channels, K regions.
"""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.models.base import Output
from pipeline.targets import affinity
from pipeline.targets.affinity import Target
from pipeline.targets.base import Context

REGIONS = (0, 1, 2, 4, 7)  # class 3 and 5 are no regions
ABSENT, ONE_CELL, WHOLE = 4, 3, 0


# The obvious version.


def slow_aoi(labels_HW, regions, kernel, grid):
    (H, W), (h, w), r = labels_HW.shape, grid, kernel // 2
    aoi_Khw = np.zeros((len(regions), h, w), bool)
    for k, label in enumerate(regions):
        dilated_HW = np.zeros((H, W), bool)
        for y in range(H):
            for x in range(W):
                dilated_HW[y, x] = (labels_HW[max(y - r, 0) : y + r + 1, max(x - r, 0) : x + r + 1] == label).any()
        for i in range(h):
            for j in range(w):
                rows = slice(i * H // h, math.ceil((i + 1) * H / h))
                columns = slice(j * W // w, math.ceil((j + 1) * W / w))
                aoi_Khw[k, i, j] = dilated_HW[rows, columns].any()
    return aoi_Khw


def slow_nodes(features_Chw, aoi_Khw, reading, eps, eps_scale):
    C, K = len(features_Chw), len(aoi_Khw)
    if eps_scale == "relative":
        eps = eps * np.mean([np.var(features_Chw[c]) for c in range(C)])
    nodes_3KC = np.zeros((3, K, C))
    for k in range(K):
        if not aoi_Khw[k].any():
            continue
        for c in range(C):
            if reading == "masked":
                values, count = features_Chw[c][aoi_Khw[k]], aoi_Khw[k].sum()
                mean = sum(values) / count
            else:
                values, count = (features_Chw[c] * aoi_Khw[k]).ravel(), aoi_Khw[k].sum()
                mean = sum(values) / count
            variance = sum((value - mean) ** 2 for value in values) / count
            third = sum((value - mean) ** 3 for value in values) / count
            nodes_3KC[:, k, c] = mean, variance, third / (variance + eps) ** (1.5 if reading == "masked" else 3)
    return nodes_3KC


def slow_graph(nodes_3KC):
    K = nodes_3KC.shape[1]
    graph_3KK = np.zeros((3, K, K))
    for r in range(3):
        for a in range(K):
            for b in range(K):
                length = np.linalg.norm(nodes_3KC[r, a]) * np.linalg.norm(nodes_3KC[r, b])
                graph_3KK[r, a, b] = nodes_3KC[r, a] @ nodes_3KC[r, b] / length if length > 0 else 0
    return graph_3KK


# Toy images: region 0 in every cell, 7 absent, 4 a single pixel, some ignored, 3 and 5 not in the graph.


def toy_labels(H=32, W=48):
    labels_HW = np.zeros((H, W), np.uint8)
    labels_HW[4:30, 10:13] = 1
    labels_HW[6:28, 24:40] = 2
    labels_HW[10:20, 30:34] = 3
    labels_HW[0:3, 0:9] = 255
    labels_HW[20, 4] = 4
    labels_HW[31, 40:] = 5
    labels_HW[7::8, 7::8] = 0  # a pixel of background in each cell
    return labels_HW


def toy_features(C=8, h=4, w=6, seed=0, offset=0.0):
    generator = np.random.default_rng(seed)
    features_Chw = np.maximum(generator.normal(size=(C, h, w)), 0).astype(np.float32) + np.float32(offset)
    features_Chw[2] = 0  # dead everywhere
    features_Chw[3, :, :2] = 0  # dead in some regions
    return features_Chw


def context(grid=(4, 6), size=(32, 48), regions=REGIONS):
    return Context(num_classes=8, regions=regions, size=size, grids={"mid": grid, "high": grid, "logits": grid})


def fast_aoi(labels_HW, regions, kernel, grid):
    packed = affinity.any_pixel(affinity.pack(one_image(labels_HW), regions), grid, margin=kernel // 2)
    return affinity.unpack(packed, len(regions))[0].numpy()


def one_image(array):
    return torch.from_numpy(array)[None]


def fast_nodes(features_Chw, aoi_Khw, *keys):
    return affinity.nodes(one_image(features_Chw), one_image(aoi_Khw), *keys)[0].numpy()


def graph_of(features_Chw, labels_HW, target=Target(layer="high"), seen_by=None):
    values = target.graph(one_image(features_Chw), one_image(labels_HW), seen_by or context())
    return {name: value[0].numpy() for name, value in values.items()}


# The AOI.


@pytest.mark.parametrize("kernel", [1, 3, 5, 9])
@pytest.mark.parametrize("grid", [(4, 6), (8, 12), (5, 7), (32, 48)])
def test_the_aoi_is_dilation_and_then_any_pixel(kernel, grid):
    labels_HW = toy_labels()
    expected_Khw = slow_aoi(labels_HW, REGIONS, kernel, grid)
    np.testing.assert_array_equal(fast_aoi(labels_HW, REGIONS, kernel, grid), expected_Khw)


@pytest.mark.parametrize("kernel", [1, 5, 7])
def test_at_a_whole_stride_the_aoi_is_one_max_pool_of_one_hot_labels(kernel):
    labels_HW = np.random.default_rng(1).choice(np.r_[np.arange(12), 255], size=(40, 56)).astype(np.uint8)
    labels_HW[:, 20:] = 0  # or every class is everywhere
    regions = tuple(range(11))  # two bytes of bits
    one_hot_1KHW = (torch.from_numpy(labels_HW) == torch.arange(11)[:, None, None]).float()[None]
    pooled_1Khw = F.max_pool2d(one_hot_1KHW, 8 + kernel - 1, 8, kernel // 2)
    np.testing.assert_array_equal(fast_aoi(labels_HW, regions, kernel, (5, 7)), pooled_1Khw[0].bool().numpy())


def test_a_finer_grid_repeats_the_teachers_aoi_and_a_coarser_one_takes_any_cell():
    labels_HW = toy_labels()
    teachers_Khw = slow_aoi(labels_HW, REGIONS, 5, (4, 6))
    finer = graph_of(toy_features(h=8, w=12), labels_HW)
    np.testing.assert_array_equal(finer["cells"], 4 * teachers_Khw.sum((1, 2)))
    own = graph_of(toy_features(h=8, w=12), labels_HW, Target(layer="high", aoi_grid="own"))
    np.testing.assert_array_equal(own["cells"], slow_aoi(labels_HW, REGIONS, 5, (8, 12)).sum((1, 2)))
    coarser = graph_of(toy_features(h=2, w=3), labels_HW)
    any_Khw = teachers_Khw.reshape(len(REGIONS), 2, 2, 3, 2).any((2, 4))
    np.testing.assert_array_equal(coarser["cells"], any_Khw.sum((1, 2)))


# Moments and graph.


@pytest.mark.parametrize("eps_scale", ["relative", "absolute"])
@pytest.mark.parametrize("reading", ["masked", "literal"])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_nodes_and_graph_equal_the_loops(reading, eps_scale, offset):
    target = Target(layer="high", reading=reading, eps_scale=eps_scale, aoi_kernel=1)
    labels_HW, features_Chw = toy_labels(), toy_features(offset=offset)
    aoi_Khw = slow_aoi(labels_HW, REGIONS, 1, (4, 6))
    assert not aoi_Khw[ABSENT].any() and aoi_Khw[ONE_CELL].sum() == 1 and aoi_Khw[WHOLE].all()
    slow_3KC = slow_nodes(features_Chw.astype(float), aoi_Khw, reading, target.eps, eps_scale)
    fast_3KC = fast_nodes(features_Chw, aoi_Khw, reading, target.eps, eps_scale)

    unit = np.sqrt(np.mean([np.var(channel) for channel in features_Chw.astype(float)]))
    powers = (1, 2, 0 if reading == "masked" else -3)
    for r in range(3):
        slow_KC = slow_3KC[r] / unit ** powers[r]
        np.testing.assert_allclose(fast_3KC[r], slow_KC, rtol=1e-5, atol=1e-6 * np.abs(slow_KC).max())

    found = graph_of(features_Chw, labels_HW, target)
    np.testing.assert_allclose(found["graph"], slow_graph(slow_3KC), atol=2e-6)
    np.testing.assert_array_equal(found["cells"], aoi_Khw.sum((1, 2)))
    assert found["graph"].dtype == np.float32


def test_a_graph_worked_by_hand():
    """Two regions of three cells, two channels. Means (1, 0) and (2, 1), variances (2, 0) and (2, 2), third central
    moments (2, 0) and (-2, 2) over equal deviations: cosines 2 / sqrt(5), 1 / sqrt(2), -1 / sqrt(2)."""
    features_Chw = np.float32([[[0, 0, 3, 0, 3, 3]], [[0, 0, 0, 0, 0, 3]]])
    labels_HW = np.uint8([[0, 0, 0, 1, 1, 1]])
    target = Target(layer="high", aoi_kernel=1, eps=1e-9)
    found = graph_of(features_Chw, labels_HW, target, context((1, 6), (1, 6), regions=(0, 1)))
    np.testing.assert_allclose(found["graph"][:, 0, 1], [2 / 5**0.5, 0.5**0.5, -(0.5**0.5)], atol=1e-7)
    np.testing.assert_allclose(found["graph"][:, [0, 1], [0, 1]], 1, atol=1e-7)
    np.testing.assert_array_equal(found["cells"], [3, 3])


def test_what_cannot_vary_has_no_affinity_instead_of_noise():
    graph_3KK = graph_of(toy_features(offset=100.3), toy_labels(), Target(layer="high", aoi_kernel=1))["graph"]
    assert (graph_3KK[:, ABSENT] == 0).all()
    assert (graph_3KK[1:, ONE_CELL] == 0).all() and graph_3KK[0, ONE_CELL, ONE_CELL] == pytest.approx(1)
    labels_HW = np.zeros((32, 48), np.uint8)
    labels_HW[8:16, 8:24] = 1  # two cells: a variance, but no skewness
    graph_3KK = graph_of(toy_features(offset=100.3), labels_HW, Target(layer="high", aoi_kernel=1))["graph"]
    assert graph_3KK[1, 0, 1] != 0 and (graph_3KK[2, 1] == 0).all()


@pytest.mark.parametrize("value", [0.0, 0.1, 7.3e4])
def test_a_constant_map_has_means_only(value):
    graph_3KK = graph_of(np.full((8, 4, 6), value, np.float32), toy_labels())["graph"]
    present = np.arange(len(REGIONS)) != ABSENT
    np.testing.assert_allclose(graph_3KK[0], np.outer(present, present) * (value > 0), atol=1e-6)
    assert (graph_3KK[1:] == 0).all()


def test_the_graph_forgets_the_scale_of_the_features():
    features_Chw, labels_HW = toy_features(), toy_labels()
    expected = graph_of(features_Chw, labels_HW)["graph"]
    for scale in (1e-8, 1e9):
        np.testing.assert_allclose(graph_of(features_Chw * np.float32(scale), labels_HW)["graph"], expected, atol=1e-6)


@pytest.mark.parametrize("ratio", [0, 30, 3000])
def test_moments_are_no_worse_than_two_passes_in_float32(ratio):
    generator = np.random.default_rng(2)
    features_Chw = generator.normal(size=(16, 20, 30)) * 0.1 + np.linspace(0, 5, 30)
    features_Chw = (features_Chw + ratio * generator.random((16, 1, 1))).astype(np.float32)
    aoi_Khw = np.zeros((3, 20, 30), bool)
    aoi_Khw[0] = aoi_Khw[1, 4:9, 3:7] = aoi_Khw[2, 2:4, 20:24] = True

    def two_passes(dtype):
        nodes_3KC = np.zeros((3, 3, 16), dtype)
        for k in range(3):
            values_CP = features_Chw[:, aoi_Khw[k]].astype(dtype)
            rest_CP = values_CP - values_CP.mean(axis=1, keepdims=True)
            variance_C, third_C = (rest_CP**2).mean(axis=1), (rest_CP**3).mean(axis=1)
            nodes_3KC[:, k] = values_CP.mean(axis=1), variance_C, third_C / (variance_C + dtype(1e-3)) ** dtype(1.5)
        return nodes_3KC.astype(float)

    exact = two_passes(np.float64)
    unit = np.sqrt(features_Chw.astype(float).var(axis=(1, 2)).mean())
    fast = fast_nodes(features_Chw, aoi_Khw, "masked", 1e-3, "absolute") * np.array([unit, unit**2, 1])[:, None, None]
    assert np.abs(fast - exact).max() < 1e-9 * max(1, ratio)
    assert np.abs(fast - exact).max() < np.abs(two_passes(np.float32) - exact).max()


def test_neither_autocast_nor_the_size_of_a_chunk_changes_the_graph(monkeypatch):
    features_BChw = torch.from_numpy(np.stack([toy_features(seed=seed) for seed in range(3)]))
    labels_BHW = torch.from_numpy(np.stack([toy_labels()] * 3))

    def graph_and_slope():
        leaf = features_BChw.clone().requires_grad_()
        graph = Target(layer="high").graph(leaf, labels_BHW, context())["graph"]
        graph.square().sum().backward()
        return graph.detach(), leaf.grad

    expected = graph_and_slope()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(graph_and_slope(), expected, rtol=0, atol=0)
    monkeypatch.setattr(affinity, "CHUNK", {"cpu": 1})
    torch.testing.assert_close(graph_and_slope(), expected)


def test_the_literal_reading_needs_an_eps_above_zero_and_any_will_do():
    features_Chw, labels_HW = toy_features(), toy_labels()
    with np.errstate(invalid="ignore"):
        assert np.isnan(slow_nodes(np.zeros((1, 4, 6)), np.ones((1, 4, 6), bool), "literal", 0.0, "absolute")[2]).all()
    for eps in (1e-2, 1e-12):
        target = Target(layer="high", reading="literal", eps=eps, eps_scale="absolute")
        leaf = one_image(features_Chw).requires_grad_()
        graph = target.graph(leaf, one_image(labels_HW), context())["graph"]
        graph.square().sum().backward()
        assert graph.isfinite().all() and leaf.grad.isfinite().all()
    with pytest.raises(ConfigError, match="affinity.eps: 0"):
        Target(layer="high", eps=0.0)


# Gradients.


@pytest.mark.parametrize("reading", ["masked", "literal"])
def test_gradients_equal_finite_differences(reading):
    features_BChw = torch.from_numpy(np.stack([toy_features(C=4, seed=seed) for seed in (0, 1)])).double() + 0.5
    aoi_BKhw = torch.from_numpy(np.stack([slow_aoi(toy_labels(), REGIONS, kernel, (4, 6)) for kernel in (1, 5)]))
    leaf = features_BChw.requires_grad_()
    # An absolute eps, since the gradient does not follow a relative one; nodes that vanish do so on both sides.
    keys = (reading, 1e-2, "absolute")
    assert torch.autograd.gradcheck(lambda x: affinity.cosines(affinity.nodes(x, aoi_BKhw, *keys)), leaf)


def test_a_relative_eps_is_a_constant_to_the_gradient():
    features_1Chw, labels_1HW = one_image(toy_features()), one_image(toy_labels())
    variance = features_1Chw[0].double().var(dim=(1, 2), correction=0).mean().item()
    slopes = []
    for eps, eps_scale in ((0.02, "relative"), (0.02 * variance, "absolute")):
        leaf = features_1Chw.clone().requires_grad_()
        target = Target(layer="high", eps=eps, eps_scale=eps_scale)
        target.graph(leaf, labels_1HW, context())["graph"].square().sum().backward()
        slopes.append(leaf.grad)
    assert slopes[0].abs().max() > 0
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("reading", ["masked", "literal"])
@pytest.mark.parametrize("image", ["zero", "constant", "dead channels", "nothing labelled"])
def test_gradients_are_finite_where_nodes_vanish(image, reading):
    constant = {"zero": 0.0, "constant": 0.3}
    features_Chw = np.full((8, 4, 6), constant[image], np.float32) if image in constant else toy_features()
    labels_HW = np.full((32, 48), 255, np.uint8) if image == "nothing labelled" else toy_labels()
    leaf = one_image(features_Chw).requires_grad_()
    graph = Target(layer="high", reading=reading).graph(leaf, one_image(labels_HW), context())["graph"]
    (graph - 0.5).square().sum().backward()
    assert leaf.grad.isfinite().all()
    assert (leaf.grad == 0).all() == (image in ("zero", "nothing labelled"))


# Whose regions.


def test_regions_can_come_from_the_teachers_prediction_which_the_student_then_uses():
    predicted_hw = torch.zeros(4, 6, dtype=torch.uint8)
    predicted_hw[1:3, 2:4] = 2
    logits = F.one_hot(predicted_hw.long(), 8).permute(2, 0, 1).float()[None]
    features_1Chw = one_image(toy_features())
    unlabelled, labelled = torch.full((1, 32, 48), 255, dtype=torch.uint8), one_image(toy_labels())
    as_labels = predicted_hw.repeat_interleave(8, 0).repeat_interleave(8, 1)[None]

    plain = Target(layer="high")
    teachers = Target(layer="high", regions="teacher")
    values = teachers.compute(Output(logits, {"high": features_1Chw}), labelled, context())
    assert torch.equal(values["prediction"][0], predicted_hw)
    assert torch.equal(values["graph"], plain.graph(features_1Chw, as_labels, context())["graph"])
    assert torch.equal(teachers.seen(labelled, **values), as_labels)
    assert not teachers.uses_labels and plain.uses_labels

    both = Target(layer="high", regions="both")
    seen = both.seen(torch.cat((labelled, unlabelled)), prediction=predicted_hw.expand(2, 4, 6))
    assert torch.equal(seen, torch.cat((labelled, as_labels)))


def test_features_that_are_not_finite_are_refused():
    features_Chw = toy_features()
    features_Chw[1, 2, 3] = np.nan
    values = Target(layer="high").graph(one_image(features_Chw), one_image(toy_labels()), context())
    with pytest.raises(OverflowError, match="not finite"):
        Target(layer="high").encode(values)


def test_an_unknown_layer_and_an_even_kernel_name_the_key():
    with pytest.raises(ConfigError, match="affinity.layer.*'top'.*mid, high"):
        Target(layer="top").fields(context())
    with pytest.raises(ConfigError, match="affinity.aoi_kernel: 4"):
        Target(layer="high", aoi_kernel=4)
