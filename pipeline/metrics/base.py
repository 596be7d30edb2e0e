"""The contract of a metric: the files that a dataset's official evaluator or server reads, and the score that it would give.

A metric is `class Metric` of pipeline/metrics/<name>.py, for the datasets that name it (`DatasetBase.metric`); `of` makes it:

    culane        F1 of lines at IoU 0.5 and 0.3           <image id>.lines.txt
    llamas        AP a class, and its mean over four lanes  <recording>/<stamp>.json_<class>.png
    apolloscape   mean IoU of the 18 evaluated classes      test/<road>/<stem>.png, official ids: zip the folder `test`
    cityscapes    the same of 19 classes                    <city>_<sequence>_<frame>.png, labelIds
    miou          nothing beside the mean IoU               no files

K classes, H W the full frame, h w the network input without its padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from pipeline.datasets.base import DatasetBase
from pipeline.errors import DatasetError
from pipeline.lookup import find_class
from pipeline.metrics.segmentation import Confusion
from pipeline.paths import path_fault


class Answer(NamedTuple):
    """A network's answer on a full frame."""

    classes_HW: np.ndarray  # uint8 train ids; the rows cut at the top are background
    probabilities_Khw: np.ndarray | None  # float32, of the rows below the cut; None: no dataset of lanes, not needed
    existence: np.ndarray | None  # [lanes] probabilities; None: the network has no such head


@dataclass
class Counted:
    """What a pass over a split counted."""

    confusion: Confusion  # of the frames that have a label
    labelled: list[str] = field(default_factory=list)
    size: tuple[int, int] | None = None  # of the frames, (height, width)


class MetricBase:
    headline: ClassVar[str] = "mean_iou"  # the entry of an evaluation's scores that is the dataset's official score
    has_files: ClassVar[bool] = True  # whether there is an evaluator or server that reads files
    lanes_in_one_file: ClassVar[bool] = False  # LLAMAS's lanes.json; else a file of points a frame

    def __init__(self, dataset: DatasetBase):
        self.dataset: Any = dataset  # with what its own metric asks of it, beside the contract

    def write(self, folder: Path, image_id: str, answer: Answer) -> None:
        """Writes the files of one frame below `folder`, over those of an earlier time. Raises DatasetError if the id leads
        elsewhere."""
        if fault := path_fault(image_id):
            raise DatasetError(f"{folder}: the image id {image_id!r} {fault}; rename the image, or leave it out")
        self.write_files(folder, image_id, answer)

    def write_files(self, folder: Path, image_id: str, answer: Answer) -> None:
        """The same for an id that is a relative path."""
        raise NotImplementedError

    def scores(self, split: str, ids: Sequence[str], counted: Counted, folder: Path, workers: int) -> dict[str, Any]:
        """The official score of the files in `folder`, by `headline`, and what else its evaluator tells, as values for JSON.
        Empty where there is no truth for it."""
        raise NotImplementedError

    def image_id(self, path: Path, root: Path) -> str:
        """The id by which a picture below `root`, in the dataset's own layout, is known to the evaluator."""
        folder = path.absolute().parent.name.removeprefix("ColorImage_")
        return f"{folder}/{path.stem.removesuffix('_color_rect').removesuffix('_leftImg8bit')}"


def of(dataset: DatasetBase) -> MetricBase:
    metric: MetricBase = find_class("metrics", dataset.metric)(dataset)
    return metric
