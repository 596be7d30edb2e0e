"""Check a dataset on disk; no stage of dvc.yaml, but what one runs before the first of them."""

from collections.abc import Sequence

from pipeline.config import Plugin
from pipeline.data import doctor
from pipeline.errors import DatasetError
from pipeline.metrics import base as metrics
from pipeline.progress import Progress


def run(*, dataset: Plugin, splits: Sequence[str], workers: int, needs_labels: str | None = None, scored: str | None = None) -> str:
    """Returns the counts in words. Raises DatasetError with every fault, one a line. `needs_labels`: what learns from the
    labels of train, if nothing could be learned without; `scored`: the split that is."""
    source = dataset.build()
    with Progress("reading", 0, "files") as progress:
        report = doctor.check(source, list(splits) or list(source.splits), workers=workers, progress=progress.reach)
        if needs_labels is not None:
            report.faults += doctor.too_few_classes(source, report.counts, "train", 2, needs_labels)
        if scored is not None and not metrics.of(source).has_files:
            report.faults += doctor.too_few_classes(source, report.counts, scored, 1, "it is the split that is scored")
    counts = [f"{split}: {c.images} images, {c.labelled} labelled" for split, c in report.counts.items()]
    if report.faults:
        listed = [f"{fault.file}: {fault.what}; {fault.what_to_do}" for fault in report.faults]
        total = f"{len(listed)} fault{'s' * (len(listed) > 1)} in {dataset.name} ({'; '.join(counts) or 'nothing counted'})"
        raise DatasetError("\n".join([*listed, total]))
    return f"{dataset.name}: nothing wrong ({'; '.join(counts)})"
