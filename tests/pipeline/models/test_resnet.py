"""Dilated residual networks: torchvision's names, published sizes, and the strided network as the slow version."""

import builtins

import pytest
import torch
import torch.nn.functional as F

from pipeline.errors import ConfigError
from pipeline.lookup import find_class, version_record
from pipeline.models._pyramid import Pyramid, averages
from pipeline.weights import load_backbone

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


def build(name, num_classes=5, **keywords):
    return find_class("models", name)(num_classes, **{"size": (96, 320)} | keywords)


def on_meta(*arguments, **keywords):
    with torch.device("meta"):
        return build(*arguments, **keywords)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def torchvision_shapes(depths, expansion):
    """Name -> shape of torchvision's ResNet without its classifier, from the layout of its names."""
    found = {}

    def convolution(name, out, inputs, kernel):
        found[f"{name}.weight"] = (out, inputs, kernel, kernel)

    def norm(name, channels):
        found.update({f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")})
        found[f"{name}.num_batches_tracked"] = ()

    convolution("conv1", 64, 3, 7)
    norm("bn1", 64)
    inputs = 64
    for stage, depth in enumerate(depths):
        planes = 64 * 2**stage
        out = planes * expansion
        for block in range(depth):
            prefix = f"layer{stage + 1}.{block}"
            kernels = (1, 3, 1) if expansion == 4 else (3, 3)
            channels = (inputs, planes, planes, out) if expansion == 4 else (inputs, planes, out)
            for index, kernel in enumerate(kernels):
                convolution(f"{prefix}.conv{index + 1}", channels[index + 1], channels[index], kernel)
                norm(f"{prefix}.bn{index + 1}", channels[index + 1])
            if block == 0 and (stage > 0 or expansion == 4):
                convolution(f"{prefix}.downsample.0", out, inputs, 1)
                norm(f"{prefix}.downsample.1", out)
            inputs = out
    return found


BASIC = ("resnet18", "resnet34")


def slow_resnet(state, x, strides, dilations, bottleneck, both=False):
    """Outputs of layer1..4 by torch's functions alone; `dilations` are (first block, others) of each layer. `both`: the second
    convolution of a basic block has the others' dilation."""

    def convolve(x, name, **keywords):
        return F.conv2d(x, state[f"{name}.weight"], **keywords)

    def norm(x, name):
        return F.batch_norm(x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    x = F.max_pool2d(F.relu(norm(convolve(x, "conv1", stride=2, padding=3), "bn1")), 3, 2, 1)
    layers = []
    for stage in range(4):
        block = 0
        while f"layer{stage + 1}.{block}.conv1.weight" in state:
            p = f"layer{stage + 1}.{block}"
            stride, dilation = (strides[stage], dilations[stage][0]) if block == 0 else (1, dilations[stage][1])
            wide = {"stride": stride, "padding": dilation, "dilation": dilation}
            if bottleneck:
                y = F.relu(norm(convolve(x, f"{p}.conv1"), f"{p}.bn1"))
                y = F.relu(norm(convolve(y, f"{p}.conv2", **wide), f"{p}.bn2"))
                y = norm(convolve(y, f"{p}.conv3"), f"{p}.bn3")
            else:
                y = F.relu(norm(convolve(x, f"{p}.conv1", **wide), f"{p}.bn1"))
                second = dilations[stage][1] if both else 1
                y = norm(convolve(y, f"{p}.conv2", padding=second, dilation=second), f"{p}.bn2")
            if f"{p}.downsample.0.weight" in state:
                x = norm(convolve(x, f"{p}.downsample.0", stride=stride), f"{p}.downsample.1")
            x = F.relu(x + y)
            block += 1
        layers.append(x)
    return layers


def unlike_a_fresh_one(network):
    """Batch norms with statistics and weights of their own, so that a forgotten or swapped one shows."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.3, 0.7)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.uniform_(-0.5, 0.5), module.running_var.uniform_(0.5, 2)
    return network.double().eval()


@pytest.mark.parametrize("name", DEPTHS)
def test_backbone_names_and_shapes_are_torchvisions(name):
    state = on_meta(name, lanes=4).state_dict()
    backbone = {key: tuple(value.shape) for key, value in state.items() if not key.startswith(("head.", "existence."))}
    assert backbone == torchvision_shapes(DEPTHS[name], expansion=1 if name in BASIC else 4)


def torchvisions(name):
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:  # its compiled part is for another build of torch
        pytest.skip(f"torchvision cannot be imported: {error}; install the build for torch {torch.__version__} (extra torchvision)")
    dilated = {} if name in BASIC else {"replace_stride_with_dilation": [False, True, True]}
    return getattr(torchvision.models, name)(weights=None, **dilated)


@pytest.mark.parametrize("fault", [ImportError("No module"), RuntimeError("operator torchvision::nms does not exist")])
def test_a_torchvision_that_cannot_be_imported_is_a_skip_with_its_reason(fault, monkeypatch):
    def broken(name, *args, whole=builtins.__import__, **more):
        if name == "torchvision":
            raise fault
        return whole(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(pytest.skip.Exception, match=f"{fault}; install the build for torch"):
        torchvisions("resnet18")


@pytest.mark.parametrize("name", DEPTHS)
def test_a_file_of_torchvisions_loads_and_gives_its_features(name, tmp_path):
    torch.manual_seed(0)
    theirs = unlike_a_fresh_one(torchvisions(name)).float()
    torch.save(theirs.state_dict(), tmp_path / "imagenet.pth")
    network, x, seen = build(name, dilation="torchvision").eval(), torch.randn(1, 3, 96, 320), {}
    load_backbone(network, tmp_path / "imagenet.pth")
    for layer in ("layer2", "layer4"):
        getattr(theirs, layer).register_forward_hook(lambda _, __, out, layer=layer: seen.update({layer: out}))
    with torch.no_grad():
        theirs(x)
        features = network(x * network.std + network.mean).features
    every = 4 if name in BASIC else 1  # torchvision dilates bottlenecks only; the others are strided
    torch.testing.assert_close(features["mid"], seen["layer2"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features["high"][..., ::every, ::every], seen["layer4"], rtol=1e-4, atol=1e-4)


def test_parameter_counts_are_the_published_ones():
    assert count(on_meta("resnet101", 37)) == pytest.approx(65.59e6, abs=5e3)
    assert count(on_meta("resnet101", 5)) == pytest.approx(65.58e6, abs=5e3)
    assert count(on_meta("resnet101", 5, size=(368, 640), lanes=4, head="fcn")) == 52_530_377
    assert count(on_meta("resnet18", 5, size=(288, 800), lanes=4)) == pytest.approx(11.82e6, abs=5e3)
    assert count(on_meta("resnet34", 5)) == pytest.approx(21.35e6, abs=5e3)


def test_features_and_logits_stand_at_stride_8():
    with torch.device("meta"):
        output = build("resnet101", size=(208, 976)).eval()(torch.empty(1, 3, 208, 976))
    assert output.features["mid"].shape == (1, 512, 26, 122)
    assert output.features["high"].shape == (1, 2048, 26, 122)
    assert output.logits.shape == (1, 5, 26, 122)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
@pytest.mark.parametrize(
    "dilation, dilations", [("paper", ((1, 1), (1, 1), (2, 2), (4, 4))), ("torchvision", ((1, 1), (1, 1), (1, 2), (2, 4)))]
)
def test_features_equal_a_slow_description(name, dilation, dilations):
    torch.manual_seed(0)
    network = unlike_a_fresh_one(build(name, width=8, dilation=dilation))
    x = torch.randn(2, 3, 72, 104, dtype=torch.float64)
    with torch.no_grad():
        features = network(x * network.std + network.mean).features
        slow = slow_resnet(
            network.state_dict(), x, (1, 2, 1, 1), dilations, bottleneck=name not in BASIC, both=dilation == "torchvision"
        )
    torch.testing.assert_close(features["mid"], slow[1])
    torch.testing.assert_close(features["high"], slow[3])


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_torchvisions_dilation_is_the_strided_network_read_at_every_position(name):
    torch.manual_seed(0)
    network = unlike_a_fresh_one(build(name, width=8, dilation="torchvision"))
    strided = unlike_a_fresh_one(build(name, width=8, dilation="torchvision"))
    strided.load_state_dict(network.state_dict())
    for module in (part for layer in ("layer3", "layer4") for part in getattr(strided, layer).modules()):
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            module.dilation = module.padding = (1, 1)
    for block in (strided.layer3[0], strided.layer4[0]):
        block.downsample[0].stride = (2, 2)
        (block.conv1 if name in BASIC else block.conv2).stride = (2, 2)
    x = torch.randn(1, 3, 72, 104, dtype=torch.float64)  # grids 9 x 13 and, strided, 3 x 4: odd sizes, borders
    with torch.no_grad():
        dense, coarse = (each(x * each.std + each.mean).features["high"] for each in (network, strided))
        by_hand = slow_resnet(network.state_dict(), x, (1, 2, 2, 2), ((1, 1),) * 4, bottleneck=name not in BASIC)[3]
    assert coarse.shape[2:] == (3, 4)  # at stride 32, the positions 0, 4, 8, ... of stride 8
    assert (dense[:, :, ::4, ::4] - coarse).norm() / coarse.norm() < 1e-6
    torch.testing.assert_close(coarse, by_hand)


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_torchvision_gives_the_same_strided_features(name):
    torch.manual_seed(0)
    theirs = unlike_a_fresh_one(torchvisions(name))
    ours = build(name, dilation="torchvision").double().eval()
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    assert not ours.load_state_dict(state, strict=False).unexpected_keys
    x = torch.randn(1, 3, 72, 104, dtype=torch.float64)
    with torch.no_grad():
        dense = ours(x * ours.std + ours.mean).features["high"]
        x = theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x)))))
        strided = theirs.layer4(theirs.layer3(theirs.layer2(x)))
    torch.testing.assert_close(dense[:, :, ::4, ::4], strided)


def test_a_new_meaning_of_one_option_leaves_the_identity_of_the_others():
    for name in DEPTHS:
        for dilation in ("paper", "torchvision"):
            raised = (name, dilation) == ("resnet18", "torchvision")
            assert find_class("models", name).version_of({"dilation": dilation}) == (2 if raised else 1)
            assert version_record(name, {"dilation": dilation}) == ({"network_version": 2} if raised else {})


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_torchvision_gives_the_same_features(name):
    torch.manual_seed(0)
    theirs = unlike_a_fresh_one(torchvisions(name))
    ours = build(name, dilation="torchvision").double().eval()
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    assert not ours.load_state_dict(state, strict=False).unexpected_keys
    x = torch.randn(1, 3, 48, 64, dtype=torch.float64)
    with torch.no_grad():
        features = ours(x * ours.std + ours.mean).features
        x = theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x)))))
        mid = theirs.layer2(x)
        high = theirs.layer4(theirs.layer3(mid))
    torch.testing.assert_close(features["mid"], mid)
    torch.testing.assert_close(features["high"], high)


@pytest.mark.parametrize("length, bins", [(40, 6), (7, 3), (4, 6), (5, 1), (12, 2)])
def test_pyramid_bins_are_adaptive_average_pooling(length, bins):
    values = torch.randn(2, 3, 5, length, dtype=torch.float64)
    torch.testing.assert_close(averages(values, bins), F.adaptive_avg_pool2d(values, (5, bins)))


def test_pyramid_equals_a_slow_description():
    torch.manual_seed(0)
    pyramid = unlike_a_fresh_one(Pyramid(16, 5))
    x = torch.randn(2, 16, 9, 14, dtype=torch.float64)

    def layer(parts, x, padding):
        convolution, norm = parts[0], parts[1]
        x = F.conv2d(x, convolution.weight, padding=padding)
        mean, var, weight, bias = (
            value.view(1, -1, 1, 1) for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)

    with torch.no_grad():
        maps = [x]
        for bins, branch in zip((1, 2, 3, 6), pyramid.branches):
            pooled = layer(branch, F.adaptive_avg_pool2d(x, bins), padding=0)
            assert pooled.shape == (2, 4, bins, bins)
            maps.append(F.interpolate(pooled, (9, 14), mode="bilinear", align_corners=False))
        merged = layer(pyramid.merge, torch.cat(maps, 1), padding=1)
        expected = torch.einsum("kc,bchw->bkhw", pyramid.classifier.weight[:, :, 0, 0], merged)
        expected = expected + pyramid.classifier.bias.view(1, -1, 1, 1)
        torch.testing.assert_close(pyramid(x), expected)


@pytest.mark.parametrize("head", ["pyramid", "fcn", "plain"])
def test_every_head_gives_logits_at_stride_8(head):
    assert on_meta("resnet50", 7, head=head)(torch.empty(2, 3, 96, 320, device="meta")).logits.shape == (2, 7, 12, 40)


@pytest.mark.parametrize("wrong", [{"head": "pyramids"}, {"dilation": "none"}])
def test_an_unknown_head_or_dilation_lists_those_on_offer(wrong):
    with pytest.raises(ConfigError, match="resnet50: 'pyramids' is not one of pyramid, fcn, plain|paper, torchvision"):
        on_meta("resnet50", **wrong)
