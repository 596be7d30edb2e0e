"""The procedural road set: scenes drawn from a seed, written in CULane's layout and read as CULane is.

`size` is (height, width) of the frames; `difficulty` runs from 0 to 1 (pipeline/synth/sampling.py). All splits have
labels.
"""

from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from pipeline.datasets import culane
from pipeline.datasets.base import Root
from pipeline.errors import ConfigError, DatasetError
from pipeline.synth.settings import Settings

SMALLEST = (64, 128)
Frames = Annotated[int, Field(ge=0, description="Frames of this split.")]
Size = Annotated[
    tuple[Annotated[int, Field(ge=SMALLEST[0])], Annotated[int, Field(ge=SMALLEST[1])]],
    Field(description="Height and width of the frames."),
]
DrawSeed = Annotated[int, Field(ge=0, description="Seed of the scenes.")]
Difficulty = Annotated[float, Field(ge=0, le=1, description="How hard the scenes are to read, from 0 to 1.")]


class Dataset(culane.Dataset):
    official_counts: dict[str, int] = {}

    def __init__(self, *, root: Root, train: Frames, val: Frames, test: Frames, size: Size, seed: DrawSeed, difficulty: Difficulty):
        super().__init__(root=root)
        height, width = size
        if height < SMALLEST[0] or width < SMALLEST[1]:
            raise ConfigError(
                f"dataset.size: {height}x{width} is too small for lanes to be seen; take {SMALLEST[0]}x{SMALLEST[1]} or more"
            )
        if not 0 <= difficulty <= 1:
            raise ConfigError(f"dataset.difficulty: {difficulty} is not between 0 and 1")
        self.counts = {"train": train, "val": val, "test": test}
        self.settings = Settings(size=(height, width), seed=seed, difficulty=difficulty)
        self.crop_top, self.frame_sizes = culane.crop_rows(height), ((height, width),)

    def generate(self, workers: int, progress: Callable[[int, int], None]) -> None:
        """Writes the frames that are missing, then the lists; `progress` is told (frames done, frames in all)."""
        from pipeline.synth.layout import write  # reading loads no renderer

        write(self.root, self.settings, self.counts, workers, progress)
        vars(self).pop("_lists", None)  # they are new

    def ids(self, split: str) -> list[str]:
        """As CULane's. Raises DatasetError unless the frames on disk are those of these settings."""
        if self.counts.get(split) == 0:
            return []
        if split in self.counts and not (self.root / "list" / f"{split}.txt").exists():
            raise DatasetError(f"{self.root}: the {split} split is not drawn yet; run 'pipeline synth' on this config")
        ids = super().ids(split)
        if ids != [self.settings.image_id(split, index) for index in range(self.counts[split])]:
            raise DatasetError(
                f"{self.root}: the {split} list has {len(ids)} frames of {ids[0].split('/')[0]}, the "
                f"config asks for {self.counts[split]} of {self.settings.driver}; run 'pipeline synth' "
                "on this config, or give each set a root of its own"
            )
        return ids
