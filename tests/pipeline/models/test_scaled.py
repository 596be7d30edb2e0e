"""Students that shrink the image first: what they answer, what they refuse, what of them is in records."""

import pytest
import torch
import yaml
from test_model_contract import ADAPTED, CLASSES, LANES, images, outputs

from pipeline import config, weights
from pipeline.errors import ConfigError
from pipeline.lookup import find_class, names
from pipeline.models._scaled import scaled
from pipeline.models.base import shapes
from pipeline.teacher import cache

SIZE = (64, 96)
STUDENTS = [name for name in names("models") if name != "ensemble" and not find_class("models", name).uses_labels]
each = pytest.mark.parametrize("name, scale", [(name, scale) for name in STUDENTS for scale in (0.5, 0.25)])


def build(name, scale, size=SIZE, **keywords):
    keys = ADAPTED if name == "adapter" else {"width": 8}
    torch.manual_seed(0)
    args = {**keys, **keywords} if scale == 1 else {**keys, **keywords, "input_scale": scale}
    return config.Plugin(kind="models", name=name, args=args).build(num_classes=CLASSES, size=size, lanes=LANES)


@each
def test_it_is_the_network_on_an_image_of_means(name, scale):
    factor = round(1 / scale)
    small = build(name, 1, size=(64 // factor * 2, 96 // factor * 2)).double().eval()
    network = build(name, scale, size=(128, 192)).double().eval()  # seeded: of equal weights
    big = torch.rand(2, 3, 128, 192, dtype=torch.float64) * 255
    blocks = big.reshape(2, 3, 128 // factor, factor, 192 // factor, factor).mean(dim=(3, 5))
    with torch.no_grad():
        found, expected = outputs(network(big)), outputs(small(blocks))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)
    assert network.state_dict().keys() == small.state_dict().keys() and network.layers == small.layers


@each
def test_shapes_without_arithmetic_are_those_of_a_real_pass_and_gradients_reach_every_parameter(name, scale):
    network = build(name, scale).train()
    real = outputs(network(images(2)))
    expected = outputs(shapes(lambda: build(name, scale), SIZE))
    assert {key: value.shape[1:] for key, value in real.items()} == {key: value.shape[1:] for key, value in expected.items()}
    plain = outputs(shapes(lambda: build(name, 1), SIZE))
    assert real["high"].shape[2] * round(1 / scale) == plain["high"].shape[2]
    sum(value.float().square().mean() for value in real.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


def test_a_file_of_the_network_fits_it_at_any_scale():
    network, small = build("erfnet", 1), build("erfnet", 0.5)
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("existence.")}
    own = {key: value for key, value in small.state_dict().items() if key.startswith("existence.")}
    weights.load_into(small, state | own, "here")
    assert torch.equal(small.block3[1].conv1_rows.weight, network.block3[1].conv1_rows.weight)


def test_an_image_by_keyword_is_not_taken_unshrunk():
    with pytest.raises(ValueError):
        build("erfnet", 0.5)(images_B3HW=images(1))


def test_a_compiled_network_shrinks_too(monkeypatch):
    network = build("erfnet", 0.5).eval()
    with torch.no_grad():
        traced = torch.compile(network, backend="eager", dynamic=False)(images(1))
        torch.testing.assert_close(traced.logits, network(images(1)).logits)
    assert traced.logits.shape[-2:] == (32, 48)


@pytest.mark.parametrize(
    "name, scale, size, fits",
    [
        ("erfnet", 0.5, (48, 216), "both axes must be multiples of 16; prepare images of 48 x 224"),
        ("resnet18", 0.25, (72, 320), "both axes must be multiples of 32; prepare images of 96 x 320"),
        ("adapter", 0.5, (40, 48), "both axes must be multiples of 16; prepare images of 48 x 48"),
    ],
)
def test_images_that_do_not_divide_are_refused_with_a_size_that_does(name, scale, size, fits):
    with pytest.raises(ConfigError, match=f"{scale} of images of {size[0]} x {size[1]} .* does not fit {name}: {fits}"):
        build(name, scale, size=size)


def test_an_adapter_with_a_size_of_its_own_needs_whole_blocks_only():
    network = build("adapter", 0.5, size=(30, 50), input_size=(64, 96))
    assert network(torch.zeros(2, 3, 30, 50)).features["high"].shape[-2:] == (8, 12)
    with pytest.raises(ConfigError, match="multiples of 2"):
        build("adapter", 0.5, size=(31, 50), input_size=(64, 96))


# --- in a configuration -----------------------------------------------------------------------------------------------------


def written(path, **student):
    from conftest import EXPERIMENT

    path.write_text(yaml.safe_dump(EXPERIMENT | {"prepare": {"size": [64, 128], "codec": "raw"}, "students": {"small": student}}))
    return path


@pytest.mark.parametrize("one", [{}, {"input_scale": 1}, {"input_scale": 1.0}])
def test_a_scale_of_one_is_in_no_record(tmp_path, one):
    student = config.load(written(tmp_path / "c.yaml", model="erfnet", width=4, **one)).students["small"]
    assert student.as_record()["args"] == {"dropout": (0.1, 0.1), "width": 4}


@pytest.mark.parametrize("scale", [0.5, 0.25])
def test_another_scale_is(tmp_path, scale):
    cfg = config.load(written(tmp_path / "c.yaml", model="erfnet", width=4, input_scale=scale))
    assert cfg.students["small"].args["input_scale"] == scale
    overridden = config.load(written(tmp_path / "c.yaml", model="erfnet"), [f"students.small.input_scale={scale}"])
    assert overridden.students["small"].args["input_scale"] == scale


@pytest.mark.parametrize("scale", [0.3, 2, 0, "0.5", True, None, [0.5]])
def test_no_other_scale_is_taken(tmp_path, scale):
    with pytest.raises(ConfigError, match="students.small.input_scale: expected (one of 1, 0.5, 0.25; got|a number, got)"):
        config.load(written(tmp_path / "c.yaml", model="erfnet", input_scale=scale))


def test_a_size_that_does_not_divide_is_known_when_the_file_is_read(tmp_path):
    path = written(tmp_path / "c.yaml", model="erfnet", input_scale=0.25)
    with pytest.raises(ConfigError, match="students.small.input_scale: 0.25 of images of 72 x 128 .*prepare images of 96 x 128"):
        config.load(path, ["prepare.size=[66,128]"])


def test_a_teacher_has_no_scale(tmp_path):
    with pytest.raises(ConfigError, match="teacher.input_scale: no such key"):
        config.load(written(tmp_path / "c.yaml", model="erfnet"), ["teacher.input_scale=0.5"])


def test_the_students_context_has_its_own_grids(experiment):
    student = config.Plugin(kind="models", name="erfnet", args={"width": 4, "input_scale": 0.5})
    found = cache.context(student, experiment.load().dataset.build(), (64, 128))
    assert found.size == (64, 128) and found.grids == {"mid": (8, 16), "high": (4, 8), "logits": (32, 64)}


def test_scaled_asks_for_a_size_first():
    with pytest.raises(ConfigError, match="prepare images of 16 x 16"):
        scaled(find_class("models", "erfnet"), num_classes=2, size=(8, 8), input_scale=0.5)
