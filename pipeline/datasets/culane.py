"""CULane: up to four lane lines a frame as classes, and a flag for each.

    driver_<number>_<step>frame/<clip>.MP4/<frame>.jpg, <frame>.lines.txt       frames and annotated points
    laneseg_label_w16/driver_<...>/<clip>.MP4/<frame>.png                       labels 0..4; the real test has none
    list/<split>.txt, list/<split>_gt.txt                                       the latter with label and flags
    list/test_split/test<k>_<category>.txt

Paths in lists begin with "/". An image id is such a path without the slash and without ".jpg". A list with labels and
flags is preferred where both are there.

Source: Pan et al., "Spatial As Deep: Spatial CNN for Traffic Scene Understanding", AAAI 2018, and its SCNN repository;
the 240-row cut: Hou et al., CVPR 2020.
"""

import contextlib
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.datasets._images import UNKNOWN, image_size, read_index_png, read_rgb, require_size, train_ids
from pipeline.datasets._lists import by_id, parsed, read_list, require_path, require_split, spelt
from pipeline.datasets.base import DatasetBase, FrameSize, Root
from pipeline.errors import DatasetError

ROWS, CROPPED_ROWS = 590, 240
OFFICIAL = (ROWS, 1640)  # height, width
TRAIN_IDS = np.full(256, UNKNOWN, np.uint8)
TRAIN_IDS[:5] = range(5)


class Dataset(DatasetBase):
    classes = ("background", "lane 1", "lane 2", "lane 3", "lane 4")  # left to right; the car is between 2 and 3
    colours = ((0, 0, 0), (255, 60, 60), (60, 220, 90), (70, 120, 255), (255, 210, 50))
    background = 0
    mirror = (0, 4, 3, 2, 1)
    mirror_lanes = (3, 2, 1, 0)
    lanes = 4
    lane_classes = (1, 2, 3, 4)
    metric = "culane"
    official_counts = {"train": 88_880, "val": 9_675, "test": 34_680}

    def __init__(self, *, root: Root, size: FrameSize = None):
        self.root, self.frame_sizes = Path(root), (OFFICIAL if size is None else (size[0], size[1]),)

    @cached_property
    def crop_top(self) -> int:  # type: ignore[override]  # a property overrides an attribute here
        """240 of 590 rows; the same share of frames of another height, as the first that can be read has it."""
        paths = [self._path(image_id, ".jpg") for entries in self._lists.values() for image_id in entries]
        if not paths:
            raise DatasetError(f"{self.root / 'list'}: holds no list of frames; unpack CULane's list/ there, or correct 'root'")
        for path in paths:
            with contextlib.suppress(DatasetError):  # reading it will say so
                return crop_rows(image_size(path)[0])
        return crop_rows(image_size(paths[0])[0])

    def ids(self, split: str) -> list[str]:
        require_split(split, self.splits, self.root)
        if split not in self._lists:
            raise DatasetError(f"{self.root / 'list' / split}.txt: no such file; unpack CULane's list/ there, or correct 'root'")
        return list(self._lists[split])

    def image(self, image_id: str) -> np.ndarray:
        return read_rgb(self._path(image_id, ".jpg"))

    def label(self, image_id: str) -> np.ndarray | None:
        path = self._label_path(image_id)
        if path is None:
            return None
        values, image_path = read_index_png(path, TRAIN_IDS), self._path(image_id, ".jpg")
        require_size(path, values.shape, image_size(image_path), image_path.name)
        return train_ids(values, TRAIN_IDS, path, "0 to 4, as in laneseg_label_w16")

    def files(self, image_id: str) -> list[Path]:
        others = (self._path(image_id, ".lines.txt"), self._label_path(image_id))
        return [self._path(image_id, ".jpg"), *(path for path in others if path is not None and path.exists())]

    def has_label(self, image_id: str) -> bool:
        return self._entry(image_id).flags is not None or self._label_path(image_id) is not None

    def existence(self, image_id: str) -> np.ndarray | None:
        flags = self._entry(image_id).flags
        return None if flags is None else np.array(flags, np.uint8)

    def lines(self, image_id: str) -> list[np.ndarray]:
        """Annotated lines, [n, 2] float64 (x, y) each, from bottom to top; x may lie outside the image."""
        path = self._path(image_id, ".lines.txt")
        try:
            rows = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read ({error.strerror}); fetch the annotations again") from None
        lines = []
        for number, row in enumerate(rows, 1):
            try:
                lines.append(np.array(row.split(), np.float64).reshape(-1, 2))
            except ValueError as error:
                what = f"line {number}: not x y pairs ({error})"
                raise DatasetError(f"{path}: {what}; fetch the annotations again") from None
        return lines

    def categories(self, split: str) -> dict[str, list[str]]:
        """Image ids by category, e.g. "night"; empty for a split without categories (in CULane all but test)."""
        paths = sorted((self.root / "list" / f"{split}_split").glob(f"{split}*_*.txt"))
        return {
            path.stem.split("_", 1)[1]: [id_of(where, text) for where, text in read_list(path)] if path.stat().st_size else []
            for path in paths
        }

    @cached_property
    def _lists(self) -> dict[str, dict[str, "Entry"]]:
        """What the list of each split says, by image id; splits without a list are left out."""
        lists = {}
        for split in self.splits:
            paths = (self.root / "list" / f"{split}_gt.txt", self.root / "list" / f"{split}.txt")
            if (path := next((path for path in paths if path.exists()), None)) is not None:
                rows = list(parsed(read_list(path), lambda where, text: (id_of(where, text), entry_of(where, text))))
                ids = by_id((where, image_id) for where, _, (image_id, _) in rows)
                entries = {where: entry for where, _, (_, entry) in rows}
                lists[split] = {image_id: entries[where] for image_id, where in ids.items()}
        return lists

    def _entry(self, image_id: str) -> "Entry":
        return next(entries[image_id] for entries in self._lists.values() if image_id in entries)

    def _path(self, image_id: str, suffix: str) -> Path:
        return spelt(self.root, f"{image_id}{suffix}")

    def _label_path(self, image_id: str) -> Path | None:
        """None where there is no label: a list that names one promises it, otherwise it may be missing."""
        listed = self._entry(image_id).label
        if listed is not None:
            return spelt(self.root, listed)
        usual = spelt(self.root, f"laneseg_label_w16/{image_id}.png")
        return usual if usual.exists() else None


class Entry(NamedTuple):
    label: str | None  # below the root
    flags: tuple[int, ...] | None


def entry_of(where: str, text: str) -> Entry:
    _, *others = text.split()
    label, flags = others[:1], others[1:]
    if flags and (len(flags) != Dataset.lanes or not set(flags) <= {"0", "1"}):
        raise DatasetError(f"{where}: expected {Dataset.lanes} flags of 0 or 1, got {' '.join(flags)!r}; fetch the list again")
    return Entry(require_path(where, label[0].lstrip("/")) if label else None, tuple(map(int, flags)) or None)


def id_of(where: str, text: str) -> str:
    path = text.split()[0]
    if not path.endswith(".jpg"):
        raise DatasetError(f"{where}: expected the path of a .jpg file, got {path!r}; fetch the list again")
    return require_path(where, require_path(where, path.lstrip("/")).removesuffix(".jpg"))


def crop_rows(height: int) -> int:
    return round(CROPPED_ROWS * height / ROWS)
