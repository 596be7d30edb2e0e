"""ApolloScape lane segmentation: 36 road markings on 3384 x 2710 frames, labels as colours or as ids.

    ColorImage_road02/ColorImage/Record001/Camera 5/171206_025742296_Camera_5.jpg
    Labels_road02/Label/Record001/Camera 5/171206_025742296_Camera_5_bin.png
    ColorImage_road05/171206_064733846_Camera_6.jpg                              test, without labels

The folder `Camera 5` may have been renamed `Camera_5`; ids have the underscore either way, so a cache outlives the
renaming: `road02/Record001/Camera_5/<stem>`, `road05/<stem>`. A label is read by its PNG type: RGB in the official
colours (training archives), or grey or palette whose *value* is the official id (sample archive, evaluation data; their
palette is not the official one). The ids need 201 entries or more, so a shorter palette was packed by a lossless optimiser: one
of greys is read by value, one in colour by the official colours. Labels coloured before 2018-08-28 gave a_n_lu the colour of
s_y_c and read as s_y_c.

Keys, besides `root`. The paper's 10,000 validation frames were never published, so one of these two tells them:
  val      records that are validation (or a whole road, or one camera of a record); the rest of `roads` is training.
           Records, not frames: frames are 0.1 s apart, so a random one would have its twin in training. The 1,000
           frames that were published lie in road04/Record015/Camera_6 and road04/Record017.
  lists    {train: FILE, val: FILE, test: FILE}, relative to `root`, in IntRA-KD's syntax: `image label 1 1 1 1` a line.
           Of a path only what follows `ColorImage_` counts, so lists from other machines serve. No test: the folder.
  ignored  class: noise and ignored are class 36 and trained, as in IntRA-KD's code; 255: they are ignored. The affinity
           graph has 36 nodes either way.
  roads    the labelled folders, for those who have not all three.

Sources: ApolloScapeAuto/dataset-api, lane_segmentation (classes, layout, submission); Hou et al., "Inter-Region
Affinity Distillation for Road Marking Segmentation", CVPR 2020, and its code (lists, the 1700-row cut, class 36).
"""

import functools
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from pipeline.datasets._images import (
    UNKNOWN,
    image_size,
    official_values,
    read_label,
    read_rgb,
    reject_unknown,
    require_size,
    train_ids,
)
from pipeline.datasets._lists import by_id, found_files, parsed, read_list, require_path, require_split, tell
from pipeline.datasets.base import IGNORE, CropBottomRows, CropTop, CropTopShare, DatasetBase, FrameSize, Root, one_crop
from pipeline.errors import ConfigError, DatasetError

# The row is the train id: official id, name, category, RGB, whether the official evaluator counts it.
MARKINGS = (
    (0, "void", "void", (0, 0, 0), True),
    (200, "s_w_d", "dividing", (70, 130, 180), True),
    (204, "s_y_d", "dividing", (220, 20, 60), True),
    (213, "ds_w_dn", "dividing", (128, 0, 128), False),
    (209, "ds_y_dn", "dividing", (255, 0, 0), True),
    (206, "sb_w_do", "dividing", (0, 0, 60), False),
    (207, "sb_y_do", "dividing", (0, 60, 100), False),
    (201, "b_w_g", "guiding", (0, 0, 142), True),
    (203, "b_y_g", "guiding", (119, 11, 32), True),
    (211, "db_w_g", "guiding", (244, 35, 232), False),
    (208, "db_y_g", "guiding", (0, 0, 160), False),
    (216, "db_w_s", "stopping", (153, 153, 153), False),
    (217, "s_w_s", "stopping", (220, 220, 0), True),
    (215, "ds_w_s", "stopping", (250, 170, 30), False),
    (218, "s_w_c", "chevron", (102, 102, 156), False),
    (219, "s_y_c", "chevron", (128, 0, 0), False),
    (210, "s_w_p", "parking", (128, 64, 128), True),
    (232, "s_n_p", "parking", (238, 232, 170), False),
    (214, "c_wy_z", "zebra", (190, 153, 153), True),
    (202, "a_w_u", "thru/turn", (0, 0, 230), False),
    (220, "a_w_t", "thru/turn", (128, 128, 0), True),
    (221, "a_w_tl", "thru/turn", (128, 78, 160), True),
    (222, "a_w_tr", "thru/turn", (150, 100, 100), True),
    (231, "a_w_tlr", "thru/turn", (255, 165, 0), False),
    (224, "a_w_l", "thru/turn", (180, 165, 180), True),
    (225, "a_w_r", "thru/turn", (107, 142, 35), True),
    (226, "a_w_lr", "thru/turn", (201, 255, 229), True),
    (230, "a_n_lu", "thru/turn", (0, 191, 255), False),
    (228, "a_w_tu", "thru/turn", (51, 255, 51), False),
    (229, "a_w_m", "thru/turn", (250, 128, 114), False),
    (233, "a_y_t", "thru/turn", (127, 255, 0), False),
    (205, "b_n_sr", "reduction", (255, 128, 0), True),
    (212, "d_wy_za", "attention", (0, 255, 255), False),
    (227, "r_wy_np", "no parking", (178, 132, 190), True),
    (223, "vom_wy_n", "others", (128, 128, 64), False),
    (250, "om_n_n", "others", (102, 0, 204), True),
)
NOISE, IGNORED = (249, (0, 153, 153)), (255, (255, 255, 255))  # official id, RGB; left out of the evaluation
NAMES = tuple(name for _, name, *_ in MARKINGS)
FEWEST_ENTRIES = 201  # of a palette whose index is the id

FRAME = re.compile(r"ColorImage_(\w+)/ColorImage/([^/]+)/(Camera[ _]\d+)/([^/]+?)\.jpg")
FLAT_FRAME = re.compile(r"ColorImage_(\w+)/([^/\s]+)\.jpg")
LABEL = re.compile(r"Labels_(\w+)/Label/([^/]+)/(Camera[ _]\d+)/([^/]+?)_bin\.png")


EDITIONS = ((2710, 3384), (1710, 3384))  # height, width; of the second the upper 1000 rows are cut off already


class Dataset(DatasetBase):
    background = 0
    regions = tuple(range(len(MARKINGS)))
    official_ids = tuple(row[0] for row in MARKINGS)  # by train id
    categories = tuple(row[2] for row in MARKINGS)
    evaluated = tuple(t for t, row in enumerate(MARKINGS) if row[4])  # the 18 train ids in the official mean
    metric = "apolloscape"

    def __init__(
        self,
        *,
        root: Root,
        val: Annotated[list[str] | None, Field(description="Records that are kept for validation, as [road04/Record015].")] = None,
        lists: Annotated[dict[str, str] | None, Field(description="Instead of `val`: the list file of each split.")] = None,
        ignored: Annotated[
            Literal["class", 255], Field(description="What the benchmark does not count is one more class, or is ignored.")
        ] = "class",
        roads: Annotated[tuple[str, ...], Field(min_length=1, description="Roads that training and validation take.")] = (
            "road02",
            "road03",
            "road04",
        ),
        crop_top: CropTop = 1700,
        crop_bottom_rows: CropBottomRows = None,
        crop_top_share: CropTopShare = None,
        size: FrameSize = None,
    ):
        one_crop(crop_bottom_rows, crop_top_share)
        if (val is None) == (lists is None):
            raise ConfigError("dataset: apolloscape needs either 'val' (e.g. [road04/Record015]) or 'lists' (of files)")
        if ignored not in ("class", IGNORE):
            raise ConfigError(f"dataset.ignored: expected 'class' or 255, got {ignored!r}")
        self.root, self.roads, self.crop_top = Path(root), tuple(roads), crop_top
        self.crop_bottom_rows, self.crop_top_share = crop_bottom_rows, crop_top_share
        self.frame_sizes = EDITIONS if size is None else ((size[0], size[1]),)
        self.val, self.lists = val, lists or {}
        extra = int(ignored == "class")
        self.ignored_as = len(MARKINGS) if extra else IGNORE
        self.classes = NAMES + ("noise+ignored",) * extra
        self.colours = tuple(row[3] for row in MARKINGS) + (NOISE[1],) * extra
        self.mirror = mirrored(NAMES) + (len(MARKINGS),) * extra
        self.splits = self.splits_of(lists=lists)
        self.official_counts = {"test": 885} if lists else {"train+val": 113_653, "test": 885}
        self._listed: dict[str, str] = {}  # id -> list and line, for messages

    @classmethod
    def splits_of(cls, **args: Any) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*args["lists"], "test"))) if args["lists"] else ("train", "val", "test")

    def ids(self, split: str) -> list[str]:
        require_split(split, self.splits, self.root)
        if split in self.lists:
            found = by_id(frame for _, _, frame in parsed(read_list(self.root / self.lists[split]), listed_frame))
            self._listed.update(found)
            return list(found)
        if split == "test":
            return [f"road05/{path.stem}" for path in found_files(self.root / "ColorImage_road05", "*.jpg")]
        assert self.val is not None  # there are no lists
        held_out = [entry.replace("Camera ", "Camera_").strip("/") + "/" for entry in self.val]
        pool = [frame for road in self.roads for frame in self._frames(road)]
        for entry in held_out:
            if not any(frame.startswith(entry) for frame in pool):
                tell(DatasetError(f"{self.root}: no frame is in {entry[:-1]!r}, which dataset.val names; correct dataset.val"))
        return [frame for frame in pool if frame.startswith(tuple(held_out)) == (split == "val")]

    def image(self, image_id: str) -> np.ndarray:
        return read_rgb(self._existing(image_id, 0))

    def label(self, image_id: str) -> np.ndarray | None:
        if len(self.files(image_id)) == 1:
            return None
        image_path, path = self._existing(image_id, 0), self._existing(image_id, 1)
        label = self._decoded(path)
        require_size(path, label.shape, image_size(image_path), image_path.name)
        return label

    def files(self, image_id: str) -> list[Path]:
        road, *place, stem = image_id.split("/")
        if not place:
            return [self.root / f"ColorImage_{road}" / f"{stem}.jpg"]
        record, camera = place
        return [
            _spelt(self.root / f"ColorImage_{road}" / "ColorImage" / record, camera, f"{stem}.jpg"),
            _spelt(self.root / f"Labels_{road}" / "Label" / record, camera, f"{stem}_bin.png"),
        ]

    def prediction_ids(self, prediction: np.ndarray) -> np.ndarray:
        """uint8 official ids for a submission, from train ids; class 36 is written as noise, 249, as IntRA-KD does."""
        return np.array([*self.official_ids, NOISE[0]], np.uint8)[prediction]

    def prediction_path(self, image_id: str) -> Path:
        """Where the server looks, below the root of the zip: test/road05/<stem>.png."""
        return Path("test", image_id.split("/")[0], image_id.split("/")[-1] + ".png")

    def _frames(self, road: str) -> list[str]:
        paths = found_files(self.root / f"ColorImage_{road}" / "ColorImage", "*/Camera[ _]*/*.jpg")
        return sorted(by_id((str(path), frame_id(road, path.parts[-3], path.parts[-2], path.stem)) for path in paths))

    def _existing(self, image_id: str, which: int) -> Path:
        path = self.files(image_id)[which]
        if image_id in self._listed and not path.exists():
            what = ("image", "label")[which]
            raise DatasetError(f"{self._listed[image_id]}: no such {what} {path}; fetch it, or remove the line")
        return path

    def _decoded(self, path: Path) -> np.ndarray:
        found = read_label(path)
        if isinstance(found, np.ndarray):
            packed = packed_colours(found)
        elif found.greys is None and found.palette is not None and len(found.palette) < FEWEST_ENTRIES:
            missing = [(1, 1, 1)] * (256 - len(found.palette))  # no official colour
            packed = packed_colours(np.array([*found.palette, *missing], np.uint8))[found.numbers]
        else:
            known = "the official ids 0, 200..233, 249, 250, 255"
            ids = table_of_ids(self.ignored_as)
            return train_ids(official_values(found, ids), ids, path, known)
        label = table_of_colours(self.ignored_as)[packed]
        reject_unknown(label, path, lambda y, x: f"colour {unpacked(packed[y, x])}", "the 38 official colours")
        return label


@functools.cache
def table_of_ids(ignored_as: int) -> np.ndarray:
    table = np.full(256, UNKNOWN, np.uint8)
    table[[row[0] for row in MARKINGS]] = range(len(MARKINGS))
    table[[NOISE[0], IGNORED[0]]] = ignored_as
    return table


@functools.cache
def table_of_colours(ignored_as: int) -> np.ndarray:
    """Train ids by R + 256 G + 65536 B: 16 MB, but exact; a short hash takes some unknown colours for known ones."""
    table = np.full(1 << 24, UNKNOWN, np.uint8)
    for train_id, (_, _, _, (r, g, b), _) in enumerate(MARKINGS):
        table[r | g << 8 | b << 16] = train_id
    for _, (r, g, b) in (NOISE, IGNORED):
        table[r | g << 8 | b << 16] = ignored_as
    return table


def packed_colours(colours: np.ndarray) -> np.ndarray:
    """R + 256 G + 65536 B: [...] of [..., 3] uint8."""
    padded = np.zeros((*colours.shape[:-1], 4), np.uint8)
    padded[..., :3] = colours
    return padded.view("<u4")[..., 0]


def unpacked(colour: np.uint32) -> tuple[int, ...]:
    return tuple(int(colour) >> shift & 255 for shift in (0, 8, 16))


def mirrored(names: tuple[str, ...]) -> tuple[int, ...]:
    """Train ids in a mirrored image: an arrow's last word holds its directions, where l and r swap (tl - tr, l - r).

    a_n_lu (left or back) stays itself, since its mirror image has no class: to ignore it would be no permutation. The
    marking is not evaluated, and its mirror image does not occur where one drives on the right.
    """
    swap = str.maketrans("lr", "rl")
    directions = {(name[:4], frozenset(name[4:])): t for t, name in enumerate(names) if name.startswith("a_")}
    return tuple(
        directions[name[:4], frozenset(name[4:].translate(swap))] if name.startswith("a_") and name != "a_n_lu" else t
        for t, name in enumerate(names)
    )


def frame_id(road: str, record: str, camera: str, stem: str) -> str:
    return f"{road}/{record}/{camera.replace(' ', '_')}/{stem}"


def listed_frame(where: str, text: str) -> tuple[str, str]:
    """(where, image id) of a line. The label must be the image's own; beside the flat test frames it is a dummy."""
    if image := FRAME.search(text):
        label = LABEL.search(text)
        if label and frame_id(*label.groups()) != frame_id(*image.groups()):
            raise DatasetError(f"{where}: label {label[0]} belongs to another image than {image[0]}; pair them up")
        return where, require_path(where, frame_id(*image.groups()))
    if flat := FLAT_FRAME.search(text):
        return where, f"{flat[1]}/{flat[2]}"
    wanted = "ColorImage_<road>/ColorImage/<record>/<camera>/<stem>.jpg"
    raise DatasetError(f"{where}: {text!r} holds no path {wanted}; write one")


def _spelt(folder: Path, camera: str, name: str) -> Path:
    original = folder / camera.replace("_", " ") / name
    renamed = folder / camera / name
    return renamed if renamed.exists() else original
