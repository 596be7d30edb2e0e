"""Single raw rows of a store: from the files of a disk, or by ranges of objects on object storage."""

import errno
import os
import resource
import stat
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from pipeline.errors import StoreError
from pipeline.paths import below
from pipeline.store.files import AnyPath, Array, local

if TYPE_CHECKING:
    from pipeline.store.remote import RemotePath


READ_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # follows no link, waits for no writer of a pipe


class Rows(Protocol):
    """Raw rows of one store. May be used by several threads, and by forked and spawned processes."""

    words: ClassVar[str]  # where they come from, for the log
    remote: ClassVar[bool]  # whether each request waits for a network

    def read(self, arrays: list[Array], rows: list[int], targets: np.ndarray) -> None:
        """Reads row `rows[i]` of `arrays[i]` into `targets[i]`, uint8 [B, bytes of a row]. StoreError where one is not there."""

    def read_again(self, array: Array, row: int, target: np.ndarray) -> bool:
        """Reads a row once more, from the file that has its name now; False where `read` did so."""


class RowsOnDisk:
    words: ClassVar[str] = "from disk"
    remote: ClassVar[bool] = False

    def __init__(self, folder: Path):
        self.folder, self._files = folder, OpenFiles()

    def read(self, arrays: list[Array], rows: list[int], targets: np.ndarray) -> None:
        for array, row, target in zip(arrays, rows, targets):
            self._read_row(array, row, target)

    def read_again(self, array: Array, row: int, target: np.ndarray) -> bool:
        """A repair puts another file in place of an open one."""
        self._read_row(array, row, target, anew=True)
        return True

    def _read_row(self, array: Array, row: int, target: np.ndarray, anew: bool = False) -> None:
        chunk, place = divmod(row, array.chunk_rows)
        try:
            fd, close = self._files.get(self.folder, array, chunk, anew)
            try:
                size = os.preadv(fd, [target], place * len(target))  # type: ignore[list-item]  # a buffer, as numpy says from Python 3.12 on
            finally:
                if close:
                    os.close(fd)
        except OSError as error:
            if anew or error.errno != errno.ESTALE:  # another host has put another file in place of an open one
                raise StoreError(f"{self.folder / array.chunk_path(chunk)}: {error.strerror}") from error
            size = 0
        if size != len(target) and anew:
            raise StoreError(f"{self.folder / array.chunk_path(chunk)}: ends before row {place}; it was cut off")
        if size != len(target):
            self._read_row(array, row, target, anew=True)


class RowsOnObjectStorage:
    words: ClassVar[str] = "from object storage"
    remote: ClassVar[bool] = True

    def __init__(self, folder: "RemotePath"):
        self.folder = folder

    def read(self, arrays: list[Array], rows: list[int], targets: np.ndarray) -> None:
        places = [divmod(row, array.chunk_rows) for array, row in zip(arrays, rows)]
        names = [array.chunk_path(chunk) for array, (chunk, _) in zip(arrays, places)]
        starts = [place * targets.shape[1] for _, place in places]
        try:
            parts = self.folder.read_ranges(names, starts, [start + targets.shape[1] for start in starts])
        except FileNotFoundError as error:
            raise StoreError(f"{error.filename}: {error.strerror}") from error
        for name, part, target in zip(names, parts, targets):
            if len(part) != len(target):
                raise StoreError(f"{self.folder / name}: ends before its last row; it was cut off")
            target[:] = np.frombuffer(part, np.uint8)

    def read_again(self, array: Array, row: int, target: np.ndarray) -> bool:
        return False


def rows_of(folder: AnyPath) -> Rows:
    return RowsOnDisk(folder) if local(folder) else RowsOnObjectStorage(folder)


class OpenFiles:
    """Chunk files that stay open, as opening one takes longer than reading a row: those read first, up to half of the
    files a process may have open, for all readers together. Any further one is opened at each read.

    None is ever closed under another thread's hands, and `preadv` shares no position, so forked workers may use the
    same ones. A spawned worker opens its own.
    """

    count = 0  # of all readers in this process

    def __init__(self):
        self._fds: dict[tuple[str, int], int] = {}
        self._inside: set[str] = set()  # arrays whose folders lead nowhere else

    def get(self, folder: Path, array: Array, chunk: int, anew: bool) -> tuple[int, bool]:
        """A descriptor, and whether to close it after use. `anew`: of the file that has the name now."""
        key = array.path, chunk
        fd = self._fds.get(key)
        if fd is not None and not anew:
            return fd, False
        fresh = self._open(folder, array, array.chunk_path(chunk))
        if fd is not None:
            os.dup2(fresh, fd, inheritable=False)
            os.close(fresh)
            return fd, False
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        full = limit != resource.RLIM_INFINITY and OpenFiles.count >= limit // 2
        if full or self._fds.setdefault(key, fresh) != fresh:  # or another thread was first
            return fresh, True
        OpenFiles.count += 1
        return fresh, False

    def _open(self, folder: Path, array: Array, path: str) -> int:
        """Looks at the folders of an array once, and at each of its files when it is opened: `below` for every file would take
        three times as long as opening and reading it."""
        if array.path not in self._inside:
            below(folder, path)
            self._inside.add(array.path)
        try:
            fd = os.open(f"{folder}/{path}", READ_FILE)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        else:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return fd
            os.close(fd)
        return os.open(below(folder, path), os.O_RDONLY | os.O_CLOEXEC)  # a link inside the store, or refused

    def __del__(self):
        for fd in self._fds.values():
            os.close(fd)
        OpenFiles.count -= len(self._fds)

    def __reduce__(self):
        return OpenFiles, ()
