"""Official mean IoU of the classes that a dataset evaluates, and PNGs of its official ids."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.errors import DatasetError
from pipeline.metrics.base import Answer, Counted, MetricBase
from pipeline.metrics.segmentation import Confusion
from pipeline.paths import below


class ClassMetric(MetricBase):
    """Of a dataset with `evaluated` classes, their `categories`, `official_ids` and `prediction_path`."""

    def write_files(self, folder: Path, image_id: str, answer: Answer) -> None:
        path = below(folder, self.dataset.prediction_path(image_id).as_posix(), DatasetError)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.dataset.prediction_ids(answer.classes_HW)).save(path)

    def scores(self, split: str, ids: Sequence[str], counted: Counted, folder: Path, workers: int) -> dict[str, Any]:
        return class_scores(self.dataset, counted.confusion) if counted.labelled else {}


def class_scores(dataset: Any, counted: Confusion) -> dict[str, Any]:
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
