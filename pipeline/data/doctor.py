"""A check of a dataset on disk before a long run: every image and label is read, everything wrong goes into one report.

Reading is spread over processes; what is compared across images (repeated frames, counts) is done here. Repeated frames
are those whose pixels are equal; near-duplicates, such as the frames of a standing car, are not looked for.
"""

import hashlib
import multiprocessing
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pipeline.config import Prepare
from pipeline.data.frames import require_frame
from pipeline.datasets._lists import collecting, tell
from pipeline.datasets.base import IGNORE, DatasetBase
from pipeline.errors import DatasetError


class Fault(NamedTuple):
    file: str
    what: str
    what_to_do: str


@dataclass
class SplitCounts:
    images: int
    labelled: int = 0
    hidden: int = 0  # images whose labels were read and are not used (dataset.labelled_part); nothing below counts them
    flags: int = 0  # images of which it is known which lanes they have
    sizes: Counter = field(default_factory=Counter)  # (height, width) -> images
    pixels: Counter = field(default_factory=Counter)  # train id (255 = ignored) -> pixels
    showing: Counter = field(default_factory=Counter)  # train id -> images that show it
    ignored: list[str] = field(default_factory=list)  # images of which every pixel is ignored


@dataclass
class Report:
    faults: list[Fault]
    counts: dict[str, SplitCounts]
    showing: dict[tuple[str, str], frozenset[int]] = field(default_factory=dict)  # (split, image id) -> train ids, if labelled


class Totals(NamedTuple):
    """Of several splits."""

    pixels: Counter[int]  # by train id
    showing: Counter[int]  # images, by train id
    labelled: int
    counted: int  # pixels that are not ignored


def totals(counts: Iterable[SplitCounts]) -> Totals:
    splits = list(counts)
    pixels: Counter[int] = sum((split.pixels for split in splits), Counter())
    showing: Counter[int] = sum((split.showing for split in splits), Counter())
    return Totals(pixels, showing, sum(split.labelled for split in splits), pixels.total() - pixels[IGNORE])


class Finding(NamedTuple):
    """What a worker brings back of one image."""

    digest: bytes | None
    size: tuple[int, int] | None
    pixels: dict[int, int] | None  # None: no label, or not readable
    flags: bool  # whether it is known which lanes there are
    faults: list[Fault]


def check(
    dataset: DatasetBase,
    splits: Sequence[str],
    *,
    workers: int,
    prepare: Prepare | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Reads every image and label of the splits; 1 worker is this process. `prepare` is what frames must suit beside the reader.
    `progress(done, total)` after each image."""
    report = Report([], {})
    places: list[tuple[str, str]] = []  # (split, image id)
    for split in splits:
        with collecting() as found:
            try:
                ids = dataset.ids(split)
            except DatasetError as error:
                tell(error)
                ids = []
        report.faults += map(fault_of, found)
        if found and not ids:
            continue
        report.counts[split] = SplitCounts(images=len(ids))
        places += [(split, image_id) for image_id in ids]

    shown = None
    try:
        shown = dataset.shown_labels() if "train" in report.counts else None
    except DatasetError as error:
        report.faults.append(fault_of(error))
    same: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    findings = examined(dataset, [image_id for _, image_id in places], workers, prepare)
    for done, ((split, image_id), finding) in enumerate(zip(places, findings, strict=True), 1):
        counts = report.counts[split]
        report.faults += finding.faults
        if finding.digest is not None:
            same[finding.digest].append((split, image_id))
            counts.sizes[finding.size] += 1
        if split == "train" and shown is not None and image_id not in shown:
            counts.hidden += finding.pixels is not None or finding.flags
            progress(done, len(places))
            continue
        counts.flags += finding.flags
        if finding.pixels is not None:
            counts.labelled += 1
            counts.pixels.update(finding.pixels)
            counts.showing.update(finding.pixels.keys())
            report.showing[split, image_id] = frozenset(finding.pixels)
            if set(finding.pixels) == {IGNORE}:
                counts.ignored.append(image_id)
        progress(done, len(places))

    report.faults += repeated(dataset, same)
    report.faults += miscounted(dataset, report.counts)
    report.faults = list(dict.fromkeys(report.faults))  # a fault of the whole dataset comes up at every image
    return report


def examined(dataset: DatasetBase, ids: list[str], workers: int, prepare: Prepare | None = None) -> Iterator[Finding]:
    if workers == 1:
        yield from (examine(dataset, image_id, prepare) for image_id in ids)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of running threads
    with ProcessPoolExecutor(workers, context, initializer=_share, initargs=(dataset, prepare)) as pool:
        yield from pool.map(_examine_shared, ids, chunksize=max(1, min(16, len(ids) // (4 * workers))))


_shared: Any  # what every call in a process of the pool takes


def _share(*values: Any) -> None:
    global _shared
    _shared = values


def _examine_shared(image_id: str) -> Finding:
    dataset, prepare = _shared
    return examine(dataset, image_id, prepare)


def examine(dataset: DatasetBase, image_id: str, prepare: Prepare | None = None) -> Finding:
    faults: list[Fault] = []

    def attempt(read):
        try:
            return read(image_id)
        except DatasetError as error:
            faults.append(fault_of(error))

    image, label = attempt(dataset.image), attempt(dataset.label)
    flags = attempt(dataset.existence)
    digest: bytes | None = None
    size: Any = None
    pixels = None
    if image is not None:
        digest, size = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest(), image.shape[:2]
        attempt(lambda _: require_frame(dataset.files(image_id)[0], size, dataset, prepare))
    if label is not None:
        found = np.bincount(label.ravel(), minlength=IGNORE + 1)
        pixels = {int(value): int(found[value]) for value in np.flatnonzero(found)}
        file = str(dataset.files(image_id)[-1])
        if strange := [value for value in pixels if len(dataset.classes) <= value < IGNORE]:
            what = f"holds {strange}, where there are {len(dataset.classes)} classes"
            faults.append(Fault(file, what, "correct the label, or the dataset's reader"))
        if image is not None and label.shape != size:
            what = f"label is {label.shape[1]} x {label.shape[0]}, image {size[1]} x {size[0]} pixels"
            faults.append(Fault(file, what, "bring both to one size"))
    return Finding(digest, size, pixels, flags is not None, faults)


def fault_of(error: DatasetError) -> Fault:
    """Takes `where: what; what to do` apart; lines after the first belong to what to do."""
    line, _, more = str(error).partition("\n")
    file, _, said = line.partition(": ")
    what, mark, to_do = said.rpartition("; ")
    return Fault(file, what, "\n".join(filter(None, (to_do, more)))) if mark else Fault(file, said, more)


def repeated(dataset: DatasetBase, same: dict[bytes, list[tuple[str, str]]]) -> Iterator[Fault]:
    for (split, image_id), *others in filter(lambda places: len(places) > 1, same.values()):
        shown = ", ".join(f"{other_split} {other}" for other_split, other in others[:3]) + ", ..." * (len(others) > 3)
        across = any(other_split != split for other_split, _ in others)
        what = f"of {split}, has the pixels of {len(others)} more: {shown}"
        to_do = "take it out of all splits but one" if across else "remove the repeats, or know that they count more"
        yield Fault(str(dataset.files(image_id)[0]), what, to_do)


def too_few_classes(dataset: DatasetBase, counts: dict[str, SplitCounts], split: str, fewest: int, need: str) -> Iterator[Fault]:
    """A split, if it was read, whose labels show fewer classes than so many: nothing can be learned of one class alone."""
    if split not in counts or counts[split].flags:
        return
    pixels = counts[split].pixels
    seen = [value for value in pixels if value != IGNORE]
    if len(seen) >= min(fewest, len(dataset.classes)):
        return
    ignored = f"{pixels[IGNORE] / max(1, pixels.total()):.0%} are ignored"
    what = (
        f"all labelled pixels of {split} are of one class ({dataset.classes[seen[0]]}), and {ignored}"
        if seen
        else f"not one pixel of {split} is labelled ({counts[split].labelled} of {counts[split].images} images have a label)"
    )
    yield Fault(
        str(getattr(dataset, "root", "dataset")),
        f"{what}, but {need}",
        "correct the labels or what their values mean (of masks of 0 and 255 the 255 may be ignored)",
    )


def miscounted(dataset: DatasetBase, counts: dict[str, SplitCounts]) -> Iterator[Fault]:
    """By the dataset's `official_counts`, if it has them: {"train+val": 113_653, "test": 885}; + adds up."""
    for name, official in getattr(dataset, "official_counts", {}).items():
        splits = name.split("+")
        if all(split in counts for split in splits):
            found = sum(counts[split].images for split in splits)
            if found != official:
                what = f"{name} has {found:,} images, officially {official:,}"
                yield Fault(str(getattr(dataset, "root", "dataset")), what, "fetch the rest, unless a part is what you want")
