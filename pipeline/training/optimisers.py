"""Optimisers by name, and schedules of the learning rate as functions of the step, so that a resumed run needs no state of them."""

import inspect
import math
from typing import Any

import torch

from pipeline.config import Training
from pipeline.config.schema import OPTIMISERS
from pipeline.errors import ConfigError


def learning_rate(training: Training, step: int) -> float:
    """Before the factor of a head.

    poly        lr (1 - step / steps)^power
    cosine      lr (1 + cos(pi step / steps)) / 2 (Loshchilov and Hutter, ICLR 2017, eq. 5, without restarts)
    step        lr gamma^n after the n-th of `milestones`
    one_cycle   from lr / 25 up to lr over 30 % of the steps, then down to lr / 250000, both by half a cosine, as torch's
                OneCycleLR has it (Smith and Topin, 2018); momentum stays as it is

    The first three rise in a straight line over `warmup_steps`.
    """
    lr, part = training.lr, step / training.steps
    if training.schedule == "one_cycle":
        peak, last = 0.3 * training.steps - 1, training.steps - 1
        if step <= peak or last <= peak:
            return _half_cosine(lr / 25, lr, step / peak if peak > 0 else 1.0)
        return _half_cosine(lr, lr / 25 / 1e4, (step - peak) / (last - peak))
    if training.schedule == "cosine":
        rate = lr * (1 + math.cos(math.pi * part)) / 2
    elif training.schedule == "step":
        rate = lr * training.gamma ** sum(step >= milestone for milestone in training.milestones or ())
    else:
        rate = lr * (1 - part) ** training.power
    return rate * min(1.0, (step + 1) / training.warmup_steps) if training.warmup_steps else rate


def _half_cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (math.cos(math.pi * part) + 1)


def optimiser(training: Training, parameters: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    """`sgd`, `adamw`, or the class of torch.optim of this name, over these groups. `momentum` is the momentum of an optimiser that
    has one, or the first of its betas. Raises ConfigError if the optimiser refuses its arguments or these parameters."""
    made: Any = getattr(torch.optim, OPTIMISERS.get(training.optimiser, training.optimiser))
    takes = inspect.signature(made).parameters
    given: dict[str, Any] = {"weight_decay": training.weight_decay} if "weight_decay" in takes else {}
    if "momentum" in takes:
        given["momentum"] = training.momentum
    if "betas" in takes:
        given["betas"] = (training.momentum, *takes["betas"].default[1:])
    if training.optimiser == "sgd":
        given["nesterov"] = training.nesterov
    if training.optimiser in OPTIMISERS and device.type == "cuda":
        given["fused"] = True
    given |= {name: tuple(v) if isinstance(v, list) else v for name, v in (training.optimiser_args or {}).items()}
    if training.weight_decay and "weight_decay" not in takes:
        raise ConfigError(f"training.weight_decay: torch.optim.{made.__name__} has none; write 0.0")
    try:
        found: torch.optim.Optimizer = made(parameters, lr=training.lr, **given)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"training.optimiser_args: torch.optim.{made.__name__}: {' '.join(str(error).split())}; correct them"
        ) from None
    return found
