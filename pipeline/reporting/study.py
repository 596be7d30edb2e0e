"""A study: one student in several arms over many seeds, and the one comparison that it was made for, named beforehand.

A file in configs/studies says which experiment, which arms, how many seeds, the splits that are scored, and the primary
contrast on the first of them: one arm against the *best* of the baselines it names. The teacher is the same in all arms. An arm:

    {method: intra}                          a method of the experiment
    {method: intra, set: [views.count=2]}    with overrides, as those of --set
    {method: intra, live: true}              with the teacher in the loop instead of its cache
    {method: plain, study: camvid-120}       the cells that study has, or will have, under this arm's name

Differences of means come with the 95 % interval of statistics.py, as in the report.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from pipeline.config import Config, load, read_yaml
from pipeline.config.checks import check_split
from pipeline.errors import ConfigError
from pipeline.identity import diff
from pipeline.later import AddedLater, leave_out
from pipeline.paths import name_fault, path_fault
from pipeline.progress import table_lines
from pipeline.reporting.statistics import compare, gap_closed

KEYS = {"config", "student", "splits", "seeds", "primary", "gate", "arms"}
ARM_KEYS = {"method", "set", "live", "study"}
TEACHERS_OWN = ("dataset", "prepare", "teacher", "teachers", "teacher_training")  # sections that no arm may change,
LABELS = {"labelled_part", "labelled_seed"}  # but for these keys of the dataset, if the teacher is not trained on them
LATER_KEYS = {"dataset", "student", "targets"}  # of `asked`: cells from before these were noted answer without them


@dataclass(frozen=True, kw_only=True)
class Arm:
    name: str
    config: Config  # with the arm's overrides
    method: str
    study: str  # whose cells these are
    live: Annotated[bool, AddedLater(False)] = False  # the teacher in the loop


@dataclass(frozen=True, kw_only=True)
class Study:
    path: Path
    student: str
    splits: tuple[str, ...]
    seeds: tuple[int, ...]
    primary: str | None  # the arm in question; None: a look around, e.g. to choose a weight
    baselines: tuple[str, ...]  # of which the best counts
    gate: float  # the teacher must be better than the first baseline by so many of its seed sds
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
    raw = read_yaml(path, "the examples are in configs/studies")
    if not isinstance(raw, dict) or set(raw) != KEYS:
        raise ConfigError(
            f"{path}: expected the keys {', '.join(sorted(KEYS))}, "
            f"got {', '.join(map(str, raw)) if isinstance(raw, dict) else raw!r}"
        )
    if fault := name_fault(path.stem):
        raise ConfigError(f"{str(path)!r}: its name {fault}; runs and reports are called so: rename the file")
    for split in raw["splits"]:
        if fault := path_fault(split):
            raise ConfigError(f"{path}: splits: {split!r} {fault}; name one of the dataset's")
    arms = {}
    for name, arm in raw["arms"].items():
        if fault := name_fault(str(name)):  # runs and scores are called so
            raise ConfigError(f"{path}: arms: {name!r} {fault}")
        if not isinstance(arm, dict) or "method" not in arm or not set(arm) <= ARM_KEYS:
            raise ConfigError(
                f"{path}: arms.{name}: expected a method, and perhaps {', '.join(sorted(ARM_KEYS - {'method'}))}; got {arm!r}"
            )
        arms[name] = Arm(
            name=name,
            config=load(raw["config"], arm.get("set") or []),
            method=arm["method"],
            study=arm.get("study", path.stem),
            live=arm.get("live", False),
        )
        if fault := name_fault(arms[name].study):
            raise ConfigError(f"{path}: arms.{name}: study: {arms[name].study!r} {fault}")
        check(path, arms[name], next(iter(arms.values())), raw["student"])
    for split in raw["splits"]:
        for where, what in check_split(next(iter(arms.values())).config.dataset, split, "splits"):
            raise ConfigError(f"{path}: {where}: {what}")
    primary = raw["primary"] or {"arm": None, "against": []}
    for name in (*primary["against"], *([primary["arm"]] if primary["arm"] else [])):
        if name not in arms:
            raise ConfigError(f"{path}: primary: there is no arm {name!r}, only {', '.join(arms)}")
    return Study(
        path=path,
        student=raw["student"],
        splits=tuple(raw["splits"]),
        seeds=tuple(raw["seeds"]),
        primary=primary["arm"],
        baselines=tuple(primary["against"]),
        gate=float(raw["gate"]),
        arms=arms,
    )


def check(path: Path, arm: Arm, first: Arm, student: str) -> None:
    """Raises ConfigError if a study has no such arm: another teacher than the first arm's, or one in the loop of nothing or that
    would answer in another precision than the fill."""
    where = f"{path}: arms.{arm.name}"
    arm.config.student(student)
    if arm.live and not arm.config.method(arm.method):
        raise ConfigError(f"{where}: live: {arm.method!r} reads nothing of a teacher; leave it out")
    precisions = {"teacher": arm.config.teacher.precision, "training": arm.config.training.precision}
    if arm.live and [*precisions.values()].count("tf32") == 1:
        raise ConfigError(
            f"{where}: live: teacher.precision is {precisions['teacher']} and training.precision {precisions['training']}, "
            f"but TF32 is on or off for a whole process; write tf32 for both or for none"
        )
    other = [section for section in TEACHERS_OWN if teachers_part(arm, section) != teachers_part(first, section)]
    if other:
        raise ConfigError(
            f"{where}: has another {' and '.join(other)} than {first.name!r}; a study has one teacher: write a "
            f"config and a study of its own"
        )


def teachers_part(arm: Arm, section: str) -> dict[str, Any]:
    """What the teacher depends on: a teacher that was trained elsewhere does not depend on which labels are shown here."""
    raw = arm.config.raw.get(section) or {}
    given = section == "dataset" and all(one.teacher.checkpoint is not None for one in arm.config.by_teacher.values())
    return {key: value for key, value in raw.items() if not (given and key in LABELS)}


def table(
    study: Study,
    teacher: float | None,
    scores: Mapping[str, Sequence[float]],
    seconds: Mapping[str, Sequence[float]],
    stored: Mapping[str, int],
) -> list[str]:
    """Markdown: what each arm scored, in points, beside the best baseline. An arm that has not run yet keeps its line. `stored`:
    bytes of an image's rows in all views that an arm reads."""
    known = {arm: values for arm, values in scores.items() if len(values)}
    baselines = [arm for arm in study.baselines if arm in known]
    best = max(baselines, key=lambda arm: np.mean(known[arm]), default=None)
    head = [
        "arm",
        "seeds",
        "mean",
        "sd",
        f"against {best or 'baseline'}",
        "95 % interval",
        "p",
        "gap closed",
        "s a run",
        "bytes an image",
    ]
    rows: list[list[object]] = []
    if teacher is not None:
        rows.append(["teacher", 1, f"{100 * teacher:.2f}", *[None] * 7])
    for arm in study.arms:
        values = known.get(arm)
        if values is None:
            rows.append([arm, 0, *[None] * 8])
            continue
        sd = f"{100 * np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        beside: list[object] = ["", None, None, ""]
        if best is not None and arm != best:
            apart = compare(values, known[best])
            closed = gap_closed(float(np.mean(values)), float(np.mean(known[best])), teacher)
            beside[0], beside[3] = f"{100 * apart.mean:+.2f}", "-" if closed is None else f"{closed:.0%}"
            if not np.isnan(apart.low):
                beside[1:3] = f"{100 * apart.low:+.2f} to {100 * apart.high:+.2f}", apart.p_text.removeprefix("= ")
        seconds_a_run = f"{np.median(seconds[arm]):.0f}"
        rows.append([arm, len(values), f"{100 * np.mean(values):.2f}", sd, *beside, seconds_a_run, stored[arm] or ""])
    return table_lines(head, rows)


def verdict(study: Study, teacher: float | None, scores: Mapping[str, Sequence[float]]) -> list[str]:
    """The gate and the primary contrast in words."""
    lines, known = [], {arm: values for arm, values in scores.items() if len(values) > 1}
    first = next((arm for arm in study.baselines if arm in known), None)
    if first is not None and teacher is not None:
        lead, sd = teacher - np.mean(known[first]), np.std(known[first], ddof=1)
        times = lead / sd if sd else np.inf if lead > 0 else 0.0
        lines.append(
            f"Gate: the teacher is {times:.1f} seed standard deviations above `{first}`; "
            f"{study.gate:g} were asked for: {'passed' if times >= study.gate else 'NOT passed'}."
        )
    if study.primary in known and all(arm in known for arm in study.baselines):
        best = max(study.baselines, key=lambda arm: np.mean(known[arm]))
        apart = compare(known[study.primary], known[best])
        answer = "better" if apart.low > 0 else "worse" if apart.high < 0 else "no difference can be told"
        lines.append(
            f"Primary contrast: `{study.primary}` against `{best}`, the best baseline: {100 * apart.mean:+.2f} points, "
            f"95 % interval {100 * apart.low:+.2f} to {100 * apart.high:+.2f}, p {apart.p_text}: {answer}."
        )
    return lines


def remarks(study: Study, teacher: float | None, seconds: Mapping[str, Sequence[float]], pass_s: float | None) -> list[str]:
    """What the shares of the gap mean, and whether the arms had the time that the primary arm had. `pass_s`: what the teacher's
    pass over the stored views takes."""
    lines = []
    if teacher is not None and study.primary:
        lines.append(
            "Gap closed: of the points between the best baseline and the teacher, the part that an arm makes up. It is "
            "a ratio of two measured differences, with the spread of both; there is one teacher."
        )
    medians = {arm: float(np.median(values)) for arm, values in seconds.items() if len(values)}
    if study.primary in medians and len(medians) > 1:
        lines.append(f"Time: {shares(medians, study.primary, 0.0)}.")
        if pass_s is not None:
            lines.append(
                f"With the teacher's pass over the stored views, {pass_s:.0f} s once for all students: "
                f"{shares(medians, study.primary, pass_s)}."
            )
    return lines


def shares(medians: Mapping[str, float], primary: str, pass_s: float) -> str:
    others = [f"`{arm}` {value / (medians[primary] + pass_s):.2f}" for arm, value in medians.items() if arm != primary]
    return f"`{primary}` takes {medians[primary] + pass_s:.0f} s a run; of these {', '.join(others)}"


def asked(study: Study, arm: Arm, seed: int) -> dict[str, Any]:
    """What a cell's score answers for."""
    raw, method = arm.config.raw, arm.config.method(arm.method)
    said = {
        "method": raw["methods"][arm.method],
        "training": raw["training"],
        "seed": seed,
        "views": raw["views"],
        "prepare": raw["prepare"],
        "teacher": raw.get("teacher"),
        **({"teachers": raw["teachers"]} if raw.get("teachers") else {}),
        "teacher_training": raw["teacher_training"],
        "splits": list(study.splits),
        "dataset": {key: value for key, value in raw["dataset"].items() if key != "root"},
        "student": {study.student: raw["students"][study.student]},
        "targets": {name: raw["targets"][name] for term in method for name in term.reads},
    }
    return said | leave_out({"live": arm.live}, Arm)


def otherwise(cell: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where what a cell was scored for differs from what is asked now; such a cell is run again."""
    before = cell["asked"]
    return diff(before, {key: value for key, value in now.items() if key in before or key not in LATER_KEYS})
