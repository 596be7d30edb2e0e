"""Mean IoU as the official programs of Cityscapes and ApolloScape count it: one matrix over all pixels of all images.

IoU(c) = TP / (TP + FN + FP), where
    TP + FN   pixels whose truth is c, whatever was predicted there: an ignored or unknown value is a miss;
    FP        pixels predicted c whose truth is another *evaluated* class; pixels of ignored truth count nowhere.
A class that is not evaluated, or neither true nor predicted, is NaN and left out of the mean; one that is predicted but
never true is 0 and counts. Sums run in the order of `evaluated`, as there, so that the last digit agrees too.

Source: cityscapesScripts, evaluation/evalPixelLevelSemanticLabeling.py, which ApolloScape's lane_segmentation calls
with its own table of ids. There the matrix is as large as the highest id; here it always has 256 x 256 cells, so one
rule serves train ids (classes 0..n-1, truth 255 ignored) and official ids. Left out: iIoU, which needs instances.
"""

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

VALUES = 256
MOST_PIXELS = 2**24  # OpenCV counts in float32, which is exact up to here


class Confusion:
    """`Confusion(11)` evaluates the train ids 0..10, `Confusion(evaluated=(0, 200, 204))` these official ids."""

    def __init__(self, num_classes: int | None = None, *, evaluated: Sequence[int] | None = None):
        assert (num_classes is None) != (evaluated is None), "either the number of train ids or the evaluated ids"
        self.evaluated = tuple(evaluated if num_classes is None else range(num_classes))  # type: ignore[arg-type]  # one of them
        self.matrix = np.zeros((VALUES, VALUES), np.int64)  # [truth, prediction]

    def add(self, truth_HW: np.ndarray, prediction_HW: np.ndarray) -> None:
        """Count one image; both uint8 and of one size."""
        assert truth_HW.shape == prediction_HW.shape, (truth_HW.shape, prediction_HW.shape)
        assert truth_HW.dtype == prediction_HW.dtype == np.uint8, (truth_HW.dtype, prediction_HW.dtype)
        truth, prediction = np.ravel(truth_HW), np.ravel(prediction_HW)
        for start in range(0, truth.size, MOST_PIXELS):
            pair = [truth[start : start + MOST_PIXELS], prediction[start : start + MOST_PIXELS]]
            counts = cv2.calcHist(pair, [0, 1], None, [VALUES, VALUES], [0, VALUES, 0, VALUES])
            self.matrix += counts.astype(np.int64)

    def merge(self, other: "Confusion") -> None:
        """Add what another process counted."""
        assert self.evaluated == other.evaluated, (self.evaluated, other.evaluated)
        self.matrix += other.matrix

    def iou(self) -> np.ndarray:
        """[len(evaluated)] in 0..1; NaN for a class that is neither true nor predicted."""
        return np.array([self._iou([value]) for value in self.evaluated])

    def mean_iou(self) -> float:
        """Mean over the classes that are not NaN; NaN if there is none."""
        return _mean(self.iou())

    def category_iou(self, categories: Mapping[str, Sequence[int]]) -> dict[str, float]:
        """IoU of groups of ids; confusions inside a group are hits. NaN for a group absent or without evaluated ids."""
        return {name: self._iou([value for value in self.evaluated if value in members]) for name, members in categories.items()}

    def mean_category_iou(self, categories: Mapping[str, Sequence[int]]) -> float:
        return _mean(self.category_iou(categories).values())

    def _iou(self, members: list[int]) -> float:
        others = [value for value in self.evaluated if value not in members]
        hits = int(self.matrix[np.ix_(members, members)].sum())
        true = int(self.matrix[members].sum())
        false_positives = int(self.matrix[np.ix_(others, members)].sum())
        return hits / (true + false_positives) if true + false_positives else math.nan


def _mean(scores) -> float:
    """Added one by one: numpy's pairwise sum may end in another last digit."""
    total = count = 0
    for score in scores:
        if not math.isnan(score):
            total, count = total + score, count + 1
    return float(total / count) if count else math.nan
