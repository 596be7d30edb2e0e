"""Is a store what was written? Every fault and every gap of it, what its values are, and the repair of what can be.

What was never filled is a gap, no fault. Unfinished files (*.tmp), and what others keep beside the store's folders, are
left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import StoreError
from pipeline.identity import join_names
from pipeline.progress import Progress, table_lines
from pipeline.store.card import CARD
from pipeline.store.executors import threads
from pipeline.store.files import (
    AnyPath,
    append_history,
    check_and_parse,
    claim_block,
    finite,
    image_row,
    locked,
    read,
    read_chunk,
    remove,
    row_crcs,
    write,
    writing,
)
from pipeline.store.notes import NOTES, note_faults, rows_of
from pipeline.store.store import VIEW, is_pass

if TYPE_CHECKING:
    from pipeline.store.store import ArrayGroup, Store


@dataclass
class Values:
    """What a field of a pass holds, over the rows of all views that are as they were written."""

    dtype: np.dtype
    rows: int = 0
    least: float = np.inf
    greatest: float = -np.inf
    total: float = 0.0
    count: int = 0
    zero_rows: int = 0
    zero_ids: list[str] = field(default_factory=list)  # the first three

    @classmethod
    def of(cls, rows: np.ndarray, ids: Sequence[str]) -> Values:
        flat = rows.reshape(len(rows), -1)
        if flat.dtype == np.float16:  # numpy is ten times slower on half precision than on this
            flat = flat.astype(np.float32)
        zero = np.flatnonzero(~flat.any(axis=1))
        return cls(
            rows.dtype,
            len(rows),
            float(flat.min()),
            float(flat.max()),
            float(flat.sum(dtype=np.float64)),
            flat.size,
            len(zero),
            [ids[i] for i in zero[:3]],
        )

    def add(self, other: Values) -> None:
        self.least, self.greatest = min(self.least, other.least), max(self.greatest, other.greatest)
        self.total, self.count = self.total + other.total, self.count + other.count
        self.rows, self.zero_rows = self.rows + other.rows, self.zero_rows + other.zero_rows
        self.zero_ids = [*self.zero_ids, *other.zero_ids][:3]


def table(values: dict[tuple[str, str], Values]) -> str:
    rows = []
    for (folder, name), found in sorted(values.items()):
        named = f" ({', '.join(found.zero_ids)}{', ...' if found.zero_rows > 3 else ''})" if found.zero_rows else ""
        numbers = found.least, found.total / found.count, found.greatest
        cells = [f"{folder}/{name}", found.dtype, found.rows, *(f"{n:.4g}" for n in numbers), f"{found.zero_rows}{named}"]
        rows.append(cells)
    return "\n".join(table_lines(["field", "type", "rows", "least", "mean", "greatest", "rows all zero"], rows))


def verify(store: Store, deep: bool = True, values: dict[tuple[str, str], Values] | None = None, workers: int = 1) -> list[str]:
    """Every fault, one line each: files that are missing, damaged or belong nowhere, rows that differ from their crc or
    are not finite, blocks that were whole and are not any more. `deep` also fills `values` with what the rows hold. Blocks
    are looked at by `workers` threads; what is found, and its order, does not depend on their number."""
    found = [*_faults_of_metadata(store)]
    groups = store.stored_groups()
    with Progress(f"checking {store.folder.name}", len(groups) * store.num_blocks, "blocks") as progress:
        for view, folder in groups:
            found += _faults_of_arrays(store, view, folder)
            for faults, held in _blocks(store, view, folder, deep, workers, values is not None):
                found += faults
                for name, part in held.items():
                    assert values is not None  # else nothing is kept
                    values.setdefault((folder, name), Values(part.dtype)).add(part)
                progress.advance()
    return [*found, *_strays(store), *(fault for name in NOTES for fault in note_faults(store, name))]


def gaps(store: Store) -> list[str]:
    """What was begun and is not filled."""
    if not store.stored_groups() or not store.num_blocks:
        return [f"{store.folder}: holds no rows yet"]
    found = []
    for view, folder in store.stored_groups():
        empty = [block for block in range(store.num_blocks) if not store.mark_path(view, folder, block).exists()]
        if empty:
            found.append(
                f"{store.folder}: {len(empty)} of {store.num_blocks} blocks of {folder}, {view}, are not filled (first: {empty[0]})"
            )
    for name, lost in (("manifest.json", "blocks"), ("history.jsonl", "its origin")):
        path = store.path(name)
        if not path.exists() or not read(path):
            found.append(
                f"{path}: missing or empty, so that {lost} may be lost and nothing tells; if the store is what you "
                f"expect, --repair begins it again"
            )
    return found


def unvouched(store: Store) -> list[str]:
    """The files of the store that no checksum covers."""
    found = []
    for name in NOTES:
        if (path := store.path(name)).exists():
            notes = rows_of(path, head=name == "skipped.tsv")
            without = 0 if name == "skipped.tsv" else np.count_nonzero(store.images.rows(list(notes)) < 0)
            others = f", {without} of no image here" if without else ""
            found.append(
                f"{path}: no checksum covers these {len(notes)} notes{others}; `pipeline prepare` compares them with the files"
            )
    return found


def _faults_of_metadata(store: Store) -> Iterator[str]:
    checks: list[tuple[Callable[[bytes, AnyPath], object], AnyPath]]
    checks = [(check_and_parse, store.path("store.json"))]
    beside = [store.path(name) for name in ("manifest.json", "code.json", CARD)]
    checks += [(check_and_parse, path) for path in beside if path.exists()]
    for check, path in checks:
        try:
            check(read(path), path)
        except StoreError as error:
            yield str(error)
    yield from store.images.faults()
    history = store.path("history.jsonl")
    for number, line in enumerate(read(history).splitlines(keepends=True) if history.exists() else [], start=1):
        try:
            check_and_parse(line, history)
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
    path = store.path("manifest.json")
    try:
        content = check_and_parse(read(path), path)
    except StoreError:  # never finalised, or reported already
        return
    promised = extents(content, store.num_blocks)
    if promised is None:
        yield (
            f"{path}: vouches for passes, views or blocks that this store has not; bring back what is missing from a copy, or let "
            f"--repair write it again"
        )
        return
    for folder, views in promised.items():
        for view, extent in views.items():
            blocks = [block for first, last in extent["blocks"] for block in range(first, last + 1)]
            gone = [block for block in blocks if not store.mark_path(view, folder, block).exists()]
            for block in gone:
                yield f"{store.mark_path(view, folder, block)}: missing (block {block} of {folder}, {view})"
            if not gone and store.digest_of_marks(view, folder, blocks) != extent["marks"]:
                yield f"{path}: other blocks of {folder}, {view}, were filled since; fill the store again"


def extents(manifest: dict, num_blocks: int) -> dict | None:
    """What a manifest calls whole, by pass and view; None unless its names are a store's, as they become paths."""
    passes: Any = manifest.get("passes")
    try:
        fine = all(
            is_pass(folder)
            and VIEW.fullmatch(view)
            and isinstance(extent["marks"], str)
            and all(type(first) is type(last) is int and 0 <= first <= last < num_blocks for first, last in extent["blocks"])
            for folder, views in passes.items()
            for view, extent in views.items()
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        fine = False
    return passes if fine else None


def _faults_of_arrays(store: Store, view: str, folder: str) -> Iterator[str]:
    if not _fine_pass(store, folder):  # reported already
        return
    try:
        meant = store.metadata(view, folder)
    except StoreError as error:
        yield str(error)
        return
    for path, data in meant.items():
        if not path.exists() or path.read_bytes() != data:
            yield f"{path}: missing, or not what the store wrote (all blocks of {folder}, {view})"


def _blocks(
    store: Store, view: str, folder: str, deep: bool, workers: int, ranges: bool = False
) -> Iterator[tuple[list[str], dict[str, Values]]]:
    """Of each block, in order: its faults, and with `ranges` by field what its rows hold; nothing of what was never filled."""

    def look(block: int) -> tuple[list[str], dict[str, Values]]:
        if not store.mark_path(view, folder, block).exists():
            return [], {}
        held: dict[str, Values] = {}
        try:
            faults = [*_faults_of_block(store, view, folder, block, deep, held if ranges else None)]
        except StoreError as error:  # its list of images
            faults = [str(error)]
        return [f"{fault} (block {block} of {folder}, {view})" for fault in faults], held

    if _fine_pass(store, folder):
        yield from map(look, range(store.num_blocks)) if workers == 1 else threads(range(store.num_blocks), look, workers)


def _faults_of_block(store: Store, view: str, folder: str, block: int, deep: bool, held: dict[str, Values] | None) -> Iterator[str]:
    """StoreError if the list of its images is not what it was: that is no fault of the block, whose files stay."""
    fault = store.fault(view, folder, block)
    if fault or not deep:
        yield from [fault] if fault else []
        return
    files, images, rows = store.marked_files(view, folder, block), store.block_images(block), {}
    for name, array in store.arrays(view, folder).items():
        parts, chunks = [], array.block_chunks(block, store.block_rows)
        for i, chunk in enumerate(chunks):
            here = images[i * array.chunk_rows : (i + 1) * array.chunk_rows]
            try:
                parts.append(array.decode(read_chunk(store.path(chunk), *files[chunk])))
            except StoreError as error:
                yield f"{error}, " + (f"images {here[0].id!r} to {here[-1].id!r}" if here else "padding")
        if len(parts) == len(chunks):
            rows[name] = (np.concatenate(parts) if len(parts) > 1 else parts[0])[: len(images)]
    for name in store.layout(folder):
        if name in rows and f"{name}_crc" in rows:
            fine = (row_crcs(rows[name]) == rows[f"{name}_crc"]) & finite(rows[name])
            bad = join_names([repr(image.id) for image, good in zip(images, fine) if not good])
            if held is not None and fine.any():
                ids = [image.id for image, good in zip(images, fine) if good]
                held[name] = Values.of(rows[name][fine] if bad else rows[name], ids)
            if bad:
                yield f"{store.folder}: {name!r} differs from its crc, or is not finite, for image {bad}"
    if store.kind == "prepared" and all(name in rows for name in store.layout(folder)):
        made = [image_row(image.id, {name: rows[name][i] for name in store.layout(folder)}) for i, image in enumerate(images)]
        if other := join_names([repr(image.id) for image, found in zip(images, made) if found != image]):
            yield f"{store.folder}: the rows are not those of the digest in the list of images, for image {other}"


def _strays(store: Store) -> Iterator[str]:
    known = {*store.image_files(), store.folder / f"{store.kind}.zarr/zarr.json"}
    known |= {store.pass_path(folder) for folder in store.stored_passes()}
    for view, folder in store.stored_groups():
        known |= {store.mark_path(view, folder, block) for block in range(store.num_blocks)}
        try:
            known |= set(store.metadata(view, folder))
        except StoreError:  # the pass's file, reported already: what its files are is not known
            known |= set(store.path(f"{store.kind}.zarr/{view}/{folder}").rglob("*"))
            continue
        for block in range(store.num_blocks):
            known |= {store.folder / chunk for chunk in store.block_files(view, folder, block)}
    for top in ("images", "passes", "done", f"{store.kind}.zarr"):
        below: Iterable[AnyPath] = store.path(top).rglob("*")
        for path in sorted(below):
            if path not in known and path.suffix != ".tmp" and (path.is_file() or path.is_symlink()):
                yield f"{path}: does not belong here"


# Repair


def repair(store: Store, passes: Sequence[ArrayGroup] = (), workers: int = 1) -> list[str]:
    """Mends what can be without a teacher, and makes the damaged blocks missing, so that the next fill writes them, and
    only them. Returns what was done.

    Metadata is written again from the pass files, these from `passes`; damaged lines of the history are dropped. A
    damaged store.json or list of images can't be made from anything else, and what doesn't belong here isn't ours.
    """
    done = store.images.remove_bad_index()
    with locked(store.folder):
        history = store.path("history.jsonl")
        lines = read(history).splitlines(keepends=True) if history.exists() else []
        fine = [line for line in lines if _fine(line, history)]
        if len(fine) < len(lines):
            write([(history, b"".join(fine))])
            done.append(f"{history}: {len(lines) - len(fine)} damaged lines dropped")
        if not lines:
            append_history(store.folder, "repair", history="begun again")
            done.append(f"{history}: begun again")
        code = store.path("code.json")
        if code.exists() and not _fine(read(code), code):
            remove(code)
            done.append(f"{code}: removed; which code stored the rows is not known any more")
        for pass_ in passes:
            path = store.pass_path(pass_.folder)
            if pass_.folder in {folder for _, folder in store.stored_groups()} and not _fine_pass(store, pass_.folder):
                store.write_pass(pass_)
                done.append(f"{path}: written again")
        for view, folder in store.stored_groups():
            if _fine_pass(store, folder):
                done += [f"{path}: written again" for path in store.write_metadata(view, folder)]
    for view, folder in store.stored_groups():
        for block, (faults, _) in enumerate(_blocks(store, view, folder, True, workers)):
            if faults:
                mark = store.mark_path(view, folder, block)
                with writing(store.folder), claim_block(mark) as claim:  # a fill, or another repair, may have been faster
                    if mark.exists() and any(_faults_of_block(store, view, folder, block, True, None)):
                        remove(mark)
                        done.append(f"{store.folder}: block {block} of {folder}, {view}, is to be filled again")
                    claim.release()
    if done:
        with locked(store.folder):
            append_history(store.folder, "repair", done=len(done))
    begun = store.path("manifest.json").exists()
    store.finalise()
    return done if begun else [*done, f"{store.folder / 'manifest.json'}: written again"]


def _fine(line: bytes, path) -> bool:
    try:
        check_and_parse(line, path)
    except StoreError:
        return False
    return True


def _fine_pass(store: Store, folder: str) -> bool:
    try:
        store.pass_file(folder)
    except StoreError:
        return False
    return True
