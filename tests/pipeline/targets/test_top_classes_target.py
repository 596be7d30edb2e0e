"""The likeliest classes and the tail: worked by hand, against the logits they come from, and what is refused."""

import math
from pathlib import Path

import pytest
import torch

from pipeline import config
from pipeline.errors import ConfigError
from pipeline.losses.base import Batch
from pipeline.losses.kd import Loss
from pipeline.models.base import Output
from pipeline.targets import logits as dense
from pipeline.targets.base import Context
from pipeline.targets.top_classes import Target
from pipeline.teacher.parity import loss_error

CONFIGS = Path(__file__).parents[3] / "configs"
CONTEXT = Context(num_classes=12, regions=tuple(range(12)), size=(40, 56), grids={"logits": (5, 7)})
LABELS = torch.zeros(2, 40, 56, dtype=torch.uint8)


def teacher(scale=6.0):
    """Confident as trained networks are."""
    return scale * torch.randn(2, 12, 5, 7, generator=torch.Generator().manual_seed(0))


def stored(target, logits_BKhw):
    arrays = target.encode(target.compute(Output(logits_BKhw, {}), LABELS, CONTEXT))
    return target.decode({name: torch.from_numpy(array) for name, array in arrays.items()})


def kd_of(target, temperature=1.0):
    return Loss(reads={"read": target}, context=CONTEXT, student=CONTEXT, temperature=temperature)


def batch_of(rows):
    return Batch(
        images_B3HW=torch.empty(0),
        labels_BHW=LABELS,
        inside_BHW=torch.ones(2, 40, 56, dtype=torch.bool),
        existence_BL=None,
        rows={"read": rows},
        step=0,
    )


def student():
    student = 6 * torch.randn(2, 12, 10, 14, generator=torch.Generator().manual_seed(1))
    return Output(student.requires_grad_(), {})


def test_two_of_four_classes_worked_by_hand():
    """Probabilities 1/2, 1/4, 1/8, 1/8 of classes 2, 0, 1, 3: the tail is 1/4, an eighth for each class in it."""
    target = Target(count=2, dtype="float32")
    context = Context(num_classes=4, regions=(0, 1, 2, 3), size=(8, 8), grids={"logits": (1, 1)})
    logits_BKhw = torch.tensor([2.0, 1.0, 4.0, 1.0]).log().view(1, 4, 1, 1) + 7
    rows = target.compute(Output(logits_BKhw, {}), LABELS, context)
    assert rows["classes"].ravel().tolist() == [2, 0]
    torch.testing.assert_close(rows["logs"].ravel(), torch.tensor([1 / 2, 1 / 4, 1 / 4]).log())
    torch.testing.assert_close(target.logits(rows, context).exp().ravel(), torch.tensor([1 / 4, 1 / 8, 1 / 2, 1 / 8]))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_with_one_class_in_the_tail_kd_is_kd_from_the_logits_on_every_grid(temperature):
    target, logits_BKhw, output = Target(count=11, dtype="float32"), teacher(), student()
    whole = kd_of(dense.Target(dtype="float32"), temperature)(output, batch_of({"logits": logits_BKhw}))
    found = kd_of(target, temperature)(output, batch_of(stored(target, logits_BKhw)))
    assert found.item() == pytest.approx(whole.item(), rel=1e-5)


def test_probabilities_add_up_to_one_whatever_is_kept():
    for count in range(1, 12):
        target = Target(count=count)
        sums = target.logits(stored(target, teacher(40.0)), CONTEXT).exp().sum(dim=1)
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=2e-3, rtol=0)


def test_the_gradient_of_kd_errs_less_the_more_classes_are_kept_and_the_tail_is_what_makes_it_small():
    logits_BKhw, output = teacher(3.0), student()
    p_BKhw = logits_BKhw.softmax(dim=1)
    errors, without_tail = [], []
    for count in (1, 2, 4, 8):
        rows = stored(Target(count=count), logits_BKhw)
        kept_BKhw = p_BKhw * torch.zeros_like(p_BKhw).scatter(1, rows["classes"], 1)
        cut = (kept_BKhw / kept_BKhw.sum(dim=1, keepdim=True)).clamp(min=1e-8).log()
        online, of_logits = batch_of({"logits": logits_BKhw}), kd_of(dense.Target())
        read = Target(count=count).logits(rows, CONTEXT)
        errors.append(loss_error("kd", of_logits, output, batch_of({"logits": read}), online).gradient_difference)
        without_tail.append(loss_error("kd", of_logits, output, batch_of({"logits": cut}), online).gradient_difference)
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.1
    assert all(2 * error < cut for error, cut in zip(errors[1:], without_tail[1:]))


def test_offline_equals_online_within_the_stored_dtype():
    target, logits_BKhw = Target(count=3), teacher()
    live, rows = target.compute(Output(logits_BKhw, {}), LABELS, CONTEXT), stored(target, logits_BKhw)
    error = loss_error("kd", kd_of(target), student(), batch_of(rows), batch_of(live))
    assert 0 < error.difference < 1e-3 and 0 < error.gradient_difference < 2e-3
    neighbour = {name: value.roll(1, 0) for name, value in rows.items()}
    assert loss_error("kd", kd_of(target), student(), batch_of(neighbour), batch_of(live)).gradient_difference > 0.1


def test_equal_probabilities_and_huge_logits_are_stored():
    for logits_BKhw in (torch.zeros(2, 12, 5, 7), teacher(5e3)):
        assert stored(Target(count=3), logits_BKhw)["logs"].isfinite().all()


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="top_classes.count: 0 classes say nothing"):
        Target(count=0)
    with pytest.raises(ConfigError, match="count: 12 of 12 classes leaves no tail.*type logits"):
        Target(count=12).fields(CONTEXT)
    values = Target(count=2).compute(Output(torch.full((2, 12, 5, 7), math.nan), {}), LABELS, CONTEXT)
    with pytest.raises(OverflowError, match="do not fit float16"):
        Target(count=2).encode(values)


@pytest.mark.parametrize("loss", ["cwd", "dist", "dkd", "ickd", "aicsd", "skd_holistic"])
def test_a_loss_that_needs_the_logits_is_refused_in_one_line(loss):
    keys = ", temperature: 1.0" if loss in ("cwd", "dkd") else ""
    with pytest.raises(ConfigError, match=f"{loss} cannot read 'top' \\(type top_classes\\); it reads .*logits") as refused:
        config.load(
            CONFIGS / "demo.yaml",
            ["targets.top={type: top_classes, count: 2}", f"methods.wrong=[{{loss: {loss}, reads: [top], weight: 1.0{keys}}}]"],
        )
    assert len(str(refused.value).splitlines()) == 1
