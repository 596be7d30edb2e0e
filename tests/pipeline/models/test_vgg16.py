import pytest
import torch
from torch import nn

from pipeline import weights
from pipeline.lookup import find_class
from pipeline.models._messages import Messages
from pipeline.models.base import shapes
from pipeline.models.vgg16 import Model

ADDED = {"down": (1, 0), "up": (-1, 0), "right": (0, 1), "left": (0, -1)}


def slow_messages(module, map_Chw):
    """Cell by cell: each hears from the nine cells around its place in the slice before its own, as they are by then."""
    C, h, w = map_Chw.shape
    for name, (rows, columns) in ADDED.items():
        kernel_CC9 = getattr(module, name).detach().double().flatten(2)
        result = map_Chw.clone()
        order = sorted(((y, x) for y in range(h) for x in range(w)), key=lambda cell: cell[0] if rows else cell[1])
        for y, x in order if rows + columns > 0 else order[::-1]:
            if not (0 <= y - rows < h and 0 <= x - columns < w):
                continue
            heard = torch.zeros(C, dtype=torch.float64)
            for offset in range(-4, 5):
                cell_y, cell_x = (y - rows, x + offset) if rows else (y + offset, x - columns)
                if 0 <= cell_y < h and 0 <= cell_x < w:
                    heard += kernel_CC9[:, :, offset + 4] @ result[:, cell_y, cell_x]
            result[:, y, x] += heard.clamp(min=0)
        map_Chw = result
    return map_Chw


def test_messages_are_those_of_a_slow_loop_over_cells():
    torch.manual_seed(0)
    module, map_BChw = Messages(6).double(), torch.randn(2, 6, 7, 11, dtype=torch.float64)
    with torch.no_grad():
        found = module(map_BChw)
        for image in range(2):
            torch.testing.assert_close(found[image], slow_messages(module, map_BChw[image]), rtol=1e-12, atol=1e-12)
    assert (found - map_BChw).abs().max() > 0.1


def test_a_message_reaches_the_far_corner_and_the_first_slice_stays():
    torch.manual_seed(0)
    module = Messages(4)
    map_BChw = torch.rand(1, 4, 20, 30, requires_grad=True)
    module(map_BChw)[0, :, 0, 0].sum().backward()
    assert (map_BChw.grad[0, :, -1, -1] != 0).any()
    with torch.no_grad():
        nn.init.zeros_(module.up), nn.init.zeros_(module.left), nn.init.zeros_(module.right)
        assert torch.equal(module(map_BChw)[:, :, 0], map_BChw[:, :, 0])


def test_even_a_tall_map_does_not_blow_up_at_first():
    torch.manual_seed(0)
    map_BChw = torch.randn(1, 128, 36, 100).relu()
    with torch.no_grad():
        assert Messages(128)(map_BChw).std() < 10 * map_BChw.std()


def torchvisions(widths=(64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)):
    """vgg16_bn's `features` as torchvision lists them."""
    layers, channels = [], 3
    for width in widths:
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


def test_an_imagenet_checkpoint_of_torchvisions_names_fits(tmp_path):
    with torch.device("meta"):
        state = {f"features.{name}": torch.zeros_like(tensor, device="cpu") for name, tensor in torchvisions().state_dict().items()}
    state["classifier.0.weight"] = torch.zeros(2, 2)
    state["features.40.weight"].fill_(3)
    torch.save(state, tmp_path / "vgg16_bn.pth")
    network = Model(5, size=(32, 64))
    weights.load_backbone(network, tmp_path / "vgg16_bn.pth")
    assert (network.features[40].weight == 3).all()


def test_until_its_fourth_pooling_it_is_the_strided_network():
    torch.manual_seed(0)
    network = Model(5, size=(32, 64), width=4).eval()
    strided = torchvisions((4, 4, 0, 8, 8, 0, 16, 16, 16, 0, 32, 32, 32, 0, 32, 32, 32, 0)).eval()
    strided.load_state_dict(network.features.state_dict())
    shown = torch.rand(1, 3, 32, 64) * 255
    with torch.no_grad():
        torch.testing.assert_close(network(shown).features["mid"], strided[:33](network.normalise(shown)))


@pytest.mark.parametrize(
    "name, keywords, expected",
    [
        ("vgg16", {"size": (208, 976), "lanes": 4}, 20_673_737),
        ("vgg16", {"size": (288, 800), "lanes": 4}, 20_742_217),
        ("vgg16", {"size": (288, 800), "head": "plain"}, 20_165_573 - 589_824),
        ("resnet101", {"size": (208, 976), "head": "scnn"}, 42_500_160 + 2048 * 128 + 256 + 589_824 + 645),
    ],
)
def test_parameters_are_as_many_as_the_layers_add_up_to(name, keywords, expected):
    with torch.device("meta"):
        network = find_class("models", name)(5, **keywords)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


@pytest.mark.parametrize("name, keywords", [("vgg16", {}), ("resnet18", {"head": "scnn"}), ("resnet50", {"head": "scnn"})])
def test_messages_stand_on_both_backbones_at_stride_8(name, keywords):
    output = shapes(lambda: find_class("models", name)(5, size=(96, 160), lanes=4, width=8, **keywords), (96, 160))
    assert output.logits.shape == (1, 5, 12, 20) and output.existence.shape == (1, 4)
