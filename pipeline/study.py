"""A study: one student in several arms over many seeds, and the one comparison that it was made for, named beforehand.

A file in configs/studies says which experiment, which arms (a method of the experiment, with overrides of its settings), how
many seeds, the splits that are scored, and the primary contrast on the first of them: one arm against the *best* of the
baselines it names.

Differences of means come with Welch's 95 % interval: arms may spread differently, and which draws a seed's number fixes
differs between arms, so nothing is paired.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np
import yaml

from pipeline.config import Config, load
from pipeline.errors import ConfigError
from pipeline.statistics import gap_closed, welch

KEYS = {"config", "student", "splits", "seeds", "primary", "gate", "arms"}


@dataclass(frozen=True, kw_only=True)
class Arm:
    name: str
    config: Config                              # with the study's and the arm's overrides
    method: str


@dataclass(frozen=True, kw_only=True)
class Study:
    path: Path
    student: str
    splits: tuple[str, ...]
    seeds: tuple[int, ...]
    primary: str | None                         # the arm in question; None: a look around, e.g. to choose a weight
    baselines: tuple[str, ...]                  # of which the best counts
    gate: float                                 # the teacher must be better than the first baseline by so many of its seed sds
    arms: dict[str, Arm]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def config(self) -> Config:
        """The experiment's: dataset, preparation, teacher and targets are the same in all arms."""
        return next(iter(self.arms.values())).config


def read(path: Path) -> Study:
    """Raises ConfigError that names the file and what is wrong with it."""
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; the examples are in configs/studies") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict) or set(raw) != KEYS:
        raise ConfigError(f"{path}: expected the keys {', '.join(sorted(KEYS))}, "
                          f"got {', '.join(map(str, raw)) if isinstance(raw, dict) else raw!r}")
    arms = {}
    for name, arm in raw["arms"].items():
        arms[name] = Arm(name=name, config=load(raw["config"], arm.get("set") or []), method=arm["method"])
        arms[name].config.method(arm["method"]), arms[name].config.student(raw["student"])
    primary = raw["primary"] or {"arm": None, "against": []}
    for name in (*primary["against"], *([primary["arm"]] if primary["arm"] else [])):
        if name not in arms:
            raise ConfigError(f"{path}: primary: there is no arm {name!r}, only {', '.join(arms)}")
    return Study(path=path, student=raw["student"], splits=tuple(raw["splits"]), seeds=tuple(raw["seeds"]), primary=primary["arm"],
                 baselines=tuple(primary["against"]), gate=float(raw["gate"]), arms=arms)


def table(study: Study, teacher: float | None, scores: Mapping[str, Sequence[float]], seconds: Mapping[str, Sequence[float]]
          ) -> list[str]:
    """Markdown: what each arm scored, in points, beside the best baseline. An arm that has not run yet keeps its line."""
    known = {arm: values for arm, values in scores.items() if len(values)}
    baselines = [arm for arm in study.baselines if arm in known]
    best = max(baselines, key=lambda arm: np.mean(known[arm]), default=None)
    lines = [f"| arm | seeds | mean | sd | against {best or 'baseline'} | 95 % interval | p | gap closed | s a run |",
             "|---|---|---|---|---|---|---|---|---|"]
    if teacher is not None:
        lines.append(f"| teacher | 1 | {100 * teacher:.2f} | | | | | | |")
    for arm in study.arms:
        values = known.get(arm)
        if values is None:
            lines.append(f"| {arm} | 0 | | | | | | | |")
            continue
        sd = f"{100 * np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        beside = " | | | "
        if best is not None and arm != best:
            apart = welch(values, known[best])
            closed = gap_closed(np.mean(values), np.mean(known[best]), teacher)
            beside = f"{100 * apart.mean:+.2f} | | | " if apart.test == "none" else (
                f"{100 * apart.mean:+.2f} | {100 * apart.low:+.2f} to {100 * apart.high:+.2f} | {apart.p:.3f} | ")
            beside += "-" if closed is None else f"{closed:.0%}"
        lines.append(f"| {arm} | {len(values)} | {100 * np.mean(values):.2f} | {sd} | {beside} | {np.median(seconds[arm]):.0f} |")
    return lines


def verdict(study: Study, teacher: float | None, scores: Mapping[str, Sequence[float]]) -> list[str]:
    """The gate and the primary contrast in words."""
    lines, known = [], {arm: values for arm, values in scores.items() if len(values) > 1}
    first = next((arm for arm in study.baselines if arm in known), None)
    if first is not None and teacher is not None:
        sd = np.std(known[first], ddof=1)
        times = (teacher - np.mean(known[first])) / sd if sd else np.inf
        lines.append(f"Gate: the teacher is {times:.1f} seed standard deviations above `{first}`; "
                     f"{study.gate:g} were asked for: {'passed' if times >= study.gate else 'NOT passed'}.")
    if study.primary in known and all(arm in known for arm in study.baselines):
        best = max(study.baselines, key=lambda arm: np.mean(known[arm]))
        apart = welch(known[study.primary], known[best])
        answer = "better" if apart.low > 0 else "worse" if apart.high < 0 else "no difference can be told"
        lines.append(f"Primary contrast: `{study.primary}` against `{best}`, the best baseline: {100 * apart.mean:+.2f} points, "
                     f"95 % interval {100 * apart.low:+.2f} to {100 * apart.high:+.2f}, p = {apart.p:.3f}: {answer}.")
    return lines


def asked(study: Study, arm: Arm, seed: int) -> dict[str, Any]:
    """What a cell's score answers for; a cell that was scored for something else is run again."""
    return {"method": arm.config.raw["methods"][arm.method], "training": arm.config.raw["training"], "seed": seed,
            "views": arm.config.raw["views"], "prepare": arm.config.raw["prepare"], "teacher": arm.config.raw["teacher"],
            "teacher_training": arm.config.raw["teacher_training"], "splits": list(study.splits)}
