"""Reading a store: rows for training, every byte for verification.

Rows are held in RAM where they fit. From disk a raw row is one `preadv`, past Zarr's Python (0.1 ms for a batch of 12,
against 8 ms through zarr); nothing stays open, so it is safe in forked and spawned loader workers. Compressed chunks
are decoded whole by zarr. Each row is compared with its crc: in RAM once, when it is loaded, from disk at each read.

B rows asked for, V views, N images.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from google_crc32c import value as crc32c

from pipeline.errors import StoreError
from pipeline.identity import listed
from pipeline.storefiles import Array, finite, parse_images, read, read_chunk, row_crcs, unseal, view_name

if TYPE_CHECKING:
    from pipeline.store import Pass, Store

RAM_SHARE = 0.25        # of what is free now; beyond it rows stay on disk


class Reader:
    """Rows of some passes for these images (positions count in `ids`) in views 0 .. num_views - 1.

    StoreError if an image is unknown or a block is not whole. `memory`: "ram", "disk", or "auto": passes are held in
    RAM, the smallest first, up to `limit_bytes` in all (None: a quarter of the free RAM). Forked workers share these
    pages; a spawned worker loads its own.
    """

    def __init__(self, store: Store, passes: Sequence[Pass], ids: Sequence[str], num_views: int, *,
                 memory: Literal["auto", "ram", "disk"] = "auto", limit_bytes: int | None = None):
        store.check_ids(ids)
        self.ids, self.num_views = list(ids), num_views
        self._folder, self._block_rows = store.folder, store.block_rows
        self._rows = np.array([store.row_of[image_id] for image_id in ids], np.int64)
        views, folders = [view_name(view) for view in range(num_views)], sorted({pass_.folder for pass_ in passes})
        for pass_ in passes:
            if not store.has_pass(pass_):
                raise StoreError(f"{store.folder}: {pass_.folder} was never stored")
        self._arrays: dict[str, list[dict[str, Array]]] = {}         # by pass and view
        self._crcs: dict[str, dict[str, np.ndarray]] = {}            # [V, N] by pass and field
        for folder in folders:
            fields = store.layout(folder)
            crcs = [store.stored_crcs(view, folder, self._rows) for view in views]
            self._crcs[folder] = {name: np.stack([crc[name] for crc in crcs]) for name in fields}
            self._arrays[folder] = []
            for view in views:
                arrays = store.arrays(view, folder)
                for array in arrays.values():
                    check_metadata(store.folder, array)
                self._arrays[folder].append({name: arrays[name] for name in fields})
        room = limit_bytes if limit_bytes is not None else int(RAM_SHARE * free_bytes())
        self._in_ram = []
        for folder in sorted(folders, key=self._num_bytes):
            room -= self._num_bytes(folder)
            if memory == "ram" or (memory == "auto" and room >= 0):
                self._in_ram.append(folder)
        self._load()

    @property
    def strategy(self) -> str:
        """For the log: which pass is held where."""
        return "; ".join(f"{folder}: {self._num_bytes(folder) / 1e6:.1f} MB " + (
            "in RAM" if folder in self._in_ram else
            "from disk" if all(array.raw for array in self._arrays[folder][0].values()) else "from disk, decompressed")
            for folder in self._arrays)

    def read(self, pass_: Pass, positions: np.ndarray, views: np.ndarray) -> dict[str, np.ndarray]:
        """[B, ...] of each field for these (position, view) pairs. StoreError if a row is not what was written."""
        folder = pass_.folder
        if folder in self._in_ram:
            return {name: rows[views, positions] for name, rows in self._resident[folder].items()}
        return {name: self._read_field(folder, name, np.asarray(positions), np.asarray(views))
                for name in self._crcs[folder]}

    def _read_field(self, folder: str, name: str, positions: np.ndarray, views: np.ndarray) -> np.ndarray:
        array = self._arrays[folder][0][name]
        found = np.empty((len(positions), *array.shape), array.dtype)
        bytes_of = found.reshape(len(found), -1).view(np.uint8)
        rows = self._rows[positions].tolist()
        numbers = views.tolist()
        if array.raw:
            for row, view, target in zip(rows, numbers, bytes_of):
                self._read_row(self._arrays[folder][view][name], row, target)
        else:
            for view, chunk in sorted({(view, row // array.chunk_rows) for row, view in zip(rows, numbers)}):
                array = self._arrays[folder][view][name]
                decoded = array.decode(self._chunk(array.chunk_path(chunk)))
                for i, row in enumerate(rows):
                    if (numbers[i], row // array.chunk_rows) == (view, chunk):
                        found[i] = decoded[row % array.chunk_rows]
        crcs = self._crcs[folder][name][views, positions].tolist()
        for i, crc in enumerate(crcs):
            if crc32c(bytes_of[i]) != crc:
                self._refuse(folder, name, positions[i], numbers[i])
        return found

    def _read_row(self, array: Array, row: int, target: np.ndarray) -> None:
        path = f"{self._folder}/{array.chunk_path(row // array.chunk_rows)}"
        try:
            fd = os.open(path, os.O_RDONLY)
            try:
                size = os.preadv(fd, [target], row % array.chunk_rows * len(target))
            finally:
                os.close(fd)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error
        if size != len(target):
            raise StoreError(f"{path}: ends before row {row % array.chunk_rows}; it was cut off")

    def _chunk(self, path: str) -> bytes:
        data = read(self._folder / path)
        if len(data) < 4 or crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise StoreError(f"{self._folder / path}: damaged, its crc32c does not fit")
        return data

    def _refuse(self, folder: str, name: str, position: int, view: int):
        block = self._rows[position] // self._block_rows
        raise StoreError(f"{self._folder}: image {self.ids[position]!r}, view {view}, field {name!r} of {folder} "
                         f"(block {block}) is not what was written; verify the store, and fill it again")

    # RAM

    def _num_bytes(self, folder: str) -> int:
        return self.num_views * len(self.ids) * sum(array.row_bytes for array in self._arrays[folder][0].values())

    def _load(self) -> None:
        self._resident = {folder: {name: self._load_field(folder, name) for name in self._crcs[folder]}
                          for folder in self._in_ram}

    def _load_field(self, folder: str, name: str) -> np.ndarray:
        array = self._arrays[folder][0][name]
        found = np.empty((self.num_views, len(self.ids), *array.shape), array.dtype)
        chunks = self._rows // array.chunk_rows
        order = np.argsort(chunks, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(chunks[order])) + 1) if len(order) else []
        for view in range(self.num_views):
            array, crcs = self._arrays[folder][view][name], self._crcs[folder][name][view]
            for positions in parts:
                decoded = array.decode(self._chunk(array.chunk_path(int(chunks[positions[0]]))))
                rows = decoded[self._rows[positions] % array.chunk_rows]
                wrong = np.flatnonzero(row_crcs(rows) != crcs[positions])
                if len(wrong):
                    self._refuse(folder, name, positions[wrong[0]], view)
                found[view, positions] = rows
        return found

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "_resident"}

    def __setstate__(self, state):
        self.__dict__ |= state
        self._load()


def check_metadata(folder: Path, array: Array) -> None:
    """StoreError unless zarr.json describes the files as they are read here; an array may have grown."""
    path = folder / array.path / "zarr.json"
    try:
        found = json.loads(read(path))
        meant = json.loads(array.metadata(found["shape"][0]))
    except (ValueError, KeyError, TypeError, IndexError):
        found, meant = None, {}
    if found != meant:
        raise StoreError(f"{path}: does not describe {array.path} as it was written; verify the store")


def free_bytes() -> int:
    """What can be had without swapping, or the container's limit if that is less; without /proc, half of the RAM."""
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    free = int(dict(line.split(":") for line in meminfo.read_text().splitlines())["MemAvailable"].split()[0]) * 1024
    allowed = limit.read_text().strip() if limit.exists() else "max"
    return free if allowed == "max" else min(free, int(allowed))


# Verification

def verify(store: Store, deep: bool) -> list[str]:
    """Every fault, one line each: files that are missing, damaged or belong nowhere, rows that differ from their crc or
    are not finite, blocks that were whole and are not any more.

    What was never filled is no fault. Unfinished files (*.tmp), and what others keep beside the store's folders, are
    left alone.
    """
    rows = (fault for group in store.stored_groups() for fault in _faults_of(store, *group, deep))
    return [*_faults_of_metadata(store), *rows, *_strays(store)]


def _faults_of_metadata(store: Store) -> Iterator[str]:
    top = store.folder
    checks = [(unseal, top / "store.json"), *((parse_images, path) for path in store.image_files())]
    checks += [(unseal, path) for path in [top / "manifest.json"] if path.exists()]
    for check, path in checks:
        try:
            check(read(path), path)
        except StoreError as error:
            yield str(error)
    history = top / "history.jsonl"
    for number, line in enumerate(read(history).splitlines(keepends=True) if history.exists() else [], start=1):
        try:
            unseal(line, history)
        except StoreError as error:
            yield f"{error} (line {number})"
    for folder in sorted({*store.stored_passes(), *(folder for _, folder in store.stored_groups())}):
        try:
            store.pass_file(folder)
        except StoreError as error:
            yield f"{error} (all blocks of {folder})"
    yield from _broken_promises(store)


def _broken_promises(store: Store) -> Iterator[str]:
    """What the manifest calls whole and is not."""
    path = store.folder / "manifest.json"
    try:
        passes = unseal(read(path), path)["passes"]
    except StoreError:                           # never finalised, or reported already
        return
    for folder, views in passes.items():
        for view, extent in views.items():
            blocks = [block for first, last in extent["blocks"] for block in range(first, last + 1)]
            gone = [block for block in blocks if not store.mark_path(view, folder, block).exists()]
            for block in gone:
                yield f"{store.mark_path(view, folder, block)}: missing (block {block} of {folder}, {view})"
            if not gone and store.digest_of_marks(view, folder, blocks) != extent["marks"]:
                yield f"{path}: other blocks of {folder}, {view}, were filled since; fill the store again"


def _faults_of(store: Store, view: str, folder: str, deep: bool) -> Iterator[str]:
    try:
        meant = store.metadata(view, folder)
    except StoreError:                           # the pass's file: reported already
        return
    for path, data in meant.items():
        if not path.exists() or path.read_bytes() != data:
            yield f"{path}: missing, or not what the store wrote (all blocks of {folder}, {view})"
    for block in range(store.num_blocks):
        if store.mark_path(view, folder, block).exists():
            for fault in _faults_of_block(store, view, folder, block, deep):
                yield f"{fault} (block {block} of {folder}, {view})"


def _faults_of_block(store: Store, view: str, folder: str, block: int, deep: bool) -> Iterator[str]:
    fault = store.fault(view, folder, block)
    if fault or not deep:
        yield from [fault] if fault else []
        return
    files, images, rows = store.marked_files(view, folder, block), store.block_images(block), {}
    for name, array in store.arrays(view, folder).items():
        parts, chunks = [], array.block_chunks(block, store.block_rows)
        for i, chunk in enumerate(chunks):
            here = images[i * array.chunk_rows:(i + 1) * array.chunk_rows]
            try:
                parts.append(array.decode(read_chunk(store.folder / chunk, *files[chunk])))
            except StoreError as error:
                yield f"{error}, " + (f"images {here[0].id!r} to {here[-1].id!r}" if here else "padding")
        if len(parts) == len(chunks):
            rows[name] = np.concatenate(parts)[:len(images)]
    for name in store.layout(folder):
        if name in rows and f"{name}_crc" in rows:
            fine = (row_crcs(rows[name]) == rows[f"{name}_crc"]) & finite(rows[name])
            bad = listed([repr(image.id) for image, good in zip(images, fine) if not good])
            if bad:
                yield f"{store.folder}: {name!r} differs from its crc, or is not finite, for image {bad}"


def _strays(store: Store) -> Iterator[str]:
    known = {*store.image_files(), store.folder / f"{store.kind}.zarr/zarr.json"}
    known |= {store.folder / f"passes/{folder}.json" for folder in store.stored_passes()}
    for view, folder in store.stored_groups():
        try:
            known |= set(store.metadata(view, folder))
        except StoreError:
            known |= set((store.folder / f"{store.kind}.zarr" / view / folder).rglob("*"))
            continue
        for block in range(store.num_blocks):
            known.add(store.mark_path(view, folder, block))
            known |= {store.folder / chunk for array in store.arrays(view, folder).values()
                      for chunk in array.block_chunks(block, store.block_rows)}
    for top in ("images", "passes", "done", f"{store.kind}.zarr"):
        for path in sorted((store.folder / top).rglob("*")):
            if path.is_file() and path not in known and path.suffix != ".tmp":
                yield f"{path}: does not belong here"
