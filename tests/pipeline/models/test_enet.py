"""ENet: published sizes, the pattern of its stages, and unpooling against torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.lookup import find_class
from pipeline.models.base import shapes
from pipeline.models.enet import Bottleneck, Downsampler, unpool

Model = find_class("models", "enet")


def count(**keywords):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Model(5, **{"size": (288, 800)} | keywords).parameters())


def test_parameter_counts_are_the_published_ones():
    assert count() == pytest.approx(0.35e6, abs=5e3)
    assert count(lanes=4) == pytest.approx(0.96e6, abs=5e3)


def test_layers_stand_where_the_table_puts_them():
    output = shapes(lambda: Model(5, size=(208, 976)), (208, 976))
    assert output.features["mid"].shape == (1, 128, 26, 122)
    assert output.features["high"].shape == (1, 128, 26, 122)
    assert output.logits.shape == (1, 5, 208, 976)


def test_stages_2_and_3_repeat_the_published_pattern():
    with torch.device("meta"):
        network = Model(5, size=(96, 320))
    pattern = [((3, 3), 1), ((3, 3), 2), ((5, 1), 1), ((3, 3), 4), ((3, 3), 1), ((3, 3), 8), ((5, 1), 1), ((3, 3), 16)]
    for stage in (network.stage2, network.stage3):
        middles = [part.branch[1][0] for part in stage]
        assert [(middle.kernel_size, middle.dilation[0]) for middle in middles] == pattern
        assert stage[2].branch[1][1].kernel_size == (1, 5)
        assert {middle.in_channels for middle in middles} == {32}


def test_unpooling_equals_torchs():
    x = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    x[:, :, :4] = 0  # ties: the first of equal maxima counts
    pooled, places = F.max_pool2d(x, 2, return_indices=True)
    values = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(unpool(values, places), F.max_unpool2d(values, places, 2))


def test_a_downsampler_adds_its_branch_to_the_pooled_input_and_zeros():
    torch.manual_seed(0)
    down, x = Downsampler(4, 16, dropout=0.1).eval(), torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        found, _ = down(x)
        branch = down.branch(x)
        branch[:, :4] += x.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))
    torch.testing.assert_close(found, torch.where(branch > 0, branch, 0.25 * branch))


def test_a_bottleneck_reduces_filters_and_expands():
    torch.manual_seed(0)
    block = Bottleneck(16, activation=nn.ReLU).double().eval()
    x = torch.randn(1, 16, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        y = x
        for (convolution, norm, *_), padding, relu in zip(block.branch[:3], (0, 1, 0), (True, True, False)):
            y = F.conv2d(y, convolution.weight, padding=padding) / (1 + norm.eps) ** 0.5  # a fresh norm
            y = y.clamp(min=0) if relu else y
        torch.testing.assert_close(block(x), (x + y).clamp(min=0))
    assert block.branch[0][0].out_channels == 4
