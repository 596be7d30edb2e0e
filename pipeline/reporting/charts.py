"""Drawings of the page: SVG as text, in the page's text colour, so that they follow light and dark; equal bytes every time."""

import io
import re
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.reporting.results import VALIDATED, Run

# seen well on white and on black
COLOURS = ("#8a8f98", "#2f7de1", "#e8862e", "#2a9d6f", "#a45ad1", "#d9534f", "#12a5b5", "#b8860b")
INK = "#010203"  # stands for the page's text colour while matplotlib draws
POINTS = 100  # of a curve


def colours(names: Sequence[str]) -> dict[str, str]:
    return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}


def svg(figure) -> str:
    """A matplotlib figure as an element of the page."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report", "font.family": "sans-serif"}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r' id="[a-z0-9]+_\d+"', "", text)  # names of groups, equal in every figure
    text = re.sub(r"font: (\d+)px [^;\"]*", r"font: \1px sans-serif", text)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert box is not None  # matplotlib writes one
    width, height = box.groups()
    head = f'<svg viewBox="0 0 {width} {height}" role="img" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r"<svg [^>]*>", head, text, count=1)


def new_figure(width: float, height: float):
    """One set of axes in the page's colours."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, which="both", labelsize=8)
    axes.grid(alpha=0.2, color=INK, linewidth=0.5)
    return figure, axes


def curves(groups: Mapping[str, Sequence[Run]], palette: Mapping[str, str]) -> dict[str, str]:
    """Term -> its curves: a line a method, the mean over its seeds; a band from the lowest seed to the highest."""
    binned = {method: [run.curves for run in runs if run.curves] for method, runs in groups.items()}
    last = max((row["step"] for many in binned.values() for rows in many for row in rows), default=0)
    terms = dict.fromkeys(name for many in binned.values() for rows in many for row in rows for name in row if name != "step")
    found = {}
    for term in terms:
        figure, axes = new_figure(4.2, 2.7)
        for method, many in binned.items():
            values = [_binned(rows, term, last) for rows in many if any(term in row for row in rows)]
            if not values:
                continue
            lines = np.stack(values)
            known = ~np.isnan(lines).any(axis=0)
            steps = (np.arange(POINTS) + 0.5)[known] * last / POINTS
            lines = lines[:, known]
            marker = "." if term == VALIDATED else None  # there may be just one
            axes.plot(steps, lines.mean(axis=0), color=palette[method], linewidth=1.4, marker=marker)
            axes.fill_between(steps, lines.min(axis=0), lines.max(axis=0), color=palette[method], alpha=0.18, linewidth=0)
        if term != VALIDATED:
            _scale(axes)
        axes.set_xlabel("step", color=INK, fontsize=8)
        found[term] = svg(figure)
    return found


def _binned(rows: Sequence[Mapping[str, float]], term: str, last: float) -> np.ndarray:
    """[POINTS]: the term's mean over each hundredth of the steps; NaN where it has no value."""
    rows = [row for row in rows if term in row]
    places = np.minimum(((np.array([row["step"] for row in rows]) - 1) * POINTS // last).astype(int), POINTS - 1)
    counts = np.bincount(places, minlength=POINTS)
    sums = np.bincount(places, [row[term] for row in rows], POINTS)
    return np.divide(sums, counts, out=np.full(POINTS, np.nan), where=counts > 0)


def _scale(axes) -> None:
    """Logarithmic where all values are above 0 and the greatest is many times the least: losses fall fast at first."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    values = np.concatenate([line.get_ydata() for line in axes.lines]) if axes.lines else np.ones(1)
    if values.min() > 0 and values.max() > 5 * values.min():
        axes.set_yscale("log")
        wide = values.max() > 100 * values.min()
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def forest(low: float, mean: float, high: float, reach: float) -> str:
    """An interval around a difference, on an axis from -reach to reach whose middle is no difference."""

    def x(value):
        return round(60 + 55 * value / reach, 2)

    bar = "" if np.isnan(low) else f'<line x1="{x(low)}" x2="{x(high)}" y1="8" y2="8" stroke="currentColor" stroke-width="2"/>'
    return (
        '<svg class="forest" viewBox="0 0 120 16" role="img">'
        '<line x1="60" x2="60" y1="1" y2="15" stroke="currentColor" opacity=".6"/>'
        f'{bar}<circle cx="{x(mean)}" cy="8" r="3.2" fill="currentColor"/></svg>'
    )
