"""Reading the pictures of a dataset: whole or not at all, and every complaint names the file.

Pillow rather than OpenCV: OpenCV returns a truncated JPEG half grey without an error, and expands a palette PNG to
colours, which loses the ids that its pixels hold.
"""

import struct
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.errors import DatasetError

UNKNOWN = 254           # in a table of train ids: a value that is none of the dataset's, so 254 classes at most

_END_OF_IMAGE, _START_OF_SCAN = b"\xff\xd9", b"\xff\xda"     # JPEG markers; neither can occur inside a scan
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


@contextmanager
def opened(path: Path):
    """A Pillow image whose pixels are read inside the `with`. Raises DatasetError naming the file if that fails."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file; fetch it, or leave the image out") from None
    except UnidentifiedImageError:
        raise DatasetError(f"{path}: not a picture, or cut off in its first bytes; fetch it again") from None
    except _DAMAGE as error:
        raise DatasetError(f"{path}: cannot be read ({error}); fetch it again") from None


def read_rgb(path: Path) -> np.ndarray:
    """[H, W, 3] uint8 RGB; grey and palette pictures become RGB, an alpha channel is dropped."""
    with opened(path) as image:
        if image.mode.startswith(("I", "F")):
            raise DatasetError(f"{path}: has {image.mode!r} pixels, not 8 bits a channel; convert it to 8 bits")
        pixels = np.array(image.convert("RGB"))
    if path.suffix.lower() in (".jpg", ".jpeg"):            # Pillow notices a missing tail, but not one filled with zeros
        data = path.read_bytes()
        if data.rfind(_END_OF_IMAGE) < data.rfind(_START_OF_SCAN):
            raise DatasetError(f"{path}: is cut off, the JPEG has no end; fetch it again")
    return pixels


def read_index_png(path: Path) -> np.ndarray:
    """[H, W] uint8: the stored values of a grey or palette PNG (the index, not the colour); 1 bit gives 0 and 1."""
    with opened(path) as image:
        if image.mode not in ("L", "P", "1"):
            raise DatasetError(f"{path}: has {image.mode!r} pixels; write class values as an 8-bit grey or palette PNG")
        return np.array(image).astype(np.uint8, copy=False)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) from the file's header."""
    with opened(path) as image:
        return image.height, image.width


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
        what = f"{found(y, x)} at x={x}, y={y} is no class, nor are {others} other pixels"
        raise DatasetError(f"{path}: {what}; known are {known}")
