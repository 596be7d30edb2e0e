"""Wide-ResNet-38 against a slow description of its blocks."""

import pytest
import torch
import torch.nn.functional as F
from test_resnet import count, on_meta, unlike_a_fresh_one

from pipeline.models.wide_resnet38 import BLOCKS, DILATIONS, STRIDES, Model


def test_the_trunk_has_the_published_size_and_names():
    network = on_meta("wide_resnet38", 5)
    assert count(network) - count(network.head) == 105_070_912
    names = {"mod1.conv1", "mod2.block3.convs.bn2.0", "mod4.block1.proj_conv", "mod7.block1.convs.conv3"}
    assert {f"{name}.weight" for name in names} < set(network.state_dict())


def test_features_and_logits_stand_at_stride_8():
    with torch.device("meta"):
        output = Model(5, size=(208, 976)).eval()(torch.empty(1, 3, 208, 976))
    assert output.features["mid"].shape == (1, 512, 26, 122) and output.features["high"].shape == (1, 4096, 26, 122)
    assert output.logits.shape == (1, 5, 26, 122)


def test_features_equal_a_slow_description():
    torch.manual_seed(0)
    network = unlike_a_fresh_one(Model(5, size=(48, 64), width=2))
    x, state = torch.randn(2, 3, 48, 64, dtype=torch.float64), network.state_dict()

    def normed(values, name):
        parts = (state[f"{name}.0.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(values, *parts))

    def convolved(values, name, stride, dilation):
        weight = state[f"{name}.weight"]
        wide = {"padding": dilation, "dilation": dilation} if weight.shape[-1] == 3 else {}
        return F.conv2d(values, weight, stride=stride, **wide)

    with torch.no_grad():
        output = network(x * network.std + network.mean)
        y = F.conv2d(x, state["mod1.conv1.weight"], padding=1)
        for group in range(6):
            if group < 2:
                y = F.max_pool2d(y, 3, 2, 1)
            for block in range(1, BLOCKS[group] + 1):
                p, stride = f"mod{group + 2}.block{block}", STRIDES[group] if block == 1 else 1
                z = normed(y, f"{p}.bn1")
                if f"{p}.proj_conv.weight" in state:
                    y = F.conv2d(z, state[f"{p}.proj_conv.weight"], stride=stride)
                z = convolved(z, f"{p}.convs.conv1", stride, DILATIONS[group])
                for number in (2, 3):
                    if f"{p}.convs.conv{number}.weight" in state:
                        z = convolved(normed(z, f"{p}.convs.bn{number}"), f"{p}.convs.conv{number}", 1, DILATIONS[group])
                y = y + z
            if group == 2:
                mid = y
        high = normed(y, "bn_out")
    torch.testing.assert_close(output.features["mid"], mid, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output.features["high"], high, rtol=1e-9, atol=1e-9)


def test_the_last_groups_drop_channels_while_training_only():
    network = Model(5, size=(48, 64), width=2)
    rates = [module.p for module in network.modules() if isinstance(module, torch.nn.Dropout2d)]
    assert rates == pytest.approx([0.3, 0.5])
