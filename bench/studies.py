"""Put a study's table and scores into the pages: run `pipeline study configs/studies/NAME.yaml`, then

    $ python -m bench.studies roads-few idd-few     # reports/studies/NAME.* -> docs/studies/NAME.tsv, docs/study.md
    $ python -m bench.studies --figure              # docs/studies/roads-few-labels.tsv -> docs/labels.png

tests/test_studies_page.py compares the page with the scores.
"""

import argparse
import csv
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.machine import described
from bench.page import insert

REPORTS, STUDIES, PAGE = Path("reports/studies"), Path("docs/studies"), Path("docs/study.md")
FIGURE, LABELS = Path("docs/labels.png"), "roads-few-labels"
PARTS = {"_3": 3, "": 10, "_25": 25, "_100": 100}  # the end of an arm's name, and the share of labels in percent
ARMS = {"long": "labels alone", "pseudo": "pseudo-labels", "both": "IntRA-KD and KD from the cache"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", metavar="NAME")
    parser.add_argument("--figure", action="store_true", help=f"draw {FIGURE}")
    args = parser.parse_args()
    for name in args.studies:
        shutil.copy(REPORTS / f"{name}.tsv", STUDIES / f"{name}.tsv")
        machine = described("cpu")
        written = (
            f"Written by `python -m bench.studies {name}` on {machine['processor']}, {machine['cores']} cores, PyTorch "
            f"{machine['torch']}; seconds are CPU seconds. Every cell: [studies/{name}.tsv](studies/{name}.tsv)."
        )
        insert(PAGE, f"{name}-table", (REPORTS / f"{name}.md").read_text().rstrip() + "\n\n" + written)
    if args.figure:
        draw(scores(LABELS))


def scores(study: str) -> dict[str, list[float]]:
    """Arm -> points on test, a number a seed."""
    found = defaultdict(list)
    with open(STUDIES / f"{study}.tsv", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            found[row["arm"]].append(float(row["test"]))
    return dict(found)


def draw(found: Mapping[str, Sequence[float]]) -> None:
    """Points on test against the share of labels: a line through the means of each arm, a point a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained", dpi=110)
    axes = figure.subplots()
    for (arm, said), colour in zip(ARMS.items(), ("#8a8f98", "#e8862e", "#2f7de1")):
        known = [(part, found[arm + end]) for end, part in PARTS.items() if arm + end in found]
        axes.plot([part for part, _ in known], [np.mean(values) for _, values in known], color=colour, label=said)
        for part, values in known:
            axes.plot([part] * len(values), values, "o", color=colour, markersize=4)
    axes.axhline(found["teacher"][0], color="black", linewidth=1, linestyle=":", label="teacher")
    axes.set_xscale("log")
    axes.set_xticks([*PARTS.values()], [f"{part} %" for part in PARTS.values()])
    axes.minorticks_off()
    axes.set_xlabel("images with a label, of 500")
    axes.set_ylabel("F1 on test")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(FIGURE, metadata={"Software": None})


if __name__ == "__main__":
    main()
