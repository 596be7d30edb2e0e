"""Take a cache over under a new identity, where the teacher's code has changed and its answers have not. No stage of dvc.yaml.

The identity of a cache names the code of the teacher: the release of the library that an adapter's factory comes from, the digest
of its file, a version. A comment or a patch release thus gives another identity, although every row would be the same.
Here some rows are computed again. Where they agree within what each target declares, the finished blocks get a store of the new
identity, as hard links; the old store stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pipeline.errors import StoreError
from pipeline.identity import diff, join_names
from pipeline.models.base import set_precision
from pipeline.progress import Progress
from pipeline.store import Reader, Store
from pipeline.store.files import AnyPath, InUse, append, append_history, locked, read, view_name
from pipeline.store.store import store_folder
from pipeline.teacher import cache, parity
from pipeline.teacher.experiment import Experiment, Named
from pipeline.teacher.fill import every_pass
from pipeline.training.loading import CachedTargets


def run(experiment: Experiment, *, source: AnyPath | None, recompute: int, device: str, batch: int) -> str:
    """Returns what was taken over, in words and a table. `source` is the store to adopt, by default the one that differs least.

    Raises StoreError, and changes nothing, where the stores differ in more than the teacher's code, where images, labels or views
    are others, or where a target's rows differ by more than it declares.
    """
    config, identity = experiment.config, experiment.identity
    folder = store_folder(experiment.root, "targets", experiment.home, identity)
    fits = f"{folder}: has the identity that {config.path} asks for"
    if source is None and is_whole(folder, experiment):
        return f"{fits}; nothing to adopt"
    old = Store.open(source) if source is not None else nearest(experiment, identity)
    apart = diff(old.identity["record"], identity)
    more = [text for text in apart if not cache.is_code(text)]
    if not apart or (more and source is None and (folder / "store.json").exists()):
        return f"{fits}; nothing to adopt"
    if old.kind != "targets" or more:
        raise StoreError(
            f"{old.folder}: differs in more than the teacher's code: {join_names(more if old.kind == 'targets' else apart)}; only "
            f"`pipeline cache-teacher {config.path}` makes such rows"
        )
    named = stored_targets(old, experiment, identity)
    ids, num_views = whole(old, experiment, named)
    errors = compared(old, experiment, named, ids, num_views, recompute=recompute, device=device, batch=batch)
    if wrong := [error for error in errors if not error.holds]:
        worst = max(wrong, key=lambda error: error.excess)
        raise StoreError(
            f"{old.folder}: {join_names([error.target for error in wrong])}: not what this teacher answers: of {worst.rows} rows "
            f"of {worst.target} the largest error is {worst.largest:.2e}, {worst.excess:.3g} times what is declared; nothing was "
            f"changed; run `pipeline cache-teacher {config.path}`"
        )
    new = take_over(old, experiment, identity, named, apart, errors)
    filled = sum(new.mark_path(*group, block).exists() for group in new.stored_groups() for block in range(new.num_blocks))
    left_out = [name for name in config.targets if name not in named]
    return "\n".join(
        [
            parity.table(errors),
            "",
            f"{folder}: {filled} blocks taken over from {old.folder}, which stays ({join_names(apart)})",
            *(
                [f"not stored there, and left to `pipeline cache-teacher {config.path}`: {join_names(left_out)}"]
                if left_out
                else []
            ),
        ]
    )


def is_whole(folder: AnyPath, experiment: Experiment) -> bool:
    """Whether the store is there, with every row that the experiment asks for."""
    if not (folder / "store.json").exists():
        return False
    store, every = Store.open(folder), every_pass(experiment.targets)
    rows, views = store.images.rows(experiment.ids).tolist(), range(experiment.config.views.count)
    if min(rows, default=-1) < 0 or not all(store.has_pass(pass_) for pass_ in every):
        return False
    asked_for = {row // store.block_rows for row in rows}
    return not any(asked_for.intersection(store.missing(pass_, view)) for pass_ in every for view in views)


def nearest(experiment: Experiment, identity: dict) -> Store:
    """The cache of this dataset that differs least, and the experiment's own if there is no other. Raises StoreError if there is
    none at all."""
    own = store_folder(experiment.root, "targets", experiment.home, identity)
    heads: Iterable[AnyPath] = own.parent.glob("targets-*/store.json")
    folders = sorted(path.parent for path in heads)
    others = [Store.open(folder) for folder in folders if folder != own or len(folders) == 1]
    if not others:
        raise StoreError(f"{own.parent}: there is no cache to adopt; run `pipeline cache-teacher {experiment.config.path}`")
    return min(others, key=lambda other: cache.distance(diff(other.identity["record"], identity)))


def stored_targets(old: Store, experiment: Experiment, identity: dict) -> Named:
    """Those targets of the file that the store holds. Raises StoreError if there are none, or if an image or a label is another."""
    named = {name: (target, pass_) for name, (target, pass_) in experiment.targets.items() if old.has_pass(pass_)}
    if not named or not old.has_pass(cache.MATRIX):
        raise StoreError(f"{old.folder}: holds none of the targets of {experiment.config.path}; nothing to adopt")
    images = [image for image, row in zip(experiment.images, old.images.rows(experiment.ids).tolist()) if row >= 0]
    old.check(images, range(0), [(pass_, cache.by_labels(identity, target)) for target, pass_ in named.values()], any_code=True)
    return named


def whole(old: Store, experiment: Experiment, named: Named) -> tuple[list[str], int]:
    """The experiment's images whose rows are whole in all views that both know, and how many views these are."""
    passes = every_pass(named)
    stored = {view for view, folder in old.stored_groups() if folder == cache.MATRIX.folder}
    num_views = next((v for v in range(experiment.config.views.count) if view_name(v) not in stored), experiment.config.views.count)
    bad = {block for pass_ in passes for view in range(num_views) for block in old.missing(pass_, view)}
    rows = old.images.rows(experiment.ids).tolist()
    ids = [image_id for image_id, row in zip(experiment.ids, rows) if row >= 0 and row // old.block_rows not in bad]
    if not ids or not num_views:
        raise StoreError(f"{old.folder}: holds no image of {experiment.config.path} whose rows are whole; nothing to compare")
    return ids, num_views


def compared(
    old: Store, experiment: Experiment, named: Named, ids: list[str], num_views: int, *, recompute: int, device: str, batch: int
) -> list[parity.RowError]:
    """Of each target, the error of so many rows, chosen at random. Raises StoreError if a view has another matrix."""
    precision = experiment.config.teacher.precision
    set_precision(precision)
    teacher = experiment.online_targets(named, experiment.samples(ids, memory="disk"), batch=batch, device=device)
    cached = CachedTargets(Reader(old, every_pass(named), ids, num_views, memory="disk"), cache.MATRIX, named)
    positions, numbers = parity.choose(len(ids), num_views, recompute)
    drawn, stored = teacher.matrices(positions, numbers), cached.matrices(positions, numbers)
    if len(other := np.flatnonzero((drawn != stored).any(axis=(1, 2)))):
        image, view = ids[positions[other[0]]], numbers[other[0]]
        raise StoreError(f"{old.folder}: image {image!r}, view {view}: the view has another matrix now; nothing was changed")
    return parity.recomputed(teacher, cached, positions, numbers, batch=batch, precision=precision)


def take_over(
    old: Store, experiment: Experiment, identity: dict, named: Named, apart: list[str], errors: list[parity.RowError]
) -> Store:
    """The store of the new identity, with the finished blocks of these targets. What was interrupted goes on where it stopped."""
    new = Store.create_or_open(
        experiment.root, "targets", experiment.home, identity, block_rows=old.block_rows, codec=old.codec, card=old.card
    )
    in_use = InUse(new.folder)  # noqa: F841  # until this returns
    if (new.block_rows, new.codec) != (old.block_rows, old.codec):
        raise StoreError(
            f"{new.folder}: is there already, with blocks of {new.block_rows} rows in {new.codec}, not of {old.block_rows} in "
            f"{old.codec}; remove it with `pipeline cache rm`, or fill it with `pipeline cache-teacher {experiment.config.path}`"
        )
    passes = {pass_.folder: pass_ for pass_ in every_pass(named)}
    groups = [(view, folder) for view, folder in old.stored_groups() if folder in passes]
    new.take_extent(old, groups)
    with locked(new.folder):
        new.vouch_for_code(passes.values())
        history, came = old.path("history.jsonl"), new.path("history.jsonl")
        if history.exists() and (lines := read(history)) not in read(came):
            append(came, lines)
        append_history(
            new.folder,
            "adopt",
            source=str(old.folder),
            identity=old.identity["digest"],
            differences=apart,
            rows=errors[0].rows,
            errors={error.target: error.largest for error in errors},
        )
    keys = [(*group, block) for block in range(old.num_blocks) for group in groups if old.mark_path(*group, block).exists()]
    with Progress(f"adopting {old.folder.name}", len(keys), "blocks") as progress:
        for key in keys:
            new.take_over_block(old, *key)
            progress.advance()
    new.finalise()
    return new
