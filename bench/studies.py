"""Put the studies' tables, scores and figures into the pages: run `pipeline study configs/studies/NAME.yaml`, then

    $ python -m bench.studies roads-few-labels      # reports/studies/NAME.* -> docs/studies/NAME.tsv, docs/study-results.md
    $ python -m bench.studies --answers             # docs/studies/*.tsv -> the table of docs/study.md and its figures

The table goes between `<!-- begin: roads-few-labels-table -->` and `<!-- end -->`, which must be in the page.
tests/test_studies_page.py compares the pages with the scores.
"""

import argparse
import csv
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.machine import described
from bench.page import insert
from pipeline.progress import table_lines
from pipeline.reporting.statistics import Difference, compare, gap_closed

REPORTS, STUDIES = Path("reports/studies"), Path("docs/studies")
PAGE, RESULTS, FIGURE = Path("docs/study.md"), Path("docs/study-results.md"), Path("docs/study.png")
LABELS_FIGURE = Path("docs/study-labels.png")
LABELLED = (  # study, frames, metric, arms by number of labelled frames
    ("roads-few-labels", "500 drawn frames", "F1", {15: "{}_3", 50: "{}", 500: "{}_100"}),
    ("camvid-enet", "367 frames of CamVid", "mean IoU", {11: "{}_3", 37: "{}", 367: "{}_100"}),
)
LINES = {"fresh": ("labels alone", "#8a8f98"), "both": ("IntRA-KD + KD", "#2f7de1"), "pseudo": ("pseudo-labels", "#d98a00")}


@dataclass(frozen=True)
class Contrast:
    """One line of the answer: an arm against the best plain arm that had its time or more."""

    what: str  # the data, and what the teacher has seen of them
    metric: str
    study: str
    arm: str
    plain: tuple[str, ...]
    method: str = "IntRA-KD"


def few_labels(what: str, metric: str, study: str, part: str, plain: tuple[str, ...]) -> tuple[Contrast, Contrast]:
    """IntRA-KD with KD, and pseudo-labels, of the arms for one part of the labels."""
    return (
        Contrast(what, metric, study, f"both{part}", plain, "IntRA-KD + KD"),
        Contrast(what, metric, study, f"pseudo{part}", plain, "pseudo-labels"),
    )


SAME = "ERFNet, the same labels"
FEW = "drawn lanes, 15 of 500 frames labelled (ResNet-101, 6,000 other frames)"
RESNET18 = "the same, a ResNet-18 as student, 3/8 of the steps"
ENET = "the same, an ENet as student, 3/8 of the steps"
IDD = "IDD-Lite, 13 of 1,294 frames labelled (Cityscapes ENet, tuned on all labels)"
CAMVID = "CamVid, {} of 367 frames labelled (Cityscapes ENet, tuned on all labels)"
CONTRASTS = (
    Contrast(f"drawn lanes, 50 frames ({SAME})", "F1", "roads-tenth", "intra", ("long",)),
    Contrast(f"drawn lanes, 500 frames ({SAME})", "F1", "roads-time", "intra", ("matched",)),
    *few_labels(FEW, "F1", "roads-few-labels", "_3", ("fresh_3",)),
    *few_labels(RESNET18, "F1", "roads-few-resnet18", "_3", ("fresh_3",)),
    *few_labels(ENET, "F1", "roads-few-enet", "_3", ("fresh_3",)),
    *few_labels(IDD, "mean IoU", "idd-enet-labels", "_1", ("fresh_1", "long_1")),
    *few_labels(CAMVID.format(11), "mean IoU", "camvid-enet", "_3", ("fresh_3",)),
    *few_labels(CAMVID.format(37), "mean IoU", "camvid-enet", "", ("fresh",)),
    Contrast(f"drawn roads, 18 paints, 500 frames ({SAME})", "mean IoU", "markings", "intra", ("long",)),
    Contrast(f"CamVid, 367 frames ({SAME})", "mean IoU", "camvid-120", "intra", ("long",)),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", metavar="NAME")
    parser.add_argument("--answers", action="store_true", help=f"write the table of {PAGE} and draw its figures")
    args = parser.parse_args()
    for name in args.studies:
        machine = described("cpu")
        written = (
            f"Written by `python -m bench.studies {name}` on {machine['processor']}, {machine['cores']} cores, PyTorch "
            f"{machine['torch']}; seconds are CPU seconds. Every cell: [studies/{name}.tsv](studies/{name}.tsv)."
        )
        insert(RESULTS, f"{name}-table", (REPORTS / f"{name}.md").read_text().rstrip() + "\n\n" + written)
        shutil.copy(REPORTS / f"{name}.tsv", STUDIES / f"{name}.tsv")
    if args.answers:
        insert(PAGE, "answers", answers())
        draw()
        draw_labels()


def scores(study: str) -> dict[str, list[float]]:
    """Arm -> points on test, a number a seed."""
    found = defaultdict(list)
    with open(STUDIES / f"{study}.tsv", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            found[row["arm"]].append(float(row["test"]))
    return dict(found)


def answered(contrast: Contrast) -> tuple[dict[str, list[float]], str, Difference]:
    """The scores, the best of the plain arms, and the difference to it."""
    found = scores(contrast.study)
    best = max((arm for arm in contrast.plain if arm in found), key=lambda arm: np.mean(found[arm]))
    return found, best, compare(found[contrast.arm], found[best])


def answers() -> str:
    """The table of all contrasts."""
    rows: list[list[object]] = []
    for contrast in CONTRASTS:
        found, best, apart = answered(contrast)
        plain, distilled, (teacher,) = found[best], found[contrast.arm], found["teacher"]
        closed = gap_closed(float(np.mean(distilled)), float(np.mean(plain)), teacher)
        rows.append(
            [
                contrast.what,
                contrast.method,
                contrast.metric,
                len(distilled),
                f"{teacher:.1f}",
                *(f"{np.mean(values):.1f} ({np.std(values, ddof=1):.1f})" for values in (plain, distilled)),
                f"{apart.mean:+.1f} ({apart.low:+.1f} to {apart.high:+.1f})",
                apart.p_text.removeprefix("= "),
                "-" if closed is None else f"{closed:.0%}",
            ]
        )
    head = [
        "data (teacher)",
        "distilled by",
        "metric",
        "seeds",
        "teacher",
        "plain, same time",
        "distilled",
        "difference",
        "p",
        "gap closed",
    ]
    return "\n".join(table_lines(head, rows))


def draw() -> None:
    """The differences with their intervals, a line a contrast."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 0.6 + 0.46 * len(CONTRASTS)), layout="constrained", dpi=110)
    axes = figure.subplots()
    for line, contrast in enumerate(CONTRASTS):
        _, _, apart = answered(contrast)
        colour = "#2f7de1" if apart.low > 0 else "#c0392b" if apart.high < 0 else "#8a8f98"
        axes.plot([apart.low, apart.high], [line, line], color=colour, linewidth=3, solid_capstyle="round")
        axes.plot(apart.mean, line, "o", color=colour, markersize=8)
        axes.annotate(f"{apart.mean:+.1f}", (apart.mean, line), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(CONTRASTS)), [f"{contrast.what}\n{contrast.method}" for contrast in CONTRASTS], fontsize=8)
    axes.set_ylim(len(CONTRASTS) - 0.5, -0.7)
    axes.set_xlabel("points against labels alone, same time; 95 %", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(FIGURE, metadata={"Software": None})


def draw_labels() -> None:
    """The score against the number of labelled frames, a panel a data set, a point a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained", dpi=110)
    for axes, (study, frames, metric, labelled) in zip(figure.subplots(1, len(LABELLED)), LABELLED, strict=True):
        found, total = scores(study), max(labelled)
        axes.axhline(found["teacher"][0], color="black", linewidth=1, linestyle="--")
        axes.annotate("teacher", (0.12 * total, found["teacher"][0]), (0, -11), textcoords="offset points", fontsize=8)
        for arm, (name, colour) in LINES.items():
            known = {count: found[text.format(arm)] for count, text in labelled.items() if text.format(arm) in found}
            axes.plot(list(known), [np.mean(values) for values in known.values()], color=colour, linewidth=2, label=name)
            for count, values in known.items():
                axes.plot([count] * len(values), values, "o", color=colour, markersize=5, alpha=0.8)
        axes.set_xscale("log")
        axes.set_xticks(list(labelled), [f"{count}\n{count / total:.0%}" for count in labelled], fontsize=8)
        axes.minorticks_off()
        axes.set_xlabel(f"labelled of {frames}", fontsize=8)
        axes.set_ylabel(f"{metric} on test", fontsize=8)
        axes.tick_params(axis="y", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    figure.savefig(LABELS_FIGURE, metadata={"Software": None})


if __name__ == "__main__":
    main()
