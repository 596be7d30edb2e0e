"""Drawings of the page: SVG as text, in the page's text colour, so that they follow light and dark; equal bytes every time."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.reporting.results import OWN_VALIDATED, VALIDATED, Run

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
            marker = "." if term in (VALIDATED, OWN_VALIDATED) else None  # there may be just one
            axes.plot(steps, lines.mean(axis=0), color=palette[method], linewidth=1.4, marker=marker)
            axes.fill_between(steps, lines.min(axis=0), lines.max(axis=0), color=palette[method], alpha=0.18, linewidth=0)
        if term not in (VALIDATED, OWN_VALIDATED):
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


def tiles(count: int, most: int) -> int:
    """Columns for so many tiles, at most `most` where that leaves no tile alone in the last row, else one more."""
    if count <= most:
        return max(1, count)
    full = [columns for columns in range(most, 1, -1) if count % columns == 0 or count % columns > columns / 2]
    return next(iter([*full, *(columns for columns in range(most, 1, -1) if count % columns != 1)]), most + 1)


@dataclass(frozen=True, kw_only=True)
class Point:
    """Of the plot of scores against cost."""

    network: str
    method: str | None  # None: the teacher
    cost: float
    score: float  # 0..1
    sd: float  # NaN: one seed


def tradeoff(points: Sequence[Point], palette: Mapping[str, str], cost: str, metric: str) -> str:
    """Scores in points of 100 (bars: one standard deviation to each side) against what an image costs."""
    figure, axes = new_figure(6.4, 3.4)
    for point in points:
        colour = INK if point.method is None else palette[point.method]
        sd = 0 if np.isnan(point.sd) else 100 * point.sd
        axes.errorbar(point.cost, 100 * point.score, yerr=sd or None, fmt="D" if point.method is None else "o", ms=6, color=colour)
    tops = {point.network: max(other.score for other in points if other.network == point.network) for point in points}
    for name, top in tops.items():
        cost_of = next(point.cost for point in points if point.network == name)
        axes.annotate(
            name,
            (cost_of, 100 * top),
            (7, 5),
            textcoords="offset points",
            fontsize=8,
            color=INK,
            parse_math=False,
            annotation_clip=False,
        )
    costs = [point.cost for point in points]
    if max(costs) > 4 * min(costs) > 0:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.15, 0.12)
    axes.set_xlabel(cost, color=INK, fontsize=8)
    axes.set_ylabel(metric, color=INK, fontsize=8)
    return svg(figure)


def confusion(counts: np.ndarray, classes: Sequence[str]) -> str:
    """[truth, prediction] pixels as shares of each true class's pixels, with a colour bar; rows without pixels are empty."""
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    side = 2.6 + 0.09 * len(classes)
    figure, axes = new_figure(side + 0.5, side)
    axes.grid(False)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis")
    size = max(3.0, 8 - 0.15 * len(classes))
    names = [name if len(name) <= 18 else f"{name[:16]}..." for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size, color=INK, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=size, color=INK, parse_math=False)
    axes.set_xlabel("predicted", color=INK, fontsize=8)
    axes.set_ylabel("true", color=INK, fontsize=8)
    if len(classes) <= 12:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                axes.text(
                    column,
                    row,
                    f"{100 * share:.0f}",
                    ha="center",
                    va="center",
                    fontsize=size - 1,
                    color="k" if share > 0.6 else "w",
                )
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 0.5, 1])
    bar.ax.tick_params(colors=INK, labelsize=7)
    bar.ax.set_yticklabels(["0 %", "50 %", "100 %"], color=INK)
    bar.outline.set_visible(False)
    return svg(figure)


def edge_scale(low: float, high: float) -> str:
    """What the thickness of a graph's edges means, from the thinnest to the thickest."""
    lines = "".join(
        f'<line x1="{48 + 36 * i}" x2="{80 + 36 * i}" y1="9" y2="9" stroke="currentColor" stroke-width="{0.4 + 4 * i / 4:.1f}" '
        f'opacity="{0.15 + 0.7 * i / 4:.2f}"/>'
        for i in range(5)
    )
    text = '<text x="{}" y="13" text-anchor="{}" font-size="11" fill="currentColor">{:.2f}</text>'
    return (
        f'<svg class="scale" viewBox="0 0 280 18" role="img">{text.format(42, "end", low)}{lines}'
        f"{text.format(232, 'start', high)}</svg>"
    )


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
