"""Probability maps as the metrics take them."""

import cv2
import numpy as np

from pipeline.datasets.base import DatasetBase
from pipeline.errors import DatasetError

SLACK = 0.01  # a softmax or an interpolation may pass 1 by its rounding


def require_probabilities(maps: np.ndarray) -> None:
    """Raises DatasetError on values outside 0..1, e.g. maps of 0..255, which would overflow 8 bits without a word."""
    if maps.size and not (maps.min() >= -SLACK and maps.max() <= 1 + SLACK):
        raise DatasetError(
            f"probability maps hold {maps.dtype} values from {maps.min():g} to {maps.max():g}; give "
            f"probabilities from 0 to 1, and divide 8-bit maps by 255 first"
        )


def frame_maps(probabilities_Khw: np.ndarray, shape: tuple[int, int], dataset: DatasetBase) -> np.ndarray:
    """[K, H, W] float32: the probabilities resized to the frame; the rows cut at the top are surely background."""
    maps = np.zeros((len(probabilities_Khw), *shape), np.float32)
    cut = dataset.rows_cut(shape[0])
    maps[dataset.background or 0, :cut] = 1
    below_crop = (shape[1], shape[0] - cut)
    for here, map_hw in zip(maps, probabilities_Khw):
        here[cut:] = cv2.resize(map_hw, below_crop, interpolation=cv2.INTER_LINEAR)
    return maps
