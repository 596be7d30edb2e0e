"""Cityscapes, fine annotations: 19 classes of street scenes, 2048 x 1024.

    leftImg8bit/{train,val,test}/<city>/<city>_<sequence>_<frame>_leftImg8bit.png
    gtFine/{train,val}/<city>/<city>_<sequence>_<frame>_gtFine_labelIds.png

Ids are `<split>/<city>/<city>_<sequence>_<frame>`. Labels come from labelIds, which are in the download, and not from
labelTrainIds, which are not. The label files of test are dummies: test reads as unlabelled. The coarse annotations are
left out. Source: mcordts/cityscapesScripts (ids, colours, file names).
"""

from pathlib import Path

import numpy as np

from pipeline.datasets._images import UNKNOWN, image_size, read_index_png, read_rgb, require_size, train_ids
from pipeline.datasets._lists import found_files, require_split
from pipeline.datasets.base import IGNORE, DatasetBase, FrameSize, Root

# The row is the train id: labelId, name, RGB.
CLASSES = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
OFFICIAL_IDS = tuple(row[0] for row in CLASSES)

TRAIN_IDS = np.full(256, UNKNOWN, np.uint8)
TRAIN_IDS[[*range(34), 255]] = IGNORE  # 255 is -1 (license plate) in 8 bits
TRAIN_IDS[list(OFFICIAL_IDS)] = range(len(CLASSES))

OFFICIAL = (1024, 2048)  # height, width
IMAGE, LABEL = "_leftImg8bit.png", "_gtFine_labelIds.png"


class Dataset(DatasetBase):
    classes = tuple(row[1] for row in CLASSES)
    colours = tuple(row[2] for row in CLASSES)
    mirror = tuple(range(len(CLASSES)))  # no class knows left from right
    official_ids = OFFICIAL_IDS  # by train id
    evaluated = tuple(range(len(CLASSES)))
    categories = (
        *["flat"] * 2,
        *["construction"] * 3,
        *["object"] * 3,
        *["nature"] * 2,
        "sky",
        *["human"] * 2,
        *["vehicle"] * 6,
    )  # by train id, as the official evaluator groups them
    metric = "cityscapes"
    official_counts = {"train": 2975, "val": 500, "test": 1525}

    def __init__(self, *, root: Root, size: FrameSize = None):
        self.root, self.frame_sizes = Path(root), (OFFICIAL if size is None else (size[0], size[1]),)

    def ids(self, split: str) -> list[str]:
        require_split(split, self.splits, self.root)
        base = self.root / "leftImg8bit"
        paths = found_files(base / split, f"*/*{IMAGE}")
        return [path.relative_to(base).as_posix().removesuffix(IMAGE) for path in paths]

    def image(self, image_id: str) -> np.ndarray:
        return read_rgb(self.files(image_id)[0])

    def label(self, image_id: str) -> np.ndarray | None:
        image, *labels = self.files(image_id)
        if not labels:
            return None
        values = read_index_png(labels[0], TRAIN_IDS)
        require_size(labels[0], values.shape, image_size(image), image.name)
        return train_ids(values, TRAIN_IDS, labels[0], "labelIds 0..33 and 255")

    def files(self, image_id: str) -> list[Path]:
        image = self.root / "leftImg8bit" / f"{image_id}{IMAGE}"
        return [image] if image_id.startswith("test/") else [image, self.root / "gtFine" / f"{image_id}{LABEL}"]

    def prediction_ids(self, prediction: np.ndarray) -> np.ndarray:
        """uint8 labelIds, as the official evaluator and the server want them, from train ids."""
        return np.array(OFFICIAL_IDS, np.uint8)[prediction]

    def prediction_path(self, image_id: str) -> Path:
        """A name that the official evaluator finds: <city>_<sequence>_<frame>*.png."""
        return Path(image_id.split("/")[-1] + ".png")
