"""What every target keeps to: one test per file in pipeline/targets and per value of its Literal keys, found by lookup.

Golden bytes: tests/golden/<target>-v<version>.npz holds what `encode(compute(...))` gave for a fixed output, so that a
change of the bytes without a change of `version` is noticed. After a change that is meant, raise `version` and run
    WRITE_GOLDEN=1 python -m pytest tests/pipeline/targets/test_target_contract.py -k golden
which writes missing files only.
"""

import dataclasses
import os
import typing
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.lookup import find_class, names
from pipeline.models.base import Output, as_float
from pipeline.targets.base import Context, Layer, TargetType

GOLDEN = Path(__file__).parents[2] / "golden"
REQUIRED = {"layer": "high", "rank": 8, "count": 3, "lanes": 4}  # a value for each key that has no default
CONTEXT = Context(
    num_classes=6,
    regions=(0, 1, 3, 4),
    size=(32, 48),
    channels={"mid": 8, "high": 16, "logits": 6},
    grids={"mid": (8, 12), "high": (4, 6), "logits": (4, 6)},
)


def variants(name: str) -> dict[str, TargetType]:
    """The target as it is without any key, and with each other value of its Literal keys."""
    cls = find_class("targets", name)
    hints = typing.get_type_hints(cls)
    keys = dataclasses.fields(cls)
    given = {key.name: REQUIRED[key.name] for key in keys if key.default is dataclasses.MISSING}
    found = {name: cls(**given)}
    for key in keys:
        choices = typing.get_args(hints[key.name]) if typing.get_origin(hints[key.name]) is typing.Literal else ()
        for value in (choice for choice in choices if choice != key.default):
            found[f"{name}-{key.name}-{value}"] = cls(**given | {key.name: value})
    return found


TARGETS = {title: target for name in names("targets") for title, target in variants(name).items()}
each_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


def teacher(num_images=5, seed=0) -> tuple[Output, torch.Tensor]:
    """A teacher's output: activations from 1e-3 to 1e3, the last image a dead layer; labels of many sizes."""
    generator = torch.Generator().manual_seed(seed)
    features = {}
    for layer in ("mid", "high"):
        C, (h, w) = CONTEXT.channels[layer], CONTEXT.grids[layer]
        features[layer] = torch.randn(num_images, C, h, w, generator=generator).relu()
        features[layer] *= (10.0 ** torch.linspace(-3, 3, num_images)).view(-1, 1, 1, 1)
        features[layer][-1] = 0
    logits = 5 * torch.randn(num_images, CONTEXT.num_classes, *CONTEXT.grids["logits"], generator=generator)
    labels_BHW = torch.zeros(num_images, *CONTEXT.size, dtype=torch.uint8)
    labels_BHW[:, 5:20, 10:30], labels_BHW[:, 24:26, 40], labels_BHW[:, :4] = 1, 3, 255
    labels_BHW[0] = 1
    return Output(logits, features, torch.randn(num_images, 4, generator=generator)), labels_BHW


def one(output: Output, i: int) -> Output:
    return Output(
        output.logits[i : i + 1],
        {layer: map_BChw[i : i + 1] for layer, map_BChw in output.features.items()},
        output.existence[i : i + 1],
    )


def rows_of(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@each_target
def test_fields_are_what_encode_gives(target):
    output, labels_BHW = teacher()
    fields, arrays = target.fields(CONTEXT), target.encode(target.compute(output, labels_BHW, CONTEXT))
    assert fields.keys() == arrays.keys()
    for name, field in fields.items():
        assert arrays[name].shape == (5, *field.shape) and arrays[name].dtype == np.dtype(field.dtype), name
        assert len(set(field.dims)) == len(field.shape), name


@each_target
def test_decoded_rows_are_within_the_declared_error(target):
    """A target that stores a `scale` declares its absolute error relative to the row's maximum."""
    output, labels_BHW = teacher()
    computed, fields = target.compute(output, labels_BHW, CONTEXT), target.fields(CONTEXT)
    decoded = target.decode(rows_of(target.encode(computed)))
    assert decoded.keys() == computed.keys()
    for name, value in computed.items():
        assert decoded[name].dtype == value.dtype and decoded[name].shape == value.shape
        if target.fidelity == "exact":
            assert torch.equal(decoded[name], value)
        unit = value.abs().flatten(1).amax(dim=1).view(-1, *[1] * (value.dim() - 1)) if "scale" in fields else 1
        allowed = fields[name].absolute_error * unit + fields[name].relative_error * value.abs()
        assert ((decoded[name].double() - value.double()).abs() <= allowed).all(), name


@each_target
def test_an_image_alone_gives_the_row_it_gives_in_a_batch(target):
    output, labels_BHW = teacher()
    together = target.compute(output, labels_BHW, CONTEXT)
    for i in range(5):
        alone = target.compute(one(output, i), labels_BHW[i : i + 1], CONTEXT)
        for name, value in alone.items():
            row = together[name][i : i + 1]
            allowed = target.compute_tolerance * row.double().abs().max()
            assert (value.double() - row.double()).abs().max() <= allowed, name


@each_target
def test_rows_tell_images_apart(target):
    output, labels_BHW = teacher()
    values = target.compute(output, torch.ones_like(labels_BHW) * labels_BHW[1], CONTEXT)
    assert any(not torch.equal(value[1], value[2]) for value in values.values())


@each_target
def test_gradients_are_finite_and_not_all_zero(target):
    if all(np.dtype(field.dtype).kind == "u" and not field.absolute_error for field in target.fields(CONTEXT).values()):
        pytest.skip("classes have no gradient")
    output, labels_BHW = teacher()
    leaves = [output.logits, output.existence, *output.features.values()]
    for leaf in leaves:
        leaf.requires_grad_()
    values = target.compute(output, labels_BHW, CONTEXT)
    sum((value.square() + value).sum() for value in values.values() if value.requires_grad).backward()
    slopes = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert all(slope.isfinite().all() for slope in slopes) and any((slope != 0).any() for slope in slopes)


@each_target
def test_half_precision_outputs_are_computed_in_float32(target):
    output, labels_BHW = teacher()
    half = Output(
        output.logits.bfloat16(),
        {layer: map_BChw.bfloat16() for layer, map_BChw in output.features.items()},
        output.existence.bfloat16(),
    )
    wide = as_float(half)
    for name, value in target.compute(half, labels_BHW, CONTEXT).items():
        torch.testing.assert_close(value, target.compute(wide, labels_BHW, CONTEXT)[name], msg=name)


@each_target
def test_labels_count_only_where_the_target_says_so(target):
    output, labels_BHW = teacher()
    shown = target.compute(output, labels_BHW, CONTEXT)
    other = target.compute(output, labels_BHW.flip(1), CONTEXT)
    assert target.uses_labels == any(not torch.equal(shown[name], other[name]) for name in shown)


@each_target
def test_the_record_tells_parameters_apart(target):
    records = [str(other.record("type")) for other in TARGETS.values() if type(other) is type(target)]
    assert records.count(str(target.record("type"))) == 1


@each_target
def test_rows_are_made_from_the_source_layers_and_no_other(target):
    """What is refused in a broken teacher, and whether it needs logits, goes by `source_layers`."""
    output, labels_BHW = teacher()
    labels_BHW[3] = 255  # where some targets look at the prediction
    maps = {**output.features, "logits": output.logits}
    shown = target.compute(output, labels_BHW, CONTEXT)
    read = set()
    for name in maps:
        other = maps | {name: maps[name].flip(1, 3)}
        logits = other.pop("logits")
        changed = target.compute(Output(logits, other, output.existence), labels_BHW, CONTEXT)
        if any(not torch.equal(shown[field], changed[field]) for field in shown):
            read.add(name)
    assert read == target.source_layers()


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfRole(TargetType):
    """A target whose key for a layer has a name of its own."""

    role: Layer
    others: tuple[Layer, ...] = ()
    layer: str = "no layer"


def test_a_layer_is_known_by_its_type_and_not_by_the_name_of_its_key():
    assert OfRole(role="mid").source_layers() == {"mid"}
    assert OfRole(role="mid", others=("high", "mid")).source_layers() == {"mid", "high"}


def golden_output() -> tuple[Output, torch.Tensor]:
    """Two images of small multiples of 1/8: squares and sums are exact, so that no library's order of sums shows."""

    def values(*shape, step):
        return torch.arange(np.prod(shape)).mul(step).remainder(61).view(shape).sub(20).float() / 8

    features = {
        layer: values(2, CONTEXT.channels[layer], *CONTEXT.grids[layer], step=step).relu()
        for layer, step in (("mid", 17), ("high", 23))
    }
    labels_BHW = torch.zeros(2, *CONTEXT.size, dtype=torch.uint8)
    labels_BHW[0, 3:20, 9:33], labels_BHW[0, 22:, 30:], labels_BHW[1, 5:9, 4:7] = 1, 3, 4
    labels_BHW[1, 20:] = 255
    return Output(values(2, CONTEXT.num_classes, *CONTEXT.grids["logits"], step=29), features, values(2, 4, step=31)), labels_BHW


@pytest.mark.parametrize("name", names("targets"))
def test_golden_bytes_are_unchanged(name):
    arrays = {}
    for title, target in variants(name).items():
        encoded = target.encode(target.compute(*golden_output(), CONTEXT))
        arrays |= {f"{title}.{field}": array for field, array in encoded.items()}
    path = GOLDEN / f"{name}-v{find_class('targets', name).version}.npz"
    if os.environ.get("WRITE_GOLDEN") and not path.exists():
        np.savez(path, **arrays)
    assert path.exists(), f"{path.name} is missing; the docstring of this file says how it is made"
    with np.load(path) as golden:
        assert set(golden.files) == set(arrays)
        for key, array in arrays.items():
            assert golden[key].dtype == array.dtype and golden[key].tobytes() == array.tobytes(), key
