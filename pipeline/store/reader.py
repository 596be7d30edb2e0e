"""Reading a store's rows for training: from the device's memory, from RAM, from disk, or from object storage.

Rows are held where they fit, on the GPU first, then in RAM. From disk a raw row is one `preadv`, past Zarr's Python
(0.03 ms for a batch of 12, against 8 ms through zarr), from object storage one ranged GET, a batch's side by side.
Compressed chunks are decoded whole by zarr. Each row is compared with its crc: resident ones once, when they are loaded,
others at each read. For storage that is slow to answer, `keep_chunks` reads whole chunks and keeps those last used.

B rows asked for, V views, N images.
"""

from __future__ import annotations

import json
import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from google_crc32c import value as crc32c

from pipeline.errors import StoreError
from pipeline.paths import below
from pipeline.progress import byte_size
from pipeline.store.files import AnyPath, Array, map_concurrently, read, row_crcs, view_name
from pipeline.store.rows import rows_of

if TYPE_CHECKING:
    import torch

    from pipeline.store.store import ArrayGroup, Store

RAM_SHARE = 0.25  # of what is free now; beyond it rows stay on disk
DEVICE_SHARE = 0.5  # of the GPU's free memory; the rest is the networks'


class Reader:
    """Rows of some passes for these images (positions count in `ids`) in views 0 .. num_views - 1.

    StoreError if an image is unknown or a block is not whole. `memory`: "ram", "disk", "device", or "auto": passes are
    held in RAM, the smallest first, up to `limit_bytes` in all (None: a quarter of the free RAM). With a `device` of
    CUDA, "auto" first fills half of its free memory, and `read` gives these passes as tensors there; those in `host`,
    which the host itself looks at, stay arrays. Forked workers share RAM's pages; a spawned worker loads its own. May be
    used by several threads.
    """

    def __init__(
        self,
        store: Store,
        passes: Sequence[ArrayGroup],
        ids: Sequence[str],
        num_views: int,
        *,
        memory: Literal["auto", "ram", "disk", "device"] = "auto",
        limit_bytes: int | None = None,
        device: str | torch.device | None = None,
        host: Sequence[ArrayGroup] = (),
    ):
        self.ids, self.num_views = list(ids), num_views
        self.folder, self.block_rows = store.folder, store.block_rows
        self._rows = store.rows_of(self.ids)
        views, folders = [view_name(view) for view in range(num_views)], sorted({pass_.folder for pass_ in passes})
        for pass_ in passes:
            if not store.has_pass(pass_):
                raise StoreError(f"{store.folder}: {pass_.folder} was never stored")
        self._arrays: dict[str, list[dict[str, Array]]] = {}  # by pass and view
        self._crcs: dict[str, dict[str, np.ndarray]] = {}  # [V, N] by pass and field
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
        self._rows_from, self._chunks = rows_of(store.folder), ChunkCache(0)
        self._device, self._on_device, self._in_ram = device, [], []
        device_room = free_device_bytes(device) * DEVICE_SHARE if memory == "auto" else 0
        hosted = {pass_.folder for pass_ in host}
        for folder in sorted(folders, key=self._num_bytes):
            if folder not in hosted and (memory == "device" or 0 < self._num_bytes(folder) <= device_room):
                device_room -= self._num_bytes(folder)
                self._on_device.append(folder)
                continue
            room -= self._num_bytes(folder)
            if memory in ("ram", "device") or (memory == "auto" and room >= 0):
                self._in_ram.append(folder)
        self._load()

    def keep_chunks(self, num_rows: int) -> None:
        """From now on what is not resident is read a whole chunk at a time, and of each array the chunks last used are kept,
        as many as hold these rows. For an order that stays among so many rows before it goes on, such as loading.block_shuffled."""
        self._chunks = ChunkCache(num_rows)

    def fetch(self, positions: np.ndarray, views: np.ndarray) -> None:
        """Brings the chunks of these rows that are not kept yet, of all fields at once, so that `read` finds them. Only after
        `keep_chunks`."""
        rows, numbers = self._rows[positions].tolist(), np.asarray(views).tolist()
        missing: dict[tuple[str, int], Array] = {}
        for folder in self._arrays.keys() - {*self._in_ram, *self._on_device}:
            for name in self._crcs[folder]:
                for row, view in zip(rows, numbers):
                    array = self._arrays[folder][view][name]
                    if self._chunks.get(array.path, row // array.chunk_rows) is None:
                        missing[array.path, row // array.chunk_rows] = array
        paths = [array.chunk_path(chunk) for (_, chunk), array in missing.items()]
        for (key, array), data in zip(missing.items(), map_concurrently(self._chunk, paths, self.folder)):
            self._chunks.put(*key, bytes_of_rows(array, data))

    @property
    def resident(self) -> bool:
        """Whether all rows are in RAM or on the device."""
        return len(self._in_ram) + len(self._on_device) == len(self._arrays)

    @property
    def remote(self) -> bool:
        """Whether rows that are not resident are fetched over a network."""
        return self._rows_from.remote

    @property
    def strategy(self) -> str:
        """For the log: which pass is held where."""
        source = self._rows_from.words
        if self._chunks.num_rows:
            source += f", by whole chunks, those of {self._chunks.num_rows} images kept"
        return "; ".join(
            f"{folder}: {byte_size(self._num_bytes(folder))} "
            + (
                f"on {self._device}"
                if folder in self._on_device
                else "in RAM"
                if folder in self._in_ram
                else source
                if all(array.raw for array in self._arrays[folder][0].values())
                else f"{source}, decompressed"
            )
            for folder in self._arrays
        )

    def read(self, pass_: ArrayGroup, positions: np.ndarray, views: np.ndarray) -> dict[str, Any]:
        """[B, ...] of each field for these (position, view) pairs: arrays, or tensors where rows are on the device.
        StoreError if a row is not what was written."""
        folder = pass_.folder
        if folder in self._on_device:
            import torch

            places = torch.from_numpy(np.asarray(views) * len(self._rows) + positions)
            if str(self._device).startswith("cuda"):
                places = places.pin_memory().to(self._device, non_blocking=True)
            return {name: rows.flatten(0, 1)[places] for name, rows in self._resident[folder].items()}
        if folder in self._in_ram:
            return {name: rows[views, positions] for name, rows in self._resident[folder].items()}
        return {name: self._read_field(folder, name, np.asarray(positions), np.asarray(views)) for name in self._crcs[folder]}

    def _read_field(self, folder: str, name: str, positions: np.ndarray, views: np.ndarray) -> np.ndarray:
        arrays = self._arrays[folder]
        found = np.empty((len(positions), *arrays[0][name].shape), arrays[0][name].dtype)
        rows, numbers = self._rows[positions].tolist(), views.tolist()
        whole = self._chunks.num_rows or not arrays[0][name].raw
        take = self._decode if whole else self._rows_from.read
        bytes_of = found.reshape(len(found), math.prod(found.shape[1:])).view(np.uint8)
        crcs = self._crcs[folder][name][views, positions].tolist()
        take([arrays[view][name] for view in numbers], rows, bytes_of)
        for i, crc in enumerate(crcs):
            if crc32c(bytes_of[i]) == crc:
                continue
            array = arrays[numbers[i]][name]
            if not (array.raw and self._rows_from.read_again(array, rows[i], bytes_of[i]) and crc32c(bytes_of[i]) == crc):
                self._refuse(folder, name, positions[i], numbers[i])
        return found

    def _decode(self, arrays: list[Array], rows: list[int], targets: np.ndarray) -> None:
        wanted: dict[tuple[str, int], list[int]] = {}
        for i, (array, row) in enumerate(zip(arrays, rows)):
            wanted.setdefault((array.path, row // array.chunk_rows), []).append(i)
        held = {key: self._chunks.get(*key) for key in wanted}
        paths = [arrays[wanted[key][0]].chunk_path(key[1]) for key in wanted if held[key] is None]
        fresh = map_concurrently(self._chunk, paths, self.folder)
        for key, places in wanted.items():
            array, decoded = arrays[places[0]], held[key]
            if decoded is None:
                decoded = bytes_of_rows(array, next(fresh))
            self._chunks.put(*key, decoded)
            targets[places] = decoded[[rows[i] % array.chunk_rows for i in places]]

    def _chunk(self, path: str) -> bytes:
        data = read(below(self.folder, path))
        if len(data) < 4 or crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise StoreError(f"{self.folder / path}: damaged, its crc32c does not fit")
        return data

    def _refuse(self, folder: str, name: str, position: int, view: int):
        block = self._rows[position] // self.block_rows
        raise StoreError(
            f"{self.folder}: image {self.ids[position]!r}, view {view}, field {name!r} of {folder} "
            f"(block {block}) is not what was written; verify the store, and fill it again"
        )

    # RAM and the device

    def _num_bytes(self, folder: str) -> int:
        return self.num_views * len(self._rows) * sum(array.row_bytes for array in self._arrays[folder][0].values())

    def _load(self) -> None:
        self._resident: dict[str, dict[str, Any]] = {
            folder: {name: self._load_field(folder, name) for name in self._crcs[folder]}
            for folder in (*self._in_ram, *self._on_device)
        }

    def _load_field(self, folder: str, name: str) -> np.ndarray | torch.Tensor:
        array = self._arrays[folder][0][name]
        shape = self.num_views, len(self._rows), *array.shape
        if folder in self._on_device:  # a chunk at a time, since RAM may not hold it
            import torch

            dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
            found: Any = torch.empty(shape, dtype=dtype, device=self._device)
        else:
            found = np.empty(shape, array.dtype)
        chunks = self._rows // array.chunk_rows
        order = np.argsort(chunks, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(chunks[order])) + 1) if len(order) else []
        for view in range(self.num_views):
            array, crcs = self._arrays[folder][view][name], self._crcs[folder][name][view]
            paths = [array.chunk_path(int(chunks[positions[0]])) for positions in parts]
            for positions, data in zip(parts, map_concurrently(self._chunk, paths, self.folder)):
                decoded = array.decode(data)
                rows = decoded[self._rows[positions] % array.chunk_rows]
                wrong = np.flatnonzero(row_crcs(rows) != crcs[positions])
                if len(wrong):
                    self._refuse(folder, name, positions[wrong[0]], view)
                if folder in self._on_device:
                    found[view].index_copy_(
                        0, torch.from_numpy(positions).to(found.device), torch.from_numpy(rows).to(found.device)
                    )
                else:
                    found[view, positions] = rows
        return found

    @cached_property
    def ids(self) -> list[str]:
        """In a spawned process, which is not sent them: as the store lists them."""
        from pipeline.store.store import Store

        return [image.id for image in Store.open(self.folder).images.at(self._rows)]

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name not in ("_resident", "ids")}

    def __setstate__(self, state):
        self.__dict__ |= state
        self._load()


def bytes_of_rows(array: Array, data: bytes) -> np.ndarray:
    """uint8 [chunk_rows, bytes of a row] of a chunk file whose crc was checked."""
    return array.decode(data).reshape(array.chunk_rows, -1).view(np.uint8)


def check_metadata(folder: AnyPath, array: Array) -> None:
    """StoreError unless zarr.json describes the files as they are read here; an array may have grown."""
    path = below(folder, f"{array.path}/zarr.json")
    try:
        found = json.loads(read(path))
        meant = json.loads(array.metadata(found["shape"][0]))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        found, meant = None, {}
    if found != meant:
        raise StoreError(f"{path}: does not describe {array.path} as it was written; verify the store")


def free_device_bytes(device: str | torch.device | None) -> int:
    """0 where it is no GPU."""
    if not str(device).startswith("cuda"):
        return 0
    import torch

    return torch.cuda.mem_get_info(device)[0]


def free_bytes() -> int:
    """What can be had without swapping, or the container's limit if that is less; without /proc, half of the RAM."""
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    free = int(dict(line.split(":") for line in meminfo.read_text(encoding="utf-8").splitlines())["MemAvailable"].split()[0]) * 1024
    allowed = limit.read_text(encoding="utf-8").strip() if limit.exists() else "max"
    return free if allowed == "max" else min(free, int(allowed))


class ChunkCache:
    """Chunks as they were decoded, of each array those used last, as many as hold `num_rows` rows; 0 keeps none. Threads
    may share it. A spawned worker begins with none."""

    def __init__(self, num_rows: int):
        self.num_rows = num_rows
        self._of: dict[str, OrderedDict[int, np.ndarray]] = {}  # by array and chunk, the oldest first
        self._lock = Lock()

    def get(self, array: str, chunk: int) -> np.ndarray | None:
        chunks = self._of.get(array)
        return None if chunks is None else chunks.get(chunk)

    def put(self, array: str, chunk: int, decoded: np.ndarray) -> None:
        if not self.num_rows:
            return
        with self._lock:
            chunks = self._of.setdefault(array, OrderedDict())
            chunks[chunk] = decoded
            chunks.move_to_end(chunk)
            if len(chunks) > -(-self.num_rows // len(decoded)):
                chunks.popitem(last=False)

    def __reduce__(self):
        return ChunkCache, (self.num_rows,)
