"""The stores under a root: which and how big they are, bringing one from elsewhere, removing one. No stage of dvc.yaml."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import StoreError
from pipeline.identity import diff, join_names, sha256, short
from pipeline.paths import below, name_fault, to_open, unreadable
from pipeline.progress import Progress, byte_size, say, table_lines
from pipeline.store import Store
from pipeline.store.card import CARD, in_lines, lacking, one_line, read_card, write_card
from pipeline.store.files import (
    FORMAT,
    IN_USE,
    AnyPath,
    InUse,
    append_history,
    check_and_parse,
    local,
    locked,
    make_folder,
    map_concurrently,
    read,
    sync,
    unused,
    with_checksum,
    write,
    writing,
)
from pipeline.store.images import INDEX
from pipeline.store.notes import NOTES, note_faults, rows_of, table, without_times
from pipeline.store.verification import gaps, verify

if TYPE_CHECKING:
    from pipeline.reporting.store_users import User

NAME = re.compile(r"(prepared|targets)-[0-9a-f]{12}")
REMOVED = ".removed-"  # before the name of a store that is being removed
FOLDERS = "images", "passes", "done"
FILES = "store.json", "manifest.json", "code.json", CARD, "history.jsonl", ".lock", IN_USE, INDEX
BLOCKS_AT_ONCE = 8
TITLE = "# Stores of offline distillation:"  # of the card of a published folder


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
    written: str = ""  # the day, by the last line of its history


def line(folder: AnyPath) -> Line:
    num_files, num_bytes = weight(folder)
    try:
        store = Store.open(folder)
        groups, passes = store.stored_groups(), sorted(folder[:-9] for folder in store.stored_passes())
        filled = sum(len(list(store.path(f"done/{view}").glob(f"*.{pass_[-8:]}.json"))) for view, pass_ in groups)
    except StoreError as error:
        return Line(folder, None, str(error), [], 0, 0, 0, num_files, num_bytes)
    views = {view for view, _ in groups}
    return Line(
        folder, store, "", passes, len(views), filled, store.num_blocks * len(groups), num_files, num_bytes, last_written(store)
    )


def last_written(store: Store) -> str:
    """The day of the last whole line of its history; empty if there is none."""
    with contextlib.suppress(StoreError):  # a link that leads out, which verify names
        path = store.path("history.jsonl")
        for text in reversed(read(path).splitlines(keepends=True) if path.exists() else []):
            with contextlib.suppress(StoreError):  # a damaged line
                return one_line(str(check_and_parse(text, path).get("time", "")))[:10]
    return ""


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


def run(*, root: AnyPath, configs: Path, runs: Path) -> str:
    """A table of every store under the root, with those of the configurations and unfinished runs that ask for it."""
    lines = stores(root)
    if closed := closed_below(root):
        said = f"{closed[0]}: Permission denied; {to_open(closed[0])}"
        if not lines:
            raise StoreError(said)
        say(said)
    if not lines:
        return f"{root}: no stores"
    found = users(lines, configs, runs, root)
    return "\n".join([*table_of(lines, found), f"{byte_size(sum(here.num_bytes for here in lines))} in all"])


def stores(root: AnyPath) -> list[Line]:
    return [line(path.parent) for path in matching(root, "*/*/store.json")]


def users(lines: Sequence[Line], configs: Path, runs: Path, root: AnyPath) -> list[User] | None:
    """Who asks for stores; None where there is nobody."""
    if not configs.is_dir() and not runs.is_dir():
        return None
    from pipeline.reporting import store_users  # which imports torch

    datasets = {here.folder.parent.name for here in lines}
    return store_users.users(configs, runs, root, datasets | {str(here.store.card.get("dataset")) for here in lines if here.store})


def table_of(lines: Sequence[Line], found: Sequence[User] | None) -> list[str]:
    """Lines of a table, each store with those of `found` that ask for it."""
    rows: list[tuple] = []
    for here in lines:
        kind, _, identity = here.folder.name.rpartition("-")
        head, size = (here.folder.parent.name, kind, identity), byte_size(here.num_bytes)
        if here.store is None:
            rows.append((*head, here.why, *[None] * 6, size))
            continue
        share = f"{here.filled}/{here.blocks} blocks" if here.filled < here.blocks else "all"
        rows.append(
            (
                *head,
                in_words(here.store, found),
                teacher_of(here.store) or None,
                ", ".join(name if count == 1 else f"{name} x{count}" for name, count in Counter(here.passes).items()),
                len(here.store.row_of),
                here.views,
                share,
                here.written,
                size,
            )
        )
    columns = ["dataset", "kind", "identity", "asked for by", "teacher", "passes", "images", "views", "filled", "written", "size"]
    return table_lines(columns, rows)


def in_words(store: Store, found: Sequence[User] | None) -> str:
    if found is None:
        return "no configuration here"
    from pipeline.reporting.store_users import asked_by

    sure, perhaps = asked_by(store, found)
    return ", ".join(filter(None, [join_names(sure), f"perhaps {join_names(perhaps)}" if perhaps else ""])) or "none here"


def teacher_of(store: Store) -> str:
    """ "resnet101 1a2b3c4d fp32" of a cache of targets: network, digest of its weights, precision."""
    teacher = store.identity["record"].get("teacher")
    if store.kind != "targets" or not isinstance(teacher, dict):
        return ""
    words = teacher.get("name"), str(teacher.get("weights", ""))[:8], teacher.get("precision")
    return one_line(" ".join(short(word).strip("'") for word in words if word)).replace("|", " ")


# What no configuration asks for


@dataclass(frozen=True)
class Leftovers:
    lines: list[Line]  # stores that none asks for,
    halves: list[Path]  # what interrupted removals have left
    remarks: list[str]  # and what stays although nothing sure asks for it

    @property
    def num_bytes(self) -> int:
        return sum(found.num_bytes for found in self.lines)


def leftovers(*, root: AnyPath, configs: Path, runs: Path) -> Leftovers:
    """What `gc` would remove. Raises StoreError where there is no configuration that could ask for anything, or no locks."""
    if not local(root):
        raise StoreError(
            f"{root}: object storage has no locks that would show which store is being filled; use `pipeline cache rm`"
        )
    from pipeline.reporting.store_users import asked_by, experiments

    if not any(True for _ in experiments(configs)):
        raise StoreError(
            f"{configs}: there is no configuration here, so that every store would be removed; run this where the configurations "
            f"lie, or name their folder with --configs"
        )
    every = stores(root)
    found = users(every, configs, runs, root) or []
    lines, remarks = [], []
    for here in every:
        if here.store is None:
            remarks.append(f"{here.folder} stays: {here.why}")
            continue
        sure, perhaps = asked_by(here.store, found)
        if perhaps and not sure:
            why = next(user.why for user in found if user.name in perhaps and user.why)
            remarks.append(f"{here.folder} stays, perhaps asked for by {join_names(perhaps)} ({why})")
        elif not sure:
            lines.append(here)
    return Leftovers(lines, [path for path in matching(root, f"*/{REMOVED}*") if local(path) and is_half(path)], remarks)


def is_half(path: Path) -> bool:
    return NAME.fullmatch(path.name.removeprefix(REMOVED)) is not None and path.is_dir() and not path.is_symlink()


def gc(found: Leftovers) -> str:
    """Removes them. What is being filled, or is no whole store, stays, and is named."""
    for path in found.halves:
        with writing(path):
            shutil.rmtree(path)
    said = []
    for here in found.lines:
        try:
            said.append(remove(folder=here.folder))
        except StoreError as error:
            said.append(str(error))
    return "\n".join([*said, *(f"{path}: removed, which an interrupted removal had left" for path in found.halves)])


def closed_below(root: AnyPath) -> list[Path]:
    """Folders where stores may lie that this user may not read: a list would be without them."""
    if not local(root):
        return []
    below = (path for pattern in ("*", "*/*") for path in sorted(root.glob(pattern)))
    closed = [unreadable(path) for path in (root, *below)]
    return [path for path in closed if path is not None]


def check_is_store(folder: AnyPath) -> Line:
    """What is to be removed. Raises StoreError if it is no store, or a link, or holds a link or anything else that no store
    has: then it is not this project's to remove."""

    def refuse(place: AnyPath | str, what: str, to_do: str) -> StoreError:
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
    """Raises StoreError if the store is being filled. On disk it is renamed first, so that whatever happens it is whole or gone; on
    object storage its marks go first, so that nothing half removed is read, and store.json last, so that it can be done again."""
    found = check_is_store(folder)
    if not local(folder):
        for path in sorted(matching(folder, "*"), key=lambda path: (path.name != "done", path.name == "store.json")):
            if not local(path):
                path.remove_tree()
    else:
        with writing(folder), unused(folder) as free:
            if not free:
                raise StoreError(f"{folder}: is being filled, so nothing was removed; wait until it is done, or stop it")
            aside = folder.with_name(f"{REMOVED}{folder.name}")
            if aside.is_dir() and is_half(aside):  # of an earlier removal
                shutil.rmtree(aside)
            folder.rename(aside)
            sync(folder.parent)
            shutil.rmtree(aside)
    return f"{folder}: removed, {found.num_files} files, {byte_size(found.num_bytes)}"


def pull(*, source: AnyPath, root: AnyPath, num_views: int | None) -> str:
    """Copies a store, or all below a root, to where a run with this root looks for it. Either side may be a URL.

    Every file is compared with its checksum, and a block's mark is written after its files: broken off, it goes on
    where it stopped, and what is there can be used. A store that is there already gets what it lacks. StoreError if it
    is another.
    """
    folders = stores_at(source)
    check_is_root(root)
    return "\n".join(pull_one(Store.open(folder), destination(folder, root), num_views) for folder in folders)


def stores_at(source: AnyPath) -> list[AnyPath]:
    """The store, or all below a root. Raises StoreError if there is none."""
    folders = [source] if (source / "store.json").exists() else [path.parent for path in matching(source, "*/*/store.json")]
    if not folders:
        raise StoreError(f"{source}: no store, nor a root with stores below; check the address")
    return folders


def check_is_root(root: AnyPath) -> None:
    """Raises StoreError where `root` lies within another root, so that no run would look below it."""
    if NAME.fullmatch(root.name) or any(NAME.fullmatch(path.parent.name) for path in matching(root, "*/store.json")):
        what = "has the name of a store" if NAME.fullmatch(root.name) else "is a dataset's folder, with stores in it"
        raise StoreError(f"{root}: {what}, and no root, so nothing was copied; name the root, as in cache")


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
    in_use = InUse(folder)  # noqa: F841  # until this returns

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


def note_here(source: AnyPath, here: AnyPath) -> bytes:
    """A note as a copy holds it. Times of another machine's files say nothing here: the first run compares their content; what
    was compared here already stays."""
    if source.name != "sources.tsv":
        return read(source)
    return table(without_times(rows_of(source)) | rows_of(here))


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
            apart = diff(Store.open(folder).head() | {"card": None}, source.head() | {"card": None})
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
        write([(below(folder, path.name), note_here(path, below(folder, path.name))) for path in beside])
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
        if source.path(CARD).exists() and not copy.path(CARD).exists():
            read_card(source)  # refused unless it is one
            write([(copy.path(CARD), read(source.path(CARD)))])
        append_history(folder, "pull", source=str(source.folder))
    return copy


# Stores of hosts that share no disk


def merge(*, into: AnyPath, source: AnyPath) -> str:
    """Copies into a store what another of the same identity has and it lacks, or into a root what the stores below another have.

    Raises StoreError, and changes nothing, where both hold a block with other bytes, list other images in a block, or stored a
    target by other code. Files are compared with their checksums, as `pull` does, and an interrupted merge goes on.
    """
    sources = [Store.open(folder) for folder in stores_at(source)]
    if NAME.fullmatch(into.name):
        Store.open(into)  # refused if there is none: a root would be made there
    one = (into / "store.json").exists()
    if not one:
        check_is_root(into)
    places = [into if one else destination(store.folder, into) for store in sources]
    found = [
        conflict
        for store, place in zip(sources, places)
        if (place / "store.json").exists()
        for conflict in conflicts(Store.open(place), store)
    ]
    if found:
        shown = found if len(found) <= 10 else [*found[:10], f"{into}: and {len(found) - 10} more"]
        count = f"{len(found)} conflict{'s' * (len(found) > 1)}"
        raise StoreError("\n".join([*shown, f"{into}: {count}, so nothing was merged; keep one of the stores"]))
    said = []
    for store, place in zip(sources, places):
        said.append(pull_one(store, place, None))
        now = line(place)
        said.append(f"{place}: {now.filled} of {now.blocks} blocks are filled now")
    return "\n".join(said)


def conflicts(here: Store, there: Store) -> Iterator[str]:
    """What two stores say differently, a line each."""
    if apart := diff({**here.head(), "card": None}, {**there.head(), "card": None}):
        yield f"{here.folder}: is another store than {there.folder}: {join_names(apart)}"
        return
    for block in range(min(here.num_blocks, there.num_blocks)):
        if here.block_images(block) != there.block_images(block):
            yield f"{here.image_file(block)}: lists other images than {there.image_file(block)}"
    theirs = there.codes()
    for pass_, code in here.codes().items():
        if theirs.get(pass_, code) != code:
            yield f"{here.folder}: {pass_} was stored by other code ({code}) than in {there.folder} ({theirs[pass_]})"
    common = sorted(set(here.stored_groups()) & set(there.stored_groups()))
    keys = [(*group, block) for group in common for block in range(min(here.num_blocks, there.num_blocks))]
    yield from filter(None, map_concurrently(lambda key: other_bytes(here, there, *key), keys, there.folder))


def other_bytes(here: Store, there: Store, view: str, pass_: str, block: int) -> str | None:
    """How two marks of a block differ; None where they agree, or where one is missing or damaged, which counts as missing."""
    if not (here.mark_path(view, pass_, block).exists() and there.mark_path(view, pass_, block).exists()):
        return None
    try:
        ours = here.marked_files(view, pass_, block)
    except StoreError:
        return None
    theirs = there.marked_files(view, pass_, block)
    other = [chunk for chunk in ours if ours[chunk] != theirs[chunk]]
    if not other:
        return None
    crcs = f"crc {ours[other[0]][1]} here, {theirs[other[0]][1]} there"
    return f"{here.folder}: block {block} of {pass_}, {view}: other bytes than in {there.folder}: {other[0]}: {crcs}"


# Publishing


def card(*, folder: AnyPath, changes: dict[str, dict[str, str]]) -> str:
    """The store's card, after these changes."""
    store = Store.open(folder)
    if changes:
        write_card(store, changes)
    return "\n".join(in_lines(store))


def publish(*, folders: Sequence[AnyPath], out: AnyPath) -> str:
    """Copies whole stores, or those below a root, into a folder that any bucket or hub takes, with a card (README.md) and the
    SHA-256 of every file (SHA256SUMS, as `sha256sum -c` reads it), also of stores that were published there before. Raises
    StoreError, and writes nothing, where a store is not whole, its card lacks an entry, or the folder has a README.md of its own.
    An interrupted run goes on; the card and the sums are written last."""
    sources = [Store.open(folder) for given in folders for folder in stores_at(given)]
    if (out / "README.md").exists() and TITLE not in read(out / "README.md").decode("utf-8", "replace"):
        raise StoreError(f"{out / 'README.md'}: would be overwritten, and is no card of published stores; name another --out")
    for store in sources:
        if without := lacking(store):
            options = " ".join(f"--{name.replace('.', '-')} TEXT" for name in without)
            raise StoreError(
                f"{store.folder}: its card lacks {', '.join(without)}; note the terms with `pipeline cache card {store.folder} "
                f"{options}`"
            )
        if faults := [*verify(store), *gaps(store)]:
            raise StoreError(f"{faults[0]} ({len(faults)} faults and gaps in all; only a whole store is published)")
    check_is_root(out)
    said = [pull_one(store, destination(store.folder, out), None) for store in sources]
    copies = [Store.open(folder) for folder in stores_at(out)]
    with writing(out):
        write([(out / "README.md", readme(copies).encode())])
        files = sorted(path for copy in copies for path in below_of(copy.folder) if path.name not in (".lock", IN_USE, INDEX))
        sums = map_concurrently(lambda path: f"{sha256(read(path))}  {name_below(path, out)}\n", [out / "README.md", *files], out)
        write([(out / "SHA256SUMS", "".join(sums).encode())])
    return "\n".join([*said, f"{out}: {len(files) + 1} files, README.md with the terms, SHA256SUMS"])


def below_of(folder: AnyPath) -> list[AnyPath]:
    if local(folder):
        return [Path(entry.path) for entry in entries(folder) if entry.is_file(follow_symlinks=False)]
    return list(folder.rglob("*"))


def readme(stores_there: Sequence[Store]) -> str:
    """What is published, in the form that hubs read as a dataset's card."""
    names = sorted({store.folder.parent.name for store in stores_there})
    lines = [
        "---",
        "license: other",
        "tags: [knowledge-distillation, semantic-segmentation]",
        "---",
        "",
        f"{TITLE} {', '.join(names)}",
        "",
        "Copy them with `pipeline cache pull`, from this folder or its address, to where a run looks for them. "
        "`sha256sum -c SHA256SUMS` checks every file.",
    ]
    for store in stores_there:
        head = [
            (key, one_line(", ".join(map(str, value)) if isinstance(value, list) else str(value)))
            for key, value in sorted(store.card.items())
        ]
        content = [
            ("images", len(store.row_of)),
            ("views", len({view for view, _ in store.stored_groups()})),
            ("passes", ", ".join(store.stored_passes())),
            ("identity", store.identity["digest"]),
        ]
        lines += [
            "",
            f"## {store.folder.parent.name}/{store.folder.name}",
            "",
            *table_lines(["", store.kind], [*head, *content]),
            "",
        ]
        lines += [f"- {line}" for line in in_lines(store)]
    return "\n".join(lines) + "\n"
