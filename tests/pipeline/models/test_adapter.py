import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from toy_networks import Plain, Tokens

from pipeline import config, weights
from pipeline.errors import ConfigError
from pipeline.models.adapter import Model, release
from pipeline.models.base import shapes
from pipeline.teacher import cache

SIZE = (64, 96)
PLAIN = dict(
    factory="toy_networks:plain",
    arguments={"classes": 5},
    layers={"mid": "early", "high": "late"},
    logits="output:out",
    mean=(120.0, 110.0, 100.0),
    std=(60.0, 50.0, 40.0),
)
TOKENS = PLAIN | dict(
    factory="toy_networks:Tokens",
    arguments={"width": 8},
    logits=None,
    prefix_tokens=2,
    layers={"mid": "patches", "high": "output:tokens"},
)


def adapter(keywords, **others):
    torch.manual_seed(0)
    return Model(5, **{"size": SIZE, **keywords} | others).eval()


def images(count=2):
    return torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(1)) * 255


def test_layers_and_logits_are_those_of_the_network_itself():
    model = adapter(PLAIN)
    network: Plain = model.network
    shown = (images() - torch.tensor([120.0, 110.0, 100.0]).view(3, 1, 1)) / torch.tensor([60.0, 50.0, 40.0]).view(3, 1, 1)
    with torch.no_grad():
        output = model(images())
        early = network.early(network.stem(shown))
        assert torch.equal(output.logits, network(shown)["out"])
    assert torch.equal(output.features["mid"], early) and (early < 0).any()  # as it was before the ReLU in place
    assert output.features["mid"].shape == (2, 8, 16, 24) and output.features["high"].shape == (2, 16, 8, 12)
    assert output.logits.shape == (2, 5, 16, 24)


def test_gradients_of_the_logits_reach_the_layers():
    output = adapter(PLAIN)(images())  # weights given as a share of a gradient are measured there
    gradients = torch.autograd.grad(output.logits.square().sum(), list(output.features.values()))
    assert all(float(gradient.abs().sum()) > 0 for gradient in gradients)


def test_tokens_become_a_map_without_class_token_and_registers():
    model = adapter(TOKENS)
    network: Tokens = model.network
    with torch.no_grad():
        output = model(images())
        map_BChw = network.patches(model.normalise(images()))
        by_hand = torch.einsum("oc,bchw->bohw", network.layer.weight, map_BChw) + network.layer.bias[:, None, None]
    torch.testing.assert_close(output.features["high"], by_hand)
    assert output.features["high"].shape == (2, 8, 4, 6) and output.logits is None


def test_channels_last_maps_are_turned():
    with torch.no_grad():
        output = adapter(TOKENS, layers={"high": "output:map_of_channels_last"}, layout="nhwc")(images())
        expected = adapter(TOKENS)(images()).features["mid"]
    assert torch.equal(output.features["high"], expected)


def test_a_network_that_looks_at_values_is_run_for_its_shapes():
    before = torch.random.get_rng_state()
    output = shapes(lambda: Model(5, size=SIZE, **TOKENS), SIZE)
    assert output.features["high"].shape == (1, 8, 4, 6) and output.features["high"].is_meta
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_linear_head_and_an_existence_head_are_added_to_high():
    model = adapter(TOKENS, logits="linear", lanes=4)
    output = model(images())
    assert output.logits.shape == (2, 5, 4, 6) and output.existence.shape == (2, 4)
    assert weights.has_existence(model.state_dict())
    output.logits.sum().backward()
    assert model.own["linear"].weight.grad.any() and model.network.layer.weight.grad.any()


def test_an_image_is_resized_to_the_networks_own_size():
    output = adapter(TOKENS, input_size=(128, 160), multiple=32)(images())
    assert output.features["high"].shape[-2:] == (8, 10)
    with pytest.raises(ConfigError, match="adapter: input of 100 x 160.*multiple of 32"):
        adapter(TOKENS, input_size=(100, 160), multiple=32)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_checkpoint_of_the_network_fits_as_it_is_and_keeps_its_digest(tmp_path, suffix):
    torch.manual_seed(5)
    network, path = Plain(5), tmp_path / f"plain{suffix}"
    weights.save_file(path, network.state_dict()) if suffix == ".safetensors" else torch.save(network.state_dict(), path)
    model = adapter(PLAIN)
    weights.load_into(model, weights.load_file(path), path)
    assert torch.equal(model.network.early.weight, network.early.weight)
    assert weights.digest(model.state_dict()) == weights.digest(network.state_dict())
    fresh = adapter(PLAIN, logits="linear", arguments={"classes": 5})
    weights.load_backbone(fresh, path)
    assert torch.equal(fresh.network.early.weight, network.early.weight)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"factory": "toy_networks"}, "module:function"),
        ({"factory": "no_such_package:net"}, r"no_such_package can't be imported.*\[hub\]"),
        ({"factory": "toy_networks:none"}, "has no 'none'"),
        ({"factory": "toy_networks:no_network", "arguments": {}}, "gives a int"),
        ({"arguments": {"klasses": 5}}, "toy_networks:plain.*klasses.*correct 'arguments'"),
        ({"arguments": {"classes": 7}}, "7 classes, the dataset has 5"),
        ({"layers": {"mid": "erly", "high": "late"}}, "no submodule 'erly'.*stem, early, late"),
        ({"logits": "output:aux"}, "logits: there is no tensor 'aux'"),
        ({"layers": {"mid": "early"}, "logits": "linear"}, "'high'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, words):
    with pytest.raises(ConfigError, match=words) as refused:
        adapter(PLAIN | change)(images())
    assert "\n" not in str(refused.value)


def test_tokens_that_make_no_grid_are_refused():
    with pytest.raises(ConfigError, match="25 tokens are no grid on 64 x 96 pixels, after 1 were dropped; correct 'prefix_tokens'"):
        adapter(TOKENS, prefix_tokens=1)(images())


def test_identity_names_factory_arguments_layers_and_the_packages_release(experiment):
    cfg = experiment.load()
    adapted = config.plugin("models", "adapter", PLAIN)
    teacher = config.Teacher(model=adapted, checkpoint=None, backbone=None, precision="fp32")
    record = cache.identity(cfg.dataset.build(), cfg.prepare, cfg.views, teacher, "0")["teacher"]
    assert record["args"]["factory"] == "toy_networks:plain" and record["layers"] == {"mid": "early", "high": "late"}
    assert record["packages"] == {"toy_networks": release("toy_networks")} and len(release("toy_networks")) == 16
    assert release("torch.nn").startswith("torch 2.")
    json.dumps(record)


def test_a_teacher_without_logits_serves_features_and_refuses_targets_made_from_logits(experiment):
    cfg = experiment.load()
    context = cache.context(config.plugin("models", "adapter", TOKENS), cfg.dataset.build(), SIZE)
    served = {
        "graph": config.plugin("targets", "affinity", {"layer": "high"}),
        "map": config.plugin("targets", "attention", {"layer": "mid"}),
    }
    assert set(cache.target_passes(served, context)) == {"graph", "map"}
    for refused in (
        config.plugin("targets", "logits", {}),
        config.plugin("targets", "affinity", {"layer": "high", "regions": "both"}),
    ):
        with pytest.raises(ConfigError, match="targets.odd: is made from logits, and this teacher has none"):
            cache.target_passes({"odd": refused}, context)


def test_a_network_of_bgr_pictures_sees_them_in_its_order_less_its_mean():
    mean, std = (100.0, 110.0, 120.0), (1.0, 2.0, 3.0)
    model, seen = adapter(PLAIN, mean=mean, std=std, channels="bgr"), []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(images(1))
    blue, green, red = seen[0][0]
    for found, channel, m, s in ((blue, 2, 100, 1), (green, 1, 110, 2), (red, 0, 120, 3)):
        torch.testing.assert_close(found, (images(1)[0, channel] - m) / s)


def test_logits_trained_with_aligned_corners_are_upsampled_so():
    keys = PLAIN | dict(
        factory="toy_networks:Corners", arguments={}, layers={"high": "late"}, logits="output", mean=(0, 0, 0), std=(1, 1, 1)
    )
    steps_HW = torch.arange(64.0)[:, None] + 3 * torch.arange(96.0)  # which any two grids with the same corners agree about
    shown = steps_HW.expand(1, 3, *SIZE)
    with torch.no_grad():
        aligned = Model(3, size=SIZE, **keys, align_corners=True).eval()(shown).logits
        plain = Model(3, size=SIZE, **keys).eval()(shown).logits
    torch.testing.assert_close(aligned, shown, rtol=1e-4, atol=1e-3)
    assert plain.shape[-2:] == (5, 7)
    apart = (F.interpolate(plain, SIZE, mode="bilinear", align_corners=False) - shown).abs().max()
    assert apart > 10  # what reading them without costs at the borders
    with pytest.raises(ConfigError, match="align_corners: is about logits of the network's own, and 'logits' is linear"):
        adapter(PLAIN, logits="linear", align_corners=True)


def test_keys_that_came_later_are_in_no_record_at_their_defaults():
    def args(**more):
        return config.plugin("models", "adapter", PLAIN | more).as_record()["args"]

    plain = args()
    assert not {"channels", "align_corners"} & plain.keys()
    assert args(channels="rgb", align_corners=False) == plain
    assert args(channels="bgr") == plain | {"channels": "bgr"}
    with pytest.raises(ConfigError, match="channels: expected one of rgb, bgr"):
        config.plugin("models", "adapter", PLAIN | {"channels": "BGR"})


def test_a_factory_with_weights_of_its_own_is_asked_for_its_shapes_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output = shapes(lambda: Model(5, size=SIZE, **PLAIN | {"factory": "toy_networks:WithWeights"}), SIZE)
    assert output.features["high"].shape == (1, 16, 8, 12)


# --- networks of a library ------------------------------------------------------------------------------------------------

SEGFORMER = PLAIN | dict(
    factory="transformers:SegformerForSemanticSegmentation",
    logits="output",
    arguments={
        "config": {
            "factory": "transformers:SegformerConfig",
            "arguments": {
                "num_labels": 5,
                "depths": [1, 1, 1, 1],
                "hidden_sizes": [8, 16, 24, 32],
                "num_attention_heads": [1, 1, 2, 2],
                "decoder_hidden_size": 16,
            },
        }
    },
    call={"output_hidden_states": True},
    layers={"mid": "output:hidden_states.1", "high": "output:hidden_states.3"},
)
DINO = PLAIN | dict(
    factory="transformers:Dinov2WithRegistersModel",
    logits="linear",
    prefix_tokens=3,
    input_size=[70, 98],
    multiple=14,
    arguments={
        "config": {
            "factory": "transformers:Dinov2WithRegistersConfig",
            "arguments": {
                "hidden_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_register_tokens": 2,
                "image_size": 70,
                "patch_size": 14,
            },
        }
    },
    layers={"mid": "encoder.layer.0", "high": "layernorm"},
)


@pytest.mark.parametrize(
    "keywords, grids",
    [(SEGFORMER, {"mid": (8, 12), "high": (2, 3), "logits": (16, 24)}), (DINO, {"mid": (5, 7), "high": (5, 7), "logits": (5, 7)})],
    ids=["segformer", "dinov2"],
)
def test_a_network_of_transformers_answers_in_maps(keywords, grids):
    pytest.importorskip("transformers")
    model = adapter(keywords, lanes=4 if keywords is DINO else 0)
    with torch.no_grad():
        output = model(images())
        named = {**output.features, "logits": output.logits}
        alone = model(images()[:1])
    assert {role: tuple(found.shape[-2:]) for role, found in named.items()} == grids
    torch.testing.assert_close(alone.logits, output.logits[:1], rtol=1e-4, atol=1e-4)
    expected = shapes(lambda: Model(5, size=SIZE, **keywords), SIZE)
    assert {role: found.shape[1:] for role, found in expected.features.items()} == {
        role: found.shape[1:] for role, found in output.features.items()
    }
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert model(images()).logits.isfinite().all()
    if keywords is DINO:
        layer = model.network.layernorm(torch.randn(1, 3 + 35, 24))
        assert model.map_of(layer, "high", torch.Size((70, 98)))[0, :, 2, 3].equal(layer[0, 3 + 2 * 7 + 3])
        assert release("transformers").startswith("transformers ")
