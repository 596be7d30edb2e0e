"""A sheet of labelled images, to see at a glance whether labels lie where they should and mean what they should."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from pipeline.data.doctor import SplitCounts, totals
from pipeline.datasets.base import IGNORE, DatasetBase
from pipeline.scoring.predict import overlay

IMAGES, COLUMNS = 12, 3
WIDTH = 640  # of an image on the sheet, in pixels
DIMMED = 0.35  # brightness of pixels that do not count
DPI = 160
ROW = 0.3  # inches that a line of the legend takes


def chosen(showing: Mapping[tuple[str, str], frozenset[int]], count: int = IMAGES) -> list[tuple[str, str]]:
    """So many of the labelled images (split, id), spread evenly over all: of each part the one that shows most of what is rare,
    and of what no image before it showed."""
    places = list(showing)
    often = Counter(train_id for classes in showing.values() for train_id in classes if train_id != IGNORE)
    shown: Counter[int] = Counter()
    found = []
    for part in np.array_split(np.arange(len(places)), min(count, len(places))) if places else []:
        scores = [sum(0.25 ** shown[c] / often[c] for c in showing[places[i]] if c != IGNORE) for i in part]
        found.append(places[int(part[int(np.argmax(scores))])])
        shown.update(showing[found[-1]])
    return found


def write(path: Path, dataset: DatasetBase, places: Sequence[tuple[str, str]], counts: Mapping[str, SplitCounts]) -> None:
    """A PNG: each image with its label over it, and a legend of the classes with their part of the pixels and images."""
    from matplotlib.figure import Figure

    pictures = [
        (f"{split}: {shortened(image_id.removeprefix(f'{split}/'))}", picture(dataset, image_id)) for split, image_id in places
    ]
    columns = min(COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    highest = max(shown.shape[0] / shown.shape[1] for _, shown in pictures)
    height = max(rows * (4.0 * highest + 0.3), ROW * (len(dataset.classes) + 3))
    figure = Figure(figsize=(4.1 * columns + 4.4, height + 0.3), layout="constrained", dpi=DPI)
    left, right = figure.subfigures(1, 2, width_ratios=[4.1 * columns, 4.4], squeeze=False)[0]
    for axes in left.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, (title, shown) in zip(left.axes, pictures):
        axes.imshow(shown)
        axes.set_title(title, fontsize=8, parse_math=False)
    legend(right.subplots(), dataset, counts, height)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def picture(dataset: DatasetBase, image_id: str) -> np.ndarray:
    """[h, w, 3] uint8: the frame with its classes painted over it, ignored pixels dimmed, and a line where rows are cut off."""
    image, label = dataset.image(image_id), dataset.label(image_id)
    assert label is not None
    height, width = round(WIDTH * image.shape[0] / image.shape[1]), WIDTH
    cut = round(dataset.rows_cut(len(image)) * height / len(image))
    painted = overlay(image, label, dataset, 0.65)
    painted[label == IGNORE] = (painted[label == IGNORE] * DIMMED).astype(np.uint8)
    painted = cv2.resize(painted, (width, height), interpolation=cv2.INTER_AREA)  # after painting: thin lines keep their colour
    if cut:
        painted[max(0, cut - 1) : cut + 1] = (255, 255, 255)
    return painted


def legend(axes, dataset: DatasetBase, counts: Mapping[str, SplitCounts], height: float) -> None:
    from matplotlib.patches import Rectangle

    pixels, showing, labelled, counted = totals(counts.values())
    lines = [
        (
            np.array(colour) / 255,
            name + (" (unpainted)" if number == dataset.background else ""),
            part(pixels[number], counted),
            f"{showing[number] / labelled:.0%}" if pixels[number] else "",
        )
        for number, (name, colour) in enumerate(zip(dataset.classes, dataset.colours))
    ]
    ignored = f"{pixels[IGNORE] / max(1, pixels.total()):.2%}", f"{showing[IGNORE] / labelled:.0%}"
    lines.append((np.full(3, 0.2), "(ignored: dimmed)", *ignored))
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(height / ROW, 0))
    for x, said in ((0.09, "class"), (0.82, "pixels"), (1.0, "images")):
        axes.text(x, 0.5, said, fontsize=12, weight="bold", va="center", ha="left" if said == "class" else "right")
    for y, (colour, name, share, images) in enumerate(lines, 1):
        grey = "0.6" if share == "never" else "black"
        axes.add_patch(Rectangle((0, y + 0.15), 0.06, 0.7, facecolor=colour, edgecolor="0.5", linewidth=0.5))
        axes.text(0.09, y + 0.5, shortened(name, 28), fontsize=12, va="center", color=grey, parse_math=False)
        axes.text(0.82, y + 0.5, share, fontsize=12, va="center", ha="right", color=grey)
        axes.text(1.0, y + 0.5, images, fontsize=12, va="center", ha="right", color=grey)


def part(pixels: int, of: int) -> str:
    if not pixels:
        return "never"
    return f"{pixels / of:.2%}" if pixels / of >= 0.0001 else "< 0.01%"


def shortened(text: str, most: int = 48) -> str:
    return text if len(text) <= most else f"...{text[3 - most :]}"
