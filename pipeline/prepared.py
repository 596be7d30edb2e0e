"""The prepared store: every training image once decoded, cropped, resized and padded, so that both stages read equal pixels.

One pass, `sample`, of one view: `image` [H, W, 3] uint8 RGB, `label` [H, W] uint8 (255 = ignored, padded, or unlabelled) and
`existence` [lanes] uint8 (255 = unknown). H W is the canvas: the prepared size padded at the bottom and right to the
networks' multiple.
"""

from pathlib import Path
from typing import Sequence

import numpy as np

from pipeline.config import Plugin, Prepare
from pipeline.datasets.base import IGNORE, DatasetBase
from pipeline.errors import StoreError
from pipeline.frames import VERSION, canvas, frame
from pipeline.store import ImageRow, Pass, Store, digest_array
from pipeline.targets.base import Field
from pipeline.views import FILL


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


def open_whole(root: Path, plugin: Plugin, dataset: DatasetBase, prepare: Prepare,
               ids: Sequence[str]) -> tuple[Store, Pass, list[ImageRow]]:
    """The prepared store, its pass, and the lines of these images, all of them whole. Raises StoreError with what to run."""
    sample = sample_pass(prepare.size, dataset.lanes)
    try:
        store = Store.find(root, "prepared", plugin.name, identity(dataset, prepare))
        store.check_ids(ids)
        images = [store.images[store.row_of[image_id]] for image_id in ids]
        store.check(images, range(1), [(sample, True)])
    except StoreError as error:
        raise StoreError(f"{error}; run `pipeline prepare` with this config") from None
    return store, sample, images
