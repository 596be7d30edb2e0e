"""The structure of a PNG: its header, its palette, and whether the file is whole.

Pillow stops at the last row it needs. It takes a file without its end, with rows that were never written (they are black
then) or with a checksum of the pixels that is wrong or absent. So all of this is checked here, before Pillow decodes.

Source: W3C, "Portable Network Graphics (PNG) Specification (Third Edition)", sections 5 (chunks) and 10 (compression).
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # colour types
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
MOST_PIXELS = 178_956_970  # what Pillow takes at most
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # x y dx dy


@dataclass(frozen=True)
class Header:
    width: int
    height: int
    depth: int  # bits a channel, of a palette's indices
    colour_type: int
    interlaced: bool
    palette: np.ndarray | None  # [entries, 3] uint8 RGB
    significant_bits: int | None  # the least of sBIT; None where the file does not say

    def raw_bytes(self) -> int:
        """Length of the pixels before compression, with the filter byte of each row."""
        total, bits = 0, self.depth * CHANNELS[self.colour_type]
        for x, y, dx, dy in ADAM7 if self.interlaced else ((0, 0, 1, 1),):
            width, height = -(-(self.width - x) // dx), -(-(self.height - y) // dy)
            if width > 0 and height > 0:
                total += height * (1 + -(-width * bits // 8))
        return total


def checked(data: bytes) -> Header:
    """The header of a PNG that is whole: every chunk's CRC, all pixels, their checksum, and the end. Bytes after the end are
    left alone. Raises ValueError with what is wrong."""
    found: dict[bytes, bytes] = {}
    pixels: list[memoryview] = []
    before = b""
    for kind, body in _chunks(data):
        if not before and (kind != b"IHDR" or len(body) != 13):
            raise ValueError("it does not begin with a header")
        if not kind[0] & 32 and kind not in CRITICAL:
            raise ValueError(f"it needs a decoder that knows {_name(kind)} chunks")
        if kind == b"IDAT":
            if pixels and before != b"IDAT":
                raise ValueError("its IDAT chunks do not follow one another")
            pixels.append(body)
        else:
            found.setdefault(kind, bytes(body))
        before = kind
    header = _header(found)
    _require_pixels(b"".join(pixels), header.raw_bytes())
    return header


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    view, at = memoryview(data), len(SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            raise ValueError(f"truncated, or damaged at byte {at}")
        if zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise ValueError(f"the checksum of the {_name(kind)} chunk at byte {at} is wrong")
        yield kind, view[at + 8 : end]
        if kind == b"IEND":
            return
        at = end + 4
    raise ValueError("truncated: it has no end")


def _name(kind: bytes) -> str:
    return kind.decode("ascii") if kind.isalpha() else repr(kind)[1:]


def _header(found: dict[bytes, bytes]) -> Header:
    width, height, depth, colour_type, _, _, interlaced = struct.unpack(">IIBBBBB", found[b"IHDR"])
    if colour_type not in CHANNELS or depth not in (1, 2, 4, 8, 16) or not width or not height:
        raise ValueError("its header makes no sense")
    if width * height > MOST_PIXELS:
        raise ValueError(f"its header says {width} x {height} pixels, which is too many")
    palette = None
    if colour_type == PALETTE:
        if not 3 <= len(found.get(b"PLTE", b"")) <= 768 or len(found[b"PLTE"]) % 3:
            raise ValueError("it has no palette")
        palette = np.frombuffer(found[b"PLTE"], np.uint8).reshape(-1, 3)
    return Header(width, height, depth, colour_type, bool(interlaced), palette, min(found.get(b"sBIT", b""), default=None))


def _require_pixels(data: bytes, wanted: int) -> None:
    stream = zlib.decompressobj()
    try:
        found = len(stream.decompress(data, wanted + 1))
    except zlib.error:
        raise ValueError("its pixels are damaged") from None
    if found < wanted or found == wanted and not stream.eof:
        raise ValueError("truncated: its last rows were never written")
    if found > wanted:
        raise ValueError("it holds more pixels than its header says")
