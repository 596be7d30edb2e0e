"""Decode, crop, resize and pad the training images once, into the prepared store."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.config import Plugin, Prepare
from pipeline.data import prepared
from pipeline.datasets.base import DatasetBase
from pipeline.errors import DatasetError, StoreError
from pipeline.files import write_json
from pipeline.identity import join_names
from pipeline.progress import Progress, byte_size, say
from pipeline.stopping import Stopped
from pipeline.store import ImageRow, Store, executors, image_row, plan
from pipeline.store.files import AnyPath, InUse, append, local, locked, writable, write, writing
from pipeline.store.notes import table


def run(
    *,
    dataset: Plugin,
    prepare: Prepare,
    root: Path,
    report: Path,
    workers: int,
    skip_bad: bool | None = None,
    needs_labels: str | None = None,
) -> str:
    """Fills what is missing and writes the report.

    An image that can't be read doesn't stop the others; at the end DatasetError lists all such. With `skip_bad` they
    are put on record in the store instead, and later stages leave them out; one that can be read again is taken in and
    struck off. None keeps the record and refuses what is newly bad, False clears it. `needs_labels` says what learns from
    labels, if nothing could be learned without; then DatasetError where there are none. Raises StoreError if a file that was
    prepared before has other content now, or is read otherwise.
    """
    source = dataset.build()
    ids = source.ids("train")
    source.shown_labels()  # refused before anything is read
    sample = prepared.sample_pass(prepare.size, source.lanes, prepare.fit)
    identity = prepared.identity(source, prepare)
    store = Store.create_or_open(
        root,
        "prepared",
        prepared.home(root, dataset, source, identity, ids),
        identity,
        codec=prepare.codec,
        block_rows=plan.block_rows(len(ids), [sample]),
        card={"dataset": dataset.name, "classes": list(source.classes)},
    )
    in_use = InUse(store.folder)  # noqa: F841  # until this returns
    if len(dataset.homes) > 1 and store.row_of and (store.images.rows(ids) < 0).all():
        raise StoreError(
            f"{store.folder}: holds {len(store.row_of)} images, none of them of this dataset ({join_names(ids)}); if it is another "
            f"dataset's, write a dataset.title; if it is an old state of this one, delete that folder"
        )
    sources = _Sources(store.path("sources.tsv"), source, ids)
    bad: dict[str, str] = {}  # image id -> file and reason, of this run

    def read(image_id: str):
        try:
            row = prepared.sample(source, image_id, prepare)
        except DatasetError as error:
            return error
        return image_row(image_id, row), row

    def readable(image_ids: Sequence[str]) -> Iterator[tuple[ImageRow, dict]]:
        for image_id, found in zip(image_ids, executors.threads(image_ids, read, workers)):
            if isinstance(found, DatasetError):
                bad[image_id] = " ".join(str(found).splitlines())
            else:
                yield found

    known = (store.images.rows(ids) >= 0).tolist()
    new = [image_id for image_id, here in zip(ids, known) if not here]
    touched = [image_id for image_id, here in zip(ids, known) if here and not sources.unchanged(image_id)]
    store.add_pass(sample, range(1))
    if touched:
        say(f"{store.folder}: comparing the content of {len(touched)} images whose files were touched")
        with Progress("comparing", len(touched), "images") as progress:
            sources.seen(_compared(store, _counted(readable(touched), progress)))
    with Progress("preparing", len(ids), "images", len(ids) - len(new)) as progress:
        try:
            # an image's digest is its line in the store, so a block's images are read before the block exists
            fresh = readable(new)
            while done := list(islice(fresh, store.block_rows)):
                lines = [line for line, _ in done]
                store.grow(lines)
                block = store.row_of[lines[0].id] // store.block_rows
                if store.block_images(block) == lines:  # or a run beside this one has put them into blocks otherwise
                    store.write_block(sample, 0, block, _stack(done))
                sources.seen(_compared(store, done))
                progress.advance(len(done))
            for block in store.missing(sample, 0):  # begun by a run that was broken off, or is at work there now
                block_ids = [image.id for image in store.block_images(block)]
                done = list(readable(block_ids))
                if len(done) < len(block_ids):
                    first = next(bad[image_id] for image_id in block_ids if image_id in bad)
                    raise StoreError(
                        f"{store.folder}: block {block} was begun with an image that can't be read now: "
                        f"{first}; or delete that folder"
                    )
                _compared(store, done)
                store.write_block(sample, 0, block, _stack(done))
        except Stopped as stopped:
            stopped.said = f"{store.folder}: {progress.done} of {len(ids)} images are prepared"
            raise
        finally:
            sources.save()
    store.finalise()
    before = {} if skip_bad is False else prepared.skipped(store)
    left_out = {image_id: why for image_id, why in before.items() if image_id not in sources.now}  # of another list
    left_out |= {image_id: why for image_id, why in bad.items() if skip_bad or image_id in before}
    prepared.put_on_record(store, left_out)
    if refused := [why for image_id, why in bad.items() if image_id not in left_out]:
        raise DatasetError(
            "\n".join(
                [
                    *refused,
                    f"{dataset.name}: {len(refused)} of {len(ids)} images can't be prepared, the others are; mend "
                    f"them and run this again, or leave them out with --skip-bad",
                ]
            )
        )
    wanted = store.named([image_id for image_id in ids if image_id not in left_out])
    if not wanted:
        raise DatasetError(f"{dataset.name}: not one of {len(ids)} images can be read; {store.folder}/skipped.tsv says why")
    if needs_labels is not None:
        prepared.require_labels(store, sample, wanted, source, needs_labels)
    write_json(
        report,
        {
            "identity": store.identity,
            "images": len(wanted),
            "skipped": len(ids) - len(wanted),
            "dataset": prepared.meaning(source),
            "digest": store.digest_of(wanted, range(1), [sample]),
        },
    )
    labels = prepared.say_labels(source)
    said = f" ({len(ids) - len(wanted)} left out: skipped.tsv)" if len(wanted) < len(ids) else ""
    size = byte_size(len(wanted) * plan.row_bytes(sample))
    return f"{store.folder}: {len(wanted)} images{said}, {size}" + (f"; {labels}; all labels are stored" if labels else "")


class _Sources:
    """Size and time of the files behind each prepared image, so that a later run reads again only what was touched."""

    def __init__(self, path: AnyPath, dataset: DatasetBase, ids: Sequence[str]):
        self.path, self.writable = path, writable(path.parent)
        self.known = prepared.known_files(path)
        self.fresh: dict[str, str] = {}
        self.now = {image_id: prepared.files_now(dataset, image_id) for image_id in ids}

    def unchanged(self, image_id: str) -> bool:
        return self.known.get(image_id) == self.now[image_id]

    def seen(self, ids: Iterable[str]) -> None:
        fresh = {image_id: self.now[image_id] for image_id in ids}
        if not self.writable:  # compared, which is all that can be done in a store of somebody else's
            return
        self.fresh |= fresh
        if local(self.path):  # at once: a killed run must not read these again
            with writing(self.path):
                append(self.path, table(fresh))

    def save(self) -> None:
        if not self.fresh:
            return
        with locked(self.path.parent):  # a run beside this one has its own
            write([(self.path, table(prepared.known_files(self.path) | self.fresh))])


def _counted(read: Iterable[tuple[ImageRow, dict]], progress: Progress) -> Iterator[tuple[ImageRow, dict]]:
    for found in read:
        progress.advance()
        yield found


def _compared(store: Store, read: Iterable[tuple[ImageRow, dict]]) -> list[str]:
    """Ids of these images. Raises StoreError unless they are what the store was told."""
    same: list[str] = []
    changed: list[str] = []
    for line, _ in read:
        (same if store.images[store.row_of[line.id]] == line else changed).append(line.id)
    if changed:
        raise StoreError(
            f"{store.folder}: {len(changed)} prepared images have other content on disk now, or are read otherwise, "
            f"{changed[0]!r} first; delete that folder and run `pipeline prepare` again, or, if this is "
            f"another dataset than the store was made from, write a dataset.title"
        )
    return same


def _stack(read: Sequence[tuple[ImageRow, dict]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for _, row in read]) for name in read[0][1]}
