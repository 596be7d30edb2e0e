"""The report as one HTML file: styles, drawings and pictures are inside, nothing is fetched and no script runs.

The template stands beside this file. It takes words and numbers that are ready to be shown.
"""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from pipeline.config import TERM_WORDS, Teacher, Term, weight_in_words
from pipeline.metrics.names import WORDS
from pipeline.progress import byte_size, duration
from pipeline.reporting import charts
from pipeline.reporting.results import VALIDATED, Cached, Latency, Results, Run, Time
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
    latencies: Mapping[str, Latency],
    teachers: Mapping[str, Teacher],
    written: date,
    settings: str,
    pictures: Any,
) -> str:
    """`teachers` by the names of their scores, `latencies` by these and by student, `written` the day of the report; `pictures`
    is what the networks were made to show
    (`pipeline.reporting.feature_pictures`), or None."""
    import jinja2
    from markupsafe import Markup

    words = {**TERM_WORDS, VALIDATED: "val mean IoU"}
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
        teachers=teachers,
        written=written.isoformat(),
        terms={method: terms_in_words(terms) for method, terms in methods.items() if any(m == method for _, m in groups)},
        networks=_networks(results, groups, latencies),
        latency=next(iter(latencies.values()), None),
        tradeoff=_tradeoff(results, lines, latencies, palette),
        confusions=_confusions(results, groups),
        tiles=charts.tiles,
        edge_scale=lambda limits: Markup(charts.edge_scale(*limits)),
        pictures=pictures,
        words=lambda key: WORDS.get(key, key),
        points=points,
        with_code=with_code,
        compared=compared,
        duration=duration,
        forest=lambda one: Markup(charts.forest(one.low, one.mean, one.high, reach)),
        other_means={
            (*key, other): average([run.score.get(other) for run in runs]) for key, runs in groups.items() for other in others
        },
        classes=_classes(results, groups, palette),
        methods_of={student: list(of[student]) for student in students},
        curves={
            student: {words.get(term, term): Markup(drawing) for term, drawing in charts.curves(of[student], palette).items()}
            for student in students
            if any(run.curves for runs in of[student].values() for run in runs)
        },
        costs=_costs(results, groups, methods, cached),
        validated=results.teacher_best is not None or any(run.best for run in results.runs),
        best=_best,
    )


def terms_in_words(terms: Sequence[Term]) -> str:
    """A method's losses beside the loss on labels, with their weights: "10 affinity (graph_mid, graph_high) + 1 kd (logits)"."""
    words = [
        f"{weight_in_words(term.weight)} {term.loss.name}" + (f" ({', '.join(term.reads)})" if term.reads else "") for term in terms
    ]
    return " + ".join(words) or "labels alone"


def _networks(results: Results, groups, latencies: Mapping[str, Latency]) -> dict[str, dict[str, str]]:
    """By teacher and student: millions of parameters, GMACs and milliseconds of one image; empty where nothing is known."""
    scores = {student: runs[0].score for (student, _), runs in reversed(list(groups.items()))}
    scores |= results.teachers
    found = {}
    for name, score in scores.items():
        cost = score.get("network")
        found[name] = {
            "parameters": f"{cost['parameters'] / 1e6:.2f}" if cost else "",
            "gmacs": f"{cost['gmacs']:.2f}" if cost else "",
            "latency": f"{latencies[name].milliseconds:.1f}" if name in latencies else "",
        }
    return found if any(any(cells.values()) for cells in found.values()) else {}


def _tradeoff(results: Results, lines: Sequence[Line], latencies: Mapping[str, Latency], palette) -> str | None:
    """Scores against latency where it was measured for every student, else against multiply-accumulates; None without either."""
    from markupsafe import Markup

    students = list(dict.fromkeys(line.student for line in lines))
    scores = {run.student: run.score for run in results.runs}
    if students and all(student in latencies for student in students):
        one = latencies[students[0]]
        costs, words = {name: found.milliseconds for name, found in latencies.items()}, f"ms an image, {one.runtime}"
    else:
        costs = {name: score["network"]["gmacs"] for name, score in scores.items() if "network" in score}
        if results.teacher is not None and "network" in results.teacher:
            costs["teacher"] = results.teacher["network"]["gmacs"]
        words = "GMACs an image"
    points = [
        charts.Point(network=line.student, method=line.method, cost=costs[line.student], score=line.mean, sd=line.sd)
        for line in lines
        if line.student in costs and line.values
    ]
    teacher = None if results.teacher is None else results.teacher[results.metric]
    if teacher is not None and "teacher" in costs:
        points.append(charts.Point(network="teacher", method=None, cost=costs["teacher"], score=teacher, sd=math.nan))
    if len({point.network for point in points}) < 2:  # nothing to weigh
        return None
    return Markup(charts.tradeoff(points, palette, words, WORDS.get(results.metric, results.metric)))


def _confusions(results: Results, groups) -> dict[str, Any]:
    """Drawings by network, of all seeds' pixels together; those scored by an earlier version have none."""
    from markupsafe import Markup

    scores = {} if results.teacher is None else {"teacher": [results.teacher]}
    scores |= {f"{student} {method}": [run.score for run in runs] for (student, method), runs in groups.items()}
    return {
        name: Markup(charts.confusion(np.sum([score["confusion"] for score in many], axis=0), list(many[0]["iou"])))
        for name, many in scores.items()
        if all("confusion" in score for score in many)
    }


def _best(found: Mapping[str, Any] | None) -> str:
    """A run's best validation."""
    if found is None:
        return ""
    return f"{points(found.get('own', found['mean_iou']))}, {found['step']}{', kept' if found['kept'] else ''}"


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


def with_code(note: str):
    """A note as HTML, with what stands between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(note))))


def _a_step(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _cost(
    name: str, method: str | None, times: Sequence[Time], ratio: str, num_bytes: int, cached: Cached | None
) -> dict[str, str | None]:
    return {
        "name": name,
        "method": method,
        "ratio": ratio,
        "training": duration(fmean(time.seconds for time in times)) if times else "not known",
        "step": _a_step(fmean(time.seconds / time.steps for time in times)) if times else "",
        "cache": byte_size(num_bytes) if num_bytes else "",
        "row": byte_size(num_bytes / cached.images / cached.views) if cached and num_bytes else "",
        "machine": "; ".join(dict.fromkeys(time.machine for time in times)),
    }
