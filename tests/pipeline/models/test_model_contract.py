"""Every network in pipeline/models keeps the contract of base.py. Networks are narrow and images small: seconds."""

import inspect

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.lookup import find_class, names
from pipeline.models.base import IMAGENET_MEAN, IMAGENET_STD, shapes

SIZE = (64, 96)
CLASSES = 5
LANES = 4

# One number for each output of version 1, on weights and images made by a formula. A change here means that old weights
# give other answers: bump the network's `version`, and every cache made from it is refused.
GOLDEN = {
    "adapter": (1, {"logits": 0.0876214224, "existence": -0.770995255, "mid": -0.0802757606, "high": -0.0395787482}),
    "enet": (1, {"logits": 0.282581043, "existence": -0.0757569009, "mid": 0.14550908, "high": 0.233829963}),
    "ensemble": (1, {"logits": -0.2917519281, "existence": -0.6966536288, "mid": -0.4001252751, "high": 0.1528500096}),
    "erfnet": (1, {"logits": -0.180704016, "existence": -0.553513083, "mid": 0.12496687, "high": 0.197783764}),
    "lgad": (1, {"logits": -0.181265882, "existence": -0.551431117, "mid": 0.0970091727, "high": 0.197434669}),
    "resnet101": (1, {"logits": 0.186433582, "existence": -0.546668361, "mid": -0.193562532, "high": -0.402562428}),
    "resnet18": (1, {"logits": 0.149994749, "existence": -0.353880908, "mid": -0.0228723349, "high": -0.477553403}),
    "resnet34": (1, {"logits": 0.1756453999, "existence": -0.4590407679, "mid": 0.1556021021, "high": -0.5892073869}),
    "unet_resnet34": (1, {"logits": -0.4467452055, "existence": -0.3751577256, "mid": 0.1556021021, "high": 0.07697900133}),
    "wide_resnet38": (1, {"logits": 0.09734776781, "existence": -0.2025673918, "mid": -0.0533934392, "high": -0.513730105}),
    "vgg16": (1, {"logits": 0.100228166, "existence": -0.304560131, "mid": -0.56711601, "high": -1.32233804}),
    "resnet50": (1, {"logits": 0.0628711927, "existence": -0.492878846, "mid": -0.193562532, "high": -1.1338338}),
}

ADAPTED = dict(
    factory="toy_networks:plain",
    arguments={"width": 16},
    layers={"mid": "early", "high": "late"},
    logits="output:out",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)


def narrow(name, **keywords):
    model = find_class("models", name)
    if name == "adapter":
        return model(CLASSES, **{"size": SIZE, "lanes": LANES, **ADAPTED} | keywords)
    if name == "ensemble":
        return model(CLASSES, **{"size": SIZE, "lanes": LANES, "network": {"name": "erfnet", "width": 4}, "members": 2} | keywords)
    width = inspect.signature(model).parameters["width"].default // (16 if name == "wide_resnet38" else 4)
    return model(CLASSES, **{"size": SIZE, "lanes": LANES, "width": width} | keywords)


def images(batch, seed=0):
    return torch.rand(batch, 3, *SIZE, generator=torch.Generator().manual_seed(seed)) * 255


def labels(batch):
    return torch.randint(0, CLASSES, (batch, *SIZE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def outputs(output):
    return {"logits": output.logits, "existence": output.existence, **output.features}


def warmed(name):
    """A network in eval mode whose batch norms have seen some images."""
    torch.manual_seed(0)
    network = narrow(name).train()
    with torch.no_grad():
        for seed in range(20):
            network(images(4, seed), labels(4))
    return network.eval()


def spread(count, start=0):
    """`count` numbers in -1..1 by integer arithmetic, the same on every machine."""
    places = torch.arange(start, start + count, dtype=torch.int64)
    return ((places * places * 40503 + places * 2654435761) % 2**32).double() / 2**31 - 1


every_network = pytest.mark.parametrize("name", names("models"))


@every_network
def test_a_network_names_its_layers_and_gives_them_as_features(name):
    network = narrow(name).eval()
    assert set(network.layers) == {"mid", "high"}
    seen = {}
    for role, layer in network.layers.items():
        module = network.get_submodule(layer)
        module.register_forward_hook(lambda _, __, out, role=role: seen.update({role: out.clone()}))
    with torch.no_grad():
        output = network(images(1), labels(1))
    assert set(output.features) == {"mid", "high"}
    for role in seen:
        assert torch.equal(output.features[role], seen[role]), f"{role} was changed after its layer"
        assert output.features[role].dim() == 4


@every_network
def test_shapes_without_arithmetic_are_the_shapes_of_a_real_pass(name):
    expected = outputs(shapes(lambda: narrow(name), SIZE))
    with torch.no_grad():
        real = outputs(narrow(name).eval()(images(1), labels(1)))
    assert {key: value.shape for key, value in real.items()} == {key: value.shape for key, value in expected.items()}
    assert real["logits"].shape[:2] == (1, CLASSES)
    assert real["existence"].shape == (1, LANES)


@every_network
def test_without_lanes_there_is_no_existence(name):
    assert shapes(lambda: narrow(name, lanes=0), SIZE).existence is None


@every_network
def test_gradients_are_finite_and_reach_every_parameter(name):
    torch.manual_seed(0)
    network = narrow(name).train()
    sum(value.float().square().mean() for value in outputs(network(images(2), labels(2))).values()).backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        if not parameter_name.endswith("bias"):  # a bias before a batch norm has none
            assert parameter.grad.any(), parameter_name


@every_network
def test_an_image_alone_and_in_a_batch_gives_the_same(name):
    network, batch = warmed(name).double(), images(3, seed=7).double()
    with torch.no_grad():
        together = outputs(network(batch, labels(3)))
        for index in range(3):
            alone = outputs(network(batch[index : index + 1], labels(3)[index : index + 1]))
            for key, value in alone.items():
                torch.testing.assert_close(together[key][index], value[0], rtol=1e-9, atol=1e-9)


@every_network
def test_two_passes_give_the_same_bits_and_eval_has_no_dropout(name):
    network = warmed(name)
    with torch.no_grad():
        first, second = outputs(network(images(2), labels(2))), outputs(network(images(2), labels(2)))
    assert all(torch.equal(first[key], second[key]) for key in first)


@every_network
def test_channels_last_gives_the_same(name):
    network, batch = warmed(name).double(), images(2).double()
    with torch.no_grad():
        plain = outputs(network(batch, labels(2)))
        network.to(memory_format=torch.channels_last)
        last = outputs(network(batch.contiguous(memory_format=torch.channels_last), labels(2)))
    for key in plain:
        torch.testing.assert_close(last[key], plain[key], rtol=1e-9, atol=1e-9)


@every_network
def test_bfloat16_autocast_runs_in_bfloat16(name):
    network = warmed(name)
    with torch.no_grad():
        exact = outputs(network(images(2), labels(2)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = outputs(network(images(2), labels(2)))
    assert {value.dtype for value in rounded.values()} == {torch.bfloat16}
    assert all(value.isfinite().all() for value in rounded.values())
    error = (rounded["mid"].float() - exact["mid"]).norm() / exact["mid"].norm()
    assert 0 < error < 0.1  # of mid alone: an untrained deep network magnifies rounding beyond it


@every_network
def test_images_are_normalised_inside(name):
    if name == "ensemble":
        pytest.skip("its members normalise, each as it was trained")
    network = warmed(name).double()
    batch = images(1).double()
    with torch.no_grad():
        expected = outputs(network(batch, labels(1)))
        network.mean.zero_(), network.std.fill_(1)
        mean = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
        std = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)
        by_hand = outputs(network((batch - mean) / std, labels(1)))
    for key in expected:
        torch.testing.assert_close(by_hand[key], expected[key])
    assert not {"mean", "std"} & network.state_dict().keys()


@every_network
@pytest.mark.parametrize("size, fits", [((505, 1692), "512 x 1696"), ((96, 100), "96 x 104")])
def test_an_input_that_is_no_multiple_is_refused_with_one_that_is(name, size, fits):
    with pytest.raises(ConfigError, match=f"{name}: input of {size[0]} x {size[1]}.*multiple of 8.*{fits}"):
        narrow(name, size=size)


@every_network
def test_outputs_are_those_of_this_version(name):
    network = narrow(name).double().eval()
    start = 0
    for parameter in network.parameters():
        values = spread(parameter.numel(), start).view_as(parameter)
        fan = parameter[0].numel() if parameter.dim() > 1 else 4
        parameter.data = values * fan**-0.5 + (1 if parameter.dim() == 1 else 0)
        start += parameter.numel()
    batch = (spread(2 * 3 * SIZE[0] * SIZE[1]).view(2, 3, *SIZE) + 1) * 127.5
    with torch.no_grad():
        found = outputs(network(batch, labels(2)))
    numbers = {key: float((value.flatten() @ spread(value.numel())) / value.norm()) for key, value in found.items()}
    version, expected = GOLDEN[name]
    assert version == network.version
    assert numbers == pytest.approx(expected, rel=1e-6, abs=1e-8)
