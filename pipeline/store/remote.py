"""Paths on object storage, `s3://bucket/prefix` and what else fsspec knows, with as much of pathlib as a store uses.

There a PUT is whole or not at all, and lasts once it is acknowledged; so nothing is renamed, fsynced or locked. The
files of a block are PUT first and its mark last. Two fills of one block may mix their files, but then the mark's
checksums don't fit, and the block counts as missing. Without a lock only one process at a time may create, grow or
finalise a store.

Credentials and endpoint are fsspec's: for S3 AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and so on, or its configuration files.
Nothing is kept open or listed ahead, and fsspec connects anew after a fork, so readers may be forked and spawned.

Objects of S3 are read by obstore where it is installed and the environment's variables alone say where and by whom. Whatever it
can't read, fsspec is asked for.
"""

import errno
import functools
import importlib.util
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from pipeline.errors import PipelineError

AT_ONCE = 32  # requests


class RemoteError(PipelineError):
    """Object storage does not answer, or refuses to. No StoreError: it says nothing about what is stored."""


class Stat(NamedTuple):
    st_size: int


@dataclass(frozen=True, order=True)
class RemotePath:
    protocol: str
    key: str  # bucket/prefix/name

    @classmethod
    def of(cls, url: str) -> "RemotePath":
        protocol, _, key = url.partition("://")
        return cls(protocol, key.strip("/"))

    def __str__(self) -> str:
        return f"{self.protocol}://{self.key}"

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(self.protocol, f"{self.key}/{name}")

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> "RemotePath":
        return RemotePath(self.protocol, self.key.rpartition("/")[0])

    def relative_to(self, other: "RemotePath") -> PurePosixPath:
        return PurePosixPath(self.key).relative_to(other.key)

    def absolute(self) -> "RemotePath":
        return self

    @property
    def place(self) -> str:
        """As fsspec wants it: a web server's files by their whole address."""
        return str(self) if self.protocol in ("http", "https") else self.key

    def at(self, place: str) -> "RemotePath":
        return RemotePath(self.protocol, place.removeprefix(f"{self.protocol}://").strip("/"))

    # What is there

    def exists(self) -> bool:
        try:
            self._ask("info", self.place)
        except FileNotFoundError:
            return False
        return True

    is_file = exists  # of what a store asks about

    def is_symlink(self) -> bool:
        """Object storage has no links."""
        return False

    def is_dir(self) -> bool:
        """Whether anything lies below; there are no empty folders."""
        return self._ask("isdir", self.place)

    def stat(self) -> Stat:
        return Stat(self._ask("info", self.place)["size"])

    def glob(self, pattern: str) -> "Iterator[RemotePath]":
        try:
            found = self._ask("glob", f"{self.place}/{pattern}")
        except FileNotFoundError:  # nothing below, as on disk
            found = []
        return map(self.at, found)

    def rglob(self, pattern: str) -> "Iterator[RemotePath]":
        """The files below; only for the pattern `*`."""
        assert pattern == "*"
        return map(self.at, self._ask("find", self.place))

    def weight(self) -> tuple[int, int]:
        """Of all files below: how many, and their bytes."""
        sizes = [info["size"] for info in self._ask("find", self.place, detail=True).values()]
        return len(sizes), sum(sizes)

    # Bytes

    def read_bytes(self) -> bytes:
        found = _read_fast(*_places(self.protocol, self.key))
        return self._ask("cat_file", self.place) if found is None else found

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def read_ranges(self, names: Sequence[str], starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
        """Parts of files below, by ranged GETs side by side; less than was asked for where a file is too short."""
        keys = [f"{self.key}/{name}" for name in names]
        if fast_client(self.protocol, self.key.partition("/")[0], os.getpid()) is not None:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                found = list(pool.map(_read_fast, *zip(*(_places(self.protocol, key) for key in keys)), starts, ends))
            if all(part is not None for part in found):
                return [part or b"" for part in found]
        parts = self._ask("cat_ranges", [f"{self.place}/{name}" for name in names], list(starts), list(ends), on_error="return")
        for i, part in enumerate(parts):
            if isinstance(part, Exception):
                path = self / names[i]
                parts[i] = path.read_bytes()[starts[i] : ends[i]]  # for its error, or because it is short
        return parts

    def write_bytes(self, data: bytes) -> None:
        """Whole or not at all; returns when the other side has acknowledged it."""
        try:
            self._ask("pipe_file", self.place, data)
        except FileNotFoundError:  # there are no folders that could be missing
            raise RemoteError(f"{self}: there is no such bucket; create it, or correct the address") from None

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._ask("rm_file", self.place)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_tree(self) -> None:
        """The file, or all below, if there is anything."""
        if (below := self.is_dir()) or self.exists():
            self._ask("rm", self.place, recursive=below)

    def _ask(self, method: str, *given, **named):
        import fsspec

        try:
            system = fsspec.filesystem(self.protocol, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise RemoteError(f"{self}: {error}; install what reads {self.protocol}:// (s3fs for s3)") from None
        try:
            return getattr(system, method)(*given, **named)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self)) from error
        except Exception as error:  # every backend raises kinds of its own: no network, no permission, ...
            said = " ".join(str(error).split()) or type(error).__name__
            raise RemoteError(f"{self}: {said}; check address, credentials and network") from error


# obstore


_first: dict[str, int] = {}


@functools.lru_cache(maxsize=8)
def fast_client(protocol: str, bucket: str, process: int) -> Any:
    """obstore's store of a bucket; None where fsspec is to be asked: for settings other than the environment's variables, such as a
    profile, and in a process that was forked from one that has used obstore, whose threads it lacks."""
    if process != _first.setdefault("process", process):
        return None
    known = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= set(os.environ) and "AWS_PROFILE" not in os.environ
    if protocol != "s3" or not known or importlib.util.find_spec("obstore") is None:
        return None
    from fsspec.config import conf

    if conf.get("s3"):
        return None
    from obstore.store import S3Store

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return S3Store(
        bucket,
        endpoint=endpoint,
        region=os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION") or "us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": (endpoint or "").startswith("http://")},
        retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=10)},  # fsspec tries again
    )


def _read_fast(protocol: str, bucket: str, name: str, start: int = 0, end: int | None = None) -> bytes | None:
    """An object, or a part of it, by obstore; None where that gives none, for whatever reason: fsspec then tells."""
    client = fast_client(protocol, bucket, os.getpid())
    if client is None:
        return None
    import obstore

    try:
        found = obstore.get(client, name).bytes() if end is None else obstore.get_range(client, name, start=start, end=end)
    except Exception:  # missing, refused, cut off, or no network
        return None
    return bytes(found)


def _places(protocol: str, key: str) -> tuple[str, str, str]:
    bucket, _, name = key.partition("/")
    return protocol, bucket, name
