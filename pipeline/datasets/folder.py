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
    read_label,
    read_label_png,
    read_rgb,
    reject_unknown,
    require_size,
    train_ids,
    two_readings,
)
from pipeline.datasets._lists import by_id, nfc, read_list, require_split, tell
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
KEYS = (
    *("classes", "ignore", "background", "mirror"),
    *("crop_top", "crop_bottom_rows", "crop_top_share"),
    *("palette", "picture_bits"),  # these, and the next: docs/datasets.md
    *("image_folder", "label_folder", "image_suffix", "label_suffix", "labels", "ignore_colours"),
)
PLACES = {"image_folder": "images", "label_folder": "labels", "image_suffix": "", "label_suffix": ""}
LEFTOVERS = {"thumbs.db", "desktop.ini"}  # files and folders that systems leave beside pictures
LEFTOVER_FOLDERS = {"@eadir", "__macosx"}
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
SPLITS = ("train", "val", "test")


class Dataset(DatasetBase):
    def __init__(self, *, root: Root):
        self.root = Path(root)
        card = read_classes(self.root / "classes.yaml")
        self.described = card.described
        self.classes, self.colours, self.background = card.names, card.colours, card.background
        self.mirror, self.crop_top = card.mirror, card.crop_top
        self.crop_bottom_rows, self.crop_top_share = card.crop_bottom_rows, card.crop_top_share
        self.palette, self.picture_bits = card.palette, card.picture_bits
        self._card, self._images, self._labels = card, self.root / card.image_folder, self.root / card.label_folder
        self.reading = f"ignore {sorted(card.ignore)} palette {card.palette} bits {card.picture_bits}"
        if card.values is not None:
            self.reading += f" values {card.values}"
        if card.labels == "colour":
            self.reading += f" colours {card.colours} {card.ignore_colours}"
        self._table = np.full(256, UNKNOWN, np.uint8)
        for train_id, values in enumerate(card.values or [(n,) for n in range(len(card.names))]):
            self._table[list(values)] = train_id
        self._table[list(card.ignore)] = IGNORE
        self._lists = {split: self.root / f"{split}.txt" for split in SPLITS if (self.root / f"{split}.txt").exists()}
        folders = tuple(split for split in SPLITS if (self._images / split).is_dir())
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
        if not self.described:
            return self._undescribed(labels[0], image)
        if self._card.labels == "colour":
            return self._of_colours(labels[0], image)
        values = self._values(read_label_png(labels[0], deep=True))
        require_size(labels[0], values.shape, image_size(image), image.name)
        own = "the values" if self._card.values is not None else f"0..{len(self.classes) - 1}"
        known = f"{own} of classes.yaml and its 'ignore'"
        return train_ids(values, self._table, labels[0], known)

    def files(self, image_id: str) -> list[Path]:
        if image_id not in self._samples:
            where = self._listed.get(image_id, self.root)
            below = f"{self._card.image_folder}/"
            raise DatasetError(f"{where}: there is no image {image_id!r} below {below}; add it, or remove the line")
        return self._samples[image_id]

    def _undescribed(self, path: Path, image: Path) -> np.ndarray:
        """[H, W] uint8, all ignored: that the file can be read, and has its image's size, is all that can be told."""
        found = read_label(path, deep=True)
        shape = (found.numbers if isinstance(found, LabelPng) else found).shape[:2]
        require_size(path, shape, image_size(image), image.name)
        return np.full(shape, IGNORE, np.uint8)

    def _of_colours(self, path: Path, image: Path) -> np.ndarray:
        """[H, W] uint8 train ids of a label in the colours of the classes, as RGB or with a palette."""
        found = read_label(path)
        if not isinstance(found, LabelPng):
            colours = found
        elif found.palette is None:
            colours = np.repeat(found.values()[..., None], 3, axis=2)
        elif found.used[-1] < len(found.palette):
            colours = found.palette[found.numbers]
        else:
            raise DatasetError(f"{path}: has pixels beyond the end of its palette; write it again")
        require_size(path, colours.shape[:2], image_size(image), image.name)
        label = np.full(colours.shape[:2], UNKNOWN, np.uint8)
        packed = colours.astype(np.int32) @ np.array([1, 256, 65536])
        for train_id, own in [*enumerate(self.colours), *((IGNORE, colour) for colour in self._card.ignore_colours)]:
            label[packed == np.array(own) @ np.array([1, 256, 65536])] = train_id
        reject_unknown(label, path, lambda y, x: f"colour {tuple(map(int, colours[y, x]))}", "the colours of classes.yaml")
        return label

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
        folder, labels, card = self._images, self._labels, self._card
        pictures = [path for path in visible_files(folder) if path.suffix.lower() in PICTURES and ends(path, card.image_suffix)]
        if labels == folder and card.label_suffix:  # beside the pictures, told apart by their suffixes
            pictures = [path for path in pictures if not ends(path, card.label_suffix)]
        if not pictures and card.image_suffix:
            raise DatasetError(f"{folder}: holds no picture whose name ends in {card.image_suffix!r}; correct 'image_suffix'")
        if not pictures:
            raise DatasetError(f"{folder}: holds no picture; put the images there, or correct 'root'")
        by_id((str(path), nfc(stem(path, folder, card.image_suffix))) for path in pictures)
        samples = {stem(path, folder, card.image_suffix): [path] for path in pictures}
        by_name = {nfc(image_id): image_id for image_id in samples}
        found = [path for path in visible_files(labels) if ends(path, card.label_suffix)]
        if labels == folder:
            found = [path for path in found if path.suffix.lower() == ".png" and path not in set(pictures)]
        if not found and card.label_suffix:
            tell(DatasetError(f"{labels}: holds no label whose name ends in {card.label_suffix!r}; correct 'label_suffix'"))
        odd = [path for path in found if path.suffix.lower() != ".png"]
        lone = [path for path in found if nfc(stem(path, labels, card.label_suffix)) not in by_name]
        for path in odd:
            tell(DatasetError(f"{path}: is one of {len(odd)} labels that are not .png; convert them from the source"))
        for path in lone:
            tell(DatasetError(f"{path}: is one of {len(lone)} labels without an image of its name; name both alike"))
        for path in found:
            if path not in {*odd, *lone}:
                samples[by_name[nfc(stem(path, labels, card.label_suffix))]].append(path)
        return samples


def visible_files(folder: Path) -> list[Path]:
    """Sorted, below all folders but those hidden; without what systems leave there."""

    def walk() -> Iterator[Path]:
        for parent, folders, names in os.walk(folder, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".") and name.lower() not in LEFTOVER_FOLDERS]
            yield from (Path(parent, name) for name in names if not name.startswith(".") and name.lower() not in LEFTOVERS)

    return sorted(walk())


def stem(path: Path, folder: Path, suffix: str = "") -> str:
    return path.relative_to(folder).with_suffix("").as_posix().removesuffix(suffix)


def ends(path: Path, suffix: str) -> bool:
    """Whether a name, without its ending, ends so and says more than that."""
    return path.stem.endswith(suffix) and path.stem != suffix


@dataclass(frozen=True)
class Card:
    """What classes.yaml says."""

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    ignore: tuple[int, ...]
    background: int | None
    mirror: tuple[int, ...] | None
    crop_top: int
    crop_bottom_rows: int | None
    crop_top_share: float | None
    palette: Literal["index", "value"] | None
    picture_bits: int | None
    values: tuple[tuple[int, ...], ...] | None  # of each class; None: its place
    labels: Literal["value", "colour"]
    ignore_colours: tuple[tuple[int, int, int], ...]
    image_folder: str
    label_folder: str
    image_suffix: str
    label_suffix: str
    described: bool = True


def read_classes(path: Path) -> Card:
    """Raises DatasetError with every fault of the file, and an example. Where faults are collected, a card that knows the folders
    alone."""
    try:
        return described(path)
    except DatasetError as error:
        if path.parent.is_dir():
            tell(error)
            return undescribed(path)
        raise


def undescribed(path: Path) -> Card:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        content = None
    said = content if isinstance(content, dict) else {}
    places = [said.get(key, default) for key, default in PLACES.items()]
    bits: Any = said.get("picture_bits")
    return Card(
        names=("any",),
        colours=((0, 0, 0),),
        ignore=(),
        background=None,
        mirror=None,
        crop_top=0,
        crop_bottom_rows=None,
        crop_top_share=None,
        palette=None,
        picture_bits=bits if is_byte(bits) and 8 <= bits <= 16 else None,
        values=None,
        labels="value",
        ignore_colours=(),
        **dict(zip(PLACES, PLACES.values() if faults_of_places(*places) else places)),
        described=False,
    )


def described(path: Path) -> Card:
    """The card of a file without faults."""
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
        crop_bottom_rows=content.get("crop_bottom_rows"),
        crop_top_share=content.get("crop_top_share"),
        palette=content.get("palette"),
        picture_bits=content.get("picture_bits"),
        values=tuple(map(values_of, content["classes"])) if "value" in content["classes"][0] else None,
        labels=content.get("labels", "value"),
        ignore_colours=tuple(map(tuple, content.get("ignore_colours", ()))),
        **{key: content.get(key, default) for key, default in PLACES.items()},
    )


def mirrored(names: tuple[str, ...], swaps: list[list[str]]) -> tuple[int, ...]:
    becomes = {a: b for pair in swaps for a, b in (pair, pair[::-1])}
    return tuple(names.index(becomes.get(name, name)) for name in names)


def faults_of(
    classes,
    ignore,
    background,
    mirror=None,
    crop_top=0,
    crop_bottom_rows=None,
    crop_top_share=None,
    palette=None,
    picture_bits=None,
    image_folder="images",
    label_folder="labels",
    image_suffix="",
    label_suffix="",
    labels="value",
    ignore_colours=(),
) -> list[str]:
    faults = []
    if not isinstance(classes, list) or not 1 <= len(classes) <= UNKNOWN:
        return [f"'classes' must be a list of 1 to {UNKNOWN} classes"]
    for number, entry in enumerate(classes):
        if not (isinstance(entry, dict) and set(entry) - {"value"} == {"name", "colour"} and isinstance(entry["name"], str)):
            faults.append(f"class {number} must read like {{name: left line, colour: [255, 0, 0]}}, not {entry!r}")
        elif not (isinstance(colour := entry["colour"], list) and len(colour) == 3 and all(map(is_byte, colour))):
            faults.append(f"colour of {entry['name']!r} must be three numbers 0..255, not {colour!r}")
    if faults:
        return faults
    names = [entry["name"] for entry in classes]
    faults += [f"class {name!r} comes twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    ignored = ignore if isinstance(ignore, list) else [ignore]
    if any("value" in entry for entry in classes):
        faults += faults_of_values(classes, ignored)
    else:
        odd = [value for value in ignored if not is_byte(value) or value < len(names)]
        faults += [f"'ignore' must hold values from {len(names)} to 255, not {value!r}" for value in odd]
    faults += faults_of_colours(classes, labels, ignore_colours)
    faults += faults_of_places(image_folder, label_folder, image_suffix, label_suffix)
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
    if crop_bottom_rows is not None and (type(crop_bottom_rows) is not int or crop_bottom_rows < 1):
        faults.append(f"'crop_bottom_rows' must be a number of rows to keep, not {crop_bottom_rows!r}")
    if crop_top_share is not None and (type(crop_top_share) not in (int, float) or not 0 <= crop_top_share < 1):
        faults.append(f"'crop_top_share' must be a part of the rows, 0 or more and less than 1, not {crop_top_share!r}")
    if (crop_top != 0) + (crop_bottom_rows is not None) + (crop_top_share is not None) > 1:
        faults.append("of 'crop_top', 'crop_bottom_rows' and 'crop_top_share' only one may be there")
    if palette not in (None, "index", "value"):
        faults.append(f"'palette' must be index or value, not {palette!r}")
    if picture_bits is not None and (type(picture_bits) is not int or not 8 <= picture_bits <= 16):
        faults.append(f"'picture_bits' must be a number from 8 to 16, not {picture_bits!r}")
    return faults


def values_of(entry: dict) -> tuple[int, ...]:
    """The label values of a class that says them."""
    return tuple(entry["value"]) if isinstance(entry["value"], list) else (entry["value"],)


def faults_of_values(classes: list[dict], ignore: list) -> list[str]:
    """Of classes that say their label values: all must, each value once."""
    if lone := [entry["name"] for entry in classes if "value" not in entry]:
        return [f"class {lone[0]!r} has no 'value', but others have; write it for all, or for none"]
    faults = [
        f"'value' of {entry['name']!r} must be a number 0..255 or a list of them, not {entry['value']!r}"
        for entry in classes
        if not values_of(entry) or not all(map(is_byte, values_of(entry)))
    ]
    faults += [f"'ignore' must hold numbers 0..255, not {value!r}" for value in ignore if not is_byte(value)]
    if faults:
        return faults
    used = [value for entry in classes for value in values_of(entry)] + ignore
    return [f"label value {value} is given twice" for value in sorted(set(used)) if used.count(value) > 1]


def faults_of_colours(classes: list[dict], labels: object, ignore_colours: object) -> list[str]:
    if labels not in ("value", "colour"):
        return [f"'labels' must be value or colour, not {labels!r}"]
    ignored: list[Any] = list(ignore_colours) if isinstance(ignore_colours, (list, tuple)) else [ignore_colours]
    faults = [
        f"'ignore_colours' must hold colours like [0, 0, 0], not {colour!r}"
        for colour in ignored
        if not (isinstance(colour, list) and len(colour) == 3 and all(map(is_byte, colour)))
    ]
    if faults or labels == "value":
        return faults + ["'ignore_colours' is for 'labels: colour'"] * bool(ignored and not faults)
    used = [tuple(entry["colour"]) for entry in classes] + [tuple(colour) for colour in ignored]
    twice = [colour for colour in dict.fromkeys(used) if used.count(colour) > 1]
    faults = [f"colour {list(colour)} is given twice, and labels are read by colour" for colour in twice]
    return faults + ["'value' is for labels of values, and 'labels' is colour"] * any("value" in entry for entry in classes)


def faults_of_places(image_folder: object, label_folder: object, image_suffix: object, label_suffix: object) -> list[str]:
    faults = [
        f"{key!r} must be a folder below classes.yaml, not {folder!r}"
        for key, folder in (("image_folder", image_folder), ("label_folder", label_folder))
        if not (isinstance(folder, str) and folder) or Path(folder).is_absolute() or ".." in Path(folder).parts
    ]
    for key, suffix in (("image_suffix", image_suffix), ("label_suffix", label_suffix)):
        if not isinstance(suffix, str) or "/" in suffix:
            faults.append(f"{key!r} must be what names end in before the dot, as _mask, not {suffix!r}")
    if not faults and image_folder == label_folder and image_suffix == label_suffix:
        faults.append("pictures and labels lie in one folder and need suffixes that tell them apart")
    return faults


def is_byte(value) -> bool:
    return type(value) is int and 0 <= value <= 255


def is_pair(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(name, str) for name in value)


def refusal(path: Path, faults: list[str]) -> DatasetError:
    return DatasetError(f"{path}: {', and '.join(faults)}; write it like this:\n{indent(EXAMPLE, '    ')}")
