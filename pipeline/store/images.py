"""The images of a store by row and by id. Of a large store they are not held: a list is read when one of its images is asked for.

Up to `HELD` images are held as their lists name them. The images of all earlier lists are found by an index beside the lists, which
follows from them and belongs to no format:

  images.index    a line of sealed JSON: format, store, block_rows, images, blocks; sha256 of the tables
                  tables: LIST [blocks], then the first `high` of each page, uint64, and its crc32c, uint32
                  ENTRY [images], sorted by `high`, in pages of `PAGE`: BLAKE2b-128 of an id, and its row

An index is used only if each list still has the size and the time of change (ctime) that it had when it was read for the index;
otherwise, also in a copy of the store, another is made from the lists. A page is compared with its crc whenever it is read, a list
with its SHA-256. Where no file can be written, the entries are held in memory, 24 bytes an image. On object storage all images
are held.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import count, takewhile
from threading import Lock
from typing import Any

import numpy as np
from google_crc32c import value as crc32c

from pipeline.errors import StoreError
from pipeline.identity import sha256
from pipeline.paths import below
from pipeline.store.files import (
    FORMAT,
    AnyPath,
    ImageRow,
    check_and_parse,
    claim_block,
    local,
    parse_images,
    read,
    with_checksum,
)

HELD = 2**16  # images
PAGE = 1024  # entries
AT_ONCE = 2**20  # ids
ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u8")])
LIST = np.dtype([("digest", "V32"), ("images", "<u4"), ("size", "<u8"), ("changed", "<i8")])
PADDING = ImageRow("", "-", "-")
INDEX = "images.index"
ELSEWHERE = "get the store again from where it was filled"


class Images(Sequence[ImageRow]):
    """By row; padding rows have an empty id. May be used by several threads."""

    def __init__(self, folder: AnyPath, block_rows: int, store: str):
        """`store`: its identity's digest. Raises StoreError if a list is missing, or one that is read is damaged."""
        self.folder, self.block_rows, self.store = folder, block_rows, store
        self._index = Index.empty()
        self._lists: list[tuple] = []  # a LIST of each list that is held
        self._held: list[list[ImageRow]] = []  # the images of these
        self._rows: dict[str, int] = {}
        self._kept: OrderedDict[int, list[ImageRow]] = OrderedDict()  # of the others, those read last
        self._lock = Lock()
        self._begin()

    def _begin(self) -> None:
        index = self._stored_index()  # before the folder is listed, as a store only grows
        found = listed(self.folder)
        for block, (number, _, _) in enumerate(found):
            if number != block:
                raise StoreError(f"{self.path(block)}: missing; bring it back from a copy")
        if index is not None and index.fits(found):
            self._index = index
        self._take(below(self.folder, f"images/{name}") for _, name, _ in found[self._index.num_blocks :])

    def load(self) -> None:
        """Takes in the lists that are new on disk; those known never change."""
        if not self.num_blocks:
            self._begin()
            return
        # listing them all for every block would take the square of their number
        self._take(takewhile(lambda path: path.exists(), map(self.path, count(self.num_blocks))))

    def path(self, block: int) -> AnyPath:
        return below(self.folder, f"images/{block:06d}.tsv")

    @property
    def num_blocks(self) -> int:
        return self._index.num_blocks + len(self._held)

    @property
    def num_images(self) -> int:
        """Without the padding."""
        return self._index.num_images + len(self._rows)

    def digest(self, block: int) -> str:
        """SHA-256 of a block's list."""
        return self._list(block)[0].hex()

    def count_in(self, block: int) -> int:
        return self._list(block)[1]

    def _list(self, block: int) -> tuple:
        num = self._index.num_blocks
        return self._index.lists[block].item() if block < num else self._lists[block - num]

    def block(self, block: int) -> list[ImageRow]:
        """The images of a block. StoreError if its list is not what it was when the index was made."""
        if block >= self._index.num_blocks:
            return self._held[block - self._index.num_blocks]
        with self._lock:
            if block in self._kept:
                self._kept.move_to_end(block)
                return self._kept[block]
        data = read(self.path(block))
        if sha256(data) != self.digest(block):
            raise StoreError(self._list_fault(block, data))
        images = parse_images(data, self.path(block))  # ids too: whoever made the index may not have looked at them
        with self._lock:
            self._kept[block] = images
            if len(self._kept) > max(4, HELD // self.block_rows):
                self._kept.popitem(last=False)
        return images

    def _list_fault(self, block: int, data: bytes) -> str:
        try:
            parse_images(data, self.path(block))
        except StoreError as error:
            return str(error)
        return f"{self.path(block)}: lists other images than when it was read first; bring it back from a copy"

    def faults(self) -> Iterator[str]:
        """Of lists and index, where any byte has changed since the lists were parsed."""
        for block in range(self.num_blocks):
            try:
                data = read(self.path(block))
            except StoreError as error:
                yield str(error)
                continue
            if sha256(data) != self.digest(block):
                yield self._list_fault(block, data)
        yield from self._index.faults()

    def remove_bad_index(self) -> list[str]:
        """Another is made when the store is opened next. Returns what was done."""
        if not any(self._index.faults()):
            return []
        path = below(self.folder, INDEX)
        path.unlink(missing_ok=True)
        return [f"{path}: removed; it is made again from the lists of images"]

    # By row

    def __len__(self) -> int:
        return self.num_blocks * self.block_rows

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        if row < 0:
            row += len(self)
        if not 0 <= row < len(self):
            raise IndexError(row)
        block, offset = divmod(row, self.block_rows)
        images = self.block(block)
        return images[offset] if offset < len(images) else PADDING

    def __iter__(self) -> Iterator[ImageRow]:
        for block in range(self.num_blocks):
            images = self.block(block)
            yield from images
            yield from [PADDING] * (self.block_rows - len(images))

    def at(self, rows: np.ndarray) -> list[ImageRow]:
        """The images in these rows, in their order; each list is read once."""
        found = [PADDING] * len(rows)
        for position in np.argsort(rows, kind="stable").tolist():
            found[position] = self[int(rows[position])]
        return found

    # By id

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """int64 row of each id; -1 where it is unknown."""
        found = np.fromiter((self._rows.get(image_id, -1) for image_id in ids), np.int64, len(ids))
        if self._index.num_images:
            for start in range(0, len(ids), AT_ONCE):
                part = found[start : start + AT_ONCE]
                others = np.flatnonzero(part < 0)
                part[others] = self._index.rows(keys_of(ids[start + i] for i in others.tolist()))
        return found

    # The index

    def _take(self, paths: Iterable[AnyPath]) -> None:
        """Takes in these lists, in this order; moves what is more than `HELD` images to the index."""
        parts: list[np.ndarray] = []
        lists: list[tuple] = []
        try:
            for path in paths:
                changed = getattr(path.stat(), "st_ctime_ns", 0) if local(path) else 0  # before it is read
                data = read(path)
                images = parse_images(data, path)
                if not 0 < len(images) <= self.block_rows:
                    raise StoreError(f"{path}: lists {len(images)} images, where a block has 1 to {self.block_rows}; {ELSEWHERE}")
                first = (self.num_blocks + len(lists)) * self.block_rows
                self._rows |= {image.id: first + offset for offset, image in enumerate(images)}
                self._held.append(images)
                self._lists.append((bytes.fromhex(sha256(data)), len(images), len(data), changed))
                if len(self._rows) > HELD and local(self.folder):
                    parts.append(entries_of(self._rows))
                    lists += self._lists
                    self._rows, self._held, self._lists = {}, [], []
        finally:
            if parts:
                self._index = self._index.with_more(parts, lists, below(self.folder, INDEX), self._head())

    def _head(self) -> dict:
        return {"format": FORMAT, "store": self.store, "block_rows": self.block_rows}

    def _stored_index(self) -> Index | None:
        if not local(self.folder):
            return None
        try:
            return Index.open(below(self.folder, INDEX), self._head())
        except (OSError, StoreError):  # there is none, or it is damaged, or a link
            return None


class RowOf(Mapping[str, int]):
    """The rows of a store's images by id."""

    def __init__(self, images: Images):
        self._images = images

    def __getitem__(self, image_id: str) -> int:
        if (row := self.get(image_id, -1)) < 0:
            raise KeyError(image_id)
        return row

    def get(self, image_id: str, default: Any = None) -> Any:
        row = int(self._images.rows([image_id])[0]) if isinstance(image_id, str) else -1
        return default if row < 0 else row

    def __contains__(self, image_id: object) -> bool:
        return self.get(image_id, -1) >= 0  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[str]:
        return (image.id for image in self._images if image.id)

    def __len__(self) -> int:
        return self._images.num_images


def listed(folder: AnyPath) -> list[tuple[int, str, os.stat_result | None]]:
    """The lists of images on disk by their number: their names, and size and times where these cost nothing."""
    top = below(folder, "images")
    found: list[tuple[int, str, os.stat_result | None]]
    if local(top):
        try:
            with os.scandir(top) as entries:
                found = [(0, entry.name, entry.stat(follow_symlinks=False)) for entry in entries if is_list(entry.name)]
        except FileNotFoundError:
            found = []
        except OSError as error:
            raise StoreError(f"{top}: {error.strerror}") from error
    else:
        found = [(0, path.name, None) for path in top.glob("*.tsv") if is_list(path.name)]
    return sorted(((int(name[:-4]), name, stat) for _, name, stat in found), key=lambda each: each[0])


def is_list(name: str) -> bool:
    return name.endswith(".tsv") and name[:-4].isdecimal()


def keys_of(ids: Iterable[str]) -> np.ndarray:
    """[n, 2] uint64: BLAKE2b-128 of each id."""
    digests = b"".join(blake2b(image_id.encode("utf-8", "surrogateescape"), digest_size=16).digest() for image_id in ids)
    return np.frombuffer(digests, "<u8").reshape(-1, 2)


def entries_of(rows: Mapping[str, int]) -> np.ndarray:
    found = np.empty(len(rows), ENTRY)
    found["high"], found["low"] = keys_of(rows).T
    found["row"] = np.fromiter(rows.values(), np.uint64, len(rows))
    return found


class Index:
    """Rows of images by the digest of their id, in a file or in memory. Forked processes may share one."""

    def __init__(self, lists: np.ndarray, firsts: np.ndarray, crcs: np.ndarray, num_images: int):
        self.lists, self.num_images = lists, num_images
        self._firsts, self._crcs = firsts, crcs
        self._entries: np.ndarray | None = None  # in memory
        self._path, self._fd, self._start = "", -1, 0  # or in a file, from this byte on

    @classmethod
    def empty(cls) -> Index:
        return cls(np.empty(0, LIST), np.empty(0, "<u8"), np.empty(0, "<u4"), 0)

    @classmethod
    def open(cls, path: Any, head: dict) -> Index | None:
        """None if it is another store's, or not as it was written. OSError or StoreError if there is none, or its head is damaged.
        The file stays open, as another may take its name."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        index = cls.empty()
        index._path, index._fd = str(path), fd  # closed with it
        line = os.pread(fd, 4096, 0).partition(b"\n")[0] + b"\n"
        content = check_and_parse(line, path)
        size = os.fstat(fd).st_size
        tables, num_blocks, num_images = (content.pop(name, None) for name in ("tables", "blocks", "images"))
        if content != head or not all(type(number) is int and 0 <= number <= size for number in (num_blocks, num_images)):
            return None
        num_pages = -(-num_images // PAGE)
        parts = [(LIST, num_blocks), (np.dtype("<u8"), num_pages), (np.dtype("<u4"), num_pages)]
        sizes = [dtype.itemsize * count for dtype, count in parts]
        index._start = len(line) + sum(sizes)
        if size != index._start + num_images * ENTRY.itemsize:
            return None
        data = os.pread(fd, sum(sizes), len(line))
        if sha256(data) != tables:
            return None
        ends = np.cumsum(sizes).tolist()
        index.lists, index._firsts, index._crcs = (
            np.frombuffer(data[end - size : end], dtype) for (dtype, _), size, end in zip(parts, sizes, ends)
        )
        index.num_images = num_images
        return index

    @property
    def num_blocks(self) -> int:
        return len(self.lists)

    def fits(self, found: Sequence[tuple[int, str, os.stat_result | None]]) -> bool:
        """Whether these lists have the names, sizes and times of change of those that it was made from."""
        if len(found) < self.num_blocks:
            return False
        here = [
            (stat.st_size, stat.st_ctime_ns) if stat and name == f"{block:06d}.tsv" else (0, 0)
            for block, name, stat in found[: self.num_blocks]
        ]
        known = np.stack([self.lists["size"].astype(np.int64), self.lists["changed"]], 1)
        return np.array_equal(np.array(here, np.int64).reshape(-1, 2), known)

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """int64 row of each key [n, 2]; -1 where it is unknown."""
        high, low = keys[:, 0], keys[:, 1]
        found = np.full(len(keys), -1, np.int64)
        first = np.maximum(np.searchsorted(self._firsts, high, "left") - 1, 0)
        page = np.searchsorted(self._firsts, high, "right") - 1
        wanted = np.flatnonzero(page >= 0)
        while len(wanted):  # once; again for an id whose first half is that of another, at the end of the page before
            wanted = wanted[np.argsort(page[wanted], kind="stable")]
            starts = np.flatnonzero(np.diff(page[wanted], prepend=-1))
            for here in np.split(wanted, starts[1:]):
                entries = self._page(int(page[here[0]]))
                place = np.searchsorted(entries["high"], high[here], "left")
                while len(here):
                    inside = place < len(entries)
                    here, place = here[inside], place[inside]
                    same = entries["high"][place] == high[here]
                    here, place = here[same], place[same]
                    hit = entries["low"][place] == low[here]
                    found[here[hit]] = entries["row"][place[hit]]
                    here, place = here[~hit], place[~hit] + 1
            page[wanted] -= 1
            wanted = wanted[(found[wanted] < 0) & (page[wanted] >= first[wanted])]
        return found

    def _page(self, number: int) -> np.ndarray:
        start, count = number * PAGE, min(PAGE, self.num_images - number * PAGE)
        if self._entries is not None:
            return self._entries[start : start + count]
        data = os.pread(self._fd, count * ENTRY.itemsize, self._start + start * ENTRY.itemsize)
        if len(data) != count * ENTRY.itemsize or crc32c(data) != self._crcs[number]:
            raise StoreError(f"{self._path}: damaged; remove it, and it is made again from the lists of images")
        return np.frombuffer(data, ENTRY)

    def faults(self) -> Iterator[str]:
        try:
            for number in range(len(self._firsts)):
                self._page(number)
        except StoreError as error:
            yield str(error)

    def with_more(self, parts: list[np.ndarray], lists: list[tuple], path: Any, head: dict) -> Index:
        """One of these entries and lists, too, in the file, or in memory if it can't be written."""
        entries = np.concatenate([*(self._page(number) for number in range(len(self._firsts))), *parts])
        order = np.argsort(entries["high"], kind="stable")
        pages = [order[start : start + PAGE] for start in range(0, len(order), PAGE)]
        made = Index(
            np.concatenate([self.lists, np.array(lists, LIST)]),
            np.array([entries["high"][page[0]] for page in pages], "<u8"),
            np.array([crc32c(entries[page].tobytes()) for page in pages], "<u4"),
            len(entries),
        )
        tables = made.lists.tobytes() + made._firsts.tobytes() + made._crcs.tobytes()
        counts = {"images": made.num_images, "blocks": made.num_blocks, "tables": sha256(tables)}
        try:
            with claim_block(path) as claim:
                assert claim.file is not None
                claim.file.write(with_checksum(head | counts, indent=None) + tables)
                for page in pages:
                    claim.file.write(entries[page].tobytes())
                claim.finish(b"")
            if (stored := Index.open(path, head)) is not None and np.array_equal(stored.lists, made.lists):
                return stored
        except (OSError, StoreError):  # a full disk, a read-only one, one without locks, or a link in its place
            pass
        made._entries = entries[order]
        return made

    def __del__(self):
        if self._fd >= 0:
            os.close(self._fd)
