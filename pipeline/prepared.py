"""The prepared store: every training image once decoded, cropped, resized and padded, so that both stages read equal pixels.

One pass, `sample`, of one view: `image` [H, W, 3] uint8 RGB, `label` [H, W] uint8 (255 = ignored, padded, or unlabelled) and
`existence` [lanes] uint8 (255 = unknown). H W is the canvas: the prepared size padded at the bottom and right to the
networks' multiple.
"""

import cv2
import numpy as np

from pipeline.config import Prepare
from pipeline.datasets.base import IGNORE, DatasetBase
from pipeline.store import ImageRow, Pass, digest_array
from pipeline.targets.base import Field
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


def sample(dataset: DatasetBase, image_id: str, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The row of one image. Raises DatasetError from the reader."""
    image, label = frame(dataset.image(image_id), dataset.label(image_id), dataset.crop_top, size)
    row = {"image": image, "label": label}
    if dataset.lanes:
        flags = dataset.existence(image_id)
        row["existence"] = np.full(dataset.lanes, IGNORE, np.uint8) if flags is None else flags.astype(np.uint8)
    return row


def image_row(image_id: str, row: dict[str, np.ndarray]) -> ImageRow:
    """The image's line in a store: digests of what was prepared; `existence` counts as label."""
    label = digest_array(np.concatenate([row["label"].ravel(), row.get("existence", np.empty(0, np.uint8))]))
    return ImageRow(image_id, digest_array(row["image"]), label)


def sample_pass(size: tuple[int, int], lanes: int) -> Pass:
    H, W = canvas(size)
    grid = (f"y{H}", f"x{W}")
    fields = {
        "image": Field((H, W, 3), "uint8", (*grid, "rgb")),
        "label": Field((H, W), "uint8", grid),
    }
    if lanes:
        fields["existence"] = Field((lanes,), "uint8", ("lane",))
    return Pass("sample", {"type": "sample", "version": VERSION, "size": list(size), "lanes": lanes}, fields)


def identity(dataset: DatasetBase, prepare: Prepare) -> dict:
    """What prepared pixels were made from, the files apart (those are the rows' digests)."""
    return {
        "version": VERSION, "size": list(prepare.size), "canvas": list(canvas(prepare.size)), "crop_top": dataset.crop_top,
        "fill": list(FILL), "classes": list(dataset.classes), "lanes": dataset.lanes,
    }

