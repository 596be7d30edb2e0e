"""Losses on labels against slow versions, and what is special about each."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import plain_training

from pipeline.training import label_losses as losses
from pipeline.training.step import Step

WEIGHTS = torch.tensor([0.5, 1.0, 2.0])


@pytest.fixture
def case():
    """Logits on the labels' grid, and labels some of which are ignored."""
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randint(0, 3, (2, 4, 5)).to(torch.uint8)
    labels[0, 0] = 255
    return logits.requires_grad_(), labels


def pixels(logits, labels):
    """(probabilities, label, class weight) of each labelled pixel."""
    for (b, y, x), label in np.ndenumerate(labels.numpy()):
        if label != 255:
            yield logits[b, :, y, x].detach().softmax(0).numpy(), int(label), float(WEIGHTS[label])


def weights():
    return WEIGHTS.double()


def test_cross_entropy_with_label_smoothing(case):
    total = count = 0.0
    for p, label, weight in pixels(*case):
        count += weight
        total += 0.9 * weight * -math.log(p[label]) + 0.1 / 3 * sum(float(WEIGHTS[c]) * -math.log(p[c]) for c in range(3))
    assert losses.cross_entropy(*case, weights(), smoothing=0.1).item() == pytest.approx(total / count)


def test_focal_by_hand_and_with_exponent_0_the_cross_entropy(case):
    rows = list(pixels(*case))
    by_hand = sum(w * (1 - p[c]) ** 2 * -math.log(p[c]) for p, c, w in rows) / sum(w for _, _, w in rows)
    assert losses.focal(*case, weights(), 2.0).item() == pytest.approx(by_hand)
    assert torch.allclose(losses.focal(*case, weights(), 0.0), losses.cross_entropy(*case, weights()))
    half = losses.focal(*case, weights(), 2.0, counted=torch.tensor(1.0))
    assert half.item() == pytest.approx(by_hand * sum(w for _, _, w in rows))


@pytest.mark.parametrize("threshold, least", [(0.7, 0.0625), (0.01, 0.5), (0.01, 1.0)])
def test_ohem_counts_hard_pixels_and_a_part_of_all(case, threshold, least):
    rows = sorted(((-math.log(p[c]), w) for p, c, w in pixels(*case)), reverse=True)
    count = max(sum(loss >= -math.log(threshold) for loss, _ in rows), math.ceil(least * len(rows)))
    by_hand = sum(loss * w for loss, w in rows[:count]) / sum(w for _, w in rows[:count])
    value = losses.ohem(*case, weights(), threshold, least)
    assert value.item() == pytest.approx(by_hand)
    value.backward()
    assert int((case[0].grad.abs().sum(1) > 0).sum()) == count


def test_dice_is_of_the_classes_that_the_labels_have(case):
    logits, labels = case
    labels[labels == 1] = 0

    def by_hand(c):
        both = both_sums = 0.0
        for p, label, _ in pixels(logits, labels):
            both += p[c] * (label == c)
            both_sums += p[c] + (label == c)
        return 1 - 2 * both / both_sums

    assert losses.dice(logits, labels, weights()).item() == pytest.approx((0.5 * by_hand(0) + 2 * by_hand(2)) / 2.5)
    right = 40.0 * torch.nn.functional.one_hot(labels.long().clamp(max=2), 3).permute(0, 3, 1, 2).double()
    assert losses.dice(right, labels, weights()).item() == pytest.approx(0, abs=1e-6)


KINDS = {
    "ohem": lambda *given: losses.ohem(*given, 0.7, 0.1),
    "focal": lambda *given: losses.focal(*given, 2.0),
    "dice": losses.dice,
}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_labelled_gives_nothing_and_coarse_logits_are_upsampled(kind, case):
    logits, labels = case
    nothing = KINDS[kind](logits, torch.full_like(labels, 255), weights())
    nothing.backward()
    assert nothing.item() == 0 and not logits.grad.any()
    fine = torch.nn.functional.interpolate(logits, (8, 10), mode="bilinear", align_corners=False)
    large = labels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(KINDS[kind](logits, large, weights()), KINDS[kind](fine, large, weights()))


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_have_finite_gradients(kind):
    logits = torch.tensor([[[[90.0, -90.0]], [[-90.0, 90.0]], [[0.0, 0.0]]]], requires_grad=True)
    for label in ([[[0, 1]]], [[[1, 0]]]):
        KINDS[kind](logits, torch.tensor(label).to(torch.uint8), WEIGHTS).backward()
    assert torch.isfinite(logits.grad).all()


def test_a_training_takes_them_by_name(case):
    training = plain_training(steps=4, batch=2, lr=0.1, background_weight=1.0, norm_every=100)
    step = object.__new__(Step)  # no network is needed to choose a loss
    step.weights_K = weights()
    named = {}
    for name in ("cross_entropy", *KINDS):
        step.training = dataclasses.replace(training, label_loss=name, ohem_least=0.1)
        named[name] = step.label_loss(*case)
    assert torch.equal(named["cross_entropy"], losses.cross_entropy(*case, weights()))
    assert all(torch.equal(named[kind], loss(*case, weights())) for kind, loss in KINDS.items())
