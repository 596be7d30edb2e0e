"""The contract of a dataset: image ids per split, RGB images, labels of train ids, and what scoring needs to know.

A dataset reads full frames in its own layout and resolution. Cropping and resizing are `prepare`'s business; scores are
taken on full frames. The constructor's keywords are the keys of the YAML's `dataset` section (without `name`).
"""

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from pipeline.datasets._lists import listed_labels, part_of
from pipeline.errors import ConfigError, DatasetError
from pipeline.later import AddedLater

IGNORE = 255
Root = Annotated[str, Field(min_length=1, description="Folder of the dataset.")]
CropTop = Annotated[int, Field(ge=0, description="Rows that are removed at the top of a full frame.")]
CropBottomRows = Annotated[
    Annotated[int, Field(ge=1)] | None,
    AddedLater(None),
    Field(description="Instead of `crop_top`: so many rows are kept, counted from the bottom of a full frame."),
]
CropTopShare = Annotated[
    Annotated[float, Field(ge=0, lt=1)] | None,
    AddedLater(None),
    Field(description="Instead of `crop_top`: the part of a full frame's rows that is removed at the top."),
]
Side = Annotated[int, Field(ge=1)]
FrameSize = Annotated[
    tuple[Side, Side] | None,
    AddedLater(None),
    Field(description="Height and width of the full frames, where they are not the official ones; other frames are refused."),
]


class DatasetBase(ABC):
    classes: tuple[str, ...]  # names by train id; their number is the networks' number of outputs
    colours: tuple[tuple[int, int, int], ...]  # RGB by train id
    background: int | None = None  # the class that a background weight means; None: the dataset has none
    regions: tuple[int, ...] | None = None  # classes that are nodes of the affinity graph; None: all
    crop_top: int = 0  # rows that `prepare` removes at the top of a full frame, unless one of the next two is set
    crop_bottom_rows: int | None = None  # rows that it keeps, counted from the bottom
    crop_top_share: float | None = None  # part of the rows that it removes at the top
    frame_sizes: tuple[tuple[int, int], ...] | None = None  # (height, width) that the reader was made for; None: any
    mirror: tuple[int, ...] | None = None  # class c becomes mirror[c] in a mirrored image; None: mirroring is refused
    mirror_lanes: tuple[int, ...] | None = None  # the same for the existence flags
    lanes: int = 0  # number of lane existence flags; 0: the dataset has none
    lane_classes: tuple[int, ...] = ()  # the class of each lane slot
    splits: tuple[str, ...] = ("train", "val", "test")
    picture_bits: int | None = None  # of a 16-bit PNG picture, where its owner says it (_images.py, deep_rgb)
    described: bool = True  # False where doctor goes on although it is not known what labels mean
    labelled_part: float | str | None = None  # of the labelled training images, or the path of a list of their ids
    labelled_seed: int = 0  # of its draw
    reading: str = ""  # what, besides the files, decides how pixels and labels are read
    metric: str = "miou"  # whose evaluator scores it, by name (pipeline/metrics/base.py)

    @classmethod
    def splits_of(cls, **args: Any) -> tuple[str, ...]:
        """The splits that a dataset with these keys may have, without a look at its files."""
        return cls.splits

    def rows_cut(self, rows: int) -> int:
        """Rows that are removed at the top of a full frame with so many."""
        if self.crop_bottom_rows is not None:
            return max(0, rows - self.crop_bottom_rows)
        if self.crop_top_share is not None:
            return round(rows * self.crop_top_share)
        return self.crop_top

    @abstractmethod
    def ids(self, split: str) -> list[str]:
        """Image ids in the dataset's own order; never positions. Raises DatasetError on a missing list or a repeated id."""

    @abstractmethod
    def image(self, image_id: str) -> np.ndarray:
        """[H, W, 3] uint8 RGB, the full frame. Raises DatasetError naming the file if it cannot be read."""

    @abstractmethod
    def label(self, image_id: str) -> np.ndarray | None:
        """[H, W] uint8 train ids, 255 = ignored; None where the dataset has no label for this image.

        Raises DatasetError naming the file on an unreadable file, a size other than the image's, or an unknown value.
        """

    @abstractmethod
    def files(self, image_id: str) -> list[Path]:
        """The files that make this sample (image first), for messages and digests."""

    def existence(self, image_id: str) -> np.ndarray | None:
        """[lanes] uint8 flags; None where the dataset has none."""
        return None

    def has_label(self, image_id: str) -> bool:
        """Whether `label` or `existence` gives something, without reading it. Here: whether there is a file beside the image's."""
        return len(self.files(image_id)) > 1

    def shown_labels(self) -> frozenset[str] | None:
        """Ids of the training images whose labels are used, by `labelled_part`; None where nothing is hidden.

        `label` and `existence` know nothing of it: who reads prepared images hides the others' labels (data/prepared.py), so one
        prepared store serves every part. Of a number, the images with the lowest hashes of seed and id are taken, as many as the
        rounded part of the training images that have a label: a smaller part lies within a larger one of the same seed. Raises
        DatasetError on a part of less than one image, and on a list whose ids are not among those images.
        """
        if self.labelled_part is None:
            return None
        ids = [image_id for image_id in self.ids("train") if self.has_label(image_id)]
        if isinstance(self.labelled_part, str):
            shown = listed_labels(Path(self.labelled_part), ids, self.ids("train"))
        elif round(self.labelled_part * len(ids)) < 1:
            least = f"; write {math.ceil(100 / len(ids)) / 100:g} or more" if ids else ""
            raise DatasetError(
                f"dataset.labelled_part: {self.labelled_part:g} of {len(ids)} labelled training images is less than one{least}"
            )
        else:
            shown = part_of(ids, self.labelled_part, self.labelled_seed)
        return None if len(shown) == len(ids) else frozenset(shown)


def one_crop(crop_bottom_rows: int | None, crop_top_share: float | None) -> None:
    """Raises ConfigError where the two contradict each other."""
    if crop_bottom_rows is not None and crop_top_share is not None:
        raise ConfigError("dataset.crop_top_share: crop_bottom_rows says the crop already; write one of them")
