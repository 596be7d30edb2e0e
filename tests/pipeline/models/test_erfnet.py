"""ERFNet: published sizes, and its blocks by loops over pixels."""

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.lookup import find_class
from pipeline.models.base import shapes
from pipeline.models.erfnet import Downsampler, NonBottleneck1D, Upsampler

Model = find_class("models", "erfnet")


def count(num_classes, **keywords):
    """Published counts include an unused 1x1 classifier of the encoder, 128 weights and a bias for each class."""
    with torch.device("meta"):
        network = Model(num_classes, **{"size": (208, 976)} | keywords)
    return sum(parameter.numel() for parameter in network.parameters()) + 129 * num_classes


def slow_convolution(x, weight, bias, stride=1, padding=(0, 0), dilation=(1, 1)):
    """x [C, H, W], weight [O, C, kh, kw]: one output pixel after the other."""
    out, _, kh, kw = weight.shape
    x = np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2))
    height = (x.shape[1] - dilation[0] * (kh - 1) - 1) // stride + 1
    width = (x.shape[2] - dilation[1] * (kw - 1) - 1) // stride + 1
    result = np.zeros((out, height, width))
    for i in range(height):
        for j in range(width):
            for u in range(kh):
                for v in range(kw):
                    pixel = x[:, i * stride + u * dilation[0], j * stride + v * dilation[1]]
                    result[:, i, j] += weight[:, :, u, v] @ pixel
    return result + bias[:, None, None]


def slow_norm(x, bn):
    mean, var, weight, bias = (
        value.detach().numpy()[:, None, None] for value in (bn.running_mean, bn.running_var, bn.weight, bn.bias)
    )
    return (x - mean) / np.sqrt(var + 1e-3) * weight + bias


def parts(convolution):
    return convolution.weight.detach().numpy(), convolution.bias.detach().numpy()


def block(module):
    """The module in float64 and eval mode, with batch norms unlike fresh ones."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.uniform_(-1, 1), part.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(part.weight, 0.5, 2), torch.nn.init.uniform_(part.bias, -1, 1)
    return module.double().eval()


def ran(module, x):
    with torch.no_grad():
        return module(torch.from_numpy(x)[None])[0].numpy()


def test_parameter_counts_are_the_published_ones():
    assert count(5) == pytest.approx(2.064e6, abs=500)
    assert count(37) == pytest.approx(2.070e6, abs=500)
    assert count(5, lanes=4, size=(208, 976)) == pytest.approx(2.609e6, abs=500)
    assert count(5, lanes=4, size=(288, 960)) == pytest.approx(2.793e6, abs=500)
    assert count(5, lanes=4, size=(288, 800)) == pytest.approx(2.678e6, abs=500)


@pytest.mark.parametrize("width", [16, 4])
def test_layers_stand_where_the_table_puts_them(width):
    output = shapes(lambda: Model(5, size=(208, 976), width=width), (208, 976))
    assert output.features["mid"].shape == (1, 4 * width, 52, 244)
    assert output.features["high"].shape == (1, 8 * width, 26, 122)
    assert output.logits.shape == (1, 5, 208, 976)


def test_dilations_and_dropout_are_those_of_the_table():
    with torch.device("meta"):
        network = Model(5, size=(96, 320), dropout=(0.03, 0.3))
    blocks = [part for part in network.modules() if isinstance(part, NonBottleneck1D)]
    assert [part.conv2_rows.dilation[0] for part in blocks] == [1] * 5 + [2, 4, 8, 16, 2, 4, 8, 16] + [1] * 4
    assert [part.dropout.p for part in blocks] == [0.03] * 5 + [0.3] * 8 + [0.0] * 4


@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_a_non_bottleneck_block_equals_loops_over_pixels(dilation):
    module, x = block(NonBottleneck1D(3, dilation, dropout=0.3)), np.random.default_rng(0).normal(size=(3, 7, 9))
    y = np.maximum(slow_convolution(x, *parts(module.conv1_rows), padding=(1, 0)), 0)
    y = np.maximum(slow_norm(slow_convolution(y, *parts(module.conv1_columns), padding=(0, 1)), module.bn1), 0)
    y = np.maximum(slow_convolution(y, *parts(module.conv2_rows), padding=(dilation, 0), dilation=(dilation, 1)), 0)
    y = slow_convolution(y, *parts(module.conv2_columns), padding=(0, dilation), dilation=(1, dilation))
    np.testing.assert_allclose(ran(module, x), np.maximum(slow_norm(y, module.bn2) + x, 0), atol=1e-12)


def test_a_downsampler_equals_loops_over_pixels():
    module, x = block(Downsampler(2, 5)), np.random.default_rng(0).normal(size=(2, 6, 8))
    pooled = x.reshape(2, 3, 2, 4, 2).max(axis=(2, 4))
    both = np.concatenate([slow_convolution(x, *parts(module.conv), stride=2, padding=(1, 1)), pooled])
    np.testing.assert_allclose(ran(module, x), np.maximum(slow_norm(both, module.bn), 0), atol=1e-12)


def test_an_upsampler_spreads_each_pixel_over_its_kernel():
    module, x = block(Upsampler(2, 3)), np.random.default_rng(0).normal(size=(2, 3, 4))
    weight, bias = parts(module[0])  # [in, out, 3, 3]
    spread = np.zeros((3, 8, 10))  # a border of 1 before and after
    for i in range(3):
        for j in range(4):
            spread[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += np.einsum("c,couv->ouv", x[:, i, j], weight)
    expected = slow_norm(spread[:, 1:7, 1:9] + bias[:, None, None], module[1])
    np.testing.assert_allclose(ran(module, x), np.maximum(expected, 0), atol=1e-12)


def test_first_weights_keep_the_size_of_the_signal():
    torch.manual_seed(0)
    network = Model(5, size=(96, 320)).train()
    with torch.no_grad():
        logits = network(torch.rand(4, 3, 96, 320) * 255).logits
    assert 0.3 < logits.std() < 3


def test_a_width_that_leaves_no_channels_is_refused():
    with pytest.raises(ConfigError, match="erfnet: width 3 .* 4 or more"):
        Model(5, size=(96, 320), width=3)


def test_a_transposed_convolution_starts_with_the_variance_of_the_inputs_it_sees():
    torch.manual_seed(0)
    network = Model(5, size=(96, 320))
    assert network.decoder[0][0].weight.std().item() == pytest.approx((2 / (128 * 9 / 4)) ** 0.5, rel=0.02)
    assert network.block3[1].conv1_rows.weight.std().item() == pytest.approx((2 / (128 * 3)) ** 0.5, rel=0.02)
