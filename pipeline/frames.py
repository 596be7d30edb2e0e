"""From a full frame to the canvas a network sees: top rows cut, resized, padded to the networks' multiple."""

import cv2
import numpy as np

from pipeline.datasets.base import IGNORE
from pipeline.views import FILL

VERSION = 1                                  # bump when the same file would give other pixels
MULTIPLE = 8                                 # what every network here asks of height and width


def canvas(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) rounded up to multiples of 8: ERFNet's two branches part ways on anything else."""
    return tuple(-(-side // MULTIPLE) * MULTIPLE for side in size)


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
