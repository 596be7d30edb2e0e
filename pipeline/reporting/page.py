"""The report as one HTML file: styles, drawings and pictures are inside, nothing is fetched and no script runs.

The template stands beside this file. It takes words and numbers that are ready to be shown.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.config import TERM_WORDS, Term
from pipeline.metrics.names import WORDS
from pipeline.progress import byte_size, duration
from pipeline.reporting import charts
from pipeline.reporting.results import Cached, Results, Run, Time
from pipeline.reporting.table import Line, average, baseline, compared, points

TEACHER_SHADE = "#c0a020"


def render(
    *,
    name: str,
    dataset: str,
    split: str,
    results: Results,
    lines: Sequence[Line],
    notes: Sequence[str],
    methods: Mapping[str, Sequence[Term]],
    cached: Cached | None,
    settings: str,
    pictures: Any,
) -> str:
    """`pictures` is what the networks were made to show (`pipeline.reporting.feature_pictures`), or None."""
    import jinja2
    from markupsafe import Markup

    metric, groups, palette = results.metric, results.groups(), charts.colours(list(methods))
    others = [other for other in WORDS if other != metric and results.runs and other in results.runs[0].score]
    students = list(dict.fromkeys(student for student, _ in groups))
    of = {student: {method: runs for (one, method), runs in groups.items() if one == student} for student in students}
    reach = (
        max(
            [
                abs(end)
                for line in lines
                if line.against
                for end in (line.against.low, line.against.high, line.against.mean)
                if not math.isnan(end)
            ],
            default=1,
        )
        or 1
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html").render(
        name=name,
        dataset=dataset,
        split=split,
        results=results,
        lines=lines,
        notes=notes,
        metric=metric,
        others=others,
        plain=baseline(methods),
        palette=palette,
        cached=cached,
        settings=settings,
        pictures=pictures,
        words=lambda key: WORDS.get(key, key),
        points=points,
        compared=compared,
        duration=duration,
        forest=lambda one: Markup(charts.forest(one.low, one.mean, one.high, reach)),
        other_means={
            (*key, other): average([run.score.get(other) for run in runs]) for key, runs in groups.items() for other in others
        },
        classes=_classes(results, groups, palette),
        methods_of={student: list(of[student]) for student in students},
        curves={
            student: {TERM_WORDS.get(term, term): Markup(drawing) for term, drawing in charts.curves(of[student], palette).items()}
            for student in students
            if any(run.curves for runs in of[student].values() for run in runs)
        },
        costs=_costs(results, groups, methods, cached),
        validated=results.teacher_best is not None or any(run.best for run in results.runs),
        best=_best,
    )


def _best(found: Mapping[str, Any] | None) -> str:
    """A run's best validation."""
    if found is None:
        return ""
    return f"{points(found['mean_iou'])}, {found['step']}{', kept' if found['kept'] else ''}"


def _classes(
    results: Results, groups: Mapping[tuple[str, str], Sequence[Run]], palette: Mapping[str, str]
) -> dict[str, list[tuple[str, float | None]]]:
    """Class -> (colour, IoU) of the teacher and of each line."""
    columns = [] if results.teacher is None else [(TEACHER_SHADE, [results.teacher])]
    columns += [(palette[method], [run.score for run in runs]) for (_, method), runs in groups.items()]
    found = {}
    for name in columns[0][1][0]["iou"]:
        means = [(shade, average([score["iou"].get(name) for score in scores])) for shade, scores in columns]
        found[name] = [(shade, None if math.isnan(value) else value) for shade, value in means]
    return found


def _costs(results: Results, groups, methods: Mapping[str, Sequence[Term]], cached: Cached | None) -> list[dict[str, str | None]]:
    plain, found = baseline(methods), []
    steps = {
        key: fmean(run.time.seconds / run.time.steps for run in runs if run.time)
        for key, runs in groups.items()
        if any(run.time for run in runs)
    }
    if results.teacher_time:
        time = results.teacher_time
        found.append(_cost("teacher", None, [time], "", 0, cached))
    for (student, method), runs in groups.items():
        reads = {name for term in methods[method] for name in term.reads}
        both = steps.keys() >= {(student, method), (student, plain)} and method != plain
        ratio = f"{steps[student, method] / steps[student, plain]:.2f} x" if both else ""
        found.append(
            _cost(
                f"{student} {method}",
                method,
                [run.time for run in runs if run.time],
                ratio,
                cached.bytes_of(reads) if cached else 0,
                cached,
            )
        )
    return found


def _cost(
    name: str, method: str | None, times: Sequence[Time], ratio: str, num_bytes: int, cached: Cached | None
) -> dict[str, str | None]:
    return {
        "name": name,
        "method": method,
        "ratio": ratio,
        "training": duration(fmean(time.seconds for time in times)) if times else "not known",
        "step": f"{1000 * fmean(time.seconds / time.steps for time in times):.1f} ms" if times else "",
        "cache": byte_size(num_bytes) if num_bytes else "",
        "row": byte_size(num_bytes / cached.images / cached.views) if cached and num_bytes else "",
        "machine": "; ".join(dict.fromkeys(time.machine for time in times)),
    }
