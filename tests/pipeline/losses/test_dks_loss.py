"""Auxiliary heads: labels and pairs against loops, and who learns from whom."""

import math

import numpy as np
import pytest
import torch
from conftest import plain_training

from pipeline.config import Plugin, Term
from pipeline.losses.base import Batch
from pipeline.losses.dks import Loss
from pipeline.models.base import Output
from pipeline.targets.base import Context
from pipeline.training.step import Step

CONTEXT = Context(
    num_classes=4,
    regions=(0, 1, 2, 3),
    size=(24, 40),
    channels={"mid": 3, "high": 5, "logits": 4},
    grids={"mid": (6, 10), "high": (3, 5), "logits": (24, 40)},
)


def loss_of(**keys):
    torch.manual_seed(0)
    return Loss(reads={}, context=None, student=CONTEXT, **keys)


def toy(logits=(24, 40), seed=0):
    generator = torch.Generator().manual_seed(seed)
    grids = {"mid": (6, 10), "high": (3, 5)}
    features = {role: 2 * torch.randn(2, CONTEXT.channels[role], *grids[role], generator=generator) for role in grids}
    output = Output(2 * torch.randn(2, 4, *logits, generator=generator), features)
    for leaf in (output.logits, *features.values()):
        leaf.requires_grad_()
    return output


def batch_of(label=None, inside=None):
    labels_BHW = torch.randint(0, 5, (2, 24, 40), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    labels_BHW[labels_BHW == 4] = 255
    if label is not None:
        labels_BHW[:] = label
    inside_BHW = torch.ones(2, 24, 40, dtype=torch.bool)
    inside_BHW[0, :, 32:], inside_BHW[1, :4] = False, False  # column 4 of 8x8 cells; half of row 0: stays
    if inside is not None:
        inside_BHW[:] = inside
    return Batch(images_B3HW=torch.empty(0), labels_BHW=labels_BHW, existence_BL=None, inside_BHW=inside_BHW, rows={}, step=0)


def slow_resize(map_hw, size):
    """Bilinear between pixel centres, edges repeated."""
    (h, w), out = map_hw.shape, np.zeros(size)
    for i, j in np.ndindex(*size):
        y = min(max((i + 0.5) * h / size[0] - 0.5, 0), h - 1)
        x = min(max((j + 0.5) * w / size[1] - 0.5, 0), w - 1)
        y0, x0 = math.floor(y), math.floor(x)
        y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
        top, bottom = (map_hw[row, x0] * (x0 + 1 - x) + map_hw[row, x1] * (x - x0) for row in (y0, y1))
        out[i, j] = top * (y0 + 1 - y) + bottom * (y - y0)
    return out


def probabilities(logits_K):
    return np.exp(logits_K) / np.exp(logits_K).sum()


def slow_dks(loss, output, labels_BHW):
    heads = []
    for role, head in loss.heads.items():
        weight_KC, bias_K = head.weight.detach().double().numpy()[:, :, 0, 0], head.bias.detach().double().numpy()
        features_BChw = output.features[role].detach().double().numpy()
        heads.append(np.einsum("kc,bcij->bkij", weight_KC, features_BChw) + bias_K[:, None, None])
    labels = 0.0
    for head_BKhw in heads:
        up_BKHW = np.stack([[slow_resize(map_hw, (24, 40)) for map_hw in image] for image in head_BKhw])
        labels += np.mean(
            [-math.log(probabilities(up_BKHW[b, :, y, x])[labels_BHW[b, y, x]]) for b, y, x in np.argwhere(labels_BHW != 255)]
        )
    cells = []
    for logits_BKhw in (*heads, output.logits.detach().double().numpy()):
        sy, sx = logits_BKhw.shape[2] // 3, logits_BKhw.shape[3] // 5
        cells.append(logits_BKhw.reshape(2, 4, 3, sy, 5, sx).mean(axis=(3, 5)))
    images = []
    for b, columns in enumerate((4, 5)):
        terms = []
        for i, j in np.ndindex(3, columns):
            answers = [probabilities(logits_BKhw[b, :, i, j]) for logits_BKhw in cells]
            terms.append(sum((answers[m] * np.log(answers[m] / answers[n])).sum() for m in range(3) for n in range(3)))
        images.append(np.mean(terms))
    return labels + loss.synergy * np.mean(images)


@pytest.mark.parametrize("synergy", [1.0, 0.0, 3.0])
@pytest.mark.parametrize("logits", [(24, 40), (12, 10), (3, 5)])
def test_the_loss_equals_the_loops(synergy, logits):
    loss, output, batch = loss_of(synergy=synergy), toy(logits), batch_of()
    assert loss(output, batch).item() == pytest.approx(slow_dks(loss, output, batch.labels_BHW.numpy()), rel=1e-5)


def test_no_answer_learns_by_moving_as_a_target():
    """The slope at the student's logits is the sum over the other answers p of its own probabilities less p."""
    loss, output = loss_of(), toy((3, 5))
    loss(output, batch_of(label=255, inside=True)).backward()
    mid, high = output.features["mid"].detach(), output.features["high"].detach()
    answers = loss.heads["mid"](torch.nn.functional.avg_pool2d(mid, 2)), loss.heads["high"](high)
    own = output.logits.detach().softmax(dim=1)
    expected = sum(own - answer.softmax(dim=1) for answer in answers) / (2 * 3 * 5)
    torch.testing.assert_close(output.logits.grad, expected.detach(), rtol=1e-4, atol=1e-7)


def test_equal_answers_have_nothing_to_learn_from_one_another():
    loss = loss_of()
    for head in loss.heads.values():
        torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
    output = toy((3, 5))
    found = loss(output._replace(logits=torch.zeros(2, 4, 3, 5)), batch_of()).item()
    assert found == pytest.approx(2 * math.log(4))


def test_without_labels_the_answers_still_teach_one_another_and_outside_nothing_does():
    output = toy()
    assert loss_of()(output, batch_of(label=255)).item() > 0
    loss = loss_of()(output, batch_of(label=255, inside=False))
    loss.backward()
    assert loss.item() == 0 and (output.logits.grad == 0).all() and (output.features["mid"].grad == 0).all()


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_constant_and_huge_answers_keep_the_gradient_finite(scale):
    loss, output = loss_of(), toy()
    scaled = Output(scale * output.logits, {role: scale * map_BChw for role, map_BChw in output.features.items()})
    value = loss(scaled, batch_of())
    value.backward()
    slopes = [output.logits.grad, output.features["mid"].grad, *(parameter.grad for parameter in loss.parameters())]
    assert value.isfinite() and all(slope.isfinite().all() for slope in slopes)


def test_the_heads_are_trained_and_kept_with_the_student():
    settings = plain_training(steps=40, batch=2, lr=0.05, background_weight=1.0, norm_every=100)
    terms = [Term(loss=Plugin(kind="losses", name="dks", args={}), reads=(), weight=1.0)]

    def new_step():
        torch.manual_seed(0)
        model = Plugin(kind="models", name="erfnet", args={"width": 4}).build(num_classes=4, size=(24, 40), lanes=0)
        channels = {role: map_BChw.shape[1] for role, map_BChw in model(torch.zeros(1, 3, 24, 40)).features.items()}
        student = Context(num_classes=4, regions=(0, 1, 2, 3), size=(24, 40), grids={}, channels=channels)
        return Step(model, terms, [Loss(reads={}, context=None, student=student)], settings, torch.ones(4), seed=0)

    images = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0)) * 255
    labels = torch.zeros(2, 24, 40, dtype=torch.uint8)
    labels[:, :, 20:] = 1

    def run(step, numbers):
        return [step(Batch(images, labels, labels < 2, None, {}, number))[0]["dks"].item() for number in numbers]

    whole, first = new_step(), new_step()
    values = run(whole, range(12))
    assert values[-1] < 0.8 * values[0]
    run(first, range(6))
    second = new_step()
    second.load_state(first.state())
    run(second, range(6, 12))
    for once, resumed in zip(whole.losses.parameters(), second.losses.parameters()):
        assert torch.equal(once, resumed)
