"""Check a dataset on disk; no stage of dvc.yaml, but what one runs before the first of them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from pipeline.config import Plugin, Prepare
from pipeline.data import doctor
from pipeline.datasets.base import IGNORE
from pipeline.errors import DatasetError
from pipeline.identity import join_names
from pipeline.metrics import base as metrics
from pipeline.progress import Progress, say

LISTED = 12  # sizes of frames that the histogram shows


def run(
    *,
    dataset: Plugin,
    splits: Sequence[str],
    workers: int,
    prepare: Prepare | None = None,
    needs_labels: str | None = None,
    scored: str | None = None,
) -> str:
    """Returns the counts in words. Raises DatasetError with every fault, one a line. `needs_labels`: what learns from the
    labels of train, if nothing could be learned without; `scored`: the split that is."""
    source = dataset.build()
    with Progress("reading", 0, "files") as progress:
        report = doctor.check(
            source, list(splits) or list(source.splits), workers=workers, prepare=prepare, progress=progress.reach
        )
        if needs_labels is not None:
            report.faults += doctor.too_few_classes(source, report.counts, "train", 2, needs_labels)
        if scored is not None and not metrics.of(source).has_files:
            report.faults += doctor.too_few_classes(source, report.counts, scored, 1, "it is the split that is scored")
    counts = [f"{split}: {c.images} images, {c.labelled} labelled" for split, c in report.counts.items()]
    shown = "\n".join([histogram(report.counts), shares(source.classes, report.counts), *warnings(source.classes, report.counts)])
    if report.faults:
        say(shown)
        listed = [f"{fault.file}: {fault.what}; {fault.what_to_do}" for fault in report.faults]
        total = f"{len(listed)} fault{'s' * (len(listed) > 1)} in {dataset.name} ({'; '.join(counts) or 'nothing counted'})"
        raise DatasetError("\n".join([*listed, total]))
    return f"{shown}\n{dataset.name}: nothing wrong ({'; '.join(counts)})"


def histogram(counts: Mapping[str, doctor.SplitCounts]) -> str:
    """How many frames have which size, over all splits, the commonest first."""
    sizes: Counter[tuple[int, int]] = sum((split.sizes for split in counts.values()), Counter())
    total = max(1, sizes.total())
    rows = [f"{f'{w} x {h}':>13} {n:7} {'#' * max(1, round(40 * n / total))}" for (h, w), n in sizes.most_common(LISTED)]
    others = len(sizes) - LISTED
    return "\n".join(["frames by width x height:", *rows, *([f"and {others} other sizes"] if others > 0 else [])])


def shares(classes: Sequence[str], counts: Mapping[str, doctor.SplitCounts]) -> str:
    """Each class's part of the labelled pixels, and of the labelled images that show it, over all splits."""
    pixels: Counter[int] = sum((split.pixels for split in counts.values()), Counter())
    showing: Counter[int] = sum((split.showing for split in counts.values()), Counter())
    labelled = sum(split.labelled for split in counts.values())
    counted = pixels.total() - pixels[IGNORE]
    rows = [
        f"{name:>20} {pixels[number] / max(1, counted):10.4%} {showing[number] / max(1, labelled):8.1%}"
        for number, name in enumerate(classes)
    ]
    ignored = f"{'(ignored)':>20} {pixels[IGNORE] / max(1, pixels.total()):10.4%} {showing[IGNORE] / max(1, labelled):8.1%}"
    return "\n".join([f"{'class':>20} {'pixels':>10} {'images':>8}", *rows, ignored])


def warnings(classes: Sequence[str], counts: Mapping[str, doctor.SplitCounts]) -> Iterator[str]:
    """What is no fault, but worth a look."""
    for split, found in counts.items():
        missing = [name for number, name in enumerate(classes) if not found.pixels[number]]
        if found.labelled and missing:
            yield f"{split}: no label shows {join_names(missing)}"
        if found.ignored:
            yield f"{split}: every pixel is ignored in {len(found.ignored)} images ({join_names(found.ignored)})"
