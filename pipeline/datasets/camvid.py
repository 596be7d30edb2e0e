"""CamVid in SegNet's version: 480 x 360, 11 classes, void ignored.

    <split>.txt                      "train/<name>.png trainannot/<name>.png" a line
    <split>/<name>.png               frames, .png or .jpg
    <split>annot/<name>.png          labels 0..11, 11 = void

SegNet's own lists say "/SegNet/CamVid/train/<name>.png ..."; of any path only the last folder and the name are used. An
image id is "<split>/<name>". "test/Seq05VD" is the part of the split test whose names begin with Seq05VD, a sequence that
neither train nor val has frames of (the rest of test is of one that they have). The class "pavement" is the sidewalk; lane
markings are part of the road in this version. `train_part` is the part of the training images that is used, to learn what few
labels do: those whose ids have the lowest hashes, so that a tenth lies within a quarter.

Sources: Brostow, Fauqueur, Cipolla, "Semantic Object Classes in Video: A High-Definition Ground Truth Database",
Pattern Recognition Letters 30(2), 2009; Badrinarayanan, Kendall, Cipolla, "SegNet", TPAMI 2017 (split, classes,
colours).
"""

from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
from pydantic import Field

from pipeline.datasets._images import UNKNOWN, image_size, read_index_png, read_rgb, require_size, train_ids
from pipeline.datasets._lists import by_id, parsed, part_of, read_list, require_path, require_split, spelt
from pipeline.datasets.base import IGNORE, DatasetBase, FrameSize, Root
from pipeline.errors import ConfigError, DatasetError

CLASSES = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign_symbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)
VOID = 11
OFFICIAL = (360, 480)  # height, width
TRAIN_IDS = np.full(256, UNKNOWN, np.uint8)
TRAIN_IDS[:VOID] = range(VOID)
TRAIN_IDS[VOID] = IGNORE


class Dataset(DatasetBase):
    classes = tuple(name for name, _ in CLASSES)
    colours = tuple(colour for _, colour in CLASSES)
    mirror = tuple(range(len(CLASSES)))  # no class knows left from right
    official_counts = {"train": 367, "val": 101, "test": 233}

    def __init__(
        self,
        *,
        root: Root,
        train_part: Annotated[float, Field(gt=0, le=1, description="The part of the training split that is used.")] = 1.0,
        size: FrameSize = None,
    ):
        if not 0 < train_part <= 1:
            raise ConfigError(f"dataset.train_part: {train_part} is not above 0 and at most 1")
        self.root, self.train_part = Path(root), train_part
        self.frame_sizes = (OFFICIAL if size is None else (size[0], size[1]),)
        self.official_counts = {**Dataset.official_counts, "train": round(train_part * Dataset.official_counts["train"])}
        self._lists: dict[str, dict[str, list[Path]]] = {}

    def ids(self, split: str) -> list[str]:
        split, _, sequence = split.partition("/")
        require_split(split, self.splits, self.root)
        whole = part_of(list(self._read(split)), self.train_part if split == "train" else 1.0)
        found = [image_id for image_id in whole if image_id.startswith(f"{split}/{sequence}")]
        if not found:
            raise DatasetError(f"{self.root / split}.txt: names no frame of the sequence {sequence!r}; correct the split")
        return found

    def image(self, image_id: str) -> np.ndarray:
        return read_rgb(self.files(image_id)[0])

    def label(self, image_id: str) -> np.ndarray:
        image, path = self.files(image_id)
        values = read_index_png(path, TRAIN_IDS)
        require_size(path, values.shape, image_size(image), image.name)
        return train_ids(values, TRAIN_IDS, path, f"0 to {VOID}, as in SegNet's version")

    def files(self, image_id: str) -> list[Path]:
        return self._read(image_id.split("/")[0])[image_id]

    def _read(self, split: str) -> dict[str, list[Path]]:
        """{image id: [image, label]} in the list's order, read once."""
        if split not in self._lists:
            lines = read_list(self.root / f"{split}.txt")
            rows = [(where, *pair) for where, _, pair in parsed(lines, lambda where, text: pair_of(where, text, split))]
            ids = by_id((where, str(image.with_suffix(""))) for where, image, _ in rows)
            pairs = {where: [spelt(self.root, str(image)), spelt(self.root, str(label))] for where, image, label in rows}
            self._lists[split] = {image_id: pairs[where] for image_id, where in ids.items()}
        return self._lists[split]


def pair_of(where: str, text: str, split: str) -> tuple[PurePosixPath, PurePosixPath]:
    """Image and label below the root."""
    paths = [PurePosixPath(*PurePosixPath(word).parts[-2:]) for word in text.split()]
    if len(paths) == 2:
        require_path(where, str(paths[0]))
        require_path(where, str(paths[1]))
    if len(paths) != 2 or paths[0].parent.name != split:
        raise DatasetError(f"{where}: expected '{split}/<name>.png {split}annot/<name>.png', got {text!r}; fetch the list again")
    return paths[0], paths[1]
