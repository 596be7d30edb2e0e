"""A network's answers as the files that each dataset's official evaluator or server reads.

    culane        <image id>.lines.txt                     points of each lane
    llamas        <recording>/<stamp>.json_<class>.png     probability x 255 of each class, full frame
    apolloscape   test/<road>/<stem>.png                   official ids, full frame: zip the folder `test`
    cityscapes    <city>_<sequence>_<frame>.png            labelIds, full frame

Datasets whose metric is the plain mean IoU have no such files. Sources: pipeline/metrics and pipeline/datasets, file by
file. Two rules of our own for lanes: where the network has no existence head, all four slots are looked at (either way
a lane needs two points); and maps of a network smaller than the published 208 x 976 are enlarged to it first, since the
rule's mean over 9 x 9 pixels wipes out lines of 2 pixels (at 48 x 216 the labels themselves score 57, not 100).
"""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipeline.datasets.base import DatasetBase
from pipeline.metrics import culane, llamas
from pipeline.prediction import Answer, frame_maps

PUBLISHED = (208, 976)          # height, width of the maps that CULane's rule from maps to points was made for


def write(folder: Path, image_id: str, answer: Answer, dataset: DatasetBase) -> None:
    """Writes the files of one frame below `folder`, over those of an earlier time."""
    if dataset.metric != "miou":
        WRITERS[dataset.metric](folder, image_id, answer, dataset)


def write_lines(folder: Path, image_id: str, answer: Answer, dataset: DatasetBase) -> None:
    existence = [1.0] * dataset.lanes if answer.existence is None else answer.existence
    maps = answer.probabilities_Khw
    if maps.shape[1] < PUBLISHED[0] and maps.shape[2] < PUBLISHED[1]:
        maps = np.stack([cv2.resize(map_hw, PUBLISHED[::-1], interpolation=cv2.INTER_LINEAR) for map_hw in maps])
    lanes = culane.probabilities_to_lines(maps, existence, answer.classes_HW.shape, dataset.crop_top)
    culane.write_lines(folder / f"{image_id}.lines.txt", lanes)


def write_maps(folder: Path, image_id: str, answer: Answer, dataset: DatasetBase) -> None:
    maps = frame_maps(answer.probabilities_Khw, answer.classes_HW.shape, dataset)
    llamas.write_maps(folder, frame_name(image_id), maps)


def frame_name(image_id: str) -> str:
    """LLAMAS's evaluator knows frames as <recording>/<stamp>, without the split."""
    return image_id.split("/", 1)[1]


def write_ids(folder: Path, image_id: str, answer: Answer, dataset: DatasetBase) -> None:
    path = folder / dataset.prediction_path(image_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(dataset.prediction_ids(answer.classes_HW)).save(path)


WRITERS = {"culane": write_lines, "llamas": write_maps, "apolloscape": write_ids, "cityscapes": write_ids}
