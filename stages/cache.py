"""The stores under a root: which and how big they are, bringing one from elsewhere, removing one. No stage of dvc.yaml."""

import re
import shutil
from dataclasses import dataclass

from pipeline.errors import StoreError
from pipeline.identity import difference, listed
from pipeline.progress import Progress
from pipeline.store import Store
from pipeline.storefiles import FORMAT, AnyPath, each, local, locked, make_folder, note, read, seal, write, writing

NAME = re.compile(r"(prepared|targets)-[0-9a-f]{12}")
BESIDE = ["skipped.tsv", "sources.tsv"]         # what `prepare` notes: the images it left out, and the files of all
BLOCKS_AT_ONCE = 8


@dataclass(frozen=True)
class Line:
    """A store in a list. `filled` of `blocks`: over all its passes and views."""

    folder: AnyPath
    store: Store | None                          # None: damaged, and why
    why: str
    filled: int
    blocks: int
    num_bytes: int


def line(folder: AnyPath) -> Line:
    num_bytes = (sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if local(folder)
                 else folder.num_bytes())
    try:
        store = Store.open(folder)
    except StoreError as error:
        return Line(folder, None, str(error), 0, 0, num_bytes)
    groups = store.stored_groups()
    filled = sum(len(list((folder / "done" / view).glob(f"*.{pass_[-8:]}.json"))) for view, pass_ in groups)
    return Line(folder, store, "", filled, store.num_blocks * len(groups), num_bytes)


def run(*, root: AnyPath) -> str:
    """A table of every store under the root."""
    lines = [line(path.parent) for path in sorted(root.glob("*/*/store.json"))]
    if not lines:
        return f"{root}: no stores"
    rows = ["| dataset | kind | identity | images | views | passes | filled | size |", "|---" * 8 + "|"]
    for found in lines:
        kind, _, identity = found.folder.name.rpartition("-")
        head = f"| {found.folder.parent.name} | {kind} | {identity} |"
        if found.store is None:
            rows.append(f"{head} {found.why} | | | | {words(found.num_bytes)} |")
            continue
        views = {view for view, _ in found.store.stored_groups()}
        names = sorted(folder[:-9] for folder in found.store.stored_passes())
        share = f"{found.filled}/{found.blocks} blocks" if found.filled < found.blocks else "all"
        rows.append(f"{head} {len(found.store.row_of)} | {len(views)} | {', '.join(names)} | {share} | "
                    f"{words(found.num_bytes)} |")
    return "\n".join([*rows, f"{words(sum(found.num_bytes for found in lines))} in all"])


def check_is_store(folder: AnyPath) -> Line:
    """What is to be removed. Raises StoreError if it is no store."""
    if not NAME.fullmatch(folder.name) or not (folder / "store.json").exists():
        raise StoreError(f"{folder}: is no store, so nothing was removed; `pipeline cache list` shows what there is")
    return line(folder)


def remove(*, folder: AnyPath) -> str:
    """Its marks first, so that nothing half removed is read, and store.json last, so that it can be done again."""
    size = check_is_store(folder).num_bytes
    with writing(folder):
        for path in sorted(folder.glob("*"), key=lambda path: (path.name != "done", path.name == "store.json")):
            if not local(path):
                path.remove_tree()
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        if local(folder):
            folder.rmdir()
    return f"{folder}: removed, {words(size)}"


def pull(*, source: AnyPath, root: AnyPath, num_views: int | None) -> str:
    """Copies a store, or all below a root, to where a run with this root looks for it. Either side may be a URL.

    Every file is compared with its checksum, and a block's mark is written after its files: broken off, it goes on
    where it stopped, and what is there can be used. A store that is there already gets what it lacks. StoreError if it
    is another.
    """
    folders = [source] if (source / "store.json").exists() else [
        path.parent for path in sorted(source.glob("*/*/store.json"))]
    if not folders:
        raise StoreError(f"{source}: no store, nor a root with stores below; check the address")
    return "\n".join(
        pull_one(Store.open(folder), root / folder.parent.name / folder.name, num_views) for folder in folders)


def pull_one(theirs: Store, folder: AnyPath, num_views: int | None) -> str:
    groups = [(view, pass_) for view, pass_ in theirs.stored_groups() if num_views is None or int(view[1:]) < num_views]
    ours = same_extent(theirs, folder, groups)

    def take(key: tuple[str, str, int]) -> int:
        if not theirs.mark_path(*key).exists():
            return 0
        if ours.fault(*key, deep=True):
            ours.copy_block(theirs, *key)
        return 1

    keys = [(view, pass_, block) for block in range(theirs.num_blocks) for view, pass_ in groups]
    taken = 0
    with Progress(f"pulling {folder.name}", len(keys), "blocks") as progress:
        for count in each(take, keys, theirs.folder if local(folder) else folder, at_once=BLOCKS_AT_ONCE):
            taken += count
            progress.advance()
    ours.finalise()
    missing = f", {len(keys) - taken} are not filled there" if taken < len(keys) else ""
    return f"{folder}: {len(theirs.row_of)} images, {taken} of {len(keys)} blocks of {theirs.folder}{missing}"


def same_extent(theirs: Store, folder: AnyPath, groups: list[tuple[str, str]]) -> Store:
    """The store in `folder`, of the same identity, images, passes and views; made if it is not there."""
    passes = sorted({pass_ for _, pass_ in groups})
    copied = [*theirs.image_files(), *(theirs.folder / f"passes/{pass_}.json" for pass_ in passes)]
    beside = [path for path in (theirs.folder / name for name in BESIDE) if path.exists()]
    with writing(folder):
        for name in ("images", "passes", "done", f"{theirs.kind}.zarr"):
            make_folder(folder / name)
    with locked(folder):
        if (folder / "store.json").exists():
            apart = difference(Store.open(folder).head(), theirs.head())
            if apart:
                raise StoreError(f"{folder}: is another store than {theirs.folder}: {listed(apart)}; pull into another "
                                 f"root")
        places = [folder / str(path.relative_to(theirs.folder)) for path in copied]
        new = {here: data for here, data in zip(places, each(read, copied, theirs.folder))
               if not here.exists() or read(here) != data}
        for here in new:
            if here.exists():
                raise StoreError(f"{here}: is another file in {theirs.folder}; one of them is damaged, or both have "
                                 f"grown apart; pull into another root")
        write(new.items())
        write([(folder / path.name, read(path)) for path in beside])
        if codes := theirs.codes():              # what is known here of a pass stays: rows may have been compared since
            known = Store.open(folder).codes() if (folder / "store.json").exists() else {}
            if known != codes | known:
                head = {"format": FORMAT, "store": theirs.identity["digest"]}
                write([(folder / "code.json", seal(head | {"passes": codes | known}))])
        if not (folder / "store.json").exists():
            write([(folder / "store.json", seal(theirs.head()))])
        ours = Store.open(folder)
        for view, pass_ in groups:
            make_folder(folder / "done" / view)
            ours.write_metadata(view, pass_)
        note(folder, "pull", source=str(theirs.folder))
    return ours


def words(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
