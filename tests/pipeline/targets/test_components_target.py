"""Principal components of an image's features: against numpy's decomposition, and that what is declared is kept."""

import math

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.losses.base import Batch
from pipeline.losses.fitnet import Loss
from pipeline.models.base import Output
from pipeline.store.plan import field_bytes
from pipeline.targets import features
from pipeline.targets.base import Context
from pipeline.targets.components import Target
from pipeline.teacher.parity import row_error

CONTEXT = Context(num_classes=2, regions=(0, 1), size=(48, 64), grids={"high": (6, 8), "logits": (6, 8)}, channels={"high": 20})


def smooth_features(num_images=3, seed=0):
    """Channels that go together, as a network's do: 20 mixtures of 6 smooth maps, and a little of their own."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.nn.functional.interpolate(torch.randn(num_images, 6, 3, 4, generator=generator), (6, 8), mode="bilinear")
    mixed = torch.einsum("ck,bkhw->bchw", torch.randn(20, 6, generator=generator), maps)
    return (mixed + 0.05 * torch.randn(mixed.shape, generator=generator)).relu()


def rows_of(target, features_BChw):
    arrays = target.encode({"features": features_BChw})
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_no_other_components_come_nearer_to_the_image(rank):
    """Eckart and Young: the squared error is the sum of the squares of the singular values that are left out."""
    features_BChw, target = smooth_features(), Target(layer="high", rank=rank, error=9, dtype="float32")
    found_BChw = target.decode(rows_of(target, features_BChw))["features"]
    for image, found in zip(features_BChw.double().flatten(2).numpy(), found_BChw.double().flatten(2).numpy()):
        left = np.linalg.svd(image - image.mean(axis=1, keepdims=True))[1][rank:]
        assert ((image - found) ** 2).sum() == pytest.approx((left**2).sum(), rel=1e-4)


def test_features_of_few_directions_come_back_within_the_rounding():
    generator = torch.Generator().manual_seed(1)
    low = torch.einsum("ck,bkhw->bchw", torch.randn(20, 4, generator=generator), torch.rand(2, 4, 6, 8, generator=generator))
    for dtype, allowed in (("float32", 1e-6), ("float16", 2e-3)):
        target = Target(layer="high", rank=4, dtype=dtype)
        found = target.decode(rows_of(target, low))["features"]
        assert (found - low).abs().max() <= allowed * low.abs().max()


def test_directions_are_orthonormal_with_a_positive_largest_entry_whatever_the_order_of_cells():
    features_BChw, target = smooth_features(), Target(layer="high", rank=5, error=9, dtype="float32")
    basis_BrC = rows_of(target, features_BChw)["basis"]
    torch.testing.assert_close(basis_BrC @ basis_BrC.mT, torch.eye(5).expand(3, 5, 5), atol=1e-6, rtol=0)
    assert (basis_BrC.gather(2, basis_BrC.abs().argmax(2, keepdim=True)) > 0).all()
    turned = rows_of(target, features_BChw.flip(2, 3))
    torch.testing.assert_close(turned["basis"], basis_BrC, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rows_hold_what_is_declared_and_a_neighbours_do_not(scale):
    features_BChw, target = smooth_features() * scale, Target(layer="high", rank=8, error=0.2)
    live, found = {"features": features_BChw}, target.decode(rows_of(target, features_BChw))
    assert row_error("row", target, found, live, CONTEXT).holds
    neighbour = {"features": found["features"].roll(1, 0)}
    assert row_error("row", target, neighbour, live, CONTEXT).excess > 3


def test_a_dead_layer_is_stored_as_zeros():
    target = Target(layer="high", rank=6)
    assert torch.equal(target.decode(rows_of(target, torch.zeros(2, 20, 6, 8)))["features"], torch.zeros(2, 20, 6, 8))


def test_fitnet_reads_components_as_it_reads_features():
    features_BChw, target = smooth_features(), Target(layer="high", rank=6)
    batch = Batch(
        images_B3HW=torch.empty(0),
        labels_BHW=torch.zeros(3, 48, 64, dtype=torch.uint8),
        existence_BL=None,
        inside_BHW=torch.ones(3, 48, 64, dtype=torch.bool),
        rows={},
        step=0,
    )
    losses = []
    for read, rows in (
        (features.Target(layer="high"), {"features": features_BChw}),
        (target, target.decode(rows_of(target, features_BChw))),
    ):
        torch.manual_seed(0)
        loss = Loss(reads={"read": read}, context=CONTEXT, student=CONTEXT, normalise="teacher")
        losses.append(loss(Output(torch.empty(0), {"high": smooth_features(seed=2)}), batch.with_rows({"read": rows})).item())
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_row_is_smaller_than_the_features():
    bytes_of = [
        sum(map(field_bytes, target.fields(CONTEXT).values()))
        for target in (Target(layer="high", rank=4), features.Target(layer="high"))
    ]
    assert bytes_of == [4 * (20 + 48) * 2 + 20 * 4 + 4, 20 * 48 * 2]


def test_what_cannot_be_is_refused():
    with pytest.raises(OverflowError, match="'high': 1 components leave an error of 0.[0-9]+ of the largest feature, and 0.01"):
        Target(layer="high", rank=1, error=0.01).encode({"features": smooth_features()})
    with pytest.raises(OverflowError, match="not finite"):
        Target(layer="high", rank=1).encode({"features": torch.full((1, 20, 6, 8), math.nan)})
    with pytest.raises(ConfigError, match="rank: 20 of 20 channels on 6 x 8 cells saves nothing"):
        Target(layer="high", rank=20).fields(CONTEXT)
    with pytest.raises(ConfigError, match="components: rank 0"):
        Target(layer="high", rank=0)
