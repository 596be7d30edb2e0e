"""Your own data: pictures in images/, class values in labels/, and classes.yaml that says what the values mean.

    images/0001.jpg        any sub-folders; .jpg .jpeg .png .bmp .tif .tiff .webp
    labels/0001.png        the same path and stem: 8-bit grey or palette, pixel value n = entry n of `classes`;
                           an image without one is unlabelled
    classes.yaml           see EXAMPLE below, which an error about this file prints too
    train.txt val.txt test.txt      optional: one image a line, as a path below images/ with or without its ending

Without lists the folders images/train, images/val, images/test (and labels/train ...) are the splits; without those all
images are the split `train`. Ids are paths below images/ without the ending.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import indent

import numpy as np
import yaml

from pipeline.datasets._images import UNKNOWN, image_size, read_index_png, read_rgb, require_size, train_ids
from pipeline.datasets._lists import by_id, read_list, require_split
from pipeline.datasets.base import IGNORE, DatasetBase, Root
from pipeline.errors import DatasetError
from pipeline.lookup import did_you_mean

EXAMPLE = """\
classes:                            # a label pixel of value n is the n-th of these, counted from 0
  - {name: background, colour: [0, 0, 0]}
  - {name: left line, colour: [255, 0, 0]}
  - {name: right line, colour: [0, 0, 255]}
ignore: [255]                       # label values that do not count; [] if there is none
background: background              # the class to be weighted down; null if there is none
mirror: [[left line, right line]]   # classes that swap in a mirrored image; [] if none do; without it no mirroring
crop_top: 0                         # rows to cut off at the top; may be left out
"""
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
SPLITS = ("train", "val", "test")


class Dataset(DatasetBase):
    def __init__(self, *, root: Root):
        self.root = Path(root)
        card = read_classes(self.root / "classes.yaml")
        self.classes, self.colours, self.background = card.names, card.colours, card.background
        self.mirror, self.crop_top = card.mirror, card.crop_top
        self._table = np.full(256, UNKNOWN, np.uint8)
        self._table[:len(card.names)] = range(len(card.names))
        self._table[list(card.ignore)] = IGNORE
        self._lists = {split: self.root / f"{split}.txt" for split in SPLITS if (self.root / f"{split}.txt").exists()}
        folders = tuple(split for split in SPLITS if (self.root / "images" / split).is_dir())
        self.splits = tuple(self._lists) or folders or ("train",)
        self._by_folder = bool(folders) and not self._lists
        self._listed: dict[str, str] = {}                   # id -> list and line, for messages

    def ids(self, split: str) -> list[str]:
        require_split(split, self.splits, self.root)
        if self._lists:
            listed = by_id((where, self._named(text)) for where, text in read_list(self._lists[split]))
            self._listed.update(listed)
            return list(listed)
        return [image_id for image_id in self._samples if not self._by_folder or image_id.startswith(f"{split}/")]

    def image(self, image_id: str) -> np.ndarray:
        return read_rgb(self.files(image_id)[0])

    def label(self, image_id: str) -> np.ndarray | None:
        image, *labels = self.files(image_id)
        if not labels:
            return None
        values = read_index_png(labels[0])
        require_size(labels[0], values.shape, image_size(image), image.name)
        known = f"0..{len(self.classes) - 1} of classes.yaml and its 'ignore'"
        return train_ids(values, self._table, labels[0], known)

    def files(self, image_id: str) -> list[Path]:
        if image_id not in self._samples:
            where = self._listed.get(image_id, self.root)
            raise DatasetError(f"{where}: there is no image {image_id!r} below images/; add it, or remove the line")
        return self._samples[image_id]

    def _named(self, text: str) -> str:
        return text if text in self._samples else text.rpartition(".")[0] or text

    @cached_property
    def _samples(self) -> dict[str, list[Path]]:
        """id -> image, label if there is one. A label without an image is refused: that image would be unlabelled."""
        folder, labels = self.root / "images", self.root / "labels"
        pictures = [path for path in visible_files(folder) if path.suffix.lower() in PICTURES]
        if not pictures:
            raise DatasetError(f"{folder}: holds no picture; put the images there, or correct 'root'")
        by_id((str(path), stem(path, folder)) for path in pictures)
        samples = {stem(path, folder): [path] for path in pictures}
        found = visible_files(labels)
        if odd := [path for path in found if path.suffix.lower() != ".png"]:
            raise DatasetError(f"{odd[0]}: is one of {len(odd)} labels that are not .png; convert them from the source")
        if lone := [path for path in found if stem(path, labels) not in samples]:
            raise DatasetError(f"{lone[0]}: is one of {len(lone)} labels without an image of its name; name both alike")
        for path in found:
            samples[stem(path, labels)].append(path)
        return samples


def visible_files(folder: Path) -> list[Path]:
    walk = os.walk(folder, followlinks=True)
    return sorted(Path(parent, name) for parent, _, names in walk for name in names if not name.startswith("."))


def stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


@dataclass(frozen=True)
class Card:
    """What classes.yaml says."""

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    ignore: tuple[int, ...]
    background: int | None
    mirror: tuple[int, ...] | None
    crop_top: int


def read_classes(path: Path) -> Card:
    """Raises DatasetError with every fault of the file, and an example."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise DatasetError(f"{path.parent}: no such folder, seen from {Path.cwd()}; put or link the dataset there, or "
                               f"correct 'root'") from None
        raise refusal(path, ["no such file"]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise refusal(path, [f"not YAML ({' '.join(str(error).split())})"]) from None
    if not isinstance(content, dict):
        raise refusal(path, ["must hold keys and values"])
    keys = ("classes", "ignore", "background", "mirror", "crop_top")
    faults = [f"{key!r} is no key of it{did_you_mean(str(key), keys)}" for key in content if key not in keys]
    faults += [f"{key!r} is missing" for key in keys[:3] if key not in content]
    if not faults:
        faults = faults_of(**content)
    if faults:
        raise refusal(path, faults)
    names = tuple(entry["name"] for entry in content["classes"])
    ignore, background, swaps = content["ignore"], content["background"], content.get("mirror")
    return Card(
        names=names,
        colours=tuple(tuple(entry["colour"]) for entry in content["classes"]),
        ignore=tuple(ignore) if isinstance(ignore, list) else (ignore,),
        background=None if background is None else names.index(background),
        mirror=None if swaps is None else mirrored(names, swaps),
        crop_top=content.get("crop_top", 0),
    )


def mirrored(names: tuple[str, ...], swaps: list[list[str]]) -> tuple[int, ...]:
    becomes = {a: b for pair in swaps for a, b in (pair, pair[::-1])}
    return tuple(names.index(becomes.get(name, name)) for name in names)


def faults_of(classes, ignore, background, mirror=None, crop_top=0) -> list[str]:
    faults = []
    if not isinstance(classes, list) or not 1 <= len(classes) <= UNKNOWN:
        return [f"'classes' must be a list of 1 to {UNKNOWN} classes"]
    for number, entry in enumerate(classes):
        if not (isinstance(entry, dict) and set(entry) == {"name", "colour"} and isinstance(entry["name"], str)):
            faults.append(f"class {number} must read like {{name: left line, colour: [255, 0, 0]}}, not {entry!r}")
        elif not (isinstance(colour := entry["colour"], list) and len(colour) == 3 and all(map(is_byte, colour))):
            faults.append(f"colour of {entry['name']!r} must be three numbers 0..255, not {colour!r}")
    if faults:
        return faults
    names = [entry["name"] for entry in classes]
    faults += [f"class {name!r} comes twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    for value in ignore if isinstance(ignore, list) else [ignore]:
        if not is_byte(value) or value < len(names):
            faults.append(f"'ignore' must hold values from {len(names)} to 255, not {value!r}")
    if background is not None and background not in names:
        faults.append(f"'background' must be a class or null, not {background!r}{did_you_mean(str(background), names)}")
    pairs = [] if mirror is None else mirror
    if not (isinstance(pairs, list) and all(map(is_pair, pairs))):
        faults.append(f"'mirror' must be a list of pairs like [[left line, right line]], not {mirror!r}")
    else:
        swapped = [name for pair in pairs for name in pair]
        faults += [f"'mirror' names {name!r}, which is no class" for name in swapped if name not in names]
        faults += [f"'mirror' names {name!r} twice" for name in dict.fromkeys(swapped) if swapped.count(name) > 1]
    if type(crop_top) is not int or crop_top < 0:
        faults.append(f"'crop_top' must be a number of rows, not {crop_top!r}")
    return faults


def is_byte(value) -> bool:
    return type(value) is int and 0 <= value <= 255


def is_pair(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(name, str) for name in value)


def refusal(path: Path, faults: list[str]) -> DatasetError:
    return DatasetError(f"{path}: {', and '.join(faults)}; write it like this:\n{indent(EXAMPLE, '    ')}")
