"""LLAMAS: the official average precision of 8-bit probability maps, per image and class, then averaged over images.

Per image and class, at the thresholds t = 1.00, 0.99, ..., 0.00: a pixel of value v is predicted if v / 255 >= t; p
and r are precision (0 if nothing is predicted) and recall (0 if nothing is true). With (r, p) = (0, 1) to begin with,
    auc = sum_k (r_k - r_(k-1)) p_(k-1),
so a gain in recall is weighted with the precision *before* it. The AP of a class is the mean of its auc over **all**
images, an image without the lane giving 0; mAP is the mean over l1, l0, r0, r1, background not in it. (So a hard
0/255 mask scores r + (1 - r) p, nearly its recall, and dilated masks beat calibrated probabilities: compare like with
like.)

Here p and r come from two histograms instead of 101 passes over the pixels; equal to the last bit. H W the image.

Source: karstenBehrendt/unsupervised_llamas, evaluation/segmentation_metrics.py and evaluate_segmentation.py. Left out:
its binary task (one class instead of five).
"""

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from pipeline.datasets._images import read_label_png
from pipeline.errors import DatasetError
from pipeline.files import write_text
from pipeline.metrics._maps import frame_maps, require_probabilities
from pipeline.metrics.base import Answer, Counted, MetricBase
from pipeline.paths import below
from pipeline.progress import Progress, say

CLASSES = ("background", "l1", "l0", "r0", "r1")
LANES = CLASSES[1:]
STEPS = 100
THRESHOLDS = [(STEPS - step) / STEPS for step in range(STEPS + 1)]
CUTS = np.array([next(v for v in range(256) if v / 255 >= t) for t in THRESHOLDS])  # the least value that passes
MOST_PIXELS = 2**24  # OpenCV counts in float32, which is exact up to here


class Curve(NamedTuple):
    """`auc`, and the point with the greatest product of precision and recall (the first such; 0 if there is none)."""

    auc: float
    precision: float
    recall: float
    threshold: float


def curve(map_HW: np.ndarray, truth_HW: np.ndarray) -> Curve:
    """Of one uint8 map (probability x 255) and the boolean mask of its class."""
    hits, predicted, true = _passing(map_HW, truth_HW), _passing(map_HW), np.count_nonzero(truth_HW)
    auc, best, before = 0.0, Curve(0.0, 0.0, 0.0, 0.0), (0.0, 1.0)
    for threshold, hit, passed in zip(THRESHOLDS, hits, predicted):
        precision = hit / passed if passed else 0.0
        recall = hit / true if true else 0.0
        auc += (recall - before[0]) * before[1]
        before = recall, precision
        if precision * recall > best.precision * best.recall:
            best = Curve(0.0, precision, recall, threshold)
    return best._replace(auc=auc)


def _passing(map_HW: np.ndarray, mask_HW: np.ndarray | None = None) -> list[int]:
    """How many pixels (of the mask) reach each threshold."""
    assert map_HW.size <= MOST_PIXELS, map_HW.shape
    mask = None if mask_HW is None else mask_HW.view(np.uint8)
    counts = cv2.calcHist([map_HW], [0], mask, [256], [0, 256]).ravel().astype(np.int64)
    return counts[::-1].cumsum()[::-1][CUTS].tolist()


def image_curves(maps_5HW: Sequence[np.ndarray], label_HW: np.ndarray) -> list[Curve]:
    """One curve a class, in the order of CLASSES, for a label of class indices 0..4."""
    return [curve(map_HW, label_HW == index) for index, map_HW in enumerate(maps_5HW)]


def map_path(folder: Path, name: str, index: int) -> Path:
    """Where the map of a class lies; `name` is "<recording>/<stamp>"."""
    return below(Path(folder), f"{name}.json_{index}.png", DatasetError)


def write_maps(folder: Path, name: str, probabilities_5HW: np.ndarray) -> None:
    """Write the five maps of a full frame in the official layout: probability x 255, cut (not rounded) to 8 bits. Raises
    DatasetError on values outside 0..1."""
    require_probabilities(np.asarray(probabilities_5HW))
    for index, map_HW in enumerate(probabilities_5HW):
        path = map_path(folder, name, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((map_HW * 255).astype(np.uint8)).save(path)


def read_map(path: Path) -> np.ndarray:
    """[H, W] uint8: the greys, however the PNG packs them. Raises DatasetError naming the file if it is missing, damaged, or in
    colour."""
    if not path.exists():
        raise DatasetError(f"{path}: no such file; every frame needs its five maps, _0.png to _4.png")
    return read_label_png(path).values()


def score(
    folder: Path,
    names: Sequence[str],
    label: Callable[[str], np.ndarray] | Mapping[str, np.ndarray],
    workers: int | None = None,
) -> dict:
    """Official figures of the maps in `folder` for the frames `names` ("<recording>/<stamp>"), in this order.

    `label`: gives the [H, W] class indices 0..4 of a name, e.g. a dataset's method or a dict. `workers`: threads, in
    which `label` is called too; None for one a core.
        {"map": mean of the four lanes, "ap": {class: auc}, "best": {class: {precision, ...}}, "images": count}
    `best` holds means over images of the best points, as there. Raises DatasetError naming a missing or unfit file.
    """
    find = label.__getitem__ if isinstance(label, Mapping) else label
    curves, highest = [], 0
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool, Progress("comparing maps", len(names), "frames") as progress:
        for found in pool.map(functools.partial(_frame_curves, folder, find), names):
            curves.append(found[0])
            highest = max(highest, found[1])
            progress.advance()
    if curves and highest <= 1:
        say(f"Warning: {folder}: no map holds a value above {highest}, so hardly a pixel is predicted; maps are probability x 255")
    ap, best = {}, {}
    for class_name, of_class in zip(CLASSES, zip(*curves)):
        means = Curve(*(_mean(values) for values in zip(*of_class)))
        ap[class_name] = means.auc
        best[class_name] = {"precision": means.precision, "recall": means.recall, "threshold": means.threshold}
    return {"map": mean_average_precision(ap), "ap": ap, "best": best, "images": len(curves)}


def mean_average_precision(ap: Mapping[str, float]) -> float:
    """mAP of the APs of l1, l0, r0 and r1."""
    return _mean([ap[name] for name in LANES])


def _frame_curves(folder: Path, find: Callable[[str], np.ndarray], name: str) -> tuple[list[Curve], int]:
    """A curve a class, and the highest value of the maps."""
    label_HW = find(name)
    maps = []
    for index in range(len(CLASSES)):
        path = map_path(folder, name, index)
        maps.append(read_map(path))
        if maps[-1].shape != label_HW.shape:
            sizes = f"is {_size(maps[-1])}, but its label is {_size(label_HW)}"
            raise DatasetError(f"{path}: {sizes}; write maps of the full frame")
    return image_curves(maps, label_HW), max(int(map_HW.max(initial=0)) for map_HW in maps)


def _size(array_HW: np.ndarray) -> str:
    return f"{array_HW.shape[1]} x {array_HW.shape[0]}"


def _mean(values: Sequence[float]) -> float:
    """Added one by one: numpy's pairwise sum and Python 3.12's compensated one may end in another last digit."""
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


# An evaluation's files and score


class Metric(MetricBase):
    headline = "llamas_map"
    lanes_in_one_file = True

    def write_files(self, folder: Path, image_id: str, answer: Answer) -> None:
        assert answer.probabilities_Khw is not None  # a dataset of lanes asks for them
        write_maps(folder, frame_name(image_id), frame_maps(answer.probabilities_Khw, answer.classes_HW.shape, self.dataset))

    def scores(self, split: str, ids: Sequence[str], counted: Counted, folder: Path, workers: int) -> dict[str, Any]:
        """AP of the probability maps of the labelled frames."""
        if not counted.labelled:
            return {}
        frames = {frame_name(image_id): image_id for image_id in counted.labelled}
        labels: Any = self.dataset.label  # each of these frames has one
        found = score(folder, list(frames), lambda name: labels(frames[name]), workers)
        return {"llamas_map": found["map"], "ap": found["ap"], "best": found["best"]}


def frame_name(image_id: str) -> str:
    """LLAMAS's evaluator knows frames as <recording>/<stamp>, without the split."""
    return "/".join(image_id.split("/")[-2:])


def rows(lane: np.ndarray, height: int) -> np.ndarray:
    """[height] int16: x of the lane in each row, straight between its points; -1 above, below, and where there is none."""
    x = np.full(height, -1, np.int16)
    if len(lane):
        y = np.arange(lane[-1, 1], lane[0, 1] + 1)
        x[y] = np.interp(y, lane[::-1, 1], lane[::-1, 0]).round().clip(0)  # the rule may say -1, which means none here
    return x


def write_rows(path: Path, frames: Mapping[str, Sequence[np.ndarray]]) -> None:
    """LLAMAS's file of lanes: for each frame, by its label's name, x of l1, l0, r0, r1 in every row."""
    content = {
        f"{frame_name(image_id)}.json": {name: x.tolist() for name, x in zip(LANES, found)} for image_id, found in frames.items()
    }
    write_text(path, json.dumps(content))
