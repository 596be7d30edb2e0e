"""Weights as files: the same digest whatever the format, and one-line errors for what does not fit."""

import hashlib
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.models.erfnet import Model as ERFNet
from pipeline.models.resnet18 import Model as ResNet18
from pipeline.weights import digest, load_backbone, load_file, load_into, save_file, seal


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
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


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


@pytest.mark.parametrize(
    "change",
    [
        {"half": torch.zeros(3).bfloat16()},
        {"half": state()["half"].float()},
        {"empty": torch.zeros(4, 0)},
        {"another": torch.zeros(1)},
        {"bn.num_batches_tracked": torch.tensor(8)},
    ],
)
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


@pytest.mark.parametrize(
    "name, write, words",
    [
        ("gone.pth", lambda path: None, "no such weights file"),
        ("code.pth", lambda path: path.write_bytes(pickle.dumps(Planted(), protocol=2)), "save the state dict alone"),
        ("module.pth", lambda path: torch.save(nn.Linear(2, 2), path), "save the state dict alone"),
        ("tensor.pth", lambda path: torch.save(torch.ones(2), path), "holds no state dict"),
        ("numbers.pth", lambda path: torch.save({"epoch": 3}, path), "holds no state dict"),
        ("empty.pth", lambda path: path.touch(), "cannot be read"),
        ("text.safetensors", lambda path: path.write_text("not weights"), "cannot be read"),
    ],
)
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


# Checkpoints as people have them


def told(path, **keywords):
    lines = []
    return load_file(path, lines.append, **keywords), lines


@pytest.mark.parametrize(
    "container, taken, others",
    [
        ({"model_state_dict": 1, "optimizer_state_dict": {"state": {}}, "epoch": 3}, "model_state_dict", []),
        ({"model": 1, "ema": 2}, "model", ["ema"]),
        ({"net": 1, "acc": 93.2}, "net", []),
        ({"network": 1}, "network", []),
        ({"ema": 1, "step": 7}, "ema", []),
        ({"state_dict_ema": 2, "state_dict": 1}, "state_dict", ["state_dict_ema"]),
        ({"checkpoint": None, "model": {"state_dict": 1}}, "model.state_dict", None),
        ({"model": 2, "optimiser": {"state": {}}, "mean": 1, "steps": 4}, "mean", ["model"]),
    ],
)
def test_the_weights_in_a_container_are_found_and_the_choice_is_said(tmp_path, container, taken, others):
    other = {name: torch.zeros_like(value) for name, value in state().items()}

    def filled(value):
        if isinstance(value, dict):
            return {key: filled(part) for key, part in value.items()}
        return {1: state(), 2: other}.get(value, value) if isinstance(value, int) and value in (1, 2) else value

    torch.save(filled(container), tmp_path / "a.pth")
    found, lines = told(tmp_path / "a.pth")
    assert equal(found, state())
    if others is not None:
        assert (
            len(lines) == 1 and f"takes the weights under {taken!r}" in lines[0] and all(f"'{name}'" in lines[0] for name in others)
        )


def test_the_usual_containers_are_taken_without_a_word(tmp_path):
    for container in (state(), {"state_dict": state(), "epoch": 3}, {"model": state()}):
        torch.save(container, tmp_path / "a.pth")
        assert told(tmp_path / "a.pth")[1] == []


def test_numbers_of_numpy_beside_the_weights_are_read_and_objects_are_not(tmp_path):
    numbers = {"best": np.float64(0.5), "epoch": np.int64(3), "flag": np.bool_(True), "curve": np.arange(3.0)}
    torch.save({"state_dict": state(), **numbers}, tmp_path / "a.pth")
    assert equal(load_file(tmp_path / "a.pth"), state())
    torch.save({"state_dict": state(), "objects": np.array([Planted()], dtype=object)}, tmp_path / "b.pth")
    with pytest.raises(ConfigError, match="save the state dict alone"):
        load_file(tmp_path / "b.pth")


@pytest.mark.parametrize("prefix", ["model.", "net.", "student.model.", "_orig_mod.", "module._orig_mod.", "model.module."])
def test_a_common_prefix_comes_off_and_is_said(tmp_path, prefix):
    theirs = network(seed=1).state_dict()
    beside = {} if "_orig_mod" in prefix else {"criterion.weight": torch.ones(5), "metric.total": torch.tensor(3)}
    torch.save({"state_dict": {prefix + name: value for name, value in theirs.items()} | beside}, tmp_path / "a.ckpt")
    mine, lines = network(seed=0), []
    load_into(mine, load_file(tmp_path / "a.ckpt"), "a.ckpt", lines.append)
    assert equal(mine.state_dict(), theirs)
    assert lines == [] if "_orig_mod" in prefix else (f"begin with {prefix!r}" in lines[0] and "criterion.weight" in lines[0])


def test_the_counter_of_an_averaged_model_is_left_out(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(network(seed=1))
    torch.save(averaged.state_dict(), tmp_path / "a.pth")
    mine = network(seed=0)
    load_into(mine, load_file(tmp_path / "a.pth"), "a.pth")
    assert equal(mine.state_dict(), network(seed=1).state_dict())


def test_two_networks_in_one_file_are_refused_by_name():
    theirs = network(seed=1).state_dict()
    both = {f"{who}.{name}": value for who in ("teacher", "student") for name, value in theirs.items()}
    with pytest.raises(ConfigError, match="a.pth: the network's weights stand there under 'student.' and under 'teacher.'"):
        load_into(network(), both, "a.pth")


def test_a_prefix_does_not_hide_what_is_missing():
    theirs = {f"model.{name}": value for name, value in network(seed=1).state_dict().items() if not name.startswith("layer4.0.")}
    with pytest.raises(ConfigError, match="does not fit the network: 18 missing .layer4.0.bn1.bias, "):
        load_into(network(), theirs, "a.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
def test_any_float_type_becomes_the_networks(tmp_path, dtype):
    theirs = network(seed=1)
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in theirs.state_dict().items()}
    torch.save(cast, tmp_path / "a.pth")
    mine, lines = network(), []
    load_into(mine, load_file(tmp_path / "a.pth"), "a.pth", lines.append)
    assert (
        equal(mine.state_dict(), {name: value.to(theirs.state_dict()[name].dtype) for name, value in cast.items()}) and lines == []
    )


def test_whole_numbers_are_taken_and_told():
    theirs = network(seed=1).state_dict()
    theirs["conv1.weight"] = torch.arange(theirs["conv1.weight"].numel()).view_as(theirs["conv1.weight"]).to(torch.int8)
    theirs["bn1.num_batches_tracked"] = torch.tensor(7.0)  # a counter that a tool has made a float
    mine, lines = network(), []
    load_into(mine, theirs, "a.pth", lines.append)
    assert torch.equal(mine.conv1.weight, theirs["conv1.weight"].float()) and mine.bn1.num_batches_tracked == 7
    assert len(lines) == 1 and "1 weights are whole numbers, int8 (conv1.weight)" in lines[0]


@pytest.mark.parametrize(
    "value, words",
    [
        (torch.nan, "1 weights are not finite .conv1.weight."),
        (torch.inf, "1 weights are not"),
        (-torch.inf, "1 weights are not"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(tmp_path, value, words):
    theirs, mine = network(seed=1).state_dict(), network()
    theirs["conv1.weight"][0, 0, 0, 0] = value
    before = digest(mine.state_dict())
    with pytest.raises(ConfigError, match=f"a.pth: {words}") as caught:
        load_into(mine, theirs, "a.pth")
    assert "\n" not in str(caught.value) and digest(mine.state_dict()) == before
    torch.save({name: tensor for name, tensor in theirs.items() if not name.startswith("head.")}, tmp_path / "b.pth")
    with pytest.raises(ConfigError, match="b.pth: 1 weights are not finite"):
        load_backbone(mine, tmp_path / "b.pth")
    assert digest(mine.state_dict()) == before


@pytest.mark.filterwarnings("ignore:.*quantize")
def test_a_float64_weight_beyond_float32_and_complex_or_quantised_ones_are_refused():
    for change, words in [
        (lambda w: w.double() * 1e300, "not finite"),
        (lambda w: w.to(torch.complex64), "quantised, sparse or complex"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "quantised, sparse or complex"),
        (lambda w: w.to_sparse(), "quantised, sparse or complex"),
    ]:
        theirs = network(seed=1).state_dict()
        theirs["conv1.weight"] = change(theirs["conv1.weight"])
        with pytest.raises(ConfigError, match=words):
            load_into(network(), theirs, "a.pth")


def test_a_mask_of_infinity_that_the_network_has_too_is_no_fault():
    class Masked(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    load_into(Masked(), Masked().state_dict(), "a.pth")
    with pytest.raises(ConfigError, match="1 weights are not finite .bias."):
        load_into(Masked(), Masked().state_dict() | {"bias": torch.tensor([0.0, torch.inf])}, "a.pth")


def test_an_imagenet_file_within_another_network_and_in_half_precision_fills_the_backbone(tmp_path):
    file = {f"backbone.{name}": value.half() if value.is_floating_point() else value for name, value in imagenet().items()}
    torch.save({"state_dict": file | {"decode_head.weight": torch.ones(2)}}, tmp_path / "a.pth")
    mine = network()
    load_backbone(mine, tmp_path / "a.pth")
    assert torch.equal(mine.layer3[0].conv1.weight, imagenet()["layer3.0.conv1.weight"].half().float())


def test_a_changed_byte_of_a_sealed_file_is_refused(tmp_path):
    data = io.BytesIO()
    torch.save({"model": state()}, data)
    path = tmp_path / "a.pt"
    path.write_bytes(seal(data))
    assert equal(load_file(path), state())
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        load_file(path)
