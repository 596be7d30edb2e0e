"""The score that a dataset's own evaluator gives, by its metric (`DatasetBase.metric`), as values for JSON.

    culane        F1 of lines at IoU 0.5 and 0.3, per category where the split has lists of categories
    llamas        AP a class and its mean over the four lanes
    apolloscape   mean IoU of the 18 evaluated classes, and of categories, from one matrix
    cityscapes    the same of 19 classes
    miou          nothing beside the mean IoU

CULane's lines are 30 px wide on its frames of 590 rows; on frames of another height the same share of it. So at another
height only scores of that height compare with each other.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets.base import DatasetBase
from pipeline.metrics import culane, llamas
from pipeline.metrics.segmentation import Confusion
from pipeline.progress import say
from pipeline.scoring.submission import frame_name

HEADLINES = {
    "culane": "culane_f1",
    "llamas": "llamas_map",
    "apolloscape": "apolloscape_miou",
    "cityscapes": "cityscapes_miou",
    "miou": "mean_iou",
}
LINE_WIDTH_PX = 30
IOUS = {"culane_f1": 0.5, "culane_f1_30": 0.3}
FEW = 200  # frames; below, starting processes takes longer than the counting


def line_scores(dataset: Any, split: str, ids: Sequence[str], folder: Path, size: tuple[int, int], workers: int) -> dict:
    """F1 of the `.lines.txt` in `folder` against the dataset's, for frames of `size` = (height, width)."""
    lists = category_lists(dataset, split, ids)
    width = max(1, round(LINE_WIDTH_PX * size[0] / culane.FRAME[0]))
    scores: dict = {"culane": {}}
    at = culane.scores(folder, dataset.root, lists, list(IOUS.values()), width, size, workers if len(ids) > FEW else 1)
    for name, iou in IOUS.items():
        found = at[iou]
        scores[name] = found["total"]["f1"]
        scores["culane"][f"iou {iou}"] = {**(found["categories"] if len(lists) > 1 else {}), "total": found["total"]}
    return scores


def category_lists(dataset: Any, split: str, ids: Sequence[str]) -> Mapping[str, Path]:
    """The lists of the categories if together they are the split, as in CULane's test; else the split's own."""
    lists = dataset.root / "list"
    found = {path.stem.split("_", 1)[1]: path for path in sorted((lists / f"{split}_split").glob(f"{split}*_*.txt"))}
    listed = [frame for path in found.values() for frame in culane.read_list(path)]
    if sorted(listed) == sorted(f"{image_id}.lines.txt" for image_id in ids):
        return found
    if found:
        say(f"{lists / f'{split}_split'}: the categories are not the frames of {split!r}; scored without them")
    paths = (lists / f"{split}_gt.txt", lists / f"{split}.txt")
    return {split: next(path for path in paths if path.exists())}


def map_scores(dataset: DatasetBase, ids: Sequence[str], folder: Path, workers: int) -> dict:
    """AP of the probability maps in `folder`; `ids` are labelled frames."""
    frames = {frame_name(image_id): image_id for image_id in ids}

    def label(name: str) -> np.ndarray:
        found = dataset.label(frames[name])
        assert found is not None
        return found

    found = llamas.score(folder, list(frames), label, workers)
    return {"llamas_map": found["map"], "ap": found["ap"], "best": found["best"]}


def class_scores(dataset: Any, counted: Confusion) -> dict:
    """Mean IoU of the evaluated classes and of categories, from a matrix of train ids.

    Train ids serve as well as official ones: those without a train id are left out of the evaluation either way.
    """
    official, name = Confusion(evaluated=dataset.evaluated), dataset.metric
    official.matrix = counted.matrix
    groups = {group: [t for t, one in enumerate(dataset.categories) if one == group] for group in dataset.categories}
    return {
        f"{name}_miou": known(official.mean_iou()),
        f"{name}_iou": {dataset.classes[t]: known(iou) for t, iou in zip(official.evaluated, official.iou())},
        f"{name}_category_miou": known(official.mean_category_iou(groups)),
        f"{name}_category_iou": {group: known(iou) for group, iou in official.category_iou(groups).items()},
    }


def known(value: float) -> float | None:
    """None for a score that does not exist: JSON has no NaN."""
    return None if math.isnan(value) else float(value)
