"""LLAMAS: 1276 x 717 frames with lane markers in 3-D, drawn into labels of background, l1, l0, r0, r1.

    color_images/{train,valid,test}/<recording>/<stamp>_color_rect.png
    labels/{train,valid}/<recording>/<stamp>.json

Ids are `<folder>/<recording>/<stamp>`. `protocol: official` has the splits train, valid, test (test without labels).
`protocol: paper` is the cut of IntRA-KD, which scores on the official validation set: val and test are its two
recordings in order of their names. How the paper cut it is not told; its 10,029 and 10,815 frames suggest one recording
each, and `official_counts` has them, so that a check of the dataset compares.

The label is the official one to the pixel. Of a file's lanes those fall out whose markers start within 20 rows, and
those of one marker; the rest are renamed outward from the car without gaps (l1 becomes l0 where l0 is missing). Each
marker is a strip 0.1 m wide between its two ends, projected, rounded, and drawn anti-aliased, twice, in its lane's
colour. A pixel has a class only if it has exactly its lane's colour: blurred edges are background.

Sources: Behrendt & Soussan, "Unsupervised Labeled Lane Markers Using Maps", ICCV Workshops 2019, and its
label_scripts (label), evaluation (file names); Hou et al., CVPR 2020 (the 333-row cut, the halves of validation).
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from pydantic import Field

from pipeline.datasets._images import image_size, read_rgb, require_size
from pipeline.datasets._lists import found_files, require_split
from pipeline.datasets.base import CropBottomRows, CropTop, CropTopShare, DatasetBase, Root, one_crop
from pipeline.errors import ConfigError, DatasetError

LANES = ("l1", "l0", "r0", "r1")  # in order of classes 1..4
BGR = {  # outer lanes too: where they are drawn over an inner one, that one is gone
    "l6": (75, 25, 230),
    "l5": (75, 180, 60),
    "l4": (200, 130, 0),
    "l3": (48, 130, 245),
    "l2": (180, 30, 145),
    "l1": (0, 0, 255),
    "l0": (24, 140, 34),
    "r0": (255, 0, 0),
    "r1": (0, 255, 255),
    "r2": (40, 110, 170),
    "r3": (200, 250, 255),
    "r4": (255, 190, 230),
    "r5": (0, 0, 128),
    "r6": (195, 255, 170),
    "r7": (0, 128, 128),
    "r8": (195, 255, 170),
}
BEYOND = (75, 25, 230)  # l7 and further out, which the official scripts have no colour for and stop at; background like l6
MARKER_WIDTH_M = 0.1
LEAST_ROWS = 20
IMAGE, LABEL = "_color_rect.png", ".json"


Pixels = Annotated[int, Field(ge=1)]


class Dataset(DatasetBase):
    classes = ("background", *LANES)
    colours = ((0, 0, 0), *(BGR[name][::-1] for name in LANES))
    background = 0
    mirror = (0, 4, 3, 2, 1)
    mirror_lanes = (3, 2, 1, 0)
    lanes = 4
    lane_classes = (1, 2, 3, 4)
    metric = "llamas"

    def __init__(
        self,
        *,
        root: Root,
        protocol: Annotated[
            Literal["official", "paper"],
            Field(description="The benchmark's splits, or those of the paper, whose test split has labels."),
        ],
        size: Annotated[tuple[Pixels, Pixels], Field(description="Height and width of the frames.")] = (717, 1276),
        crop_top: CropTop = 333,
        crop_bottom_rows: CropBottomRows = None,
        crop_top_share: CropTopShare = None,
    ):
        one_crop(crop_bottom_rows, crop_top_share)
        if protocol not in ("official", "paper"):
            raise ConfigError(f"dataset.protocol: expected 'official' or 'paper', got {protocol!r}")
        self.root, self.protocol, self.size, self.crop_top = Path(root), protocol, (size[0], size[1]), crop_top
        self.crop_bottom_rows, self.crop_top_share = crop_bottom_rows, crop_top_share
        self.frame_sizes = (self.size,)
        official = protocol == "official"
        self.splits = self.splits_of(protocol=protocol)
        held_out = {"valid": 20_844, "test": 20_929} if official else {"val": 10_029, "test": 10_815}
        self.official_counts = {"train": 58_269} | held_out

    @classmethod
    def splits_of(cls, **args: Any) -> tuple[str, ...]:
        return ("train", "valid" if args["protocol"] == "official" else "val", "test")

    def ids(self, split: str) -> list[str]:
        require_split(split, self.splits, self.root)
        if self.protocol == "official":
            return self._walk("color_images", "test", IMAGE) if split == "test" else self._walk("labels", split, LABEL)
        if split == "train":
            return self._walk("labels", "train", LABEL)
        halves = self._walk("labels", "valid", LABEL)
        recordings = sorted({image_id.split("/")[1] for image_id in halves})
        if len(recordings) != 2:
            folder = self.root / "labels" / "valid"
            raise DatasetError(f"{folder}: holds {len(recordings)} recordings, 'protocol: paper' needs 2; fetch both")
        wanted = recordings[("val", "test").index(split)]
        return [image_id for image_id in halves if image_id.split("/")[1] == wanted]

    def image(self, image_id: str) -> np.ndarray:
        path = self.files(image_id)[0]
        image = read_rgb(path)
        require_size(path, image.shape[:2], self.size, "LLAMAS")
        return image

    def label(self, image_id: str) -> np.ndarray | None:
        image_path, *labels = self.files(image_id)
        if not labels:
            return None
        require_size(image_path, image_size(image_path), self.size, "LLAMAS")
        return drawn(read_lanes(labels[0]), self.size)

    def existence(self, image_id: str) -> np.ndarray | None:
        labels = self.files(image_id)[1:]
        if not labels:
            return None
        names = [name for name, *_ in read_lanes(labels[0])]
        return np.array([name in names for name in LANES], np.uint8)

    def files(self, image_id: str) -> list[Path]:
        image = self.root / "color_images" / f"{image_id}{IMAGE}"
        return [image] if image_id.startswith("test/") else [image, self.root / "labels" / f"{image_id}{LABEL}"]

    def prediction_path(self, image_id: str, train_id: int) -> Path:
        """Where the official evaluator looks for the probabilities of one class, below the folder of predictions."""
        return Path(f"{image_id.split('/', 1)[1]}.json_{train_id}.png")

    def _walk(self, kind: str, folder: str, suffix: str) -> list[str]:
        base = self.root / kind
        paths = found_files(base / folder, f"*/*{suffix}")
        return [path.relative_to(base).as_posix().removesuffix(suffix) for path in paths]


def read_lanes(path: Path) -> list[tuple[str, tuple[int, int, int], np.ndarray]]:
    """(name, BGR, corners [markers, 4, 2] int32 x y) of the lanes after dropping and renaming, in file order.

    Raises DatasetError on a file that is not a LLAMAS label, or whose markers cannot be projected.
    """
    try:
        content = json.loads(path.read_bytes())
        projection = np.array(content["projection_matrix"], float)
        lanes = [lane for lane in content["lanes"] if is_kept(lane["markers"])]
        names = renamed([lane["lane_id"] for lane in lanes])
        return [(name, BGR.get(name, BEYOND), strips(lane["markers"], projection)) for name, lane in zip(names, lanes)]
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); fetch the labels of its split") from None
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise DatasetError(f"{path}: is not a LLAMAS label ({what}); fetch it again") from None


def is_kept(markers: list[dict]) -> bool:
    starts = [int(marker["pixel_start"]["y"]) for marker in markers]
    return len(markers) >= 2 and max(starts) - min(starts) >= LEAST_ROWS


def renamed(names: list[str]) -> list[str]:
    """l3 l0 r1 becomes l1 l0 r0: counted outward on each side, in the order of the names as text."""
    new = {}
    for side in "lr":
        for number, name in enumerate(sorted(name for name in names if name[0] == side)):
            new[name] = f"{side}{number}"
    return [new[name] for name in names]


def strips(markers: list[dict], projection: np.ndarray) -> np.ndarray:
    """[markers, 4, 2] int32: per marker the corners start-left, start-right, end-right, end-left, in pixels (x, y)."""
    world = np.array([[[float(marker[end][axis]) for axis in "xyz"] for end in ("world_start", "world_end")] for marker in markers])
    points = world @ projection.T
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = np.moveaxis(points[..., :2] / points[..., 2:], -1, 0)
        half = projection[0, 0] * MARKER_WIDTH_M / world[..., 2] / 2.0
        left, right = x - half, x + half
    x4 = np.stack([left[:, 0], right[:, 0], right[:, 1], left[:, 1]], axis=1)
    y4 = np.stack([y[:, 0], y[:, 0], y[:, 1], y[:, 1]], axis=1)
    corners = np.round(np.stack([x4, y4], axis=2).astype(np.float32))  # single precision, as officially, for the ties
    if not np.abs(corners).max() < 2**31:
        raise ValueError("a marker lies in the plane of the camera")
    return corners.astype(np.int32)


def drawn(lanes: list[tuple[str, tuple[int, int, int], np.ndarray]], size: tuple[int, int]) -> np.ndarray:
    """[H, W] uint8 train ids."""
    canvas = np.zeros((*size, 3), np.uint8)
    for _, colour, corners in lanes:
        for strip in corners:
            if strip[0, 1] != strip[3, 1]:
                for _ in range(2):  # twice, as officially: edges blend twice
                    cv2.fillConvexPoly(canvas, strip, colour, cv2.LINE_AA, 0)
    label = np.zeros(size, np.uint8)
    for train_id, name in enumerate(LANES, 1):
        label[cv2.inRange(canvas, BGR[name], BGR[name]) > 0] = train_id
    return label
