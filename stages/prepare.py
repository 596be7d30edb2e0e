"""Decode, crop, resize and pad the training images once, into the prepared store."""

from pathlib import Path

import numpy as np

from pipeline import executors, plan, prepared
from pipeline.config import Plugin, Prepare
from pipeline.errors import StoreError
from pipeline.files import write_json, write_text
from pipeline.progress import Progress
from pipeline.store import Store


def run(*, dataset: Plugin, prepare: Prepare, root: Path, report: Path, workers: int) -> str:
    """Fills what is missing and writes the report. Raises DatasetError naming a bad file (blocks done before it stay), and
    StoreError if a file that was prepared before has other content now."""
    source = dataset.build()
    ids = source.ids("train")
    sample = prepared.sample_pass(prepare.size, source.lanes)
    store = Store.create_or_open(
        root, "prepared", dataset.name, prepared.identity(source, prepare), codec=prepare.codec,
        block_rows=plan.block_rows(len(ids), [sample]), card={"dataset": dataset.name, "classes": list(source.classes)})

    def read(image_id):
        row = prepared.sample(source, image_id, prepare.size)
        return prepared.image_row(image_id, row), row

    sources = _Sources(store.folder / "sources.tsv")
    stats = {image_id: sources.stat(source, image_id) for image_id in ids}
    new = [image_id for image_id in ids if image_id not in store.row_of]
    if store.num_blocks:
        store.add_pass(sample, range(1))
    unfinished = {block: [image.id for image in store.block_images(block)]
                  for block in (store.missing(sample, 0) if store.num_blocks else [])}
    touched = [image_id for image_id in ids if image_id in store.row_of and sources.known.get(image_id) != stats[image_id]]
    with Progress("preparing", len(ids), "images", len(ids) - len(new)) as progress:
        _compare(store, executors.threads(touched, read, workers))
        for block, block_ids in unfinished.items():
            done = list(executors.threads(block_ids, read, workers))
            _compare(store, done)
            store.write_block(sample, 0, block, _stack([row for _, row in done]))
        # an image's digest is its line in the store, so a block's images are read before the block exists
        for start in range(0, len(new), store.block_rows):
            done = list(executors.threads(new[start:start + store.block_rows], read, workers))
            store.grow([image_row for image_row, _ in done])
            store.add_pass(sample, range(1))
            store.write_block(sample, 0, store.num_blocks - 1, _stack([row for _, row in done]))
            progress.advance(len(done))
    store.finalise()
    sources.save({**sources.known, **stats})
    wanted = [store.images[store.row_of[image_id]] for image_id in ids]
    write_json(report, {"identity": store.identity, "images": len(ids),
                        "digest": store.digest_of(wanted, range(1), [sample])})
    return f"{store.folder}: {len(ids)} images, {len(ids) * plan.row_bytes(sample) / 1e6:.1f} MB"


class _Sources:
    """Size and time of the files behind each image, so that a later run reads again only what was touched."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.known = dict(line.split("\t", 1) for line in lines)

    @staticmethod
    def stat(source, image_id) -> str:
        found = [path.stat() for path in source.files(image_id) if path.exists()]
        return " ".join(f"{s.st_size}:{s.st_mtime_ns}" for s in found)

    def save(self, stats: dict[str, str]) -> None:
        write_text(self.path, "".join(f"{image_id}\t{stat}\n" for image_id, stat in sorted(stats.items())))


def _compare(store: Store, read) -> None:
    changed = [image_row.id for image_row, _ in read if store.images[store.row_of[image_row.id]] != image_row]
    if changed:
        raise StoreError(f"{store.folder}: {len(changed)} prepared images have other content on disk now, {changed[0]!r} "
                         f"first; delete that folder and run `pipeline prepare` again")


def _stack(rows):
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
