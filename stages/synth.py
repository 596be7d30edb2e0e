"""Draw the procedural road set to disk, in CULane's layout."""

from pathlib import Path

from pipeline.config import Plugin
from pipeline.errors import ConfigError
from pipeline.progress import Progress


def run(*, dataset: Plugin, workers: int) -> str:
    """Writes the images, labels and lists under the dataset's root; complete frames are kept. Returns a line for people."""
    if dataset.name != "roads":
        raise ConfigError(f"dataset {dataset.name!r} is not drawn by us but read from disk; `pipeline synth` is for roads")
    roads = dataset.build()
    total = sum(roads.counts.values())
    with Progress("drawing roads", total, "images") as progress:
        roads.generate(workers=workers, progress=progress.reach)
    return f"{Path(dataset.args['root'])}: {total} images in CULane's layout"
