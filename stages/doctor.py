"""Check a dataset on disk; no stage of dvc.yaml, but what one runs before the first of them."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline import progress
from pipeline.config import Plugin, Prepare
from pipeline.data import doctor, prepared
from pipeline.datasets._lists import collecting
from pipeline.datasets.base import IGNORE, DatasetBase
from pipeline.errors import DatasetError, StoreError
from pipeline.identity import join_names
from pipeline.metrics import base as metrics
from pipeline.progress import Progress, say
from pipeline.store import Store
from pipeline.store.files import AnyPath

LISTED = 12  # sizes of frames that the histogram shows
LISTED_FAULTS = 10  # of a kind
WITH_DIGITS = re.compile(r"\S*\d\S*")


def run(
    *,
    dataset: Plugin,
    splits: Sequence[str],
    workers: int,
    prepare: Prepare | None = None,
    needs_labels: str | None = None,
    scored: str | None = None,
    sheet: Path | None = None,
    root: "AnyPath | None" = None,
) -> str:
    """Returns the counts in words. Raises DatasetError with every fault, one a line; of many of a kind the first. `needs_labels`:
    what learns from the labels of train, if nothing could be learned without; `scored`: the split that is; `sheet`: where a
    picture of labelled images goes; `root`: where the prepared store lies that images are compared with, if they are to be."""
    with collecting() as early:
        source = dataset.build()
    store = store_of(root, dataset, source, prepare) if root is not None and prepare is not None else None
    with Progress("reading", 0, "files") as reading:
        report = doctor.check(source, list(splits) or list(source.splits), workers=workers, prepare=prepare, progress=reading.reach)
    report.faults[:0] = map(doctor.fault_of, early)
    compared = None
    if store is not None and prepare is not None:
        compared, changed = against_store(store, source, prepare)
        report.faults += changed
    shown = [histogram(report.counts)] if any(split.sizes for split in report.counts.values()) else []
    if source.described:
        if needs_labels is not None:
            report.faults += doctor.too_few_classes(source, report.counts, "train", 2, needs_labels)
        if scored is not None and not metrics.of(source).has_files:
            report.faults += doctor.too_few_classes(source, report.counts, scored, 1, "it is the split that is scored")
        if any(split.labelled for split in report.counts.values()):
            shown.append(shares(source.classes, report.counts))
        shown += warnings(source.classes, report.counts)
        if sheet is not None:
            shown.append(drawn(sheet, source, report))
    counts = [
        f"{split}: {c.images} images, {c.labelled} labelled"
        + (f", {c.hidden} with labels that labelled_part hides" if c.hidden else "")
        for split, c in report.counts.items()
    ]
    if report.faults:
        if shown:
            say("\n".join(shown))
        count = len(report.faults)
        total = f"{count} fault{'s' * (count > 1)} in {dataset.name} ({'; '.join(counts) or 'nothing counted'})"
        raise DatasetError("\n".join([*in_lines(report.faults), total]))
    shown += [compared] if compared else []
    return "\n".join([*shown, f"{dataset.name}: nothing wrong ({'; '.join(counts)})"])


def store_of(root: AnyPath, plugin: Plugin, source: DatasetBase, prepare: Prepare) -> Store:
    """The prepared store to compare with. Raises StoreError if there is none, before minutes of reading."""
    identity, ids = prepared.identity(source, prepare), source.ids("train")
    try:
        return Store.find(root, "prepared", prepared.home(root, plugin, source, identity, ids), identity)
    except StoreError as error:
        raise StoreError(f"{error}; run `pipeline prepare` with this config first, or leave out --deep") from None


def against_store(store: Store, source: DatasetBase, prepare: Prepare) -> tuple[str, list[doctor.Fault]]:
    """The content of the training images against what the prepared store holds, whatever size and time their files have."""
    ids = source.ids("train")
    known = [image_id for image_id, row in zip(ids, store.images.rows(ids).tolist()) if row >= 0]
    changed = prepared.changed(store, source, prepare, known, "with the digests of this store")
    what = f"has other content than {store.folder} holds of it"
    to_do = "bring the file back, or delete that folder and run `pipeline prepare` again"
    faults = [doctor.Fault(str(source.files(image_id)[0]), f"or its label, {what}", to_do) for image_id in changed]
    return f"{store.folder}: {len(known)} of {len(ids)} training images compared with it", faults


def drawn(path: Path, source: DatasetBase, report: doctor.Report) -> str:
    from pipeline.reporting import contact_sheet

    places = contact_sheet.chosen(report.showing)
    if not places:
        return f"{path}: not written, since no label could be read"
    contact_sheet.write(path, source, places, report.counts)
    return f"{path}: {len(places)} of {len(report.showing)} labelled images"


def in_lines(faults: Sequence[doctor.Fault]) -> Iterator[str]:
    """A fault a line. Of many that are mended in one way the first few; `pipeline -v doctor` lists all."""
    kinds: dict[str, list[doctor.Fault]] = {}
    for fault in faults:
        kinds.setdefault(WITH_DIGITS.sub("", fault.what_to_do), []).append(fault)
    for alike in kinds.values():
        listed = alike if progress.verbosity > 0 else alike[:LISTED_FAULTS]
        yield from (f"{fault.file}: {'; '.join(filter(None, (fault.what, fault.what_to_do.rstrip())))}" for fault in listed)
        if len(alike) > len(listed):
            yield f"... and {len(alike) - len(listed)} more like these (`pipeline -v doctor` lists all)"


def histogram(counts: Mapping[str, doctor.SplitCounts]) -> str:
    """How many frames have which size, over all splits, the commonest first."""
    sizes: Counter[tuple[int, int]] = sum((split.sizes for split in counts.values()), Counter())
    total = max(1, sizes.total())
    rows = [f"{f'{w} x {h}':>13} {n:7} {'#' * max(1, round(40 * n / total))}" for (h, w), n in sizes.most_common(LISTED)]
    others = len(sizes) - LISTED
    return "\n".join(["frames by width x height:", *rows, *([f"and {others} other sizes"] if others > 0 else [])])


def shares(classes: Sequence[str], counts: Mapping[str, doctor.SplitCounts]) -> str:
    """Each class's part of the labelled pixels, and of the labelled images that show it, over all splits."""
    pixels, showing, labelled, counted = doctor.totals(counts.values())
    rows = [
        f"{name:>20} {pixels[number] / max(1, counted):10.4%} {showing[number] / labelled:8.1%}"
        if pixels[number]
        else f"{name:>20} {'never':>10}"
        for number, name in enumerate(classes)
    ]
    ignored = f"{'(ignored)':>20} {pixels[IGNORE] / max(1, pixels.total()):10.4%} {showing[IGNORE] / labelled:8.1%}"
    head = "classes by their part of the pixels that count, and of the labelled images:"
    return "\n".join([head, f"{'class':>20} {'pixels':>10} {'images':>8}", *rows, ignored])


def warnings(classes: Sequence[str], counts: Mapping[str, doctor.SplitCounts]) -> Iterator[str]:
    """What is no fault, but worth a look."""
    for split, found in counts.items():
        missing = [name for number, name in enumerate(classes) if not found.pixels[number]]
        if found.labelled and missing:
            yield f"{split}: no label shows {join_names(missing)}"
        if found.ignored:
            yield f"{split}: every pixel is ignored in {len(found.ignored)} images ({join_names(found.ignored)})"
