"""Check a dataset on disk; no stage of dvc.yaml, but what one runs before the first of them."""

from typing import Sequence

from pipeline import doctor
from pipeline.config import Plugin
from pipeline.errors import DatasetError
from pipeline.progress import Progress


def run(*, dataset: Plugin, splits: Sequence[str], workers: int) -> str:
    """Returns the counts in words. Raises DatasetError with every fault, one a line."""
    source = dataset.build()
    with Progress("reading", 0, "files") as progress:
        report = doctor.check(source, list(splits) or list(source.splits), workers=workers, progress=progress.reach)
    counts = [f"{split}: {c.images} images, {c.labelled} labelled" for split, c in report.counts.items()]
    if report.faults:
        listed = [f"{fault.file}: {fault.what}; {fault.what_to_do}" for fault in report.faults]
        total = f"{len(listed)} fault{'s' * (len(listed) > 1)} in {dataset.name} ({'; '.join(counts) or 'nothing counted'})"
        raise DatasetError("\n".join([*listed, total]))
    return f"{dataset.name}: nothing wrong ({'; '.join(counts)})"
