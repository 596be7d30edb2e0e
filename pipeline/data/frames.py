"""From a full frame to the canvas a network sees: top rows cut, resized, padded to the networks' multiple."""

from pathlib import Path

import cv2
import numpy as np

from pipeline.config.schema import Fit, Prepare, canvas
from pipeline.data.views import FILL
from pipeline.datasets.base import IGNORE, DatasetBase
from pipeline.errors import DatasetError

VERSION = 1  # bump when the same file would give other pixels
LEAST_PART = 0.1  # of a frame's rows: a cut that leaves less was made for another frame


def leaves_rows(rows: int, cut: int) -> bool:
    return rows > cut and rows - cut >= LEAST_PART * rows


def require_frame(path: Path, shape: tuple[int, int], dataset: DatasetBase, prepare: Prepare | None = None) -> None:
    """Raises DatasetError on a frame (height, width) that the reader was not made for, where cutting the top leaves too little
    to be resized, or where `prepare` would stretch what is left too far."""
    rows, columns = shape
    if dataset.frame_sizes is not None and (rows, columns) not in dataset.frame_sizes:
        known = " or ".join(f"{width} x {height}" for height, width in dataset.frame_sizes)
        raise DatasetError(
            f"{path}: is {columns} x {rows} pixels, but the dataset's frames are {known}; fetch the official frames, or say "
            f"the size of yours, and its crop, in dataset: size: [{rows}, {columns}]"
        )
    if dataset.crop_bottom_rows is not None and rows < dataset.crop_bottom_rows:
        raise DatasetError(
            f"{path}: has {rows} rows, of which crop_bottom_rows keeps {dataset.crop_bottom_rows}; fetch the full frame, or "
            f"lower crop_bottom_rows"
        )
    cut = dataset.rows_cut(rows)
    if not leaves_rows(rows, cut):
        raise DatasetError(
            f"{path}: has {rows} rows, of which {crop_name(dataset)} removes {cut} and leaves {max(0, rows - cut)}, "
            f"below a tenth; fetch the full frame, or lower {crop_name(dataset)}"
        )
    if prepare is not None and (fault := too_stretched((rows - cut, columns), prepare)):
        raise DatasetError(f"{path}: {fault}")


def too_stretched(shape: tuple[int, int], prepare: Prepare) -> str:
    """What is wrong with resizing a frame (height, width below the crop) to the prepared size, and what to do; empty if nothing."""
    (rows, columns), (height, width) = shape, prepare.size
    across, down = width / columns, height / rows
    factor = max(across / down, down / across)
    if prepare.fit == "pad" or factor <= prepare.max_stretch:
        return ""
    return (
        f"{columns} x {rows} pixels (without the rows cut at the top) would become {width} x {height}, stretched by {factor:.2f}, "
        f"above prepare.max_stretch {prepare.max_stretch:g}; choose a prepare.size of their shape, or write prepare.fit: pad"
    )


def crop_name(dataset: DatasetBase) -> str:
    """The key that says the crop."""
    if dataset.crop_bottom_rows is not None:
        return "crop_bottom_rows"
    return "crop_top" if dataset.crop_top_share is None else "crop_top_share"


def crop_record(dataset: DatasetBase) -> dict[str, int | float | None]:
    """The crop as records hold it: {"crop_top": 240}, or another key for another way to say it."""
    name = crop_name(dataset)
    return {name: getattr(dataset, name)}


def content_of(shape: tuple[int, int], size: tuple[int, int], fit: Fit) -> tuple[int, int]:
    """(height, width) that a frame of this shape, below the crop, takes of the prepared size, from its upper left corner."""
    if fit == "stretch":
        return size[0], size[1]
    scale = min(size[0] / shape[0], size[1] / shape[1])
    height, width = (max(1, min(most, round(side * scale))) for side, most in zip(shape, size))
    return height, width


def frame(
    image: np.ndarray, label: np.ndarray | None, cut: int, size: tuple[int, int], fit: Fit = "stretch"
) -> tuple[np.ndarray, np.ndarray]:
    """Full frame -> canvas: `cut` rows removed at the top, image bilinear (area-averaged where it shrinks to under half), label
    nearest; with `fit: pad` its aspect is kept, and what is left of the size is padding."""
    image = image[cut:]
    height, width = content_of(image.shape[:2], size, fit)
    shrinks = min(image.shape[0] / height, image.shape[1] / width) > 2
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    H, W = canvas(size)
    padded = np.empty((H, W, 3), np.uint8)
    padded[:] = FILL
    padded[:height, :width] = image
    labels = np.full((H, W), IGNORE, np.uint8)
    if label is not None:
        labels[:height, :width] = cv2.resize(label[cut:], (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return padded, labels
