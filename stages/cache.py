"""The stores under a root: which and how big they are, bringing one from elsewhere, removing one. No stage of dvc.yaml."""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import StoreError
from pipeline.identity import diff, join_names
from pipeline.paths import below, name_fault
from pipeline.progress import Progress, byte_size, table_lines
from pipeline.store import Store
from pipeline.store.files import (
    FORMAT,
    AnyPath,
    append_history,
    local,
    locked,
    make_folder,
    map_concurrently,
    read,
    with_checksum,
    write,
    writing,
)
from pipeline.store.notes import NOTES, note_faults

NAME = re.compile(r"(prepared|targets)-[0-9a-f]{12}")
FOLDERS, FILES = ("images", "passes", "done"), ("store.json", "manifest.json", "code.json", "history.jsonl", ".lock")
BLOCKS_AT_ONCE = 8


@dataclass(frozen=True)
class Line:
    """A store in a list. `filled` of `blocks`: over all its passes and views."""

    folder: AnyPath
    store: Store | None  # None: damaged, and why
    why: str
    passes: list[str]
    views: int
    filled: int
    blocks: int
    num_files: int
    num_bytes: int


def line(folder: AnyPath) -> Line:
    num_files, num_bytes = weight(folder)
    try:
        store = Store.open(folder)
        groups, passes = store.stored_groups(), sorted(folder[:-9] for folder in store.stored_passes())
        filled = sum(len(list(store.path(f"done/{view}").glob(f"*.{pass_[-8:]}.json"))) for view, pass_ in groups)
    except StoreError as error:
        return Line(folder, None, str(error), [], 0, 0, 0, num_files, num_bytes)
    views = {view for view, _ in groups}
    return Line(folder, store, "", passes, len(views), filled, store.num_blocks * len(groups), num_files, num_bytes)


def weight(folder: AnyPath) -> tuple[int, int]:
    """Files below the folder and their bytes, without what links lead to."""
    if not local(folder):
        return folder.weight()
    sizes = [entry.stat(follow_symlinks=False).st_size for entry in entries(folder) if entry.is_file(follow_symlinks=False)]
    return len(sizes), sum(sizes)


def entries(folder: str | os.PathLike[str]) -> Iterator[os.DirEntry[str]]:
    """All below the folder; no link is followed."""
    with os.scandir(folder) as found:
        for entry in found:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from entries(entry.path)


def matching(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """What lies below the folder by a name of this pattern, sorted."""
    found: Iterator[AnyPath] = folder.glob(pattern)
    return sorted(found)


def name_below(path: AnyPath, folder: AnyPath) -> str:
    if local(path):
        return str(path.relative_to(str(folder)))
    if local(folder):
        raise ValueError(f"{path}: is not below {folder}")
    return str(path.relative_to(folder))


def run(*, root: AnyPath) -> str:
    """A table of every store under the root."""
    lines = [line(path.parent) for path in matching(root, "*/*/store.json")]
    if not lines:
        return f"{root}: no stores"
    rows: list[tuple] = []
    for found in lines:
        kind, _, identity = found.folder.name.rpartition("-")
        head, size = (found.folder.parent.name, kind, identity), byte_size(found.num_bytes)
        if found.store is None:
            rows.append((*head, found.why, None, None, None, size))
            continue
        share = f"{found.filled}/{found.blocks} blocks" if found.filled < found.blocks else "all"
        rows.append((*head, len(found.store.row_of), found.views, ", ".join(found.passes), share, size))
    lines_of_table = table_lines(["dataset", "kind", "identity", "images", "views", "passes", "filled", "size"], rows)
    return "\n".join([*lines_of_table, f"{byte_size(sum(found.num_bytes for found in lines))} in all"])


def check_is_store(folder: AnyPath) -> Line:
    """What is to be removed. Raises StoreError if it is no store, or a link, or holds a link or anything else that no store
    has: then it is not this project's to remove."""

    def refuse(place: "AnyPath | str", what: str, to_do: str) -> StoreError:
        return StoreError(f"{place}: {what}, so nothing was removed; {to_do}")

    shown = "`pipeline cache list` shows what there is"
    if local(folder) and folder.is_symlink():
        raise refuse(folder, "is a link", f"remove {folder.resolve()}, which it leads to, and then the link")
    if not NAME.fullmatch(folder.name) or not (folder / "store.json").exists():
        raise refuse(folder, "is no store", shown)
    try:
        store = Store.open(folder)
    except StoreError as error:
        raise refuse(folder, f"is no whole store ({error})", "remove it by hand if it is yours") from None
    if store.kind != folder.name.partition("-")[0]:
        raise refuse(folder, f"holds a store of {store.kind}", "it is not what its name says; remove it by hand if it is yours")
    if other := next((path for path in matching(folder, "*") if not is_own(path.name, store.kind)), None):
        raise refuse(other, "is no part of a store", "move it away first")
    if local(folder) and (link := next((entry for entry in entries(folder) if entry.is_symlink()), None)):
        raise refuse(link.path, "is a link", "remove it by hand first")
    return line(folder)


def is_own(name: str, kind: str) -> bool:
    """Whether a store has a file or folder of this name at its top."""
    return name.removesuffix(".tmp") in (*FOLDERS, f"{kind}.zarr", *FILES, *NOTES)


def remove(*, folder: AnyPath) -> str:
    """Its marks first, so that nothing half removed is read, and store.json last, so that it can be done again."""
    found = check_is_store(folder)
    with writing(folder):
        for path in sorted(matching(folder, "*"), key=lambda path: (path.name != "done", path.name == "store.json")):
            if not local(path):
                path.remove_tree()
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        if local(folder):
            folder.rmdir()
    return f"{folder}: removed, {found.num_files} files, {byte_size(found.num_bytes)}"


def pull(*, source: AnyPath, root: AnyPath, num_views: int | None) -> str:
    """Copies a store, or all below a root, to where a run with this root looks for it. Either side may be a URL.

    Every file is compared with its checksum, and a block's mark is written after its files: broken off, it goes on
    where it stopped, and what is there can be used. A store that is there already gets what it lacks. StoreError if it
    is another.
    """
    folders = [source] if (source / "store.json").exists() else [path.parent for path in matching(source, "*/*/store.json")]
    if not folders:
        raise StoreError(f"{source}: no store, nor a root with stores below; check the address")
    return "\n".join(pull_one(Store.open(folder), destination(folder, root), num_views) for folder in folders)


def destination(folder: AnyPath, root: AnyPath) -> AnyPath:
    """Where a run with this root looks for the store in `folder`. Raises StoreError unless its dataset and name are such."""
    dataset = folder.absolute().parent.name
    if fault := name_fault(dataset):
        raise StoreError(f"{folder}: the dataset's folder {dataset!r} {fault}; name it otherwise there")
    if not NAME.fullmatch(folder.name):
        raise StoreError(f"{folder}: {folder.name!r} is not what a store is called, as targets-0123456789ab; name it so there")
    return root / dataset / folder.name


def pull_one(source: Store, folder: AnyPath, num_views: int | None) -> str:
    groups = [(view, pass_) for view, pass_ in source.stored_groups() if num_views is None or int(view[1:]) < num_views]
    copy = same_extent(source, folder, groups)

    def take(key: tuple[str, str, int]) -> int:
        if not source.mark_path(*key).exists():
            return 0
        if copy.fault(*key, deep=True):
            copy.copy_block(source, *key)
        return 1

    keys = [(view, pass_, block) for block in range(source.num_blocks) for view, pass_ in groups]
    taken = 0
    with Progress(f"pulling {folder.name}", len(keys), "blocks") as progress:
        for count in map_concurrently(take, keys, source.folder if local(folder) else folder, at_once=BLOCKS_AT_ONCE):
            taken += count
            progress.advance()
    copy.finalise()
    missing = f", {len(keys) - taken} are not filled there" if taken < len(keys) else ""
    return f"{folder}: {len(source.row_of)} images, {taken} of {len(keys)} blocks of {source.folder}{missing}"


def same_extent(source: Store, folder: AnyPath, groups: list[tuple[str, str]]) -> Store:
    """The store in `folder`, of the same identity, images, passes and views; made if it is not there."""
    passes = sorted({pass_ for _, pass_ in groups})
    copied = [*source.image_files(), *map(source.pass_path, passes)]
    for pass_ in passes:
        source.pass_file(pass_)  # refused before anything is written
    beside = [source.path(name) for name in NOTES if source.path(name).exists()]
    if faults := [fault for path in beside for fault in note_faults(source, path.name)]:
        raise StoreError(faults[0])
    with writing(folder):
        make_folder(folder)
        for name in ("images", "passes", "done", f"{source.kind}.zarr"):
            make_folder(below(folder, name))
    with locked(folder):
        if (folder / "store.json").exists():
            apart = diff(Store.open(folder).head(), source.head())
            if apart:
                raise StoreError(f"{folder}: is another store than {source.folder}: {join_names(apart)}; pull into another root")
        places = [below(folder, name_below(path, source.folder)) for path in copied]
        new = {
            here: data
            for here, data in zip(places, map_concurrently(read, copied, source.folder))
            if not here.exists() or read(here) != data
        }
        for here in new:
            if here.exists():
                raise StoreError(
                    f"{here}: is another file in {source.folder}; one of them is damaged, or both have "
                    f"grown apart; pull into another root"
                )
        write(new.items())
        write([(below(folder, path.name), read(path)) for path in beside])
        if codes := source.codes():  # what is known here of a pass stays: rows may have been compared since
            known = Store.open(folder).codes() if (folder / "store.json").exists() else {}
            if known != codes | known:
                head = {"format": FORMAT, "store": source.identity["digest"]}
                write([(below(folder, "code.json"), with_checksum(head | {"passes": codes | known}))])
        if not (folder / "store.json").exists():
            write([(below(folder, "store.json"), with_checksum(source.head()))])
        copy = Store.open(folder)
        for view, pass_ in groups:
            make_folder(copy.path(f"done/{view}"))
            copy.write_metadata(view, pass_)
        append_history(folder, "pull", source=str(source.folder))
    return copy
