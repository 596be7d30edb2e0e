"""Weights as files: the same digest whatever the format, and one-line errors for what does not fit."""

import hashlib
import pickle

import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.models.erfnet import Model as ERFNet
from pipeline.models.resnet18 import Model as ResNet18
from pipeline.weights import digest, load_backbone, load_file, load_into, save_file


def state():
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(2, 3, 4, 5, generator=generator),
        "half": torch.randn(3, generator=generator).bfloat16(),
        "bn.num_batches_tracked": torch.tensor(7),
        "flag": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4),
    }


def network(seed=0, **keywords):
    torch.manual_seed(seed)
    return ResNet18(5, size=(32, 32), **{"width": 8} | keywords)


def imagenet(**keywords):
    """What torchvision's file holds: the backbone and a classifier."""
    state = network(seed=1, **keywords).state_dict()
    found = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    return found | {"fc.weight": torch.zeros(1000, 64), "fc.bias": torch.zeros(1000)}


def equal(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one)


def test_the_digest_is_the_documented_one():
    record = b"a\nfloat32\n[]\n" + bytes.fromhex("0000803f") + b"b\nint16\n[2]\n" + bytes.fromhex("01000201")
    found = digest({"b": torch.tensor([1, 258], dtype=torch.int16), "a": torch.tensor(1.0)})
    assert found == hashlib.sha256(record).hexdigest()


def test_the_digest_does_not_depend_on_order_layout_or_file_format(tmp_path):
    save_file(tmp_path / "a.safetensors", state())
    torch.save(state(), tmp_path / "b.pt")
    parallel = {f"module.{name}": value for name, value in state().items()}
    torch.save({"state_dict": parallel, "epoch": 3}, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    last = state() | {"conv.weight": state()["conv.weight"].contiguous(memory_format=torch.channels_last)}
    backwards = dict(reversed(state().items()))
    files = [load_file(tmp_path / name) for name in ("a.safetensors", "b.pt", "c.pth")]
    assert {digest(each) for each in (last, backwards, *files)} == {digest(state())}


@pytest.mark.parametrize("change", [
    {"half": torch.zeros(3).bfloat16()},
    {"half": state()["half"].float()},
    {"empty": torch.zeros(4, 0)},
    {"another": torch.zeros(1)},
    {"bn.num_batches_tracked": torch.tensor(8)},
])
def test_the_digest_depends_on_values_dtypes_shapes_and_names(change):
    assert digest(state() | change) != digest(state())


def test_a_saved_file_comes_back_and_equal_weights_are_equal_bytes(tmp_path):
    save_file(tmp_path / "a.safetensors", state())
    save_file(tmp_path / "b.safetensors", dict(reversed(state().items())))
    assert equal(load_file(tmp_path / "a.safetensors"), state())
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_file(path, state())

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError):
        save_file(path, {"other": torch.zeros(1)})
    assert equal(load_file(path), state())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("wrap", [dict, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_torch_files_are_read_bare_or_wrapped(tmp_path, wrap):
    torch.save(wrap(state()), tmp_path / "a.pth")
    assert equal(load_file(tmp_path / "a.pth"), state())


class Planted:
    def __reduce__(self):
        return open, ("planted", "w")


@pytest.mark.parametrize("name, write, words", [
    ("gone.pth", lambda path: None, "no such weights file"),
    ("code.pth", lambda path: path.write_bytes(pickle.dumps(Planted(), protocol=2)), "save the state dict alone"),
    ("module.pth", lambda path: torch.save(nn.Linear(2, 2), path), "save the state dict alone"),
    ("tensor.pth", lambda path: torch.save(torch.ones(2), path), "holds no state dict"),
    ("numbers.pth", lambda path: torch.save({"epoch": 3}, path), "holds no state dict"),
    ("empty.pth", lambda path: path.touch(), "cannot be read"),
    ("text.safetensors", lambda path: path.write_text("not weights"), "cannot be read"),
])
def test_what_is_not_weights_is_refused_in_one_line(tmp_path, monkeypatch, name, write, words):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name)
    with pytest.raises(ConfigError, match=words) as caught:
        load_file(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_torn_file_is_refused(tmp_path, name):
    path = tmp_path / name
    save_file(path, state()) if path.suffix == ".safetensors" else torch.save(state(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=name):
        load_file(path)


def test_weights_go_into_a_network_and_come_out_the_same(tmp_path):
    save_file(tmp_path / "a.safetensors", network(seed=1).state_dict())
    other = network(seed=0)
    assert digest(other.state_dict()) != digest(network(seed=1).state_dict())
    load_into(other, load_file(tmp_path / "a.safetensors"), tmp_path / "a.safetensors")
    assert digest(other.state_dict()) == digest(network(seed=1).state_dict())


def test_weights_that_do_not_fit_are_refused_with_the_first_names():
    found = network().state_dict()
    before = digest(found)
    wrong = {name: tensor for name, tensor in found.items() if not name.startswith("layer4.0.")}
    wrong |= {"surplus": torch.zeros(1), "conv1.weight": torch.zeros(64, 3, 7, 7)}
    target = network()
    with pytest.raises(ConfigError) as caught:
        load_into(target, wrong, "runs/7/last.safetensors")
    message = str(caught.value)
    assert message.startswith("runs/7/last.safetensors: does not fit the network: 18 missing (layer4.0.bn1.bias, ")
    assert "; 1 unexpected (surplus)" in message
    assert "; 1 misshaped (conv1.weight [64, 3, 7, 7] instead of [8, 3, 7, 7])" in message
    assert "\n" not in message and len(message) < 500
    assert digest(target.state_dict()) == before


@pytest.mark.parametrize("counters", [True, False])
def test_an_imagenet_file_fills_the_backbone_and_leaves_the_head(tmp_path, counters):
    file = {name: tensor for name, tensor in imagenet().items() if counters or not name.endswith("num_batches_tracked")}
    torch.save(file, tmp_path / "resnet18.pth")
    target, before = network(seed=0, lanes=4), network(seed=0, lanes=4).state_dict()
    load_backbone(target, tmp_path / "resnet18.pth")
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name] if name.startswith(("head.", "existence.")) else imagenet()[name]), name


def test_an_imagenet_file_must_have_the_whole_backbone_and_nothing_else(tmp_path):
    path = tmp_path / "a.pth"
    for change, words in [
        (lambda file: file.pop("layer3.1.bn2.running_var"), "1 missing .layer3.1.bn2.running_var."),
        (lambda file: file.update({"layer5.0.conv1.weight": torch.zeros(1)}), "1 unexpected .layer5.0.conv1.weight."),
        (lambda file: file.update(imagenet(width=16)), "misshaped .*leave the width at 64"),
    ]:
        file = imagenet()
        change(file)
        torch.save(file, path)
        with pytest.raises(ConfigError, match=words):
            load_backbone(network(), path)


def test_a_network_without_an_imagenet_backbone_says_so(tmp_path):
    torch.save(imagenet(), tmp_path / "a.pth")
    with pytest.raises(ConfigError, match="erfnet has no backbone"):
        load_backbone(ERFNet(5, size=(32, 32), width=4), tmp_path / "a.pth")
