"""What the stored form of the logits keeps."""

import dataclasses

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.models.base import Output
from pipeline.targets.base import Context
from pipeline.targets.logits import Target

CONTEXT = Context(num_classes=3, regions=(0, 1, 2), size=(16, 24), grids={"mid": (4, 6), "high": (2, 3), "logits": (2, 3)})


def stored(logits_BKhw, dtype):
    target = Target(dtype=dtype)
    rows = {name: torch.from_numpy(array) for name, array in target.encode({"logits": logits_BKhw}).items()}
    return target.decode(rows)["logits"]


def test_the_target_is_the_logits_in_float32():
    logits_BKhw = torch.randn(2, 3, 2, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    values = Target().compute(Output(logits_BKhw, {}), torch.zeros(2, 16, 24, dtype=torch.uint8), CONTEXT)
    assert values["logits"].dtype == torch.float32 and torch.equal(values["logits"], logits_BKhw.float())


def test_pooled_logits_are_the_means_of_patches_of_cells():
    logits_BKhw = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    target, context = Target(pool=8), dataclasses.replace(CONTEXT, grids={"logits": (16, 24)})
    assert target.fields(context)["logits"].shape == (3, 2, 3)
    pooled = target.compute(Output(logits_BKhw, {}), torch.zeros(2, 16, 24, dtype=torch.uint8), context)["logits"]
    slow = [[logits_BKhw[..., 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].double().mean(dim=(2, 3)) for x in range(3)] for y in range(2)]
    np.testing.assert_allclose(pooled, np.array(slow).transpose(2, 3, 0, 1), atol=1e-6)
    with pytest.raises(ConfigError, match="logits.pool: 0"):
        Target(pool=0)


def test_a_store_from_before_there_was_pooling_is_what_it_was():
    assert "pool" not in Target().record("logits") and Target(pool=8).record("logits")["pool"] == 8


def test_eight_bits_worked_by_hand():
    """One class from -1 to 4.1: steps of 0.02, so 0.013 is 50.65 steps up, stored as 51 and read as 0.02."""
    arrays = Target(dtype="uint8").encode({"logits": torch.tensor([-1.0, 4.1, 0.013, 0.0]).view(1, 1, 2, 2)})
    assert arrays["logits"].ravel().tolist() == [0, 255, 51, 50]
    assert arrays["offset"].tolist() == [[-1.0]] and arrays["scale"][0, 0] == pytest.approx(0.02)
    decoded = Target(dtype="uint8").decode({name: torch.from_numpy(array) for name, array in arrays.items()})
    np.testing.assert_allclose(decoded["logits"].ravel(), [-1.0, 4.1, 0.02, 0.0], atol=1e-6)


def test_eight_bits_err_by_half_a_step_of_each_class():
    generator = torch.Generator().manual_seed(1)
    logits_BKhw = torch.randn(2, 3, 8, 9, generator=generator) * torch.tensor([0.1, 1.0, 10.0]).view(3, 1, 1) + 5
    error_BK = (stored(logits_BKhw, "uint8") - logits_BKhw).abs().amax(dim=(2, 3))
    half_step_BK = (logits_BKhw.amax(dim=(2, 3)) - logits_BKhw.amin(dim=(2, 3))) / 510
    assert (error_BK < half_step_BK + 1e-6).all() and (error_BK > 0.8 * half_step_BK).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_constant_logits_survive(dtype):
    logits_BKhw = torch.full((1, 3, 2, 3), -1.5)
    assert torch.equal(stored(logits_BKhw, dtype), logits_BKhw)


@pytest.mark.parametrize("dtype, value", [("float16", 65520.0), ("float16", np.nan), ("uint8", np.inf), ("uint8", np.nan)])
def test_what_does_not_fit_is_refused(dtype, value):
    logits_BKhw = torch.zeros(1, 3, 2, 3)
    logits_BKhw[0, 1, 1, 1] = value
    with pytest.raises(OverflowError, match=f"do not fit {dtype}"):
        Target(dtype=dtype).encode({"logits": logits_BKhw})


def test_the_largest_half_precision_number_fits():
    logits_BKhw = torch.full((1, 3, 2, 3), -65504.0)
    assert torch.equal(stored(logits_BKhw, "float16"), logits_BKhw)
