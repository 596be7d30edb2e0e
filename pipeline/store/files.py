"""The files of a store (format 1): sealed JSON, lists of images, Zarr arrays; each is written whole or not at all.

Sealed JSON ends in the SHA-256 of all bytes before `, "checksum"`; a list of images has it in its header; zarr.json
follows from the pass file and the number of blocks, byte for byte. So every byte of metadata can be checked.

An array is Zarr v3, one image's row after the other: chunk files `c.<k>.0.0` of `chunk_rows` rows, whole in the other
dimensions; codecs bytes (little-endian), perhaps Blosc, crc32c. The crc32c of a file that ends in its own crc32c is the
same number for every file, so "a file's crc" is that of what precedes it. The fill value is NaN or the largest integer;
0 for crc arrays, as the crc32c of four 0xFF bytes is 0xFFFFFFFF and would make four bytes of fill look like a row.

Paths are pathlib's, or those of object storage (pipeline/store/remote.py), where a PUT is whole and lasts by itself.

zarr-python doesn't write here: it neither fsyncs nor, by default, keeps chunks that equal the fill value, and its
metadata differs from version to version. It encodes and decodes what is compressed. Nothing else imports it.
"""

import contextlib
import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from google_crc32c import value as crc32c
from typing_extensions import TypeIs

from pipeline.errors import StoreError
from pipeline.identity import digest_array, sha256
from pipeline.paths import below, id_fault, no_link, to_open, unreadable
from pipeline.threads import map_in_order

if TYPE_CHECKING:
    from pipeline.store.remote import RemotePath

AnyPath: TypeAlias = "Path | RemotePath"

FORMAT = 1
IN_USE = ".in-use"
GROUP = json.dumps({"attributes": {}, "zarr_format": 3, "node_type": "group"}, indent=2).encode()
CRC = np.dtype("<u4")


def view_name(view: int) -> str:
    return f"v{view:03d}"


# Sealed JSON


def with_checksum(content: dict, indent: int | None = 1) -> bytes:
    body = json.dumps(content, indent=indent, sort_keys=True, allow_nan=False)[:-1].rstrip()
    return f'{body}, "checksum": "{sha256(body.encode())}"}}\n'.encode()


def check_and_parse(data: bytes, path: AnyPath) -> dict:
    """The content without its checksum. Raises StoreError if any byte was changed, or if no store writes such a thing."""
    body, _, end = data.rpartition(b', "checksum": "')
    if end != f'{sha256(body)}"}}\n'.encode():
        raise StoreError(f"{path}: damaged, its checksum does not fit")
    try:
        content = json.loads(body + b"}")
    except (ValueError, RecursionError):  # from elsewhere, with a checksum that fits
        content = None
    if not isinstance(content, dict):
        raise StoreError(f"{path}: is no JSON object; get the store again from where it was filled")
    return content


# Reading and writing files


def as_path(where: "str | Path | RemotePath") -> AnyPath:
    """A path on this machine, or one of object storage if it is a URL."""
    text = str(where)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    if "://" not in text:
        return Path(text)
    from pipeline.store.remote import RemotePath  # a store on disk needs none of it

    return RemotePath.of(text)


def local(path: AnyPath) -> TypeIs[Path]:
    return isinstance(path, Path)


def map_concurrently(work: Callable, items: Sequence, folder: AnyPath, at_once: int = 32) -> Iterator:
    """`work(item)` for each, in order; many at a time where each waits for a network."""
    if local(folder):
        yield from map(work, items)
    else:
        with ThreadPoolExecutor(at_once) as pool:
            yield from map_in_order(pool, work, items, at_once)


def read(path: AnyPath) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        closed = unreadable(path) if local(path) and isinstance(error, PermissionError) else None
        raise StoreError(f"{path}: {error.strerror}" + (f"; {to_open(closed)}" if closed else "")) from error


def writable(folder: AnyPath) -> bool:
    """Whether files can be made in a folder; of object storage it is taken for granted."""
    return not local(folder) or os.access(folder, os.W_OK)


def size_of(path: AnyPath) -> int | None:
    """None: there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def write(files: Iterable[tuple[AnyPath, bytes]]) -> None:
    """Writes each file whole or not at all, and lastingly. One writer per path at a time: a killed one's leftover is
    written over, and a full disk leaves none. The fsyncs run side by side, since a journal commits them together; so do PUTs."""
    paths: list[Path] = []
    puts = []
    with ThreadPoolExecutor(8) as pool:
        try:
            for path, data in files:
                if local(path):
                    paths.append(path)
                    with open(_partial(path), "wb", opener=no_link) as file:
                        file.write(data)
                else:
                    puts.append(pool.submit(path.write_bytes, data))
            list(pool.map(sync, map(_partial, paths)))
        except OSError:
            for path in paths:
                with contextlib.suppress(OSError):
                    _partial(path).unlink()
            raise
        for path in paths:
            os.replace(_partial(path), path)
        list(pool.map(sync, {path.parent for path in paths}))
        for put in puts:
            put.result()


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def link(files: Iterable[tuple[AnyPath, bytes]], origin: Callable[[AnyPath], AnyPath]) -> None:
    """As `write`, of bytes that lie in `origin(path)` already: as hard links where the disk has them, which take no room. A
    finished file is never changed, only replaced by another, so neither store sees what the other does."""
    folders = set()
    for path, data in files:
        source = origin(path)
        try:
            if not (local(path) and local(source)):
                raise OSError
            path.unlink(missing_ok=True)
            os.link(source, path, follow_symlinks=False)
        except OSError:  # another disk, one without links, too many of them; or what writing will tell
            write([(path, data)])
        folders.add(path.parent)
    for folder in folders:
        sync(folder)


def append(path: AnyPath, data: bytes) -> None:
    """At the end of a file, lastingly. Object storage can't: there it is written anew."""
    if not local(path):
        path.write_bytes((path.read_bytes() if path.exists() else b"") + data)
        return
    with open(path, "ab", buffering=0, opener=no_link) as file:
        file.write(data)
        os.fsync(file.fileno())


def remove(path: AnyPath) -> None:
    path.unlink()
    sync(path.parent)


def sync(path: AnyPath) -> None:
    """Makes a file's bytes, or the names in a folder, outlast a power cut."""
    if not local(path):
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: AnyPath) -> None:
    if local(path) and not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


@contextlib.contextmanager
def writing(folder: AnyPath) -> Iterator[None]:
    """A full disk, a read-only one, no permission, or no network: the user's to mend. A link in the place of a file, too."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise StoreError(f"{error.filename or folder}: is a link or a pipe where a file should be; remove it") from error
        raise StoreError(f"{error.filename or folder}: {error.strerror}; what is finished is safe") from error


@contextlib.contextmanager
def locked(folder: AnyPath) -> Iterator[None]:
    """Around what changes the extent of a store. Blocks are written without it. Object storage has none."""
    if not local(folder):
        with writing(folder):
            yield
        return
    with writing(folder), _lock_file(folder / ".lock") as file:
        lock_exclusive(file)
        yield


def lock_exclusive(file: BinaryIO) -> None:
    """Waits for the file's lock, which ends with the process."""
    _flock(file.fileno(), fcntl.LOCK_EX, file.name)


def _flock(fd: int, how: int, name: str) -> None:
    try:
        fcntl.flock(fd, how)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        raise StoreError(
            f"{name}: this file system has no locks ({error.strerror}); mount it with them (Lustre: -o "
            f"flock), or choose a --root on another one"
        ) from error


class InUse:
    """Keeps a store from being removed, until this object or its process ends. Any number of processes may fill a store at a
    time. Nothing is held on object storage, which has no locks, and where this process may write nothing."""

    def __init__(self, folder: AnyPath):
        self._fd = None
        try:
            self._fd = _open_lock(folder, fcntl.LOCK_SH) if local(folder) else None
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES):
                raise StoreError(f"{error.filename or folder}: {error.strerror}") from error

    def __del__(self):
        if (fd := getattr(self, "_fd", None)) is not None:
            os.close(fd)


@contextlib.contextmanager
def unused(folder: Path) -> Iterator[bool]:
    """Whether no process is filling the store; none begins to meanwhile."""
    try:
        fd = _open_lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        os.close(fd)


def _open_lock(folder: Path, how: int) -> int:
    name = str(folder / IN_USE)
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        _flock(fd, how, name)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock_file(path: Path) -> BinaryIO:
    try:
        return open(path, "ab", opener=no_link)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES) or not path.exists():
            raise
        return open(path, "rb", opener=no_link)  # on a read-only disk: who finds nothing to write may pass


class Claim:
    """A block that is ours to write until its mark is put in place or the claim is left."""

    def __init__(self, mark: AnyPath, file: BinaryIO | None = None):
        self.mark, self.file = mark, file

    def release(self) -> None:
        if self.file:
            os.unlink(self.file.name)

    def finish(self, data: bytes) -> None:
        """Makes these bytes the mark, lastingly."""
        if not self.file:
            self.mark.write_bytes(data)
            return
        assert local(self.mark)
        self.file.write(data)
        self.file.flush()
        os.fsync(self.file.fileno())
        os.replace(self.file.name, self.mark)
        sync(self.mark.parent)


@contextlib.contextmanager
def claim_block(mark: AnyPath) -> Iterator[Claim]:
    """The mark's unfinished file, held, so that two fills of one store cannot mix their bytes in a block.

    The hold ends with its process; what a killed one left behind is taken over. Other blocks wait for nothing. Object
    storage holds nothing: there a mixture is noticed, by the mark's checksums.
    """
    if not local(mark):
        yield Claim(mark)
        return
    unfinished = mark.with_name(mark.name + ".tmp")
    while True:
        with open(unfinished, "ab", opener=no_link) as file:
            lock_exclusive(file)
            try:
                ours = os.path.samestat(os.fstat(file.fileno()), os.stat(unfinished))
            except FileNotFoundError:  # whoever held it has made it the mark
                ours = False
            if ours:
                file.truncate(0)
                yield Claim(mark, file)
                return


def append_history(folder: AnyPath, action: str, **details) -> None:
    """Appends a line to the history. Under the lock."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("numpy", "torch", "zarr")}}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = with_checksum({"action": action, "time": now, "host": platform.node(), "versions": versions, **details}, indent=None)
    append(below(folder, "history.jsonl"), line)


# The images of a block


@dataclass(frozen=True, slots=True)
class ImageRow:
    id: str  # any characters but tab and newline; leads out of no folder
    image_digest: str
    label_digest: str  # "-": no label


def image_row(image_id: str, row: dict[str, np.ndarray]) -> ImageRow:
    """The line of a prepared image: digests of its pixels and of its label, to which `existence` counts."""
    label = digest_array(np.concatenate([row["label"].ravel(), row.get("existence", np.empty(0, np.uint8))]))
    return ImageRow(image_id, digest_array(row["image"]), label)


def images_tsv(rows: list[ImageRow]) -> bytes:
    lines = "".join(f"{row.id}\t{row.image_digest}\t{row.label_digest}\n" for row in rows)
    body = lines.encode("utf-8", "surrogateescape")
    return f"image\timage_digest\tlabel_digest\t{sha256(body)}\n".encode() + body


def parse_images(data: bytes, path: AnyPath) -> list[ImageRow]:
    """Raises StoreError if any byte was changed, or an id leads out of a folder."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")[1:-1]
    rows = [ImageRow(*cells) for line in lines if len(cells := line.split("\t")) == 3]
    if images_tsv(rows) != data:
        raise StoreError(f"{path}: damaged, its checksum does not fit")
    for row in rows:
        if fault := id_fault(row.id):
            raise StoreError(f"{path}: the image id {row.id!r} {fault}; get the store again from where it was filled")
    return rows


# Arrays


@dataclass(frozen=True)
class Array:
    path: str  # below the store's folder
    shape: tuple[int, ...]  # of one row
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

    def chunk_path(self, chunk: int) -> str:
        return f"{self.path}/c.{chunk}" + ".0" * len(self.shape)

    def block_chunks(self, block: int, block_rows: int) -> list[str]:
        num = block_rows // self.chunk_rows
        return [self.chunk_path(chunk) for chunk in range(block * num, (block + 1) * num)]

    def split(self, rows: np.ndarray) -> list[np.ndarray]:
        """A block's rows by chunk."""
        return [rows[start : start + self.chunk_rows] for start in range(0, len(rows), self.chunk_rows)]

    def metadata(self, num_rows: int) -> bytes:
        """Its zarr.json."""
        return json.dumps(
            {
                "shape": [num_rows, *self.shape],
                "data_type": self.dtype.name,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [self.chunk_rows, *self.shape]}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
                "fill_value": "NaN" if self.dtype.kind == "f" else self.fill,
                "codecs": self.codecs,
                "attributes": {},
                "dimension_names": ["image", *self.dims],
                "zarr_format": 3,
                "node_type": "array",
                "storage_transformers": [],
            },
            indent=2,
        ).encode()

    def encode(self, rows: np.ndarray) -> bytes:
        """The chunk file of [chunk_rows, ...]."""
        if not self.raw:
            return self._through_zarr(rows)
        data = rows.tobytes()
        return data + crc32c(data).to_bytes(4, "little")

    def decode(self, data: bytes) -> np.ndarray:
        """[chunk_rows, ...] of a chunk file whose crc was checked."""
        if not self.raw:
            return self._through_zarr(data)
        return np.frombuffer(data[:-4], self.dtype).reshape(self.chunk_rows, *self.shape)

    def _through_zarr(self, chunk: np.ndarray | bytes) -> Any:
        import zarr  # 0.4 s
        from zarr.core.buffer.cpu import Buffer

        key = self.chunk_path(0).rpartition("/")[2]
        files: dict[str, Any] = {"zarr.json": Buffer.from_bytes(self.metadata(self.chunk_rows))}
        if isinstance(chunk, bytes):
            files[key] = Buffer.from_bytes(chunk)
            return zarr.open_array(zarr.storage.MemoryStore(files), mode="r")[...]
        with zarr.config.set({"array.write_empty_chunks": True}):
            zarr.open_array(zarr.storage.MemoryStore(files), mode="r+")[...] = chunk
        return files[key].to_bytes()


def codec_chain(codec: str, dtype: np.dtype) -> list:
    """The Zarr codecs of a setting: raw, or Blosc's lz4 or zstd with shuffled bits."""
    order = {"name": "bytes", "configuration": {"endian": "little"}} if dtype.itemsize > 1 else {"name": "bytes"}
    blosc = {"typesize": dtype.itemsize, "cname": codec, "clevel": 5, "shuffle": "bitshuffle", "blocksize": 0}
    return [order, *([] if codec == "raw" else [{"name": "blosc", "configuration": blosc}]), {"name": "crc32c"}]


def read_chunk(path: AnyPath, size: int, crc: str) -> bytes:
    """A chunk file, if it has the size and crc of its mark; StoreError otherwise."""
    data = read(path)
    if len(data) != size:
        raise StoreError(f"{path}: {len(data)} bytes, but {size} were written")
    if not f"{crc32c(data[:-4]):08x}" == stored_crc(data) == crc:
        raise StoreError(f"{path}: damaged, its crc32c does not fit")
    return data


def stored_crc(data: bytes) -> str:
    return f"{int.from_bytes(data[-4:], 'little'):08x}"


def row_crcs(rows: np.ndarray) -> np.ndarray:
    """crc32c of each row's bytes."""
    return np.array([crc32c(row) for row in rows.reshape(len(rows), -1).view(np.uint8)], CRC)


def finite(rows: np.ndarray) -> np.ndarray:
    """[n] bool: no NaN or infinity in the row."""
    if rows.dtype.kind != "f":
        return np.ones(len(rows), bool)
    if rows.dtype == np.float16:  # numpy is slow on half precision; all bits of the exponent are set
        return (rows.view(np.uint16) & 0x7C00 != 0x7C00).reshape(len(rows), -1).all(axis=1)
    return np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
