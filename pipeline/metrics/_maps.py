"""Probability maps as the metrics take them."""

import numpy as np

from pipeline.errors import DatasetError

SLACK = 0.01  # a softmax or an interpolation may pass 1 by its rounding


def require_probabilities(maps: np.ndarray) -> None:
    """Raises DatasetError on values outside 0..1, e.g. maps of 0..255, which would overflow 8 bits without a word."""
    if maps.size and not (maps.min() >= -SLACK and maps.max() <= 1 + SLACK):
        raise DatasetError(
            f"probability maps hold {maps.dtype} values from {maps.min():g} to {maps.max():g}; give "
            f"probabilities from 0 to 1, and divide 8-bit maps by 255 first"
        )
