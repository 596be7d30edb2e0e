"""Schedules against torch's own, and optimisers by name."""

import dataclasses

import pytest
import torch
from conftest import plain_training

from pipeline.errors import ConfigError
from pipeline.training.optimisers import learning_rate, optimiser

SETTINGS = plain_training(steps=50, batch=2, lr=0.1, background_weight=1.0, norm_every=100)
CPU = torch.device("cpu")


def torchs(make, steps):
    """The rates of a schedule of torch."""
    made = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule, rates = make(made), []
    for _ in range(steps):
        rates.append(made.param_groups[0]["lr"])
        made.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("steps", [50, 7, 3])
def test_schedules_are_torchs(steps):
    schedules = torch.optim.lr_scheduler
    cases = {
        "cosine": (lambda made: schedules.CosineAnnealingLR(made, T_max=steps), {}),
        "one_cycle": (lambda made: schedules.OneCycleLR(made, 0.1, total_steps=steps, cycle_momentum=False), {}),
        "step": (lambda made: schedules.MultiStepLR(made, [1, 2], gamma=0.5), {"milestones": (1, 2), "gamma": 0.5}),
        "poly": (lambda made: schedules.PolynomialLR(made, steps, power=0.9), {}),
    }
    for name, (make, keys) in cases.items():
        training = dataclasses.replace(SETTINGS, steps=steps, schedule=name, **keys)
        assert [learning_rate(training, n) for n in range(steps)] == pytest.approx(torchs(make, steps), rel=1e-9, abs=1e-12), name


def test_a_warm_up_lies_below_any_schedule_but_one_cycle():
    cosine = dataclasses.replace(SETTINGS, schedule="cosine", warmup_steps=10)
    assert learning_rate(cosine, 4) == pytest.approx(learning_rate(dataclasses.replace(cosine, warmup_steps=0), 4) / 2)
    with pytest.raises(ValueError, match="one_cycle has a warm-up of its own"):
        dataclasses.replace(SETTINGS, schedule="one_cycle", warmup_steps=10)


def made(**keys):
    groups = [{"params": [torch.nn.Parameter(torch.ones(2, 2))]}]
    return optimiser(dataclasses.replace(SETTINGS, **keys), groups, CPU)


def test_optimisers_of_torch_are_made_by_name_with_their_arguments():
    sgd, adamw = made(nesterov=True), made(optimiser="adamw", optimiser_args={"eps": 1e-6})
    assert type(sgd) is torch.optim.SGD and sgd.defaults["nesterov"] and sgd.defaults["momentum"] == 0.9
    assert type(adamw) is torch.optim.AdamW and adamw.defaults["betas"] == (0.9, 0.999) and adamw.defaults["eps"] == 1e-6
    rms = made(optimiser="RMSprop", optimiser_args={"alpha": 0.95})
    assert (rms.defaults["alpha"], rms.defaults["momentum"], rms.defaults["weight_decay"]) == (0.95, 0.9, 1e-4)
    nadam = made(optimiser="NAdam", optimiser_args={"betas": [0.8, 0.99]})
    assert nadam.defaults["betas"] == (0.8, 0.99) and nadam.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"optimiser": "RMSProp"}, "no optimiser 'RMSProp'; did you mean 'RMSprop'"),
        ({"optimiser": "LBFGS"}, "no optimiser 'LBFGS'"),
        ({"optimiser": "RMSprop", "optimiser_args": {"alhpa": 0.9}}, "RMSprop has no 'alhpa'; did you mean 'alpha'"),
        ({"optimiser_args": {"lr": 0.1}}, "write training.lr"),
        ({"milestones": (3,)}, "is for schedule: step alone"),
        ({"schedule": "step", "milestones": (3, 2)}, "expected rising steps"),
        ({"label_loss": "dice", "label_smoothing": 0.1}, "is of label_loss: cross_entropy alone"),
    ],
)
def test_what_cannot_be_is_a_fault_of_the_file(keys, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SETTINGS, **keys)


def test_what_an_optimiser_refuses_is_one_line():
    with pytest.raises(ConfigError, match="optimiser_args: torch.optim.AdamW: Invalid beta.*; correct them"):
        made(optimiser="adamw", optimiser_args={"betas": [0.9, 2.0]})
    with pytest.raises(ConfigError, match="weight_decay: torch.optim.Rprop has none; write 0.0"):
        made(optimiser="Rprop")


def test_a_step_schedule_needs_milestones(cached_experiment):
    from pipeline import config

    with pytest.raises(ConfigError, match="training.milestones: this key is missing"):
        config.load(cached_experiment.config, ["training.schedule=step"])
