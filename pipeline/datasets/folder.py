"""Your own data: pictures in images/, class values in labels/, and classes.yaml that says what the values mean.

    images/0001.jpg        any sub-folders; .jpg .jpeg .png .bmp .tif .tiff .webp
    labels/0001.png        the same path and stem: PNG, grey or palette, pixel value n = entry n of `classes`;
                           an image without one is unlabelled
    classes.yaml           see EXAMPLE below, which an error about this file prints too
    train.txt val.txt test.txt      optional: one image a line, as a path below images/ with or without its ending

A palette in colour is read by index. Whether a number of a palette of greys, or of a grey PNG of 1, 2 or 4 bits, is the value
itself or stands for the grey it is shown in, the file does not say (_images.py, LabelPng): where it matters the label is refused
until `palette: index | value` in classes.yaml says it. So are palettes in colour whose order has changed, which lossless
optimisers do: the same colour at another index than in the other labels, or at another than that of its class.

Without lists the folders images/train, images/val, images/test (and labels/train ...) are the splits; without those all
images are the split `train`. Ids are paths below images/ without the ending.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import indent
from typing import Any, Literal

import numpy as np
import yaml

from pipeline.datasets._images import (
    UNKNOWN,
    LabelPng,
    has_palette,
    image_size,
    read_label_png,
    read_rgb,
    require_size,
    train_ids,
    two_readings,
)
from pipeline.datasets._lists import by_id, nfc, read_list, require_split
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
KEYS = ("classes", "ignore", "background", "mirror", "crop_top", "palette", "picture_bits")  # the last two: docs/datasets.md
LEFTOVERS = {"thumbs.db", "desktop.ini"}  # files and folders that systems leave beside pictures
LEFTOVER_FOLDERS = {"@eadir", "__macosx"}
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
SPLITS = ("train", "val", "test")


class Dataset(DatasetBase):
    def __init__(self, *, root: Root):
        self.root = Path(root)
        card = read_classes(self.root / "classes.yaml")
        self.classes, self.colours, self.background = card.names, card.colours, card.background
        self.mirror, self.crop_top = card.mirror, card.crop_top
        self.palette, self.picture_bits = card.palette, card.picture_bits
        self.reading = f"ignore {sorted(card.ignore)} palette {card.palette} bits {card.picture_bits}"
        self._table = np.full(256, UNKNOWN, np.uint8)
        self._table[: len(card.names)] = range(len(card.names))
        self._table[list(card.ignore)] = IGNORE
        self._lists = {split: self.root / f"{split}.txt" for split in SPLITS if (self.root / f"{split}.txt").exists()}
        folders = tuple(split for split in SPLITS if (self.root / "images" / split).is_dir())
        self.splits = tuple(self._lists) or folders or ("train",)
        self._by_folder = bool(folders) and not self._lists
        self._listed: dict[str, str] = {}  # id -> list and line, for messages

    def ids(self, split: str) -> list[str]:
        require_split(split, self.splits, self.root)
        if self._lists:
            listed = by_id((where, self._named(text)) for where, text in read_list(self._lists[split]))
            self._listed.update(listed)
            return list(listed)
        return [image_id for image_id in self._samples if not self._by_folder or image_id.startswith(f"{split}/")]

    def image(self, image_id: str) -> np.ndarray:
        return read_rgb(self.files(image_id)[0], self.picture_bits)

    def label(self, image_id: str) -> np.ndarray | None:
        image, *labels = self.files(image_id)
        if not labels:
            return None
        values = self._values(read_label_png(labels[0]))
        require_size(labels[0], values.shape, image_size(image), image.name)
        known = f"0..{len(self.classes) - 1} of classes.yaml and its 'ignore'"
        return train_ids(values, self._table, labels[0], known)

    def files(self, image_id: str) -> list[Path]:
        if image_id not in self._samples:
            where = self._listed.get(image_id, self.root)
            raise DatasetError(f"{where}: there is no image {image_id!r} below images/; add it, or remove the line")
        return self._samples[image_id]

    def _values(self, png: LabelPng) -> np.ndarray:
        """[H, W] uint8, or DatasetError where the numbers may mean two things."""
        if self.palette == "index" or png.is_plain():
            return png.numbers
        if self.palette == "value":
            return png.values()
        if png.greys is None:
            self._require_order(png)
            return png.numbers
        if png.palette is not None or png.fits(self._table)[1]:
            raise DatasetError(
                f"{png.path}: {two_readings(png)}; write 'palette: index' or 'palette: value' into "
                f"{self.root / 'classes.yaml'}, whichever holds for all labels"
            )
        return png.numbers

    def _require_order(self, png: LabelPng) -> None:
        """A palette in colour is read by index only where its colours say nothing against it."""
        first: Any = self._first_palette  # with a palette, as any label that comes here
        assert png.palette is not None
        for number in png.used[png.used < len(png.palette)]:
            colour = tuple(map(int, png.palette[number]))
            of_classes = [k for k, own in enumerate(self.colours) if own == colour]
            if number < len(self.classes) and of_classes and number not in of_classes:
                other = f"classes.yaml gives that colour to class {of_classes[0]} ({self.classes[of_classes[0]]})"
            elif number < len(first.palette) and (first.palette[number] != colour).any():
                other = f"{tuple(map(int, first.palette[number]))} in {first.path}"
            else:
                continue
            raise DatasetError(
                f"{png.path}: shows index {number} in the colour {colour}, but {other}, so a tool may have changed "
                f"the order of its palette; write it again from the source, or 'palette: index' into "
                f"{self.root / 'classes.yaml'} if the index is the value all the same"
            )

    @cached_property
    def _first_palette(self) -> LabelPng:
        """The first label with a palette in colour, whoever asks and in whatever order."""
        for path in (path for files in self._samples.values() for path in files[1:]):
            if has_palette(path):
                with contextlib.suppress(DatasetError):  # reading it will say so
                    if (png := read_label_png(path)).greys is None:
                        return png
        raise AssertionError("there is one, or nobody would ask")

    def _named(self, text: str) -> str:
        without = text.rpartition(".")[0]
        return self._by_name.get(nfc(text)) or self._by_name.get(nfc(without)) or without or text

    @cached_property
    def _by_name(self) -> dict[str, str]:
        """The id of each name, which a list may spell in another Unicode form than the disk."""
        return {nfc(image_id): image_id for image_id in self._samples}

    @cached_property
    def _samples(self) -> dict[str, list[Path]]:
        """id -> image, label if there is one. A label without an image is refused: that image would be unlabelled."""
        folder, labels = self.root / "images", self.root / "labels"
        pictures = [path for path in visible_files(folder) if path.suffix.lower() in PICTURES]
        if not pictures:
            raise DatasetError(f"{folder}: holds no picture; put the images there, or correct 'root'")
        by_id((str(path), nfc(stem(path, folder))) for path in pictures)
        samples = {stem(path, folder): [path] for path in pictures}
        by_name = {nfc(image_id): image_id for image_id in samples}
        found = visible_files(labels)
        if odd := [path for path in found if path.suffix.lower() != ".png"]:
            raise DatasetError(f"{odd[0]}: is one of {len(odd)} labels that are not .png; convert them from the source")
        if lone := [path for path in found if nfc(stem(path, labels)) not in by_name]:
            raise DatasetError(f"{lone[0]}: is one of {len(lone)} labels without an image of its name; name both alike")
        for path in found:
            samples[by_name[nfc(stem(path, labels))]].append(path)
        return samples


def visible_files(folder: Path) -> list[Path]:
    """Sorted, below all folders but those hidden; without what systems leave there."""

    def walk() -> Iterator[Path]:
        for parent, folders, names in os.walk(folder, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".") and name.lower() not in LEFTOVER_FOLDERS]
            yield from (Path(parent, name) for name in names if not name.startswith(".") and name.lower() not in LEFTOVERS)

    return sorted(walk())


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
    palette: Literal["index", "value"] | None
    picture_bits: int | None


def read_classes(path: Path) -> Card:
    """Raises DatasetError with every fault of the file, and an example."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise DatasetError(
                f"{path.parent}: no such folder, seen from {Path.cwd()}; put or link the dataset there, or correct 'root'"
            ) from None
        raise refusal(path, ["no such file"]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise refusal(path, [f"not YAML ({' '.join(str(error).split())})"]) from None
    if not isinstance(content, dict):
        raise refusal(path, ["must hold keys and values"])
    faults = [f"{key!r} is no key of it{did_you_mean(str(key), KEYS)}" for key in content if key not in KEYS]
    faults += [f"{key!r} is missing" for key in KEYS[:3] if key not in content]
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
        palette=content.get("palette"),
        picture_bits=content.get("picture_bits"),
    )


def mirrored(names: tuple[str, ...], swaps: list[list[str]]) -> tuple[int, ...]:
    becomes = {a: b for pair in swaps for a, b in (pair, pair[::-1])}
    return tuple(names.index(becomes.get(name, name)) for name in names)


def faults_of(classes, ignore, background, mirror=None, crop_top=0, palette=None, picture_bits=None) -> list[str]:
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
    if palette not in (None, "index", "value"):
        faults.append(f"'palette' must be index or value, not {palette!r}")
    if picture_bits is not None and (type(picture_bits) is not int or not 8 <= picture_bits <= 16):
        faults.append(f"'picture_bits' must be a number from 8 to 16, not {picture_bits!r}")
    return faults


def is_byte(value) -> bool:
    return type(value) is int and 0 <= value <= 255


def is_pair(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(name, str) for name in value)


def refusal(path: Path, faults: list[str]) -> DatasetError:
    return DatasetError(f"{path}: {', and '.join(faults)}; write it like this:\n{indent(EXAMPLE, '    ')}")
