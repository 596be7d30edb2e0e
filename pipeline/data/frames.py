"""From a full frame to the canvas a network sees: top rows cut, resized, padded to the networks' multiple."""

from pathlib import Path

import cv2
import numpy as np

from pipeline.config.schema import canvas
from pipeline.data.views import FILL
from pipeline.datasets.base import IGNORE
from pipeline.errors import DatasetError

VERSION = 1  # bump when the same file would give other pixels
LEAST_PART = 0.1  # of a frame's rows: a cut that leaves less was made for another frame


def leaves_rows(rows: int, crop_top: int) -> bool:
    return rows > crop_top and rows - crop_top >= LEAST_PART * rows


def require_rows(path: Path, rows: int, crop_top: int) -> None:
    """Raises DatasetError where cutting the top leaves too little to be resized."""
    if not leaves_rows(rows, crop_top):
        raise DatasetError(
            f"{path}: has {rows} rows, of which crop_top removes {crop_top} and leaves {max(0, rows - crop_top)}, "
            f"below a tenth; fetch the full frame, or lower crop_top"
        )


def frame(image: np.ndarray, label: np.ndarray | None, crop_top: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Full frame -> canvas: top rows cut, image bilinear (area-averaged where it shrinks to under half), label nearest."""
    height, width = size
    image = image[crop_top:]
    shrinks = min(image.shape[0] / height, image.shape[1] / width) > 2
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    H, W = canvas(size)
    padded = np.empty((H, W, 3), np.uint8)
    padded[:] = FILL
    padded[:height, :width] = image
    labels = np.full((H, W), IGNORE, np.uint8)
    if label is not None:
        labels[:height, :width] = cv2.resize(label[crop_top:], (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return padded, labels
