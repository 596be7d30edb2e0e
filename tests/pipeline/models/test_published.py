"""Weight files of other people's repositories: names, pixels and answers, against the networks written down a second time by
the published names."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline import config, weights
from pipeline.errors import ConfigError
from pipeline.lookup import find_class
from pipeline.models.erfnet import our_name
from pipeline.teacher import cache
from pipeline.weights import renamed

SIZE = (64, 96)
ERFNET, ENET = find_class("models", "erfnet"), find_class("models", "enet")


def images(size=SIZE):
    return torch.rand(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 255


class Weights(dict):
    """Random weights by name: what is asked for is made, so that a network written as functions makes its own state dict."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def get_or_make(self, name, *shape):
        if name not in self:
            fan = math.prod(shape[1:]) if len(shape) > 1 else 4
            self[name] = (torch.rand(shape, dtype=torch.float64, generator=self.generator) - 0.5) * 4 / fan**0.5
        return self[name]

    def convolve(self, x, name, out, kernel, bias=True, transposed=False, **keywords):
        shape = (x.shape[1], out, *kernel) if transposed else (out, x.shape[1], *kernel)
        weight = self.get_or_make(f"{name}.weight", *shape)
        bias = self.get_or_make(f"{name}.bias", out) if bias else None
        return (F.conv_transpose2d if transposed else F.conv2d)(x, weight, bias, **keywords)

    def norm(self, x, name, eps):
        mean, weight, bias = (self.get_or_make(f"{name}.{part}", x.shape[1]) for part in ("running_mean", "weight", "bias"))
        variance = (
            self.get_or_make(f"{name}.running_var", x.shape[1]).abs_().add_(0.5)
            if f"{name}.running_var" not in self
            else self[f"{name}.running_var"]
        )
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    def prelu(self, x, name):
        return F.prelu(x, self.get_or_make(f"{name}.weight", 1))

    def linear(self, x, name, out):
        return F.linear(x, self.get_or_make(f"{name}.weight", out, x.shape[1]), self.get_or_make(f"{name}.bias", out))


def slow_erfnet(w, x, classes, thin=16, lanes=0):
    """Logits, and existence probabilities where there are lanes, by the names of Eromera's and cardwing's repositories."""

    def down(x, name, out):
        both = torch.cat([w.convolve(x, f"{name}.conv", out - x.shape[1], (3, 3), stride=2, padding=1), F.max_pool2d(x, 2)], 1)
        return F.relu(w.norm(both, f"{name}.bn", 1e-3))

    def factorised(x, name, dilation):
        y = F.relu(w.convolve(x, f"{name}.conv3x1_1", x.shape[1], (3, 1), padding=(1, 0)))
        y = F.relu(w.norm(w.convolve(y, f"{name}.conv1x3_1", x.shape[1], (1, 3), padding=(0, 1)), f"{name}.bn1", 1e-3))
        y = F.relu(w.convolve(y, f"{name}.conv3x1_2", x.shape[1], (3, 1), padding=(dilation, 0), dilation=(dilation, 1)))
        y = w.convolve(y, f"{name}.conv1x3_2", x.shape[1], (1, 3), padding=(0, dilation), dilation=(1, dilation))
        return F.relu(w.norm(y, f"{name}.bn2", 1e-3) + x)

    def up(x, name, out):
        y = w.convolve(x, f"{name}.conv", out, (3, 3), transposed=True, stride=2, padding=1, output_padding=1)
        return F.relu(w.norm(y, f"{name}.bn", 1e-3))

    x = down(down(x, "encoder.initial_block", thin), "encoder.layers.0", 4 * thin)
    for i in range(1, 6):
        x = factorised(x, f"encoder.layers.{i}", 1)
    x = down(x, "encoder.layers.6", 8 * thin)
    for i, dilation in enumerate((2, 4, 8, 16) * 2):
        x = factorised(x, f"encoder.layers.{7 + i}", dilation)
    encoded = x
    w.convolve(x, "encoder.output_conv", classes, (1, 1))  # only its pre-training uses it
    for i, width in ((0, 4 * thin), (3, thin)):
        x = up(x, f"decoder.layers.{i}", width)
        for j in (1, 2):
            x = factorised(x, f"decoder.layers.{i + j}", 1)
    logits = w.convolve(x, "decoder.output_conv", classes, (2, 2), transposed=True, stride=2)
    if not lanes:
        return logits, None
    y = w.convolve(encoded, "lane_exist.layers.0", 2 * thin, (3, 3), bias=False, padding=4, dilation=4)
    y = w.convolve(F.relu(w.norm(y, "lane_exist.layers.1", 1e-3)), "lane_exist.layers_final.1", lanes + 1, (1, 1))
    y = w.linear(F.max_pool2d(y.softmax(1), 2).flatten(1), "lane_exist.linear1", 8 * thin)
    return logits, w.linear(F.relu(y), "lane_exist.linear2", lanes).sigmoid()


def slow_enet(w, x, classes):
    """Logits by the names of PyTorch-ENet."""

    def through(x, name, out, kernel, act, bn="1", first="0", transposed=False, **keywords):
        y = w.norm(
            w.convolve(x, f"{name}.{first}", out, kernel, bias=False, transposed=transposed, **keywords), f"{name}.{bn}", 1e-5
        )
        return act(y, f"{name}.{int(bn) + 1}")

    def relu(x, _):
        return F.relu(x)

    def bottleneck(x, name, act, dilation=1, asymmetric=False):
        y = through(x, f"{name}.ext_conv1", x.shape[1] // 4, (1, 1), act)
        if asymmetric:
            y = through(y, f"{name}.ext_conv2", y.shape[1], (5, 1), act, padding=(2, 0))
            y = through(y, f"{name}.ext_conv2", y.shape[1], (1, 5), act, first="3", bn="4", padding=(0, 2))
        else:
            y = through(y, f"{name}.ext_conv2", y.shape[1], (3, 3), act, padding=dilation, dilation=dilation)
        return act(x + through(y, f"{name}.ext_conv3", x.shape[1], (1, 1), act), f"{name}.out_activation")

    def down(x, name, out):
        pooled, places = F.max_pool2d(x, 2, return_indices=True)
        y = through(x, f"{name}.ext_conv1", x.shape[1] // 4, (2, 2), w.prelu, stride=2)
        y = through(y, f"{name}.ext_conv2", y.shape[1], (3, 3), w.prelu, padding=1)
        y = through(y, f"{name}.ext_conv3", out, (1, 1), w.prelu)
        none = torch.zeros(len(x), out - x.shape[1], *pooled.shape[2:], dtype=x.dtype)
        return w.prelu(torch.cat([pooled, none], 1) + y, f"{name}.out_activation"), places

    def up(x, name, out, places):
        main = w.norm(w.convolve(x, f"{name}.main_conv1.0", out, (1, 1), bias=False), f"{name}.main_conv1.1", 1e-5)
        y = through(x, f"{name}.ext_conv1", x.shape[1] // 4, (1, 1), relu)
        y = w.convolve(y, f"{name}.ext_tconv1", y.shape[1], (2, 2), bias=False, transposed=True, stride=2)
        y = F.relu(w.norm(y, f"{name}.ext_tconv1_bnorm", 1e-5))
        y = through(y, f"{name}.ext_conv2", out, (1, 1), lambda value, _: value)
        return F.relu(F.max_unpool2d(main, places, 2) + y)

    both = torch.cat(
        [
            w.convolve(x, "initial_block.main_branch", 13, (3, 3), bias=False, stride=2, padding=1),
            F.max_pool2d(x, 3, stride=2, padding=1),
        ],
        1,
    )
    x = w.prelu(w.norm(both, "initial_block.batch_norm", 1e-5), "initial_block.out_activation")
    x, places1 = down(x, "downsample1_0", 64)
    for i in range(1, 5):
        x = bottleneck(x, f"regular1_{i}", w.prelu)
    x, places2 = down(x, "downsample2_0", 128)
    kinds = (
        ("regular", 1),
        ("dilated", 2),
        ("asymmetric", 1),
        ("dilated", 4),
        ("regular", 1),
        ("dilated", 8),
        ("asymmetric", 1),
        ("dilated", 16),
    )
    for stage, first in ((2, 1), (3, 0)):
        for i, (kind, dilation) in enumerate(kinds):
            x = bottleneck(x, f"{kind}{stage}_{first + i}", w.prelu, dilation, kind == "asymmetric")
    x = up(x, "upsample4_0", 64, places2)
    for i in (1, 2):
        x = bottleneck(x, f"regular4_{i}", relu)
    x = bottleneck(up(x, "upsample5_0", 16, places1), "regular5_1", relu)
    return w.convolve(x, "transposed_conv", classes, (3, 3), bias=False, transposed=True, stride=2, padding=1, output_padding=1)


def saved(path, state):
    """As those repositories save: data parallel, beside an epoch, in the format before zip files, without batch counters."""
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "arch": "net", "state_dict": parallel}, path, _use_new_zipfile_serialization=False)
    return path


def loaded(network, path):
    weights.load_into(network.double(), weights.load_file(path), path)
    return network.eval()


def test_eromeras_file_answers_as_there(tmp_path):
    w, shown = Weights(), images()
    expected, _ = slow_erfnet(w, shown / 255, classes=7)
    network = loaded(ERFNET(7, size=SIZE, layout="eromera"), saved(tmp_path / "erfnet.pth.tar", w))
    with torch.no_grad():
        torch.testing.assert_close(network(shown).logits, expected, rtol=1e-9, atol=1e-9)


def test_cardwings_file_answers_as_there_existence_too(tmp_path):
    w, shown = Weights(), images((208, 976))[:1]
    mean = torch.tensor([103.939, 116.779, 123.68]).double().view(3, 1, 1)  # float32, as the network holds it
    expected, existence = slow_erfnet(w, shown.flip(1) - mean, classes=5, lanes=4)
    assert w["lane_exist.linear1.weight"].shape == (128, 3965)
    path = saved(tmp_path / "ERFNet.pth.tar", w)
    assert weights.has_existence(weights.load_file(path))
    network = loaded(ERFNET(5, size=(208, 976), lanes=4, layout="cardwing"), path)
    with torch.no_grad():
        found = network(shown)
    torch.testing.assert_close(found.logits, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.existence.sigmoid(), existence, rtol=1e-9, atol=1e-9)


def test_pytorch_enets_file_answers_as_there(tmp_path):
    w, shown = Weights(), images()
    expected = slow_enet(w, shown / 255, classes=7)
    network = loaded(ENET(7, size=SIZE, layout="pytorch_enet"), saved(tmp_path / "ENet", w))
    with torch.no_grad():
        torch.testing.assert_close(network(shown).logits, expected, rtol=1e-9, atol=1e-9)
    counted = {name for name in network.state_dict() if name.endswith("num_batches_tracked")}
    assert len(w) + len(counted) == len(network.state_dict()) == 622


def test_names_are_those_of_this_network_and_of_no_two_weights():
    w = Weights()
    slow_erfnet(w, torch.zeros(1, 3, 16, 16, dtype=torch.float64), classes=3)
    found = [our_name(name) for name in w]
    assert found.count(None) == 2 and len(set(found)) == len(found) - 1
    own = {name for name in ERFNET(3, size=(16, 16)).state_dict() if not name.endswith("num_batches_tracked")}
    assert set(found) - {None} == own


@pytest.mark.parametrize(
    "model, made, says",
    [
        (ERFNET, slow_erfnet, "`layout: eromera`, .*RGB / 255; or `layout: cardwing`, .*BGR"),
        (ENET, slow_enet, "`layout: pytorch_enet`, .*RGB / 255"),
    ],
)
def test_names_alone_do_not_tell_the_pixels_so_the_layout_must_be_said(tmp_path, model, made, says):
    w = Weights()
    made(w, torch.zeros(1, 3, 16, 16, dtype=torch.float64), 3)
    path = saved(tmp_path / "file.pth", w)
    with pytest.raises(ConfigError, match=f"file.pth: has the names of a published .*{says}.*`adapter`") as refused:
        weights.load_into(model(3, size=(16, 16)), weights.load_file(path), path)
    assert "\n" not in str(refused.value)
    own = model(3, size=(16, 16)).state_dict()
    assert renamed(model, own).keys() == own.keys()


def test_where_no_name_fits_the_message_says_adapter(tmp_path):
    state = {"backbone.stem.weight": torch.zeros(3)}
    with pytest.raises(ConfigError, match="not one name is the network's: use another code's network through `adapter`"):
        weights.load_into(ERFNET(3, size=(16, 16)), state, "file.pth")
    with pytest.raises(ConfigError, match="same width, head"):
        weights.load_into(ERFNET(3, size=(16, 16)), ERFNET(3, size=(16, 16), width=8).state_dict(), "file.pth")


def test_a_key_that_came_later_is_in_no_record_at_its_default():
    for name in ("erfnet", "enet"):
        assert "layout" not in config.plugin("models", name, {}).as_record()["args"]
        assert "layout" not in config.plugin("models", name, {"layout": "paper"}).as_record()["args"]
    assert config.plugin("models", "enet", {"layout": "pytorch_enet"}).args == {"width": 16, "layout": "pytorch_enet"}


def test_a_copied_file_of_another_layout_is_the_teachers_checkpoint_still(tmp_path):
    w = Weights()
    slow_enet(w, torch.zeros(1, 3, 16, 16, dtype=torch.float64), 3)
    single = {name: tensor.float() for name, tensor in w.items()}
    path = saved(tmp_path / "ENet", single)
    model = config.plugin("models", "enet", {"layout": "pytorch_enet"})
    network = model.build(num_classes=3, size=(16, 16), lanes=0)
    weights.load_into(network, weights.load_file(path), path)
    weights.save_file(tmp_path / "copy.safetensors", network.state_dict())
    teacher = config.Teacher(model=model, checkpoint=path, backbone=None, precision="fp32")
    assert cache.weights_digest(teacher, tmp_path / "copy.safetensors") == weights.digest(network.state_dict())


# CamVid's classes: sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist; which of Cityscapes' train
# ids, and of the void after them, are each of them
OF_CITYSCAPES = [(10,), (2, 3), (5,), (0,), (1,), (8, 9), (6, 7), (4,), (13, 14, 15, 16), (11,), (12, 17, 18)]


def test_a_real_file_of_pytorch_enet_knows_the_classes_of_camvid():
    for name in ("WEIGHTS_ROOT", "CAMVID_ROOT"):
        if name not in os.environ:
            pytest.skip(f"{name} names no folder")
    path = Path(os.environ["WEIGHTS_ROOT"]) / "enet_cityscapes.pth"
    source = find_class("datasets", "camvid")(root=os.environ["CAMVID_ROOT"])
    network = ENET(20, size=(360, 480), layout="pytorch_enet")
    state = weights.load_file(path)
    assert len(state) == 622
    weights.load_into(network, state, path)
    network.eval()
    counts, step = np.zeros((11, 11), int), int(os.environ.get("CAMVID_STEP", 8))
    for image_id in source.ids("test")[::step]:
        shown = torch.from_numpy(source.image(image_id)).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            logits = network(shown).logits[0]
        predicted = torch.stack([logits[list(few)].logsumexp(0) for few in OF_CITYSCAPES]).argmax(0).numpy()
        label = source.label(image_id)
        known = label < 11
        counts += np.bincount(label[known] * 11 + predicted[known], minlength=121).reshape(11, 11)
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    mean_iou = (counts.diagonal() / union).mean()
    print(f"mean IoU {mean_iou:.4f} on every {step}-th frame")
    assert mean_iou > 0.36  # 0.396 on all 233 frames
