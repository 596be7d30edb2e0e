"""Rows in blocks on disk: one store behind both the prepared images and the cache of teacher targets. Format 1.

<root>/<dataset>/<kind>-<identity, 12 digits>/     kind: prepared, targets
  store.json                       what the rows were made from (identity), rows per block, codec, data card
  images/000123.tsv                the images of a block: id, digest of the image, digest of its label
  passes/<name>-<8 digits>.json    a pass: its record; each field's shape, dtype, dimensions, chunk rows, codecs
  <kind>.zarr/v000/<pass>/<field>  Zarr v3, one group per view: [image, ...]; beside it
                       <field>_crc [image] uint32: crc32c of the row's C-order little-endian bytes
  done/v000/000123.<8 digits>.json mark: this block of this pass is whole; size and crc of each of its files
  manifest.json                    what was whole at the last finalise
  code.json                        digest of the code that each target's rows were stored by; older stores have none
  history.jsonl                    who did what when; no part of any comparison
  images.index                     of a large store: images by id; follows from the lists (pipeline/store/images.py)
  .lock                            held around create, grow, add_pass and finalise
  .in-use                          held, shared, by every process that fills it: nobody removes it meanwhile

Zarr hands out fill values for what was never written, so what is whole is decided here: data is written, fsynced and
read back, then the mark. Readers trust the chain mark -> crc array -> row and nothing else. A block is a run of
`block_rows` images; the last one of each growth may have fewer, and its other rows hold fill. Growth starts at the next
block. Nothing finished is rewritten, but zarr.json follows the number of blocks. The bytes: pipeline/store/files.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import CodeChanged, NoStore, OtherStore, StoreError
from pipeline.identity import canonical, diff, identity_digest, join_names, sha256, short
from pipeline.paths import below, id_fault, name_fault
from pipeline.store.files import (
    CRC,
    FORMAT,
    GROUP,
    AnyPath,
    Array,
    ImageRow,
    append_history,
    as_path,
    check_and_parse,
    claim_block,
    codec_chain,
    finite,
    images_tsv,
    link,
    local,
    locked,
    make_folder,
    map_concurrently,
    read,
    read_chunk,
    remove,
    row_crcs,
    size_of,
    stored_crc,
    view_name,
    with_checksum,
    write,
    writing,
)
from pipeline.store.images import ELSEWHERE, Images, RowOf, listed

if TYPE_CHECKING:
    from pipeline.targets.base import Field  # imports torch, which a process that only stores bytes can do without

MAX_CHUNK_BYTES = 16_000_000
VIEW, PASS, CRC_HEX = re.compile(r"v[0-9]{3,}"), re.compile(r".+-[0-9a-f]{8}"), re.compile(r"[0-9a-f]{8}")
AT_ONCE = 2**16  # images


@dataclass(frozen=True)
class ArrayGroup:
    """Arrays written together, a block at a time: a target; the prepared `sample`; a view's `matrix`."""

    name: str
    record: dict  # what makes its bytes what they are: type, parameters, version
    fields: Mapping[str, Field]
    code: str | None = dataclasses.field(default=None, compare=False)  # digest of what computes it; no part of the record

    @cached_property
    def digest8(self) -> str:
        return pass_digest(self.name, self.record)

    @cached_property
    def folder(self) -> str:
        return f"{self.name}-{self.digest8}"


def pass_digest(name: str, record: dict) -> str:
    return identity_digest({"name": name, "record": record})[:8]


class Store:
    """A store that exists; `create_or_open`, `open` and `find` give one."""

    def __init__(self, folder: AnyPath):
        self.folder = as_path(folder)
        content = check_and_parse(read(self.path("store.json")), self.folder / "store.json")
        if content.get("format") != FORMAT:
            raise StoreError(f"{self.folder}: format {content.get('format')}, but this version reads format {FORMAT}")
        if fault := head_fault(content):
            raise StoreError(f"{self.folder / 'store.json'}: {fault}; {ELSEWHERE}")
        self.kind: str = content["kind"]
        self.identity: dict = content["identity"]  # digest and record
        self.block_rows: int = content["block_rows"]
        self.codec: str = content["codec"]
        self.card: dict = content["card"]
        self._layouts: dict[str, dict] = {}
        self._arrays: dict[tuple[str, str], dict[str, Array]] = {}
        self.images = Images(self.folder, self.block_rows, self.identity["digest"])
        self.row_of = RowOf(self.images)

    def __reduce__(self):
        return Store, (self.folder,)

    def path(self, name: str) -> AnyPath:
        """A file or folder of the store. StoreError if the name, or a link on the way, leads out of it: what a store says of its
        own files may come from elsewhere."""
        return below(self.folder, name)

    def head(self) -> dict:
        """What store.json says."""
        return {
            "format": FORMAT,
            "kind": self.kind,
            "identity": self.identity,
            "block_rows": self.block_rows,
            "codec": self.codec,
            "card": self.card,
        }

    @classmethod
    def create_or_open(
        cls, root: AnyPath, kind: str, dataset: str, identity_record: dict, *, block_rows: int, codec: str = "raw", card: dict
    ) -> Store:
        """The store of this identity. One that exists keeps its block_rows, codec and card."""
        assert kind in ("prepared", "targets") and codec in ("raw", "lz4", "zstd") and block_rows > 0
        folder = store_folder(root, kind, dataset, identity_record)
        identity = {"digest": identity_digest(identity_record), "record": identity_record}
        if not (folder / "store.json").exists():
            with writing(folder):
                for name in ("images", "passes", "done", f"{kind}.zarr"):
                    make_folder(folder / name)
            with locked(folder):
                if not (folder / "store.json").exists():
                    content = {
                        "format": FORMAT,
                        "kind": kind,
                        "identity": identity,
                        "block_rows": block_rows,
                        "codec": codec,
                        "card": card,
                    }
                    write([(below(folder, f"{kind}.zarr/zarr.json"), GROUP)])
                    append_history(folder, "create")
                    write([(below(folder, "store.json"), with_checksum(content))])
        return cls(folder)._of(identity_record)

    @classmethod
    def open(cls, folder: AnyPath) -> Store:
        """Raises StoreError if the folder is no store, is damaged, or is of another format."""
        folder = as_path(folder)
        try:
            return cls(folder)
        except StoreError:
            if (folder / "store.json").exists():
                raise
            raise StoreError(
                f"{folder / 'store.json'}: is not there, so this is no store; `pipeline cache list` shows stores"
            ) from None

    @classmethod
    def find(cls, root: AnyPath, kind: str, dataset: str, identity_record: dict) -> Store:
        """The store of this identity. Raises OtherStore with the differences to the nearest one there is, or NoStore."""
        folder = store_folder(root, kind, dataset, identity_record)
        if (folder / "store.json").exists():
            return cls(folder)._of(identity_record)
        heads: Iterable[AnyPath] = folder.parent.glob(f"{kind}-*/store.json")
        others = [cls(path.parent) for path in sorted(heads)]
        if not others:
            raise NoStore(f"{folder}: there is no {kind} store")
        apart = {other: diff(other.identity["record"], identity_record) for other in others}
        nearest = min(others, key=lambda other: len(apart[other]))
        raise OtherStore(
            f"{nearest.folder}: made from something else: {join_names(apart[nearest])}", nearest.folder, apart[nearest]
        )

    def _of(self, identity_record: dict) -> Store:
        apart = diff(self.identity["record"], identity_record)
        if apart:
            raise StoreError(f"{self.folder}: is not what its name says: {join_names(apart)}; move it away")
        return self

    # Images

    def image_file(self, block: int) -> AnyPath:
        return self.images.path(block)

    def image_files(self) -> list[AnyPath]:
        return [self.path(f"images/{name}") for _, name, _ in listed(self.folder)]

    @property
    def num_blocks(self) -> int:
        return self.images.num_blocks

    def block_images(self, block: int) -> list[ImageRow]:
        """Without the padding."""
        return self.images.block(block)

    def refuse_lost_lists(self) -> None:
        """Raises StoreError if the manifest knows blocks whose lists of images are not here: without a configuration that asks for
        these images, the store would just look smaller."""
        path = self.path("manifest.json")
        try:
            known = check_and_parse(read(path), path).get("images")
        except StoreError:  # never finalised, or damaged, which verify tells: rows do not depend on it
            return
        if isinstance(known, int) and known > len(self.row_of):
            raise StoreError(
                f"{self.image_file(self.num_blocks)}: missing; {path.name} knows {known} images, and the lists here name "
                f"{len(self.row_of)}; bring it back from a copy"
            )

    def rows_of(self, ids: Sequence[str]) -> np.ndarray:
        """int64 row of each of these images. StoreError if one is unknown."""
        rows = self.images.rows(ids)
        if unknown := [repr(ids[position]) for position in np.flatnonzero(rows < 0).tolist()]:
            raise StoreError(f"{self.folder}: {len(unknown)} of {len(ids)} images are not in it: {join_names(unknown)}")
        return rows

    def named(self, ids: Sequence[str]) -> list[ImageRow]:
        """These images as they are listed. StoreError if one is unknown."""
        return self.images.at(self.rows_of(ids))

    def grow(self, rows: list[ImageRow]) -> None:
        """Adds unknown images in new blocks. StoreError if a known one has other pixels; another label is fine here."""
        if not self._unknown(rows) and not any(self._stale(*group) for group in self.stored_groups()):
            return
        with locked(self.folder):
            self.images.load()  # another process may have grown it
            unknown = self._unknown(rows)
            parts = [unknown[start : start + self.block_rows] for start in range(0, len(unknown), self.block_rows)]
            write((self.image_file(block), images_tsv(part)) for block, part in enumerate(parts, start=self.num_blocks))
            self.images.load()
            for group in self.stored_groups():
                self.write_metadata(*group)
            append_history(self.folder, "grow", images=len(unknown))

    def _unknown(self, rows: list[ImageRow]) -> list[ImageRow]:
        seen: set[str] = set()
        for row in rows:
            if row.id in seen:
                raise StoreError(f"{self.folder}: image {row.id!r} comes twice; ids must be unique")
            if fault := id_fault(row.id):
                raise StoreError(f"{self.folder}: image id {row.id!r} {fault}; rename it")
            if "\t" in row.id or "\n" in row.id:
                raise StoreError(f"{self.folder}: image id {row.id!r} has a tab or newline; rename it")
            seen.add(row.id)
        places = self.images.rows([row.id for row in rows])
        self._refuse_changed(rows, places, "image")
        return [rows[position] for position in np.flatnonzero(places < 0).tolist()]

    def _refuse_changed(self, rows: list[ImageRow], places: np.ndarray, what: str, users: str = "") -> None:
        """`places`: their rows here, -1 where they are unknown."""
        digest = operator.attrgetter(f"{what}_digest")
        order = np.argsort(places, kind="stable").tolist()  # so that each list is read once
        changed = [i for i in order if places[i] >= 0 and digest(self.images[int(places[i])]) != digest(rows[i])]
        if changed:
            row = rows[min(changed)]
            here = self.images[int(places[min(changed)])]
            raise StoreError(
                f"{self.folder}: the {what} of {row.id!r} has changed: digest {digest(here)} here, "
                f"{digest(row)} asked for{users}; restore it, or remove this store"
            )

    # Passes and views

    def add_pass(self, pass_: ArrayGroup, views: Iterable[int]) -> None:
        """Makes the arrays of a pass in these views. StoreError if the pass is here with other fields."""
        names = [view_name(view) for view in views]
        marks = [self.path(f"done/{view}") for view in names]
        self.refuse_other_code([pass_])
        if (
            self.has_pass(pass_)
            and all(path.is_dir() for path in marks)
            and not any(self._stale(view, pass_.folder) for view in names)
        ):
            return
        with locked(self.folder):
            self.images.load()
            if not self.has_pass(pass_):
                if pass_.code:
                    self.vouch_for_code([pass_])
                self.write_pass(pass_)
            for view, path in zip(names, marks):
                make_folder(path)
                self.write_metadata(view, pass_.folder)

    def write_pass(self, pass_: ArrayGroup) -> None:
        """Its file, which follows from the pass and the store."""
        content = {
            "format": FORMAT,
            "store": self.identity["digest"],
            "name": pass_.name,
            "record": pass_.record,
            "fields": self._new_layout(pass_),
        }
        write([(self.pass_path(pass_.folder), with_checksum(content))])

    def has_pass(self, pass_: ArrayGroup) -> bool:
        """Whether the pass was ever added. StoreError if it was, with other fields."""
        if not self.pass_path(pass_.folder).exists():
            return False

        def meaning(layout):
            return {name: {key: field[key] for key in ("shape", "dtype", "dims")} for name, field in layout.items()}

        apart = diff(meaning(self.layout(pass_.folder)), meaning(self._new_layout(pass_)))
        if apart:
            raise StoreError(
                f"{self.folder}: {pass_.folder} has other fields: {join_names(apart)}; a {pass_.name} that "
                "stores something else needs another version"
            )
        return True

    def pass_path(self, folder: str) -> AnyPath:
        return self.path(f"passes/{folder}.json")

    def codes(self) -> dict[str, str]:
        """By pass, the digest of the code that stored it, as far as known. StoreError if the file is damaged."""
        path = self.path("code.json")
        if not path.exists():
            return {}
        content = check_and_parse(read(path), path)
        if content.get("store") != self.identity["digest"]:
            raise StoreError(f"{path}: belongs to another store; move it away")
        passes = content.get("passes")
        if not isinstance(passes, dict) or not all(is_pass(name) and isinstance(code, str) for name, code in passes.items()):
            raise StoreError(f"{path}: does not say which code stored which pass; {ELSEWHERE}")
        return passes

    def other_code(self, passes: Iterable[ArrayGroup]) -> list[ArrayGroup]:
        """Those that other code stored than computes them now."""
        passes = [pass_ for pass_ in passes if pass_.code]
        known = self.codes() if passes else {}
        return [pass_ for pass_ in passes if known.get(pass_.folder, pass_.code) != pass_.code]

    def refuse_other_code(self, passes: Iterable[ArrayGroup]) -> None:
        """Raises CodeChanged: whether the rows are what this code would store, only a second look at some of them can tell."""
        for pass_ in self.other_code(passes):
            raise CodeChanged(
                f"{self.folder}: the code of the target {pass_.name} has changed since {pass_.folder} was stored, and its "
                f"version has not: raise `version` in pipeline/targets/{pass_.name}.py if it stores other values now, or "
                f"let `pipeline verify CONFIG --recompute 32` compare rows and take the new code"
            )

    def vouch_for_code(self, passes: Iterable[ArrayGroup]) -> None:
        """Notes that these passes' rows are what their code gives. Under the lock."""
        known = self.codes() | {pass_.folder: pass_.code for pass_ in passes if pass_.code}
        write([(self.path("code.json"), with_checksum({"format": FORMAT, "store": self.identity["digest"], "passes": known}))])

    def stored_passes(self) -> list[str]:
        return sorted(path.stem for path in self.path("passes").glob("*.json") if is_pass(path.stem))

    def stored_groups(self) -> list[tuple[str, str]]:
        """(view, pass) of every group of arrays on disk; folders that are called otherwise are none."""
        top = self.path(f"{self.kind}.zarr")
        if local(top):  # each folder is checked before what it holds is listed
            views = [path.name for path in top.glob("v*") if VIEW.fullmatch(path.name)]
            found = [path for view in views for path in self.path(f"{top.name}/{view}").glob("*")]
        else:
            found = [path for path in top.glob("v*/*") if VIEW.fullmatch(path.parent.name)]
        named = sorted((path.parent.name, path.name) for path in found if is_pass(path.name))
        return [(view, folder) for view, folder in named if self.path(f"{top.name}/{view}/{folder}").is_dir()]

    def pass_file(self, folder: str) -> dict:
        """Name, record and fields of a stored pass. StoreError if the file is missing, damaged, or another store's."""
        path = self.pass_path(folder)
        content = check_and_parse(read(path), path)
        name, record = content.get("name"), content.get("record")
        if (
            content.get("store") != self.identity["digest"]
            or not (isinstance(name, str) and isinstance(record, dict))
            or folder != f"{name}-{pass_digest(name, record)}"
        ):
            raise StoreError(f"{path}: belongs to another store or pass; move it away")
        if fault := self._layout_fault(name, content.get("fields")):
            raise StoreError(f"{path}: {fault}; {ELSEWHERE}")
        return content

    def _layout_fault(self, name: str, fields: object) -> str | None:
        """What in a pass file is nothing that a store writes; its names become those of folders."""
        if fault := name_fault(name):
            return f"the pass {name!r} {fault}"
        if not isinstance(fields, dict) or not fields:
            return "has no fields"
        for field, layout in fields.items():
            if fault := name_fault(field):
                return f"the field {field!r} {fault}"
            if field.endswith("_crc") or not self._fits(layout):
                return f"the field {field!r} is not described as a store describes one"
        return None

    def _fits(self, layout: object) -> bool:
        if not isinstance(layout, dict) or set(layout) != {"shape", "dtype", "dims", "chunk_rows", "codecs"}:
            return False
        shape, dims, rows, codecs = (layout[name] for name in ("shape", "dims", "chunk_rows", "codecs"))
        return (
            isinstance(shape, list)
            and all(map(is_count, shape))
            and isinstance(dims, list)
            and len(dims) == len(shape)
            and all(isinstance(dim, str) for dim in dims)
            and layout["dtype"] in DTYPES
            and is_count(rows)
            and self.block_rows % rows == 0
            and isinstance(codecs, list)
            and [codec.get("name") if isinstance(codec, dict) else None for codec in codecs] in CODECS
        )

    def layout(self, folder: str) -> dict:
        """The fields of a stored pass as its file has them; they never change."""
        if folder not in self._layouts:
            self._layouts[folder] = self.pass_file(folder)["fields"]
        return self._layouts[folder]

    def _new_layout(self, pass_: ArrayGroup) -> dict:
        fields = {}
        divisors = [n for n in range(1, self.block_rows + 1) if self.block_rows % n == 0]
        for name, field in pass_.fields.items():
            dtype = np.dtype(field.dtype)
            assert dtype.kind in "fiu" and len(field.dims) == len(field.shape) and not name.endswith("_crc"), name
            room = MAX_CHUNK_BYTES // (dtype.itemsize * int(np.prod(field.shape)))
            fields[name] = {
                "shape": list(field.shape),
                "dtype": dtype.name,
                "dims": list(field.dims),
                "chunk_rows": max([n for n in divisors if n <= room], default=1),
                "codecs": codec_chain(self.codec, dtype),
            }
        return fields

    def arrays(self, view: str, folder: str) -> dict[str, Array]:
        """The arrays of a stored pass in one view: each field, and its crc under <field>_crc."""
        if (view, folder) in self._arrays:
            return self._arrays[view, folder]
        found = {}
        for name, field in self.layout(folder).items():
            path, dtype = f"{self.kind}.zarr/{view}/{folder}/{name}", np.dtype(field["dtype"])
            fill = np.nan if dtype.kind == "f" else int(np.iinfo(dtype).max)
            found[name] = Array(
                path, tuple(field["shape"]), dtype, tuple(field["dims"]), field["chunk_rows"], field["codecs"], fill
            )
            found[f"{name}_crc"] = Array(f"{path}_crc", (), CRC, (), self.block_rows, codec_chain("raw", CRC), 0)
        self._arrays[view, folder] = found
        return found

    def metadata(self, view: str, folder: str) -> dict[AnyPath, bytes]:
        """Every zarr.json of a pass in one view, as it must be now."""
        top, num_rows = f"{self.kind}.zarr", len(self.images)
        arrays = {array.path: array.metadata(num_rows) for array in self.arrays(view, folder).values()}
        groups = {top: GROUP, f"{top}/{view}": GROUP, f"{top}/{view}/{folder}": GROUP}
        return {self.path(f"{path}/zarr.json"): data for path, data in (groups | arrays).items()}

    def _stale(self, view: str, folder: str) -> dict[AnyPath, bytes]:
        meant = self.metadata(view, folder)
        return {path: data for path, data in meant.items() if not path.exists() or path.read_bytes() != data}

    def write_metadata(self, view: str, folder: str) -> list[AnyPath]:
        """What of it was not as it must be."""
        stale = self._stale(view, folder)
        for path in stale:
            make_folder(path.parent)
        write(stale.items())
        return list(stale)

    # Blocks

    def mark_path(self, view: str, folder: str, block: int) -> AnyPath:
        return self.path(f"done/{view}/{block:06d}.{folder[-8:]}.json")

    def marked_files(self, view: str, folder: str, block: int) -> dict[str, tuple[int, str]]:
        """A block's files with size and crc. StoreError if there is no mark, it is damaged, or about something else."""
        path = self.mark_path(view, folder, block)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise StoreError(f"{path}: no mark") from None
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error
        content = check_and_parse(data, path)
        files = content.pop("files", None)
        apart = diff(content, self._mark_head(view, folder, block))
        if apart:
            raise StoreError(f"{path}: the mark of something else: {join_names(apart)}")
        meant = self.block_files(view, folder, block)
        if not isinstance(files, dict) or set(files) != set(meant):
            others = sorted(set(files) ^ set(meant)) if isinstance(files, dict) else ["no files"]
            raise StoreError(
                f"{path}: names other files than those of its block: {join_names([short(name) for name in others])}; {ELSEWHERE}"
            )
        for chunk, found in files.items():
            if not fits_chunk(found, meant[chunk]):
                raise StoreError(f"{path}: {chunk} has no size and crc as a store writes them; {ELSEWHERE}")
        return files

    def block_files(self, view: str, folder: str, block: int) -> dict[str, Array]:
        """The files of a block, which follow from the pass, and the array that each belongs to."""
        return {
            chunk: array for array in self.arrays(view, folder).values() for chunk in array.block_chunks(block, self.block_rows)
        }

    def _mark_head(self, view: str, folder: str, block: int) -> dict:
        return {
            "format": FORMAT,
            "store": self.identity["digest"],
            "pass": folder,
            "view": view,
            "block": block,
            "images": self.images.digest(block),
        }

    def fault(self, view: str, folder: str, block: int, deep: bool = False) -> str | None:
        """Why a block is not whole, or None. Compares the sizes of its files; `deep`, their bytes."""
        try:
            for chunk, (size, crc) in self.marked_files(view, folder, block).items():
                path = self.path(chunk)
                if deep:
                    read_chunk(path, size, crc)
                elif size_of(path) != size:
                    return f"{path}: missing, or not the {size} bytes that were written"
        except StoreError as error:
            return str(error)
        return None

    def missing(self, pass_: ArrayGroup, view: int, deep: bool = False) -> list[int]:
        """The blocks to fill."""
        view_folder = view_name(view), pass_.folder
        faults = map_concurrently(lambda block: self.fault(*view_folder, block, deep), range(self.num_blocks), self.folder)
        return [block for block, fault in enumerate(faults) if fault]

    def write_block(self, pass_: ArrayGroup, view: int, block: int, rows: Mapping[str, np.ndarray]) -> None:
        """Writes one block: [n, ...] for each field, n the number of its images; nothing if it is whole already.

        Any number of processes may write, even the same block. StoreError names the field and images that do not fit.
        """
        self._refuse_bad(pass_, block, rows)
        self._put(view_name(view), pass_.folder, block, self._chunks(view_name(view), pass_.folder, block, rows))

    def read_block(self, view: str, folder: str, block: int) -> dict[str, np.ndarray]:
        """Its rows [n, ...] by field, n the number of its images. StoreError unless every file is what its mark says."""
        files, arrays, count = self.marked_files(view, folder, block), self.arrays(view, folder), len(self.block_images(block))
        found = {}
        for name in self.layout(folder):
            chunks = arrays[name].block_chunks(block, self.block_rows)
            parts = [arrays[name].decode(read_chunk(self.path(chunk), *files[chunk])) for chunk in chunks]
            found[name] = (np.concatenate(parts) if len(parts) > 1 else parts[0])[:count]
        return found

    def copy_block(self, other: Store, view: str, folder: str, block: int) -> None:
        """Takes a block of another store of this identity, where it holds the same images, as it is."""
        files = other.marked_files(view, folder, block)
        parts = map_concurrently(lambda chunk: read_chunk(other.path(chunk), *files[chunk]), list(files), other.folder)
        self._put(view, folder, block, zip(files, parts))

    def take_extent(self, other: Store, groups: Iterable[tuple[str, str]]) -> None:
        """Lists the images of another store in the same blocks, and makes these passes and views of it. StoreError if the stores
        have other images in a block, or the passes other fields."""
        with locked(self.folder):
            self.images.load()
            for block in range(min(self.num_blocks, other.num_blocks)):
                if self.images.digest(block) != other.images.digest(block):
                    raise StoreError(f"{self.image_file(block)}: lists other images than {other.image_file(block)}")
            new = range(self.num_blocks, other.num_blocks)
            write([(self.image_file(block), read(other.image_file(block))) for block in new])
            self.images.load()
            for view, folder in groups:
                content = other.pass_file(folder) | {"store": self.identity["digest"]}
                if not self.pass_path(folder).exists():
                    write([(self.pass_path(folder), with_checksum(content))])
                elif apart := diff(self.pass_file(folder), content):
                    raise StoreError(f"{self.pass_path(folder)}: is not as in {other.folder}: {join_names(apart)}")
                make_folder(self.path(f"done/{view}"))
                self.write_metadata(view, folder)
            for group in self.stored_groups():  # the number of blocks may have grown
                self.write_metadata(*group)

    def take_over_block(self, other: Store, view: str, folder: str, block: int) -> None:
        """A block of a store of another identity, whose extent was taken, as this store's own: nothing is copied where the disk has
        hard links."""
        files = other.marked_files(view, folder, block)
        chunks = ((chunk, read_chunk(other.path(chunk), *files[chunk])) for chunk in files)
        names = {self.path(chunk): other.path(chunk) for chunk in files}
        self._put(view, folder, block, chunks, lambda given: link(given, names.__getitem__))

    def _put(
        self,
        view: str,
        folder: str,
        block: int,
        chunks: Iterable[tuple[str, bytes]],
        place: Callable[[Iterable[tuple[AnyPath, bytes]]], None] | None = None,  # by default `write`
    ) -> None:
        """A block's files, then its mark."""
        mark, files = self.mark_path(view, folder, block), {}

        def noted() -> Iterator[tuple[AnyPath, bytes]]:
            for chunk, data in chunks:
                files[chunk] = (len(data), stored_crc(data))
                yield self.path(chunk), data

        with writing(self.folder), claim_block(mark) as claim:
            if mark.exists():
                if self.fault(view, folder, block, deep=True) is None:
                    claim.release()
                    return
                remove(mark)  # before any of its files changes
            (place or write)(noted())
            for chunk, (size, crc) in files.items():  # what the disk has against what was meant
                read_chunk(self.path(chunk), size, crc)
            claim.finish(with_checksum(self._mark_head(view, folder, block) | {"files": files}, indent=None))

    def _chunks(self, view: str, folder: str, block: int, rows: Mapping[str, np.ndarray]) -> Iterator[tuple[str, bytes]]:
        """A block's files one after the other."""
        arrays = self.arrays(view, folder)
        for name in rows:
            values = np.ascontiguousarray(rows[name], arrays[name].dtype)
            for array, part in ((arrays[name], values), (arrays[f"{name}_crc"], row_crcs(values))):
                padding = np.full((self.block_rows - len(part), *array.shape), array.fill, array.dtype)
                padded = np.concatenate([part, padding]) if len(padding) else part
                for chunk, piece in zip(array.block_chunks(block, self.block_rows), array.split(padded)):
                    yield chunk, array.encode(piece)

    def _refuse_bad(self, pass_: ArrayGroup, block: int, rows: Mapping[str, np.ndarray]) -> None:
        images = self.block_images(block)
        where = f"{self.folder}: block {block} of {pass_.folder}"
        if set(rows) != set(pass_.fields):
            raise StoreError(f"{where}: has the fields {sorted(rows)}, not {sorted(pass_.fields)}")
        for name, field in pass_.fields.items():
            given, meant = rows[name], (len(images), *field.shape)
            if given.shape != meant or given.dtype != np.dtype(field.dtype):
                raise StoreError(
                    f"{where}: field {name!r} is {given.dtype} {given.shape}, not {field.dtype} {meant} "
                    f"(images {images[0].id!r} to {images[-1].id!r})"
                )
            bad = join_names([repr(image.id) for image, fine in zip(images, finite(given)) if not fine])
            if bad:
                raise StoreError(f"{where}: field {name!r} is not finite for image {bad}")

    def finalise(self) -> None:
        """Writes down which blocks are whole, unless the manifest says so already."""
        path = self.path("manifest.json")
        if path.exists() and path.read_bytes() == self._manifest():
            return
        with locked(self.folder):
            self.images.load()
            data = self._manifest()
            if not path.exists() or path.read_bytes() != data:
                write([(path, data)])
                append_history(self.folder, "finalise", images=len(self.row_of))

    def _manifest(self) -> bytes:
        passes: dict[str, dict] = {}
        for view, folder in self.stored_groups():
            faults = map_concurrently(lambda block: self.fault(view, folder, block), range(self.num_blocks), self.folder)
            whole = [block for block, fault in enumerate(faults) if fault is None]
            marks = self.digest_of_marks(view, folder, whole)
            passes.setdefault(folder, {})[view] = {"blocks": runs(whole), "marks": marks}
        return with_checksum({"format": FORMAT, "store": self.identity["digest"], "images": len(self.row_of), "passes": passes})

    def digest_of_marks(self, view: str, folder: str, blocks: Iterable[int]) -> str:
        marks = [self.mark_path(view, folder, block) for block in blocks]
        return sha256(b"".join(map_concurrently(read, marks, self.folder)))

    # What a run asks for

    def check(
        self, rows: list[ImageRow], views: Iterable[int], passes: Iterable[tuple[ArrayGroup, bool]], any_code: bool = False
    ) -> None:
        """Refuses, naming the difference, unless the passes (each with: does it use labels?) are whole for them, and stored by
        the code that would compute them now (`any_code`: or by other code)."""
        passes = list(passes)
        if not any_code:
            self.refuse_other_code(pass_ for pass_, _ in passes)
        places = self.rows_of([row.id for row in rows])
        self._refuse_changed(rows, places, "image")
        users = [pass_.folder for pass_, uses_labels in passes if uses_labels]
        if users:
            self._refuse_changed(rows, places, "label", f" (used by {join_names(users)})")
        blocks = np.unique(places // self.block_rows).tolist()
        for pass_, _ in passes:
            if not self.has_pass(pass_):
                raise StoreError(f"{self.folder}: {pass_.folder} was never stored{self._nearest(pass_)}")
            for view in views:
                key = view_name(view), pass_.folder
                faults = [fault for fault in map_concurrently(lambda block: self.fault(*key, block), blocks, self.folder) if fault]
                if faults:
                    raise StoreError(
                        f"{self.folder}: {len(faults)} of {len(blocks)} blocks of {pass_.folder}, view "
                        f"{view}, are not filled (first: {faults[0]})"
                    )

    def _nearest(self, pass_: ArrayGroup) -> str:
        stored = [self.pass_file(folder) for folder in self.stored_passes() if folder[:-9] == pass_.name]
        apart = [diff(content["record"], pass_.record) for content in stored]
        return f" (nearest: {join_names(min(apart, key=len))})" if apart else ""

    def stored_crcs(self, view: str, folder: str, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Of each field the crc of these rows, vouched for by the marks. StoreError where a block is not whole."""
        arrays, blocks = self.arrays(view, folder), rows // self.block_rows
        names = list(self.layout(folder))

        def of_block(block: int) -> list[np.ndarray]:
            files, stored = self.marked_files(view, folder, block), []
            for name in names:
                array = arrays[f"{name}_crc"]
                (chunk,) = array.block_chunks(block, self.block_rows)
                stored.append(array.decode(read_chunk(self.path(chunk), *files[chunk])))
            return stored

        found = {name: np.empty(len(rows), CRC) for name in names}
        numbers, counts = np.unique(blocks, return_counts=True)
        parts = np.split(np.argsort(blocks, kind="stable"), np.cumsum(counts)[:-1])  # where the rows of each are
        for here, stored in zip(parts, map_concurrently(of_block, numbers.tolist(), self.folder)):
            for name, crcs in zip(names, stored):
                found[name][here] = crcs[rows[here] % self.block_rows]
        return found

    def digest_of(self, rows: list[ImageRow], views: Iterable[int], passes: Iterable[ArrayGroup]) -> str:
        """One digest of just these images and their rows, whatever else is stored, and where."""
        rows, names = sorted(rows, key=lambda row: row.id), [view_name(view) for view in views]
        index = self.rows_of([row.id for row in rows])
        digests = {}
        for folder in {pass_.folder for pass_ in passes}:
            for view in names:
                crcs = self.stored_crcs(view, folder, index)
                digests[f"{view}/{folder}"] = {name: sha256(values.tobytes()) for name, values in crcs.items()}
        found = hashlib.sha256()  # as identity_digest of {"images": ..., "crcs": ...} has it, but some images at a time
        found.update(b'{"crcs":' + canonical(digests) + b',"images":[')
        for start in range(0, len(rows), AT_ONCE):
            part = [(row.id, row.image_digest, row.label_digest) for row in rows[start : start + AT_ONCE]]
            found.update((b"," if start else b"") + canonical(part)[1:-1])
        found.update(b"]}")
        return found.hexdigest()


def store_folder(root: AnyPath, kind: str, dataset: str, identity_record: dict) -> AnyPath:
    if fault := name_fault(dataset):
        raise StoreError(f"{root}: the dataset {dataset!r} {fault}; rename it")
    return as_path(root) / dataset / folder_name(kind, identity_record)


def folder_name(kind: str, identity_record: dict) -> str:
    return f"{kind}-{identity_digest(identity_record)[:12]}"


# What store.json, a pass and a mark can say; anything else was written by no store

DTYPES = {f"{kind}{8 * size}" for kind in ("int", "uint") for size in (1, 2, 4, 8)} | {"float16", "float32", "float64"}
CODECS = [["bytes", "crc32c"], ["bytes", "blosc", "crc32c"]]


def is_pass(folder: str) -> bool:
    return PASS.fullmatch(folder) is not None and name_fault(folder[:-9]) is None


def is_count(value: object) -> bool:
    return type(value) is int and value > 0


def head_fault(content: dict) -> str | None:
    """What store.json says of itself and cannot be."""
    identity = content.get("identity")
    if (
        not isinstance(identity, dict)
        or not isinstance(identity.get("record"), dict)
        or identity.get("digest") != identity_digest(identity["record"])
    ):
        return "its identity is not the digest of its record"
    if content.get("kind") not in ("prepared", "targets") or content.get("codec") not in ("raw", "lz4", "zstd"):
        return f"holds {short(content.get('kind'))} in the codec {short(content.get('codec'))}, which no store does"
    if not is_count(content.get("block_rows")) or not isinstance(content.get("card"), dict):
        return "has no number of rows a block, or no card"
    return None


def fits_chunk(found: object, array: Array) -> bool:
    """[size, crc] of a file, as a mark has it; the size of a raw file follows from its array."""
    if not isinstance(found, list) or len(found) != 2 or type(found[0]) is not int or not isinstance(found[1], str):
        return False
    raw_size = array.chunk_rows * array.row_bytes + 4
    return CRC_HEX.fullmatch(found[1]) is not None and (found[0] == raw_size if array.raw else found[0] > 4)


def runs(numbers: list[int]) -> list[list[int]]:
    """[0, 1, 2, 5] -> [[0, 2], [5, 5]]."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found
