"""Fixed weights and a learning rate, proposed from short runs that are scored on the split `val`.

First the learning rate: the student on labels alone, at several rates. Then the method at the best of them, each weight set by a
share of the gradient of the loss on labels (`weight: {gradient: 0.3}`); what those weights were in the second half of the best
share's runs is proposed as fixed weights. Scores are mean IoU on the canvas, as with `training.validate_every`. A stage knows no
other: the command line hands in the one that trains.
"""

import copy
import csv
import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import Config, GradientShare, Term, term_name
from pipeline.errors import ConfigError
from pipeline.identity import join_names
from pipeline.progress import table_lines
from pipeline.reporting.table import points
from pipeline.teacher.experiment import Experiment


def run(
    experiment: Experiment,
    *,
    student: str,
    method: str,
    steps: int,
    rates: Sequence[float],
    shares: Sequence[float],
    seeds: int,
    folder: Path,
    device: str,
    train: Callable,
) -> str:
    """Trains below `folder`, where finished runs are taken as they are. Returns a table and lines for the configuration. Raises
    ConfigError for a method without a weight to tune, and DatasetError where `val` has no labels."""
    config = experiment.config
    terms = config.method(method)
    if not any(weighs(term) for term in terms):
        raise ConfigError(f"{config.path}: methods.{method}: has no loss with a weight above 0; name another with --method")

    def scored(changed: Config, method: str, name: str) -> tuple[list[float], list[Path]]:
        places = [folder / f"{student}-{method}-{name}-{seed}" for seed in range(seeds)]
        for seed, place in enumerate(places):
            one = Experiment(changed, experiment.root, experiment.weights_file)
            train(one, student=student, method=method, seed=seed, folder=place, device=device)
        return [last_of(place / "validation.tsv")["mean_iou"] for place in places], places

    plain = next((name for name, losses in config.methods.items() if not losses), None)
    rows, rate = [], config.training.lr
    if plain is not None and len(rates) > 1:
        found = {}
        for lr in rates:
            scores, _ = scored(shortened(config, steps, lr), plain, f"lr{lr:g}")
            found[lr] = scores
            rows.append([plain, f"{lr:g}", "", *in_words(scores), ""])
        rate = max(found, key=lambda lr: statistics.fmean(found[lr]))
    elif len(rates) == 1:
        rate = rates[0]
    tried: dict[float, tuple[list[float], dict[str, float]]] = {}
    for share in shares:
        changed = with_share(shortened(config, steps, rate), method, share)
        scores, places = scored(changed, method, f"lr{rate:g}-share{share:g}")
        weights = mean_weights(places, changed.method(method))
        if unmeasured := [name for name, weight in weights.items() if not weight]:
            raise ConfigError(
                f"--steps {steps}: too few to measure the gradient of {join_names(unmeasured)}, so no weight can be proposed; "
                f"choose more, at least {3 * GradientShare(gradient=share).every}"
            )
        tried[share] = scores, weights
        words = ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items())
        rows.append([method, f"{rate:g}", f"{share:g}", *in_words(scores), words])
    share = max(tried, key=lambda share: statistics.fmean(tried[share][0]))
    head = ["method", "lr", "share of the gradient", "val mean IoU", "sd", "mean weights"]
    return "\n".join(
        [
            *table_lines(head, rows),
            "",
            f"Runs of {steps} steps, {seeds} seed{'s' * (seeds > 1)} each, in {folder}; scored on val, on the canvas. "
            + ("One seed: a small difference says nothing (--seeds 3)." if seeds == 1 else "sd: over seeds."),
            "",
            f"To put into {config.path}:",
            "",
            *proposal(config, method, rate, tried[share][1]),
        ]
    )


def weighs(term: Term) -> bool:
    return isinstance(term.weight, GradientShare) or term.weight > 0


def shortened(config: Config, steps: int, lr: float) -> Config:
    """The experiment with so many steps: a shorter schedule and warm-up of the same shape, scored at its end."""
    whole = config.training
    part = steps / whole.steps
    changes: dict[str, Any] = dict(
        steps=steps,
        lr=lr,
        warmup_steps=min(steps, round(whole.warmup_steps * part)),
        validate_every=steps,
        keep="last",
        patience=0,
        held_out=0,
    )
    if whole.milestones is not None:
        changes["milestones"] = tuple(sorted({max(1, round(step * part)) for step in whole.milestones}))
    raw = copy.deepcopy(config.raw)
    raw["training"] |= {key: list(value) if isinstance(value, tuple) else value for key, value in changes.items()}
    return dataclasses.replace(config, raw=raw, training=dataclasses.replace(whole, **changes))


def with_share(config: Config, method: str, share: float) -> Config:
    """The method with every weight above 0 as this share of the gradient."""
    terms = tuple(
        dataclasses.replace(term, weight=GradientShare(gradient=share)) if weighs(term) else term for term in config.method(method)
    )
    raw = copy.deepcopy(config.raw)
    for entry, term in zip(raw["methods"][method], terms):
        if isinstance(term.weight, GradientShare):
            entry["weight"] = {"gradient": share}
    return dataclasses.replace(config, raw=raw, methods={**config.methods, method: terms})


def mean_weights(places: Sequence[Path], terms: Sequence[Term]) -> dict[str, float]:
    """By term: the geometric mean of its weight over the second half of the runs."""
    found = {}
    for name in (term_name(terms, i) for i, term in enumerate(terms) if isinstance(term.weight, GradientShare)):
        logs = []
        for place in places:
            rows = json.loads((place / "curves.json").read_text(encoding="utf-8"))
            known = [row[f"weight({name})"] for row in rows if row.get(f"weight({name})")]
            logs += [math.log(weight) for weight in known[len(known) // 2 :]]
        found[name] = math.exp(statistics.fmean(logs)) if logs else 0.0
    return found


def proposal(config: Config, method: str, rate: float, weights: dict[str, float]) -> list[str]:
    """The entries as YAML, with two digits of each weight."""
    entries = copy.deepcopy(config.raw["methods"][method])
    terms = config.method(method)
    for i, entry in enumerate(entries):
        if (name := term_name(terms, i)) in weights:
            entry["weight"] = float(f"{weights[name]:.2g}")
    lines = [f"training: {{lr: {float(f'{rate:g}')!r}}}", "methods:", f"  {method}:"]
    for entry in entries:
        lines.append("    - " + yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=10_000).strip())
    return [f"    {line}" for line in lines]


def in_words(scores: Sequence[float]) -> list[str]:
    return [points(statistics.fmean(scores)), points(statistics.stdev(scores)) if len(scores) > 1 else ""]


def last_of(path: Path) -> dict[str, float]:
    with open(path, newline="") as file:
        return {name: float(value) for name, value in list(csv.DictReader(file, delimiter="\t"))[-1].items()}
