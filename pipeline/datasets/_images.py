"""Reading the pictures of a dataset: by content, whole or not at all; every complaint names the file.

A file is what its bytes say, whatever its name ends in. One rule for every reader, for `predict` and for `score`:

- JPEG: libjpeg-turbo decodes it (simplejpeg), and a warning of the decoder is an error. Pillow and OpenCV return a picture
  that is cut off, or has a hole, half grey. A JPEG has no checksum: damage that still decodes to the right number of blocks is
  not seen (docs/datasets.md says how often).
- PNG: Pillow decodes it once `_png.py` has found it whole. OpenCV would expand a palette to colours, which loses the ids.
- BMP, TIFF, WebP: Pillow decodes them. Other formats are refused.
- Bytes after the end of a JPEG or PNG are left alone: cameras append films and thumbnails there.
- An EXIF orientation is honoured, since tools for labelling show the picture turned. In a label it is refused.
- Pictures of 16 bits a channel: see `deep_rgb`. Class values: see `LabelPng`.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from pipeline.datasets import _png
from pipeline.errors import DatasetError

READING = 2  # bump when the same file would give other pixels, or be refused where it was read
UNKNOWN = 254  # in a table of train ids: a value that is none of the dataset's, so 254 classes at most

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
ORIENTATION, BITS_PER_SAMPLE = 0x0112, 0x0102  # EXIF and TIFF tags
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever goes wrong with the file inside the `with` becomes a DatasetError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file; fetch it, or leave the image out") from None
    except UnidentifiedImageError:
        raise DatasetError(
            f"{path}: not a picture: it cannot be read as JPEG, PNG, BMP, TIFF or WebP; fetch it again, or convert it"
        ) from None
    except _DAMAGE as error:
        raise DatasetError(f"{path}: cannot be read ({error}); fetch it again") from None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Image.Image, bytes, _png.Header | None]]:
    """The Pillow image, not decoded yet, the file's bytes, and the header of a PNG, which is whole then."""
    with _named(path):
        data = path.read_bytes()
        header = _png.checked(data) if data.startswith(_png.SIGNATURE) else None
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image, data, header


def read_rgb(path: Path, bits: int | None = None) -> np.ndarray:
    """[H, W, 3] uint8 RGB, turned as its EXIF orientation says. Grey and palette pictures become RGB, an alpha channel is
    dropped. `bits`: how many of the 16 bits of a PNG hold the picture, if they can't be told (`deep_rgb`)."""
    with _opened(path) as (image, data, header):
        if header is not None:
            pixels = deep_rgb(path, image.mode, data, header, bits) if header.depth == 16 else png_rgb(image, header)
        elif image.format in ("JPEG", "MPO"):  # MPO: further JPEGs follow the first
            pixels = jpeg_rgb(image, data)
        else:
            pixels = other_rgb(path, image)
        return turned(pixels, orientation(image))


def jpeg_rgb(image: Image.Image, data: bytes) -> np.ndarray:
    space = "CMYK" if image.mode == "CMYK" else "RGB"
    pixels = simplejpeg.decode_jpeg(data, space, fastdct=False, fastupsample=False, strict=True)
    return pixels if space == "RGB" else np.array(image.convert("RGB"))


def png_rgb(image: Image.Image, header: _png.Header) -> np.ndarray:
    if header.palette is not None and np.asarray(image).max() >= len(header.palette):
        raise ValueError("it has pixels beyond the end of its palette")
    return np.array(image.convert("RGB"))


def other_rgb(path: Path, image: Image.Image) -> np.ndarray:
    deep = image.format == "TIFF" and max(getattr(image, "tag_v2").get(BITS_PER_SAMPLE, (1,))) > 8  # noqa: B009 (an attribute of TIFFs alone)
    if deep or image.mode.startswith(("I", "F")):
        raise DatasetError(f"{path}: has {image.mode!r} pixels of more than 8 bits a channel; convert it to 8 bits")
    return np.array(image.convert("RGB"))


def deep_rgb(path: Path, mode: str, data: bytes, header: _png.Header, bits: int | None) -> np.ndarray:
    """8 of 16 bits a channel. A PNG's 16 bits are its full range, but cameras of 10 to 14 bits store their numbers as they
    are, and then the upper 8 bits are nearly black. So without `bits` the upper 8 bits are taken only where the file shows
    that it fills its range: a value of 2^15 or more, or an sBIT chunk whose bits are the upper ones."""
    pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)  # Pillow keeps the upper 8 bits only
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError("its pixels can't be decoded")
    colours = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels[..., 2::-1]
    filled = int(colours.max()).bit_length()
    if bits is None:
        if filled < 16 and not fills_upper_bits(colours, header.significant_bits):
            raise DatasetError(
                f"{path}: has {mode!r} pixels, not 8 bits a channel but 16, and fills {filled} of them: it is dark, or "
                f"holds fewer bits, which can't be told; convert it to 8 bits, or in the layout 'folder' write "
                f"picture_bits into classes.yaml"
            )
        bits = 16
    if filled > bits:
        raise DatasetError(f"{path}: has values of {filled} bits, but picture_bits is {bits}; write {filled} or more")
    return (colours >> (bits - 8)).astype(np.uint8)


def fills_upper_bits(colours: np.ndarray, significant: int | None) -> bool:
    """Whether so many bits are the upper ones of 16, and those below are zero or repeat them, as the PNG standard wants it."""
    if significant is None or not 8 <= significant < 16:
        return False
    low = 16 - significant
    rest = colours & ((1 << low) - 1)
    return bool((rest == 0).all() or (rest == colours >> (16 - low)).all())


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) as `read_rgb` gives it, from the file's header."""
    with _named(path), Image.open(path, formats=FORMATS) as image:
        return (image.width, image.height) if orientation(image) > 4 else (image.height, image.width)


def orientation(image: Image.Image) -> int:
    """1 (as it is) to 8. Pillow turns a TIFF by itself; an EXIF block that can't be read says nothing, as in any viewer."""
    if image.format == "TIFF":
        return 1
    try:
        found: Any = image.getexif().get(ORIENTATION)
    except _DAMAGE:
        return 1
    return found if found in range(2, 9) else 1


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W, 3] upright: 2 to 4 are mirrored or turned by half, 5 to 8 the same of the transposed picture."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


@dataclass(frozen=True)
class LabelPng:
    """A grey or palette PNG of class values, whose numbers may mean two things.

    As *index* a number is the value itself. As *value* it stands for the grey that it is shown in: lossless optimisers pack an
    8-bit grey PNG as a palette of greys (index 1 shown as 255), or as 1, 2 or 4 bits (1 of 1 bit is shown as 255).
    """

    path: Path
    numbers: np.ndarray  # [H, W] uint8 as stored
    palette: np.ndarray | None  # [entries, 3] RGB; None: a grey PNG
    greys: np.ndarray | None  # [entries] uint8: what each number is shown as; None: in colour

    @cached_property
    def used(self) -> np.ndarray:
        return np.flatnonzero(np.bincount(self.numbers.ravel(), minlength=256))

    def is_plain(self) -> bool:
        """Whether index and value are the same for every pixel."""
        if self.palette is None and self.greys is not None and len(self.greys) == 256:
            return True
        return self.greys is not None and self.used[-1] < len(self.greys) and bool((self.greys[self.used] == self.used).all())

    def values(self) -> np.ndarray:
        """[H, W] uint8: the greys. Raises DatasetError where they are colours."""
        if self.greys is None:
            raise DatasetError(f"{self.path}: has a palette in colour, which says no values; write an 8-bit grey PNG")
        if self.used[-1] >= len(self.greys):
            raise DatasetError(f"{self.path}: has pixels beyond the end of its palette; write it again")
        return self.greys[self.numbers]

    def fits(self, table: np.ndarray) -> tuple[bool, bool]:
        """Whether `table` knows all its pixels as index, and as value. Equal train ids are no difference: then (True, False)."""
        assert self.greys is not None
        index, value = table[self.used], table[self.greys[self.used]]
        return bool((index != UNKNOWN).all()), bool((value != UNKNOWN).all() and (index != value).any())


def read_label_png(path: Path, deep: bool = False) -> LabelPng:
    """Raises DatasetError on anything but a whole grey or palette PNG of 8 bits or fewer. `deep`: see `read_label`."""
    found = read_label(path, deep)
    if not isinstance(found, LabelPng):
        raise DatasetError(f"{path}: has 'RGB' pixels; write class values as an 8-bit grey or palette PNG")
    return found


def read_label(path: Path, deep: bool = False) -> LabelPng | np.ndarray:
    """The same, or [H, W, 3] uint8 of a PNG in colour. `deep` takes a grey PNG of 16 bits, too, if no value is above 255."""
    with _opened(path) as (image, data, header):
        if header is None:
            raise DatasetError(f"{path}: is a {image.format} file, whatever its name; write class values as PNG, from the source")
        if orientation(image) != 1:
            raise DatasetError(f"{path}: is a label with an EXIF orientation; save it upright, without EXIF")
        if deep and header.depth == 16 and header.colour_type == _png.GREY:
            return small_values(path, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
        if header.depth == 16 or header.colour_type == _png.GREY_ALPHA:
            raise DatasetError(f"{path}: has {image.mode!r} pixels; write class values as an 8-bit grey or palette PNG")
        if header.colour_type in (_png.RGB, _png.RGBA):
            return np.array(image.convert("RGB"))
        numbers = np.array(image).astype(np.uint8, copy=False)
    if header.palette is not None:
        red, green, blue = header.palette.T
        return LabelPng(path, numbers, header.palette, red if (red == green).all() and (red == blue).all() else None)
    step = 255 // (2**header.depth - 1)
    if 1 < header.depth < 8:  # Pillow scales them to 0..255
        numbers //= np.uint8(step)
    return LabelPng(path, numbers, None, np.arange(0, 256, step, dtype=np.uint8))


def small_values(path: Path, numbers: np.ndarray | None) -> LabelPng:
    """Of a grey PNG of 16 bits."""
    if numbers is None or numbers.dtype != np.uint16:
        raise ValueError("its pixels can't be decoded")
    if numbers.max() > 255:
        y, x = np.unravel_index(np.argmax(numbers > 255), numbers.shape)
        raise DatasetError(
            f"{path}: has 16 bits a pixel, and value {numbers[y, x]} at x={x}, y={y}; class values must be 0 to 255, write "
            f"them as an 8-bit grey PNG"
        )
    return LabelPng(path, numbers.astype(np.uint8), None, np.arange(256, dtype=np.uint8))


def has_palette(path: Path) -> bool:
    """Of a PNG, by its first bytes."""
    try:
        with open(path, "rb") as file:
            return (head := file.read(26)).startswith(_png.SIGNATURE) and head[25:] == bytes([_png.PALETTE])
    except OSError:
        return False


def read_index_png(path: Path, table: np.ndarray | None = None) -> np.ndarray:
    """[H, W] uint8: the values of a label whose layout defines them as the numbers of an 8-bit grey PNG."""
    return official_values(read_label_png(path), table)


def official_values(png: LabelPng, table: np.ndarray | None = None) -> np.ndarray:
    """A palette in colour is read by index, one of greys by value. Of 1, 2 or 4 bits the numbers are as stored, unless only the
    greys they are shown in are values that `table` (train ids by value) knows; DatasetError if both are."""
    if png.is_plain() or png.greys is None:
        return png.numbers
    if png.palette is not None:
        return png.values()
    as_index, as_value = (True, False) if table is None else png.fits(table)
    if as_index and as_value:
        raise DatasetError(f"{png.path}: {two_readings(png)}; save it as an 8-bit grey PNG")
    return png.values() if as_value else png.numbers


def two_readings(png: LabelPng) -> str:
    """Names the first number that may mean two things."""
    assert png.greys is not None
    number = next(number for number in png.used if number >= len(png.greys) or png.greys[number] != number)
    grey = png.greys[number] if number < len(png.greys) else "nothing"
    kind = "grey PNG of fewer than 8 bits" if png.palette is None else "PNG with a palette of greys"
    return (
        f"is a {kind}, whose number {number} is shown as {grey}: the value is {number} if it was written so, and {grey} if "
        f"a lossless optimiser packed it"
    )


def require_size(path: Path, found: tuple[int, int], wanted: tuple[int, int], owner: str) -> None:
    """Raises DatasetError if (height, width) of `path` is not what `owner` has."""
    if tuple(found) != tuple(wanted):
        (height, width), (h, w) = found, wanted
        raise DatasetError(f"{path}: is {width} x {height} pixels, but {owner} {w} x {h}; both must have one size")


def train_ids(values: np.ndarray, table: np.ndarray, path: Path, known: str) -> np.ndarray:
    """`table[values]`. Raises DatasetError naming the first pixel whose entry is UNKNOWN; `known` says what may be."""
    label = table[values]
    reject_unknown(label, path, lambda y, x: f"value {values[y, x]}", known)
    return label


def reject_unknown(label: np.ndarray, path: Path, found: Callable[[int, int], str], known: str) -> None:
    unknown = label == UNKNOWN
    if unknown.any():
        y, x = np.unravel_index(np.argmax(unknown), unknown.shape)
        others = np.count_nonzero(unknown) - 1
        what = f"{found(int(y), int(x))} at x={x}, y={y} is no class, nor are {others} other pixels"
        raise DatasetError(f"{path}: {what}; known are {known}")
