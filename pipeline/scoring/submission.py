"""A network's answers as the files that each dataset's official evaluator or server reads.

    culane        <image id>.lines.txt                     points of each lane
    llamas        <recording>/<stamp>.json_<class>.png     probability x 255 of each class, full frame
                  lanes.json                               or, in one file, x of each lane in each row of each frame
    apolloscape   test/<road>/<stem>.png                   official ids, full frame: zip the folder `test`
    cityscapes    <city>_<sequence>_<frame>.png            labelIds, full frame

Datasets whose metric is the plain mean IoU have no such files. Sources: pipeline/metrics and pipeline/datasets, file by
file. Two rules of our own for lanes: where the network has no existence head, all four slots are looked at (either way
a lane needs two points); and maps of a network smaller than the published 208 x 976 are enlarged to it first, since the
rule's mean over 9 x 9 pixels wipes out lines of 2 pixels (at 48 x 216 the labels themselves score 57, not 100).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pipeline.datasets.base import DatasetBase
from pipeline.errors import DatasetError
from pipeline.files import write_text
from pipeline.metrics import culane, llamas
from pipeline.paths import below, path_fault
from pipeline.scoring.predict import Answer, frame_maps

PUBLISHED = (208, 976)  # height, width of the maps that CULane's rule from maps to points was made for


def write(folder: Path, image_id: str, answer: Answer, dataset: DatasetBase) -> None:
    """Writes the files of one frame below `folder`, over those of an earlier time. Raises DatasetError if the id leads
    elsewhere."""
    if fault := path_fault(image_id):
        raise DatasetError(f"{folder}: the image id {image_id!r} {fault}; rename the image, or leave it out")
    if dataset.metric != "miou":
        WRITERS[dataset.metric](folder, image_id, answer, dataset)


def write_lines(folder: Path, image_id: str, answer: Answer, dataset: DatasetBase) -> None:
    culane.write_lines(below(folder, f"{image_id}.lines.txt", DatasetError), [lane for lane in lanes(answer, dataset) if len(lane)])


def lanes(answer: Answer, dataset: DatasetBase) -> list[np.ndarray]:
    """A lane a slot: [N, 2] (x, y) in pixels of the full frame, from the bottom up; N is 0 where there is none."""
    existence = np.ones(dataset.lanes) if answer.existence is None else answer.existence
    maps = answer.probabilities_Khw
    assert maps is not None  # asked for, where lanes are wanted
    if maps.shape[1] < PUBLISHED[0] and maps.shape[2] < PUBLISHED[1]:
        maps = np.stack([cv2.resize(map_hw, PUBLISHED[::-1], interpolation=cv2.INTER_LINEAR) for map_hw in maps])
    found = []
    for alone in np.diag(existence):
        lane = culane.probabilities_to_lines(maps, alone, answer.classes_HW.shape, dataset.crop_top)
        found.append(lane[0] if lane else np.empty((0, 2), np.int32))
    return found


def rows(lane: np.ndarray, height: int) -> np.ndarray:
    """[height] int16: x of the lane in each row, straight between its points; -1 above, below, and where there is none."""
    x = np.full(height, -1, np.int16)
    if len(lane):
        y = np.arange(lane[-1, 1], lane[0, 1] + 1)
        x[y] = np.interp(y, lane[::-1, 1], lane[::-1, 0]).round().clip(0)  # the rule may say -1, which means none here
    return x


def write_rows(path: Path, frames: Mapping[str, Sequence[np.ndarray]]) -> None:
    """LLAMAS's file of lanes: for each frame, by its label's name, x of l1, l0, r0, r1 in every row."""
    content = {
        f"{frame_name(image_id)}.json": {name: x.tolist() for name, x in zip(llamas.LANES, found)}
        for image_id, found in frames.items()
    }
    write_text(path, json.dumps(content))


def write_maps(folder: Path, image_id: str, answer: Answer, dataset: DatasetBase) -> None:
    assert answer.probabilities_Khw is not None  # asked for, where maps are wanted
    maps = frame_maps(answer.probabilities_Khw, answer.classes_HW.shape, dataset)
    llamas.write_maps(folder, frame_name(image_id), maps)


def frame_name(image_id: str) -> str:
    """LLAMAS's evaluator knows frames as <recording>/<stamp>, without the split."""
    return "/".join(image_id.split("/")[-2:])


def image_id(path: Path, root: Path, dataset: DatasetBase) -> str:
    """The id by which a picture in the dataset's own layout is known to its evaluator; CULane's are paths below `root`."""
    if dataset.metric == "culane":
        return path.relative_to(root).with_suffix("").as_posix()
    folder = path.absolute().parent.name.removeprefix("ColorImage_")
    return f"{folder}/{path.stem.removesuffix('_color_rect').removesuffix('_leftImg8bit')}"


def write_ids(folder: Path, image_id: str, answer: Answer, dataset: Any) -> None:
    """Of a dataset whose evaluator wants its own ids."""
    path = below(folder, dataset.prediction_path(image_id).as_posix(), DatasetError)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(dataset.prediction_ids(answer.classes_HW)).save(path)


WRITERS: dict[str, Callable[[Path, str, Answer, Any], None]] = {
    "culane": write_lines,
    "llamas": write_maps,
    "apolloscape": write_ids,
    "cityscapes": write_ids,
}
