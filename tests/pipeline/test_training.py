import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import plain_training

from pipeline.config import Photometric, Plugin, Term
from pipeline.datasets.base import DatasetBase
from pipeline.errors import ConfigError
from pipeline.losses.base import Batch
from pipeline.models.base import Output
from pipeline.training import loading
from pipeline.training import run as runs
from pipeline.training import step as steps
from pipeline.training.loading import normal_like, photometric

SETTINGS = plain_training(steps=10, batch=2, lr=0.1, background_weight=0.4, norm_every=5)


def batch(step=0, size=(16, 24), classes=5):
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, classes, (2, *size), generator=generator).to(torch.uint8)
    labels[:, :3] = 255
    images = torch.rand(2, 3, *size, generator=generator) * 255
    return Batch(images, labels, labels != 255, None, {}, step)


def student(seed=0):
    torch.manual_seed(seed)
    return Plugin(kind="models", name="erfnet", args={"width": 4}).build(num_classes=5, size=(16, 24), lanes=0)


def test_cross_entropy_equals_a_loop_over_pixels():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randint(0, 3, (2, 4, 5))
    labels[0, 1] = 255
    weights = torch.tensor([0.4, 1.0, 2.0], dtype=torch.float64)
    total = weight = 0.0
    for b in range(2):
        for y in range(4):
            for x in range(5):
                k = int(labels[b, y, x])
                if k != 255:
                    z = [math.exp(v) for v in logits[b, :, y, x].tolist()]
                    total -= float(weights[k]) * math.log(z[k] / sum(z))
                    weight += float(weights[k])
    assert float(steps.cross_entropy(logits, labels.to(torch.uint8), weights)) == pytest.approx(total / weight, rel=1e-12)


def test_cross_entropy_without_a_labelled_pixel_is_zero_with_zero_gradient():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = steps.cross_entropy(logits, torch.full((1, 2, 2), 255, dtype=torch.uint8), torch.ones(3))
    loss.backward()
    assert loss == 0 and logits.grad.abs().max() == 0


def test_images_without_a_label_change_nothing_that_is_learned_from_labels():
    """Cross-entropy is the mean over labelled pixels, whatever else is in the batch."""
    logits = torch.randn(4, 3, 2, 2, requires_grad=True)
    labels = torch.full((4, 2, 2), 255, dtype=torch.uint8)
    labels[1] = torch.tensor([[0, 1], [2, 255]])
    loss = steps.cross_entropy(logits, labels, torch.ones(3))
    alone = steps.cross_entropy(logits[1:2], labels[1:2], torch.ones(3))
    assert torch.equal(loss, alone)
    loss.backward()
    assert (logits.grad[[0, 2, 3]] == 0).all() and (logits.grad[1] != 0).any()


def test_curves_of_what_is_learned_from_labels_are_means_over_steps_that_showed_one():
    settings = dataclasses.replace(SETTINGS, dice_weight=0.5)
    step = steps.Step(student(), terms(), [Pull()], settings, torch.ones(5), seed=0, partly_labelled=True)
    unlabelled = dataclasses.replace(batch(1), labels_BHW=torch.full((2, 16, 24), 255, dtype=torch.uint8))
    half = batch(2)
    half.labels_BHW[1] = 255
    pending = [(number, step(one)[0]) for number, one in enumerate((batch(0), unlabelled, half))]
    assert [float(values["labelled"]) for _, values in pending] == [1.0, 0.0, 0.5] and float(pending[1][1]["ce"]) == 0
    point = runs._window(pending, "run")
    for name in ("ce", "dice"):
        assert point[name] == pytest.approx((float(pending[0][1][name]) + float(pending[2][1][name])) / 2)
    assert point["pull"] == pytest.approx(sum(float(values["pull"]) for _, values in pending) / 3) and point["labelled"] == 0.5
    assert "ce" not in runs._window(pending[1:2], "run")
    held_out = step.held_out([unlabelled, half])
    assert held_out["ce"] == pytest.approx(step.held_out([half])["ce"])  # over images with a label


def test_coarse_logits_are_upsampled_to_the_labels():
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 3, 2, 3), torch.randint(0, 3, (1, 16, 24)).to(torch.uint8)
    up = F.interpolate(logits, (16, 24), mode="bilinear", align_corners=False)
    assert torch.equal(steps.cross_entropy(logits, labels, torch.ones(3)), steps.cross_entropy(up, labels, torch.ones(3)))


def test_unknown_lane_flags_do_not_count():
    logits, flags = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, 255]], dtype=torch.uint8)
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2
    assert float(steps.existence_loss(logits, flags)) == pytest.approx(expected, rel=1e-6)


class Sky(DatasetBase):
    classes, colours = ("sky", "road"), ((0, 0, 0), (9, 9, 9))
    ids = image = label = files = lambda *_: None


def test_a_background_weight_needs_a_background_class():
    with pytest.raises(ConfigError, match="background_weight"):
        steps.class_weights(Sky(), SETTINGS, "cpu")
    roads = Sky()
    roads.background = 0
    assert steps.class_weights(roads, SETTINGS, "cpu").tolist() == pytest.approx([0.4, 1.0])


@pytest.mark.parametrize(
    "keys, message",
    [
        (dict(labelled_per_batch=3), "3 images are more than a batch of 2"),
        (dict(labelled_per_batch=1, shuffle_block=8), "which shuffle_block can't"),
    ],
)
def test_labelled_images_of_a_batch_fit_into_it(keys, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS, batch=2, **keys)
    assert dataclasses.replace(SETTINGS, batch=2, labelled_per_batch=2, shuffle_block=8).labelled_per_batch == 2


def test_the_learning_rate_falls_by_the_poly_rule():
    step = steps.Step(student(), [], [], SETTINGS, torch.ones(5), seed=0)
    rates = []
    for number in range(10):
        step(batch(number))
        rates.append(step.optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1 * (1 - n / 10) ** 0.9 for n in range(10)])


def test_the_learning_rate_warms_up_below_the_poly_rule():
    training = dataclasses.replace(SETTINGS, warmup_steps=4)
    rates = [steps.learning_rate(training, n) for n in range(10)]
    assert rates == pytest.approx([0.1 * (1 - n / 10) ** 0.9 * min(1, (n + 1) / 4) for n in range(10)])


def resnet(seed=0):
    torch.manual_seed(seed)
    return Plugin(kind="models", name="resnet18", args={"width": 8, "head": "plain", "dilation": "paper"}).build(
        num_classes=5, size=(16, 24), lanes=0
    )


def test_the_heads_learning_rate_is_its_own():
    """One step of plain SGD moves a parameter by lr times its gradient: the head by ten times as much as without the key."""
    bare = dataclasses.replace(SETTINGS, momentum=0.0, weight_decay=0.0, warmup_steps=2)
    moved = {}
    for factor in (1.0, 10.0):
        step, before = steps.Step(resnet(), [], [], dataclasses.replace(bare, head_lr=factor), torch.ones(5), seed=0), resnet()
        step(batch(0))
        moved[factor] = {
            name: after - start for (name, start), (_, after) in zip(before.named_parameters(), step.model.named_parameters())
        }
    for name, change in moved[1.0].items():
        expected = change * (1 if name.partition(".")[0] in step.model.backbone else 10)
        torch.testing.assert_close(moved[10.0][name], expected, rtol=1e-3, atol=1e-6)
    assert any(name.startswith("head") for name in moved[1.0])
    with pytest.raises(ConfigError, match="erfnet has no backbone"):
        steps.Step(student(), [], [], dataclasses.replace(bare, head_lr=2.0), torch.ones(5), seed=0)


def test_nesterov_takes_the_gradient_where_the_momentum_leads():
    """Two steps of one number under a constant gradient g: with Nesterov it goes lr * g * (1 + m) and then lr * g * (1 + m +
    m^2)."""
    moves = {}
    for nesterov in (False, True):
        loss = Pull()
        training = dataclasses.replace(SETTINGS, nesterov=nesterov, weight_decay=0.0, power=0.0, lr=1e-3)
        step = steps.Step(student(), [], [loss], training, torch.ones(5), seed=0)
        places = [0.0]
        for _ in range(2):
            loss.scale.grad = torch.tensor(2.0)
            step.optimiser.param_groups[0]["lr"] = 1e-3
            step.optimiser.step()
            places.append(float(loss.scale.detach()) - 1)
        moves[nesterov] = [places[1] - places[0], places[2] - places[1]]
    assert moves[False] == pytest.approx([-2e-3, -2e-3 * 1.9], rel=1e-3)
    assert moves[True] == pytest.approx([-2e-3 * 1.9, -2e-3 * (1 + 0.9 * 1.9)], rel=1e-3)


def test_class_weights_are_the_lists_or_enets():
    by_hand = dataclasses.replace(SETTINGS, background_weight=1.0, class_weights=(0.5, 3.0))
    assert steps.class_weights(Sky(), by_hand, "cpu").tolist() == [0.5, 3.0]
    with pytest.raises(ConfigError, match="3 weights for 2 classes"):
        steps.class_weights(Sky(), dataclasses.replace(by_hand, class_weights=(1.0, 1.0, 1.0)), "cpu")
    enet = dataclasses.replace(by_hand, class_weights="enet")
    found = steps.class_weights(Sky(), enet, "cpu", torch.tensor([0.9, 0.0])).tolist()
    assert found == pytest.approx([1 / math.log(1.92), 1 / math.log(1.02)], rel=1e-5)


class Pull(torch.nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, output, batch):
        return (output.logits * self.scale).square().mean()


def terms(weight=1.0, **schedule):
    return [Term(loss=Plugin(kind="losses", name="pull", args={}), reads=(), weight=weight, **schedule)]


def test_a_loss_is_weighed_logged_and_its_own_parameters_are_trained():
    loss = Pull()
    step = steps.Step(student(), terms(0.5), [loss], SETTINGS, torch.ones(5), seed=0)
    values, norms = step(batch(0))
    assert set(values) == {"ce", "pull"} and set(norms) == {"ce", "pull"}
    assert float(loss.scale.detach()) != 1.0
    assert step(batch(1))[1] == {}  # gradient norms are measured every `norm_every` steps


def test_a_weight_of_zero_leaves_the_plain_step():
    plain = steps.Step(student(), [], [], SETTINGS, torch.ones(5), seed=0)
    pulled = steps.Step(student(), terms(1.0, start=5), [Pull()], SETTINGS, torch.ones(5), seed=0)
    for number in range(3):
        plain(batch(number)), pulled(batch(number))
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), pulled.model.parameters()))


def test_gradient_norms_are_those_of_the_weighted_terms_at_the_features():
    mid, high = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 5, 4, 4, requires_grad=True)
    output = Output(3 * high, {"mid": mid, "high": high})
    weighed = {
        "ce": (1.0, output.logits.sum()),
        "pull": (2.0, output.logits.square().mean() + mid.sum()),
        "none": (1.0, torch.tensor(0.0)),
    }
    norms = steps.gradient_norms(output, weighed)
    high_part = (2 * 9 * high.detach() / high.numel()).double().square().sum()
    assert norms["ce"] == pytest.approx(3 * high.numel() ** 0.5)
    assert norms["pull"] == pytest.approx(2 * float(high_part + mid.numel()) ** 0.5, rel=1e-6)
    assert norms["none"] == 0


def balanced(**more):
    return steps.Step(student(), terms({"gradient": 0.3, "every": 2, **more}), [Pull()], SETTINGS, torch.ones(5), seed=0)


def test_a_weight_by_gradient_makes_the_terms_norm_this_share_of_cross_entropys():
    step = balanced(decay=0.0)
    for number in (0, 2):
        step.training = dataclasses.replace(SETTINGS, norm_every=1)
        values, norms = step(batch(number))
        assert norms["pull"] == pytest.approx(0.3 * norms["ce"], rel=1e-6)
    _, norms = step(batch(3))  # not measured for the weight at this step, which stays
    assert norms["pull"] != pytest.approx(0.3 * norms["ce"], rel=1e-6)
    assert float(values["weight(pull)"]) == pytest.approx(step.balance.weight("pull"))


def test_both_norms_are_running_means_and_one_that_says_nothing_is_left_out():
    balance = balanced(decay=0.75).balance
    assert balance.weight("pull") == 0 and balance.due("pull", 1)  # until it was measured
    balance.follow("pull", 2.0, 4.0)
    assert balance.weight("pull") == pytest.approx(0.3 * 2 / 4)
    for label, norm in ((0.0, 1.0), (1.0, 0.0), (1.0, float("inf")), (float("nan"), 1.0)):
        balance.follow("pull", label, norm)
    balance.follow("pull", 6.0, 8.0)
    assert balance.weight("pull") == pytest.approx(0.3 * (0.75 * 2 + 0.25 * 6) / (0.75 * 4 + 0.25 * 8))
    assert [balance.due("pull", number) for number in (2, 3, 4)] == [True, False, True]


def test_a_weight_by_gradient_resumes_bit_for_bit():
    unbroken, first, second = balanced(), balanced(), balanced()
    for number in range(5):
        unbroken(batch(number))
    for number in range(3):
        first(batch(number))
    second.load_state(first.state())
    for number in (3, 4):
        second(batch(number))
    assert second.balance.norms == unbroken.balance.norms
    assert all(torch.equal(a, b) for a, b in zip(unbroken.model.state_dict().values(), second.model.state_dict().values()))


def test_gradient_norms_in_bfloat16_are_those_of_float32_up_to_its_rounding():
    norms = {}
    for precision in ("fp32", "bf16"):
        step = steps.Step(
            student(), terms(2.0), [Pull()], dataclasses.replace(SETTINGS, precision=precision), torch.ones(5), seed=0
        )
        _, norms[precision] = step(batch(0))
    for name, value in norms["fp32"].items():
        assert norms["bf16"][name] == pytest.approx(value, rel=0.3), name


def test_a_step_depends_on_seed_and_step_alone():
    first, second = (steps.Step(student(), [], [], SETTINGS, torch.ones(5), seed=0) for _ in range(2))
    first(batch(0)), first(batch(1))
    second(batch(0))
    torch.rand(17)  # somebody draws in between
    second(batch(1))
    assert all(torch.equal(a, b) for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values()))


def test_each_process_drops_other_channels():
    drawn = []
    for process in ((), (0,), (1,), (2,)):
        steps.reseed(5, 7, *process)
        drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[1])
    assert not any(torch.equal(mine, theirs) for mine, theirs in zip(drawn[1:], drawn[2:]))


@pytest.mark.parametrize("shape", [(4, 3, 30, 50), (1, 3, 7, 3), (2, 3, 1, 9)])
def test_noise_is_what_pytorch_draws(shape):
    for memory in (torch.channels_last, torch.contiguous_format):
        images = torch.empty(shape).to(memory_format=memory)
        for seed in range(20):
            expected = torch.empty_like(images).normal_(generator=torch.Generator().manual_seed(seed))
            drawn = normal_like(images, torch.Generator().manual_seed(seed))
            assert torch.equal(drawn, expected) and drawn.stride() == expected.stride()


def test_noise_next_to_the_middle_of_two_float32_numbers_is_drawn_by_pytorch(monkeypatch):
    images = torch.empty(1, 3, 8, 8).to(memory_format=torch.channels_last)
    expected = torch.empty_like(images).normal_(generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(loading, "MARGIN", 2**28 + 1)  # every number is so near
    monkeypatch.setattr(torch.Tensor, "copy_", lambda *_: None)  # and nothing of what is drawn here is used
    assert torch.equal(normal_like(images, torch.Generator().manual_seed(0)), expected)


def test_photometric_changes_keep_the_range_and_depend_on_the_generator():
    images = torch.rand(4, 3, 8, 8) * 255
    change = Photometric(brightness=0.3, contrast=0.3, noise=5.0)
    once, again = (photometric(images, change, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(once, again) and once.min() >= 0 and once.max() <= 255 and not torch.equal(once, images)
    assert photometric(images, Photometric(brightness=0, contrast=0, noise=0), torch.Generator()) is images


NETS = {
    "pyramid": ("resnet18", {"width": 8, "head": "pyramid"}),
    "plain": ("resnet18", {"width": 8, "head": "plain"}),
    "pooled": (
        "adapter",
        {
            "factory": "toy_networks:Pooled",
            "arguments": {},
            "layers": {"high": "late"},
            "logits": "output",
            "mean": (0, 0, 0),
            "std": (1, 1, 1),
        },
    ),
}


@pytest.mark.parametrize(
    "name, batch, accumulate, fits",
    [
        ("pyramid", 1, 1, False),
        ("pyramid", 4, 4, False),
        ("pyramid", 2, 1, True),
        ("pyramid", 4, 2, True),
        ("plain", 1, 1, True),
        ("pooled", 1, 1, False),
        ("pooled", 2, 1, True),
    ],
)
def test_one_image_at_a_time_is_refused_where_a_map_of_one_cell_is_normalised(name, batch, accumulate, fits, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "models"))
    model, args = NETS[name]
    training = dataclasses.replace(SETTINGS, batch=batch, accumulate=accumulate)

    def build():
        return Plugin(kind="models", name=model, args=args).build(num_classes=5, size=(48, 64), lanes=0)

    if fits:
        return steps.check_batch(build, (48, 64), training, "cpu", "training")
    with pytest.raises(
        ConfigError, match=f"^teacher_training.batch: {batch} .*one image at a time.*batch of {2 * accumulate} or more"
    ) as refused:
        steps.check_batch(build, (48, 64), training, "cpu", "teacher_training")
    assert "\n" not in str(refused.value)


def test_the_check_of_a_batch_is_right_about_the_step_itself():
    network = Plugin(kind="models", name="resnet18", args=NETS["pyramid"][1]).build(num_classes=5, size=(48, 64), lanes=0)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network.train()(torch.rand(1, 3, 48, 64))
    assert network.train()(torch.rand(2, 3, 48, 64)).logits.isfinite().all()
