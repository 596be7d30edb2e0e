"""The procedural roads with every kind of paint a class: lines, arrows, zebras, stop lines, white and yellow.

    <driver>/train_0000.MP4/00030.jpg      a frame
    <driver>/train_0000.MP4/00030.png      its label: the place in `classes`

Classes are those of ApolloScape that the generator paints. The keys are those of `roads`; all splits have labels. Scored by
the mean IoU. Departure from ApolloScape: paint is labelled through the vehicles that hide it, as CULane's lanes are.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.datasets import apolloscape, culane, roads
from pipeline.datasets._images import UNKNOWN, image_size, read_index_png, read_rgb, require_size, train_ids
from pipeline.datasets._lists import require_split
from pipeline.datasets.base import DatasetBase, Root
from pipeline.datasets.roads import Difficulty, DrawSeed, Frames, Size
from pipeline.errors import ConfigError, DatasetError
from pipeline.synth.markings import KINDS
from pipeline.synth.settings import JPEG_QUALITY, Settings

PAINT = KINDS[1:]  # without "none"
COLOURS = {name: rgb for _, name, _, rgb, _ in apolloscape.MARKINGS}
TRAIN_IDS = np.full(256, UNKNOWN, np.uint8)
TRAIN_IDS[: len(PAINT) + 1] = range(len(PAINT) + 1)


class Dataset(DatasetBase):
    classes = ("background", *PAINT)
    colours = ((0, 0, 0), *(COLOURS[name] for name in PAINT))
    background = 0
    mirror = apolloscape.mirrored(classes)

    def __init__(self, *, root: Root, train: Frames, val: Frames, test: Frames, size: Size, seed: DrawSeed, difficulty: Difficulty):
        height, width = size
        if height < roads.SMALLEST[0] or width < roads.SMALLEST[1]:
            raise ConfigError(
                f"dataset.size: {height}x{width} is too small for paint to be seen; "
                f"take {roads.SMALLEST[0]}x{roads.SMALLEST[1]} or more"
            )
        if not 0 <= difficulty <= 1:
            raise ConfigError(f"dataset.difficulty: {difficulty} is not between 0 and 1")
        self.root, self.counts = Path(root), {"train": train, "val": val, "test": test}
        self.settings = Settings(size=(height, width), seed=seed, difficulty=difficulty)
        self.crop_top, self.frame_sizes = culane.crop_rows(height), ((height, width),)

    def generate(self, workers: int, progress: Callable[[int, int], None]) -> None:
        """Writes the frames that are missing; `progress` is told (frames done, frames in all)."""
        frames = [(self, split, index) for split, count in self.counts.items() for index in range(count)]
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            for done, _ in enumerate(pool.map(write_frame, frames, chunksize=8), 1):
                progress(done, len(frames))

    def ids(self, split: str) -> list[str]:
        require_split(split, self.splits, self.root)
        ids = [self.settings.image_id(split, index) for index in range(self.counts[split])]
        if missing := [image_id for image_id in ids if not self.files(image_id)[0].exists()]:
            raise DatasetError(
                f"{self.root}: {len(missing)} of the {len(ids)} frames of {split} are not drawn yet; "
                f"run 'pipeline synth' on this config"
            )
        return ids

    def image(self, image_id: str) -> np.ndarray:
        return read_rgb(self.files(image_id)[0])

    def label(self, image_id: str) -> np.ndarray:
        image, path = self.files(image_id)
        values = read_index_png(path, TRAIN_IDS)
        require_size(path, values.shape, image_size(image), image.name)
        return train_ids(values, TRAIN_IDS, path, f"0 to {len(PAINT)}")

    def files(self, image_id: str) -> list[Path]:
        return [self.root / f"{image_id}.jpg", self.root / f"{image_id}.png"]


def write_frame(frame: tuple[Dataset, str, int]) -> None:
    """The label first, and each under another name until it is whole."""
    from pipeline.synth.facets import marking_map  # reading loads no renderer
    from pipeline.synth.markings import KINDS
    from pipeline.synth.render import picture
    from pipeline.synth.sampling import draw_scene

    dataset, split, index = frame
    picture_file, label_file = dataset.files(dataset.settings.image_id(split, index))
    if picture_file.exists():
        return
    scene, size = draw_scene(dataset.settings.seed, split, index, dataset.settings.difficulty), dataset.settings.size
    table = np.array([0, *(dataset.classes.index(kind) for kind in KINDS[1:])], np.uint8)
    label_file.parent.mkdir(parents=True, exist_ok=True)
    jpeg: dict[str, Any] = {"quality": JPEG_QUALITY}
    for file, pixels, how in (
        (label_file, table[marking_map(scene, size)], {}),
        (picture_file, picture(scene, size), jpeg),
    ):
        partial = file.with_suffix(f".tmp{file.suffix}")
        Image.fromarray(pixels).save(partial, **how)
        partial.replace(file)
