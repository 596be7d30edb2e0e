"""Rows in blocks on disk: one store behind both the prepared images and the cache of teacher targets. Format 1.

<root>/<dataset>/<kind>-<identity, 12 digits>/          kind: prepared, targets
  store.json                          what the rows were made from (identity), rows per block, codec, data card; written last
  images/000123.tsv                   the images of a block: id, digest of the image, digest of its label ("-": none)
  passes/<name>-<8 digits>.json       what a pass stores: its record, and of each field the shape, dtype, chunk rows and codecs
  <kind>.zarr/v000/<pass>/<field>     Zarr v3, one group per view: [image, ...]; chunk files c.<k>.0.0
  <kind>.zarr/v000/<pass>/<field>_crc [image] uint32, crc32c of the row's C-order little-endian bytes
  done/v000/000123.<8 digits>.json    mark: this block of this pass is whole; each file's size and crc32c
  manifest.json                       what was whole when the last fill ended
  history.jsonl                       who did what when; no part of any comparison
  .lock                               flock around create, grow, add_pass and finalise

Zarr hands out fill values for what was never written, so being whole is decided here: readers trust a chain of checksums,
mark -> crc array -> row, and nothing else. Sealed JSON ends in a SHA-256 of all bytes before it; a .tsv carries one in its
header; zarr.json is a pure function of the pass file and the number of blocks. A block is a run of `block_rows` images;
growth starts at the next block, and padding rows hold fill. Fill is NaN, or the largest integer; it is 0 for a crc, since
the crc32c of four 0xFF bytes is 0xFFFFFFFF. A chunk file ends in the crc32c of what precedes it; marks hold that number (the
crc32c of such a file as a whole is the same for every file).

Departures from zarr-python's habits: files are written here (its writes are not fsynced, and leave out chunks of fill), with
chunk keys "c.0.0", which save a folder per chunk and dimension. Zarr itself encodes and decodes what is compressed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from google_crc32c import value as crc32c

from pipeline.errors import StoreError

if TYPE_CHECKING:
    from pipeline.targets.base import Field      # imports torch, which workers that only write need not load

FORMAT = 1
MAX_CHUNK_BYTES = 16_000_000
FILLED_BY = {"prepared": "pipeline prepare", "targets": "pipeline cache-teacher"}
GROUP = b'{\n  "attributes": {},\n  "zarr_format": 3,\n  "node_type": "group"\n}'


@dataclass(frozen=True, slots=True)
class ImageRow:
    id: str
    image_digest: str
    label_digest: str = "-"                      # "-": no label


@dataclass(frozen=True)
class Pass:
    """Arrays that are written together, block by block: a target, or `sample` and `matrix` of the prepared data and views."""

    name: str
    record: dict                                 # what makes its bytes what they are: type, parameters, version
    fields: Mapping[str, Field]

    @cached_property
    def digest8(self) -> str:
        return identity_digest({"name": self.name, "record": self.record})[:8]

    @cached_property
    def folder(self) -> str:
        return f"{self.name}-{self.digest8}"


def identity_digest(record: dict) -> str:
    """SHA-256 of the record as canonical JSON."""
    return sha256(json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def digest_array(array: np.ndarray | None) -> str:
    """16 hex digits over dtype, shape and bytes; "-" for None."""
    if array is None:
        return "-"
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return sha256(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())[:16]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def difference(here, asked, path: str = "") -> list[str]:
    """Where two records differ, e.g. ["teacher.weights: '1a2b' here, '9f8e' asked for"]."""
    if isinstance(here, dict) and isinstance(asked, dict):
        keys = [*here, *(key for key in asked if key not in here)]
        return [line for key in keys for line in difference(here.get(key), asked.get(key), f"{path}.{key}".lstrip("."))]
    show = lambda value: "nothing" if value is None else text if len(text := repr(value)) <= 60 else text[:57] + "..."
    return [] if here == asked else [f"{path}: {show(here)} here, {show(asked)} asked for"]


# Sealed JSON and files

def seal(content: dict, indent: int | None = 1) -> bytes:
    body = json.dumps(content, indent=indent, sort_keys=True, allow_nan=False)[:-1].rstrip()
    return f'{body}, "checksum": "{sha256(body.encode())}"}}\n'.encode()


def unseal(data: bytes, path: Path) -> dict:
    """The content without its checksum. Raises StoreError if a byte was changed."""
    body, _, end = data.rpartition(b', "checksum": "')
    if end != f'{sha256(body)}"}}\n'.encode():
        raise StoreError(f"{path}: damaged (its checksum does not fit)")
    return json.loads(body + b"}")


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error


def read_chunk(path: Path, size: int, crc: str) -> bytes:
    """A chunk file whose size and crc32c are those of its mark; StoreError otherwise."""
    data = read(path)
    if len(data) != size:
        raise StoreError(f"{path}: {len(data)} bytes, {size} were written")
    if not f"{crc32c(data[:-4]):08x}" == f"{int.from_bytes(data[-4:], 'little'):08x}" == crc:
        raise StoreError(f"{path}: damaged (its crc32c does not fit)")
    return data


def replace(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all. No two callers may write one path at once: a leftover of a killed one is reused."""
    unfinished = path.with_name(path.name + ".tmp")
    with open(unfinished, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


@contextlib.contextmanager
def writing(folder: Path):
    """Disk full, read-only, no permission: the user's to mend."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{error.filename or folder}: {error.strerror}; nothing finished is lost, mend it and run again") from error


@contextlib.contextmanager
def claim(mark: Path):
    """The mark's unfinished file, locked: one writer a block, so that two fills started on one store cannot mix their bytes.

    The lock ends with its process, so what a killed writer left is simply taken over.
    """
    unfinished = mark.with_name(mark.name + ".tmp")
    while True:
        with open(unfinished, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                ours = os.path.samestat(os.fstat(file.fileno()), os.stat(unfinished))
            except FileNotFoundError:                       # who held it has renamed it to the mark
                ours = False
            if ours:
                file.truncate(0)
                yield file
                return


# Arrays

@dataclass(frozen=True)
class Array:
    """A Zarr array as files: `chunk_rows` rows in each, whole in the other dimensions."""

    path: str                                    # below the store's folder
    shape: tuple[int, ...]                       # of one row
    dtype: np.dtype
    dims: tuple[str, ...]
    chunk_rows: int
    codecs: list
    fill: float

    @property
    def raw(self) -> bool:
        return [codec["name"] for codec in self.codecs] == ["bytes", "crc32c"]

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape))

    def chunk(self, index: int) -> str:
        return f"{self.path}/c.{index}" + ".0" * len(self.shape)

    def metadata(self, num_rows: int) -> bytes:
        fill = "NaN" if self.dtype.kind == "f" else self.fill
        return json.dumps({
            "shape": [num_rows, *self.shape],
            "data_type": self.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [self.chunk_rows, *self.shape]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": fill,
            "codecs": self.codecs,
            "attributes": {},
            "dimension_names": ["image", *self.dims],
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }, indent=2).encode()

    def encode(self, rows: np.ndarray) -> bytes:
        """The bytes of one chunk file."""
        if not self.raw:
            return self._zarr(rows)
        data = rows.tobytes()
        return data + crc32c(data).to_bytes(4, "little")

    def decode(self, data: bytes) -> np.ndarray:
        """[chunk_rows, ...] of one chunk file, whose crc the caller has checked."""
        if not self.raw:
            return self._zarr(data)
        return np.frombuffer(data, self.dtype, count=(len(data) - 4) // self.dtype.itemsize).reshape(-1, *self.shape)

    def _zarr(self, chunk: np.ndarray | bytes) -> np.ndarray | bytes:
        import zarr                              # 0.4 s, and needed for compressed fields only
        from zarr.core.buffer import default_buffer_prototype

        buffer, key = default_buffer_prototype().buffer.from_bytes, self.chunk(0).removeprefix(self.path + "/")
        memory = {"zarr.json": buffer(self.metadata(self.chunk_rows))}
        if isinstance(chunk, bytes):
            return zarr.open_array(zarr.storage.MemoryStore(memory | {key: buffer(chunk)}), mode="r")[...]
        with zarr.config.set({"array.write_empty_chunks": True}):
            zarr.open_array(zarr.storage.MemoryStore(memory), mode="r+")[...] = chunk
        return memory[key].to_bytes()


def codec_chain(codec: str, dtype: np.dtype) -> list:
    """Zarr codecs of a setting: raw, lz4 or zstd (Blosc with bits shuffled, which suits float16)."""
    order = {"name": "bytes", "configuration": {"endian": "little"}} if dtype.itemsize > 1 else {"name": "bytes"}
    blosc = {"typesize": dtype.itemsize, "cname": codec, "clevel": 5, "shuffle": "bitshuffle", "blocksize": 0}
    return [order, *([] if codec == "raw" else [{"name": "blosc", "configuration": blosc}]), {"name": "crc32c"}]


def row_crcs(rows: np.ndarray) -> np.ndarray:
    return np.array([crc32c(row) for row in rows.reshape(len(rows), -1).view(np.uint8)], np.uint32)


# Images of a block

def images_tsv(rows: list[ImageRow]) -> bytes:
    body = "".join(f"{row.id}\t{row.image_digest}\t{row.label_digest}\n" for row in rows).encode("utf-8", "surrogateescape")
    return f"image\timage_digest\tlabel_digest\t{sha256(body)}\n".encode() + body


def parse_images(data: bytes, path: Path) -> list[ImageRow]:
    rows = [ImageRow(*line.split("\t")) for line in data.decode("utf-8", "surrogateescape").split("\n")[1:-1] if line.count("\t") == 2]
    if images_tsv(rows) != data:
        raise StoreError(f"{path}: damaged (its checksum does not fit)")
    return rows


class Store:
    """A store that exists. Make one with `create_or_open`, `open` or `find`."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        content = unseal(read(self.folder / "store.json"), self.folder / "store.json")
        if content["format"] != FORMAT:
            raise StoreError(f"{self.folder}: format {content['format']}, this version reads {FORMAT}; install the version that wrote it")
        self.kind: str = content["kind"]
        self.identity: dict = content["identity"]
        self.block_rows: int = content["block_rows"]
        self.codec: str = content["codec"]
        self.card: dict = content["card"]
        self._layouts: dict[str, dict] = {}
        self._load_images()

    def __reduce__(self):
        return Store, (self.folder,)

    @classmethod
    def create_or_open(cls, root: Path, kind: str, dataset: str, identity_record: dict, *,
                       block_rows: int, codec: str = "raw", card: dict) -> Store:
        """The store of this identity; an existing one keeps its block_rows, codec and card."""
        assert kind in FILLED_BY and codec in ("raw", "lz4", "zstd") and block_rows > 0
        digest = identity_digest(identity_record)
        folder = Path(root) / dataset / f"{kind}-{digest[:12]}"
        if not (folder / "store.json").exists():
            with writing(folder):
                for name in ("images", "passes", "done", f"{kind}.zarr"):
                    make_folder(folder / name)
            with locked(folder):
                if not (folder / "store.json").exists():
                    replace(folder / f"{kind}.zarr/zarr.json", GROUP)
                    sync_folder(folder / f"{kind}.zarr")
                    replace(folder / "store.json", seal({
                        "format": FORMAT, "kind": kind, "identity": {"digest": digest, "record": identity_record},
                        "block_rows": block_rows, "codec": codec, "card": card,
                    }))
                    note(folder, "create")
        return cls(folder)._of(kind, identity_record)

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Raises StoreError if the folder is no store, is damaged, or is of another format."""
        return cls(folder)

    @classmethod
    def find(cls, root: Path, kind: str, dataset: str, identity_record: dict) -> Store:
        """The store of this identity; StoreError naming what differs from the nearest one there is."""
        parent = Path(root) / dataset
        folder = parent / f"{kind}-{identity_digest(identity_record)[:12]}"
        if (folder / "store.json").exists():
            return cls(folder)._of(kind, identity_record)
        others = [cls(path.parent) for path in sorted(parent.glob(f"{kind}-*/store.json"))]
        if not others:
            raise StoreError(f"{parent}: no {kind} store; run '{FILLED_BY[kind]}'")
        apart = {other.folder: difference(other.identity["record"], canonical(identity_record)) for other in others}
        nearest = min(apart, key=lambda path: len(apart[path]))
        raise StoreError(f"{nearest}: made from something else: {listed(apart[nearest])}; run '{FILLED_BY[kind]}'")

    def _of(self, kind: str, record: dict) -> Store:
        apart = difference({"kind": self.kind, **self.identity["record"]}, {"kind": kind, **canonical(record)})
        if apart:
            raise StoreError(f"{self.folder}: made from something else: {listed(apart)}; remove the folder or give it its own name back")
        return self

    # Extent: images

    def _load_images(self) -> None:
        paths = self.images_files()
        missing = [path for number, path in enumerate(paths) if int(path.stem) != number]
        if missing:
            raise StoreError(f"{missing[0]}: a block before it is missing")
        data = [read(path) for path in paths]
        self._blocks = [parse_images(*both) for both in zip(data, paths)]
        self._block_digests = [sha256(content) for content in data]
        self.images: list[ImageRow] = [row for rows in self._blocks for row in rows]
        self.row_of: dict[str, int] = {row.id: block * self.block_rows + offset
                                       for block, rows in enumerate(self._blocks) for offset, row in enumerate(rows)}

    def images_files(self) -> list[Path]:
        found = [path for path in (self.folder / "images").iterdir() if re.fullmatch(r"\d{6,}\.tsv", path.name)]
        return sorted(found, key=lambda path: int(path.stem))

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    def block_images(self, block: int) -> list[ImageRow]:
        return self._blocks[block]

    def image_at(self, row: int) -> ImageRow:
        return self._blocks[row // self.block_rows][row % self.block_rows]

    def grow(self, rows: list[ImageRow]) -> None:
        """Adds unknown images in new blocks. StoreError on a known image with other pixels; another label is fine here."""
        if not self._unknown(rows):
            return
        with locked(self.folder):
            self._load_images()                              # another process may have grown it
            unknown = self._unknown(rows)
            for start in range(0, len(unknown), self.block_rows):
                path = self.folder / f"images/{self.num_blocks + start // self.block_rows:06d}.tsv"
                replace(path, images_tsv(unknown[start:start + self.block_rows]))
            sync_folder(self.folder / "images")
            self._load_images()
            for view, folder in self.stored_arrays():
                self._write_metadata(folder, view)
            note(self.folder, "grow", images=len(unknown))

    def _unknown(self, rows: list[ImageRow]) -> list[ImageRow]:
        asked = {row.id: row for row in rows}
        if len(asked) < len(rows):
            twice = next(row.id for row in rows if asked[row.id] is not row)
            raise StoreError(f"{self.folder}: image {twice!r} is listed twice; ids must be unique")
        self._refuse_other_pixels(rows)
        unknown = [row for row in rows if row.id not in self.row_of]
        for row in unknown:
            if not row.id or "\t" in row.id or "\n" in row.id:
                raise StoreError(f"{self.folder}: image id {row.id!r} is empty or has a tab or newline in it; rename the image")
        return unknown

    def _refuse_other_pixels(self, rows: list[ImageRow]) -> None:
        for row in rows:
            if row.id in self.row_of and (mine := self.image_at(self.row_of[row.id]).image_digest) != row.image_digest:
                raise StoreError(f"{self.folder}: image {row.id!r} has changed: digest {mine} here, {row.image_digest} asked for; "
                                 f"restore the image, or remove the store and run '{FILLED_BY[self.kind]}'")

    # Extent: passes and views

    def add_pass(self, pass_: Pass, views: range) -> None:
        """Makes the pass's arrays in these views. StoreError if the same pass is there with other fields."""
        views = [view_name(view) for view in views]
        if self.has_pass(pass_) and all(
                self._metadata_differs(pass_.folder, view) == [] and (self.folder / "done" / view).is_dir() for view in views):
            return
        with locked(self.folder):
            self._load_images()
            if not self.has_pass(pass_):
                content = {"format": FORMAT, "store": self.identity["digest"], "name": pass_.name, "record": pass_.record}
                replace(self.folder / f"passes/{pass_.folder}.json", seal(content | {"fields": self._layout(pass_)}))
                sync_folder(self.folder / "passes")
            for view in views:
                make_folder(self.folder / "done" / view)
                self._write_metadata(pass_.folder, view)

    def has_pass(self, pass_: Pass) -> bool:
        """Whether the pass was ever added. StoreError if it was, with other fields."""
        if not (self.folder / f"passes/{pass_.folder}.json").exists():
            return False
        stored, meant = self.layout(pass_.folder), self._layout(pass_)
        kept = ("shape", "dtype", "dims")
        apart = difference(*({name: {key: field[key] for key in kept} for name, field in layout.items()} for layout in (stored, meant)))
        if apart:
            raise StoreError(f"{self.folder}: pass {pass_.folder} has other fields: {listed(apart)}; "
                             "its version must change with its fields")
        return True

    def stored_passes(self) -> list[str]:
        return sorted(path.stem for path in (self.folder / "passes").glob("*.json"))

    def stored_arrays(self) -> list[tuple[str, str]]:
        """(view, pass) folders in the Zarr tree."""
        found = (self.folder / f"{self.kind}.zarr").glob("v*/*/")
        return sorted((path.parent.name, path.name) for path in found if path.is_dir())

    def stored_pass(self, folder: str) -> dict:
        """The pass file: name, record and fields. Raises StoreError if it is missing or damaged."""
        path = self.folder / f"passes/{folder}.json"
        content = unseal(read(path), path)
        if (content["store"], f"{content['name']}-{identity_digest({k: content[k] for k in ('name', 'record')})[:8]}") \
                != (self.identity["digest"], folder):
            raise StoreError(f"{path}: belongs to another store or pass; remove it")
        return content

    def layout(self, folder: str) -> dict:
        """A stored pass's fields: shape, dtype, dims, chunk rows and codecs of each. They never change."""
        if folder not in self._layouts:
            self._layouts[folder] = self.stored_pass(folder)["fields"]
        return self._layouts[folder]

    def _layout(self, pass_: Pass) -> dict:
        fields = {}
        for name, field in pass_.fields.items():
            dtype = np.dtype(field.dtype)
            assert dtype.kind in "fiu" and len(field.dims) == len(field.shape) and not name.endswith("_crc"), (name, field)
            room = MAX_CHUNK_BYTES // (dtype.itemsize * int(np.prod(field.shape)))
            rows = max([n for n in range(1, self.block_rows + 1) if self.block_rows % n == 0 and n <= room], default=1)
            fields[name] = {"shape": list(field.shape), "dtype": dtype.name, "dims": list(field.dims),
                            "chunk_rows": rows, "codecs": codec_chain(self.codec, dtype)}
        return fields

    def arrays(self, folder: str, view: str) -> dict[str, Array]:
        """The arrays of a stored pass in one view: each field and its crc."""
        found = {}
        for name, field in self.layout(folder).items():
            path, dtype, crc = f"{self.kind}.zarr/{view}/{folder}/{name}", np.dtype(field["dtype"]), np.dtype(np.uint32)
            fill = np.nan if dtype.kind == "f" else int(np.iinfo(dtype).max)
            found[name] = Array(path, tuple(field["shape"]), dtype, tuple(field["dims"]), field["chunk_rows"], field["codecs"], fill)
            found[f"{name}_crc"] = Array(f"{path}_crc", (), crc, (), self.block_rows, codec_chain("raw", crc), 0)
        return found

    def metadata(self, folder: str, view: str) -> dict[Path, bytes]:
        """Every zarr.json of a pass in one view, as it must be now."""
        top = self.folder / f"{self.kind}.zarr"
        arrays = self.arrays(folder, view).values()
        num_rows = self.num_blocks * self.block_rows
        return {top / view / "zarr.json": GROUP, top / view / folder / "zarr.json": GROUP,
                **{self.folder / array.path / "zarr.json": array.metadata(num_rows) for array in arrays}}

    def _metadata_differs(self, folder: str, view: str) -> list[Path]:
        return [path for path, data in self.metadata(folder, view).items() if not path.exists() or path.read_bytes() != data]

    def _write_metadata(self, folder: str, view: str) -> None:
        meant = self.metadata(folder, view)
        for path in self._metadata_differs(folder, view):
            make_folder(path.parent)
            replace(path, meant[path])
            sync_folder(path.parent)

    # Blocks

    def mark_path(self, folder: str, view: str, block: int) -> Path:
        return self.folder / f"done/{view}/{block:06d}.{folder[-8:]}.json"

    def chunk_paths(self, array: Array, block: int) -> list[str]:
        num = self.block_rows // array.chunk_rows
        return [array.chunk(block * num + k) for k in range(num)]

    def mark(self, folder: str, view: str, block: int) -> dict:
        """A block's files with size and crc32c. StoreError if there is no mark, it is damaged, or it is about something else."""
        path = self.mark_path(folder, view, block)
        if not path.exists():
            raise StoreError(f"{path}: no mark, the block is not filled")
        found = unseal(read(path), path)
        meant = self._mark_head(folder, view, block)
        apart = difference({key: found.get(key) for key in meant}, meant)
        chunks = [chunk for array in self.arrays(folder, view).values() for chunk in self.chunk_paths(array, block)]
        if apart or sorted(found["files"]) != sorted(chunks):
            raise StoreError(f"{path}: the mark belongs to something else ({listed(apart or ['other files'])})")
        return found["files"]

    def _mark_head(self, folder: str, view: str, block: int) -> dict:
        return {"format": FORMAT, "store": self.identity["digest"], "pass": folder, "view": view, "block": block,
                "images": self._block_digests[block]}

    def fault(self, folder: str, view: str, block: int, deep: bool = False) -> str | None:
        """Why a block is not whole; None if it is. Sizes are compared, with `deep` every byte."""
        try:
            for chunk, (size, crc) in self.mark(folder, view, block).items():
                path = self.folder / chunk
                if deep:
                    read_chunk(path, size, crc)
                elif not path.exists() or path.stat().st_size != size:
                    return f"{path}: missing, or not of the {size} bytes that were written"
        except StoreError as error:
            return str(error)
        return None

    def missing(self, pass_: Pass, view: int, deep: bool = False) -> list[int]:
        """The blocks to fill: without a mark, with one about something else, or whose files differ in size (deep: in content)."""
        return [block for block in range(self.num_blocks) if self.fault(pass_.folder, view_name(view), block, deep)]

    def write_block(self, pass_: Pass, view: int, block: int, rows: Mapping[str, np.ndarray]) -> None:
        """Writes one block, or nothing if it is already whole; any process may do so at any time.

        `rows` holds [n, ...] for each field, n the block's number of images. StoreError names what does not fit or is not finite.
        """
        folder, view, images = pass_.folder, view_name(view), self.block_images(block)
        self._refuse_bad_rows(pass_, block, rows)
        arrays, mark = self.arrays(folder, view), self.mark_path(folder, view, block)
        with writing(self.folder), claim(mark) as file:
            if mark.exists():
                if self.fault(folder, view, block, deep=True) is None:
                    os.unlink(file.name)
                    return
                mark.unlink()                                # before its files change
                sync_folder(mark.parent)
            written = {}
            for name in pass_.fields:
                values = np.ascontiguousarray(rows[name], arrays[name].dtype)
                for array, data in ((arrays[name], values), (arrays[f"{name}_crc"], row_crcs(values))):
                    padded = np.full((self.block_rows, *array.shape), array.fill, array.dtype)
                    padded[:len(images)] = data
                    for chunk, part in zip(self.chunk_paths(array, block), np.split(padded, self.block_rows // array.chunk_rows)):
                        encoded = array.encode(part)
                        replace(self.folder / chunk, encoded)
                        written[chunk] = (len(encoded), f"{int.from_bytes(encoded[-4:], 'little'):08x}")
            for array in arrays.values():
                sync_folder(self.folder / array.path)
            for chunk, (size, crc) in written.items():       # what the disk says, against what was meant
                read_chunk(self.folder / chunk, size, crc)
            file.write(seal(self._mark_head(folder, view, block) | {"files": written}))
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, mark)
            sync_folder(mark.parent)

    def _refuse_bad_rows(self, pass_: Pass, block: int, rows: Mapping[str, np.ndarray]) -> None:
        images, where = self.block_images(block), f"{self.folder}: {pass_.folder}, block {block}"
        if set(rows) != set(pass_.fields):
            raise StoreError(f"{where}: fields {sorted(rows)} given, {sorted(pass_.fields)} declared")
        for name, field in pass_.fields.items():
            meant = ((len(images), *field.shape), np.dtype(field.dtype))
            if (rows[name].shape, rows[name].dtype) != meant:
                raise StoreError(f"{where}: field {name!r} is {rows[name].shape} {rows[name].dtype}, declared {meant[0]} {meant[1]} "
                                 f"(images {images[0].id!r} to {images[-1].id!r})")
            bad = np.flatnonzero(~np.isfinite(rows[name]).reshape(len(images), -1).all(axis=1))
            if len(bad):
                raise StoreError(f"{where}: field {name!r} is not finite for images {listed([images[i].id for i in bad])}")

    def finalise(self) -> None:
        """Writes down which blocks are whole. Does nothing if the manifest says so already."""
        passes: dict[str, dict] = {}
        for view, folder in self.stored_arrays():
            whole = [block for block in range(self.num_blocks) if self.fault(folder, view, block) is None]
            passes.setdefault(folder, {})[view] = {"blocks": ranges(whole), "marks": self.digest_of_marks(folder, view, whole)}
        data = seal({"format": FORMAT, "store": self.identity["digest"], "images": len(self.images), "blocks": self.num_blocks,
                     "passes": passes})
        path = self.folder / "manifest.json"
        if path.exists() and path.read_bytes() == data:
            return
        with locked(self.folder):
            replace(path, data)
            note(self.folder, "finalise", images=len(self.images), passes=sorted(passes))

    def digest_of_marks(self, folder: str, view: str, blocks: Iterable[int]) -> str:
        return sha256(b"".join(read(self.mark_path(folder, view, block)) for block in blocks))

    # What a run asks for

    def check(self, rows: list[ImageRow], views: Iterable[int], passes: Iterable[tuple[Pass, bool]]) -> None:
        """Refuses, naming the difference, unless these passes (and whether each uses labels) are whole for these images."""
        passes, again = list(passes), f"run '{FILLED_BY[self.kind]}' again"
        unknown = [row.id for row in rows if row.id not in self.row_of]
        if unknown:
            raise StoreError(f"{self.folder}: {len(unknown)} of {len(rows)} images were never stored: {listed(unknown)}; {again}")
        self._refuse_other_pixels(rows)
        users = [pass_.folder for pass_, uses_labels in passes if uses_labels]
        for row in rows if users else []:
            if (mine := self.image_at(self.row_of[row.id]).label_digest) != row.label_digest:
                raise StoreError(f"{self.folder}: the label of image {row.id!r} has changed: digest {mine} here, {row.label_digest} "
                                 f"asked for, and {listed(users)} use it; restore the label, or remove the store and run "
                                 f"'{FILLED_BY[self.kind]}'")
        blocks = sorted({self.row_of[row.id] // self.block_rows for row in rows})
        for pass_, _ in passes:
            if not self.has_pass(pass_):
                raise StoreError(f"{self.folder}: {pass_.name} was never stored as asked for{self._nearest(pass_)}; {again}")
            for view in views:
                faults = [fault for block in blocks if (fault := self.fault(pass_.folder, view_name(view), block))]
                if faults:
                    raise StoreError(f"{self.folder}: {len(faults)} of {len(blocks)} blocks of {pass_.folder} in view {view} "
                                     f"are not whole (first: {faults[0]}); {again}")

    def _nearest(self, pass_: Pass) -> str:
        stored = [self.stored_pass(folder) for folder in self.stored_passes()]
        apart = [difference(other["record"], canonical(pass_.record)) for other in stored if other["name"] == pass_.name]
        return f"; nearest has {listed(min(apart, key=len))}" if apart else ""

    def stored_crcs(self, folder: str, view: str, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The crc of each field of these rows, vouched for by the marks. StoreError where a block is not whole."""
        found = {name: np.empty(len(rows), np.uint32) for name in self.layout(folder)}
        blocks = rows // self.block_rows
        arrays = self.arrays(folder, view)
        for block in np.unique(blocks):
            files, here = self.mark(folder, view, int(block)), blocks == block
            for name, crcs in found.items():
                array = arrays[f"{name}_crc"]
                chunk, = self.chunk_paths(array, int(block))
                crcs[here] = array.decode(read_chunk(self.folder / chunk, *files[chunk]))[rows[here] % self.block_rows]
        return found

    def digest_of(self, rows: list[ImageRow], views: Iterable[int], passes: Iterable[Pass]) -> str:
        """One digest of just these images, their digests, and their rows; whatever else is stored, and in whatever order."""
        views, rows = sorted(views), sorted(rows, key=lambda row: row.id)
        index = np.array([self.row_of[row.id] for row in rows])
        crcs = {pass_.folder: {view: {name: sha256(crcs.astype("<u4").tobytes()) for name, crcs in
                                      self.stored_crcs(pass_.folder, view_name(view), index).items()} for view in views}
                for pass_ in passes}
        return identity_digest({"images": [dataclasses.astuple(row) for row in rows], "rows": crcs})


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Around what must not happen twice at once. Blocks are written without it."""
    with writing(folder), open(folder / ".lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def note(folder: Path, action: str, **details) -> None:
    """A line of history, each with its own checksum. Under the lock."""
    path = folder / "history.jsonl"
    line = {"action": action, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "host": platform.node(),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in ("numpy", "zarr", "torch")}}}
    replace(path, (path.read_bytes() if path.exists() else b"") + seal(line | details, indent=None))


def view_name(view: int) -> str:
    return f"v{view:03d}"


def canonical(record: dict) -> dict:
    """As it comes back from JSON: tuples are lists."""
    return json.loads(json.dumps(record))


def listed(items: list) -> str:
    return ", ".join(map(str, items[:3])) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def ranges(numbers: list[int]) -> list[list[int]]:
    """[0, 1, 2, 5] -> [[0, 2], [5, 5]]."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found
