"""The runs compared: each student and method over its seeds, beside the same student trained without distillation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.config import Term
from pipeline.identity import join_names
from pipeline.progress import table_row
from pipeline.reporting.results import Results, Run, apart
from pipeline.reporting.statistics import LEAST_GAP, Difference, compare, gap_closed, spread


@dataclass(frozen=True, kw_only=True)
class Line:
    student: str
    method: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]  # the metric of each seed, 0..1
    against: Difference | None  # None: the baseline itself, or nothing to compare with
    gap: float | None  # share of the way from the baseline to the teacher
    why: str  # what stands in the place of a comparison that there is not

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values) if self.values else math.nan

    @property
    def sd(self) -> float:
        return spread(self.values) if self.values else math.nan


def baseline(methods: Mapping[str, Sequence[Term]]) -> str | None:
    """The method without a loss; None if the file has none."""
    return next((name for name, terms in methods.items() if not terms), None)


def lines(
    results: Results, metric: str, methods: Mapping[str, Sequence[Term]], given: bool = False
) -> tuple[list[Line], list[str]]:
    """A line for each student and method; and what a reader must know to read them, in sentences. `given`: the teacher's weights
    are those of a checkpoint or of a factory."""
    plain, groups = baseline(methods), results.groups()
    reconstruction = results.teacher is not None and "reconstruction" in results.teacher
    teacher = None if results.teacher is None or reconstruction else results.teacher[metric]
    notes = [f"{name}: its weights are not those that were scored; run `pipeline evaluate` again." for name in results.stale]
    notes += [f"{name}: not counted; {why}." for name, why in results.not_runs.items()]
    notes += labels_used(results, given)
    notes += [
        f"{run.name} predicts {run.score['one_class']!r} everywhere: this training collapsed. Lower the learning rate or raise "
        f"training.warmup_steps."
        for run in results.runs
        if run.score.get("one_class")
    ]
    found = []
    for (student, method), runs in groups.items():
        known = {run.seed: run.score[metric] for run in runs if run.score.get(metric) is not None}
        base = groups.get((student, plain), []) if plain is not None else []
        base_scores = {run.seed: run.score[metric] for run in base if run.score.get(metric) is not None}
        against, gap, why = None, None, ""
        differing = _differing(runs, base)
        if method == plain:
            why = "baseline"
        elif not base_scores:
            why = "no plain run" if plain is None else f"no {plain} run"
        elif not known:
            why = "no score"
        elif differing:
            why = "other settings"
            notes.append(
                f"{student} {method} is not compared with {plain}, since they were trained with different settings: "
                f"{join_names(differing)}."
            )
        else:
            against = compare(list(known.values()), list(base_scores.values()))
            gap = gap_closed(math.fsum(known.values()) / len(known), math.fsum(base_scores.values()) / len(base_scores), teacher)
        found.append(
            Line(
                student=student, method=method, seeds=tuple(known), values=tuple(known.values()), against=against, gap=gap, why=why
            )
        )
    if results.teacher is None:
        notes.append("The teacher has no score here, so no share of the gap is given: run `pipeline evaluate CONFIG --teacher`.")
    elif reconstruction:
        notes.append("The teacher is shown the labels, so its score is of a reconstruction, and no gap to it is given.")
    return found, notes + _words(found, teacher, plain) + [
        f"{name}: scored, but the file has no such student and method any more; left out." for name in results.strays
    ]


def labels_used(results: Results, given: bool) -> list[str]:
    """Whose labels students and teacher were shown, in sentences, where not all of them saw all."""
    shown = [(run.recipe or {}).get("labelled") for run in results.runs]
    found = {(label["part"], label["seed"], label["images"]) for label in shown if label}
    said = [f"Students saw {_part(*label)}; the other images had none." for label in sorted(found, key=str)]
    teacher = results.teacher_labels
    if given and said:
        said.append("The teacher's weights were given; which labels they were trained on is not known here.")
    elif not given and teacher is not None and (said or teacher):
        labels = _part(teacher["part"], teacher["seed"], teacher["images"]) if teacher else "all labels of the training images"
        said.append(f"The teacher was trained here and saw {labels}.")
    return said


def _part(part: float | str, seed: int, images: int) -> str:
    return f"the labels of {images} training images (dataset.labelled_part: {part}, seed {seed})"


def _differing(runs: list[Run], base: list[Run]) -> list[str]:
    """Settings in which any of these runs differs from the baseline's first."""
    return list(dict.fromkeys(name for run in [*base, *runs] for name in apart(run.recipe, base[0].recipe))) if base else []


def _words(found: list[Line], teacher: float | None, plain: str | None) -> list[str]:
    without = [math.isnan(line.against.low) for line in found if line.against]
    notes = []
    if not all(without):
        notes.append("Intervals: Welch's t, of two independent samples of unequal variance.")
    if any(without):
        notes.append("No interval: one seed on a side, or no spread. A difference without one says nothing about the method.")
    for line in found:
        if line.method == plain and line.values and teacher is not None and teacher - line.mean < LEAST_GAP:
            notes.append(f"The teacher is not a point better than {line.student} {plain}, so there is no gap to close.")
    return notes


def markdown(results: Results, found: list[Line], notes: list[str]) -> str:
    """In points; the mean IoU beside the dataset's own score."""
    metric = results.metric
    others = ["mean_iou"] if metric != "mean_iou" else []
    head = ["student", "method", "seeds", metric, "sd", "against plain", "95 % interval", "gap closed", *others, "images"]
    rows = []
    for name, score in results.teachers.items():
        rows.append(
            [
                name.replace("-", " "),
                "",
                "",
                points(score[metric]),
                "",
                "",
                "",
                "",
                *(points(score[other]) for other in others),
                str(score["images"]),
            ]
        )
    groups = results.groups()
    for line in found:
        runs = groups[line.student, line.method]
        sd = points(line.sd) if len(line.values) > 1 else ""
        rows.append(
            [
                line.student,
                line.method,
                str(len(runs)),
                points(line.mean),
                sd,
                *compared(line),
                *(points(average([run.score[name] for run in runs])) for name in others),
                str(runs[0].score["images"]),
            ]
        )
    table = "\n".join(table_row(cell or None for cell in cells) for cells in [head, ["---"] * len(head), *rows])
    return table + "".join(["\n"] + [f"\n- {note}" for note in notes] if notes else [])


def compared(line: Line) -> list[str]:
    """Difference, interval and share of the gap, in words."""
    if line.against is None:
        return [line.why, "", ""]
    one = line.against
    interval = "none" if math.isnan(one.low) else f"{signed(one.low)} to {signed(one.high)}"
    return [signed(one.mean), interval, "-" if line.gap is None else f"{round(100 * line.gap)}%"]


def average(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else math.nan


def points(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def signed(value: float) -> str:
    return f"{100 * value:+.2f}"


def summary(results: Results, found: list[Line]) -> dict:
    """For `dvc metrics`: in points, by student and method; short names, since they head the columns of `dvc exp show`."""
    names = list(dict.fromkeys([results.metric, "mean_iou"]))
    groups: dict = {line.student: {} for line in found}
    for line in found:
        runs = results.groups()[line.student, line.method]
        entry = groups[line.student][line.method] = {name: _rounded(average([run.score[name] for run in runs])) for name in names}
        if len(line.values) > 1:
            entry["sd"] = _rounded(line.sd)
        if line.against:
            entry["gain"] = _rounded(line.against.mean)
    teachers = {row: {name: _rounded(average([score[name]])) for name in names} for row, score in results.teachers.items()}
    return teachers | groups


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(100 * value, 2)
