"""Draw a procedural road set to disk."""

from pathlib import Path

from pipeline.config import Plugin
from pipeline.errors import ConfigError
from pipeline.lookup import find_class
from pipeline.progress import Progress


def run(*, dataset: Plugin, workers: int) -> str:
    """Writes the images, labels and lists under the dataset's root; complete frames are kept. Returns a line for people."""
    if not hasattr(find_class("datasets", dataset.name), "generate"):
        raise ConfigError(
            f"dataset {dataset.name!r} is not drawn by us but read from disk; `pipeline synth` is for roads and markings"
        )
    roads = dataset.build()
    total = sum(roads.counts.values())
    with Progress("drawing roads", total, "images") as progress:
        roads.generate(workers=workers, progress=progress.reach)
    how = "in CULane's layout" if roads.lanes else "with every paint a class"
    return f"{Path(dataset.args['root'])}: {total} images {how}"
