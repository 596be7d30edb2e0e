"""A network's answers on full frames: cropped and resized as in training, put back to the frame's own size and place.

K classes, H W the full frame, h w the network input without its padding.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Iterable, Iterator, NamedTuple, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.datasets.base import DatasetBase
from pipeline.frames import canvas, frame
from pipeline.models.base import ModelBase


class Answer(NamedTuple):
    classes_HW: np.ndarray                  # uint8 train ids; the rows cut at the top are background
    probabilities_Khw: np.ndarray | None    # float32, of the rows below the cut; None: no dataset of lanes, not needed
    existence: np.ndarray | None            # [lanes] probabilities; None: the network has no such head


class Sample(NamedTuple):
    image_id: str
    image: np.ndarray                       # [H, W, 3]
    label: np.ndarray | None                # [H, W]


def answered(model: ModelBase, dataset: DatasetBase, ids: Iterable[str], size: tuple[int, int], *, device, batch: int,
             pool: ThreadPoolExecutor, workers: int) -> Iterator[tuple[Sample, Answer]]:
    """Every frame with its label and answer, in order; the pool's `workers` threads read ahead of the network."""
    samples = ahead(pool, lambda i: Sample(i, dataset.image(i), dataset.label(i)), ids, 2 * workers)
    group: list[Sample] = []
    for sample in samples:
        group.append(sample)
        if len(group) == batch:
            yield from zip(group, answers(model, [s.image for s in group], dataset, size, device))
            group = []
    if group:
        yield from zip(group, answers(model, [s.image for s in group], dataset, size, device))


def ahead(pool: ThreadPoolExecutor, work: Callable, items: Iterable, most: int) -> Iterator:
    """`work(item)` of each, in order, by the pool's threads; at most `most` are begun before they are asked for."""
    begun: deque = deque()
    for item in items:
        begun.append(pool.submit(work, item))
        if len(begun) >= most:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


@torch.no_grad()
def answers(model: ModelBase, images: Sequence[np.ndarray], dataset: DatasetBase, size: tuple[int, int],
            device) -> list[Answer]:
    """One answer a frame, from one pass of the network; the frames may differ in size."""
    shown = torch.from_numpy(np.stack([frame(image, None, dataset.crop_top, size)[0] for image in images]))
    output = model(shown.to(device).permute(0, 3, 1, 2).float())
    logits = F.interpolate(output.logits.float(), canvas(size), mode="bilinear", align_corners=False)
    logits = logits[:, :, :size[0], :size[1]]
    nothing = [None] * len(images)
    probabilities = logits.softmax(dim=1).cpu().numpy() if dataset.lanes else nothing
    flags = nothing if output.existence is None else output.existence.float().sigmoid().cpu().numpy()
    classes = [class_map(one, image.shape[:2], dataset) for one, image in zip(logits, images)]
    return [Answer(*parts) for parts in zip(classes, probabilities, flags)]


def class_map(logits_Khw: Tensor, shape: tuple[int, int], dataset: DatasetBase) -> np.ndarray:
    """[H, W] uint8: the greatest logit of each pixel. A class at a time: all of an ApolloScape frame take 0.5 GB."""
    below_crop = (shape[0] - dataset.crop_top, shape[1])
    best = torch.full(below_crop, -torch.inf, device=logits_Khw.device)
    classes = torch.zeros(below_crop, dtype=torch.uint8, device=logits_Khw.device)
    for train_id, logits_hw in enumerate(logits_Khw):
        here = F.interpolate(logits_hw[None, None], below_crop, mode="bilinear", align_corners=False)[0, 0]
        classes.masked_fill_(here > best, train_id)
        torch.maximum(best, here, out=best)
    predicted = np.full(shape, dataset.background or 0, np.uint8)
    predicted[dataset.crop_top:] = classes.cpu().numpy()
    return predicted


def frame_maps(probabilities_Khw: np.ndarray, shape: tuple[int, int], dataset: DatasetBase) -> np.ndarray:
    """[K, H, W] float32: the probabilities resized to the frame; the rows cut at the top are surely background."""
    maps = np.zeros((len(probabilities_Khw), *shape), np.float32)
    maps[dataset.background or 0, :dataset.crop_top] = 1
    below_crop = (shape[1], shape[0] - dataset.crop_top)
    for here, map_hw in zip(maps, probabilities_Khw):
        here[dataset.crop_top:] = cv2.resize(map_hw, below_crop, interpolation=cv2.INTER_LINEAR)
    return maps


def overlay(image: np.ndarray, classes: np.ndarray, dataset: DatasetBase, strength: float = 0.55) -> np.ndarray:
    """The image [H, W, 3] with classes painted over it; background and ignored pixels stay as they are."""
    table = np.zeros((256, 3), np.uint8)
    table[:len(dataset.colours)] = dataset.colours
    painted = classes < len(dataset.colours)
    if dataset.background is not None:
        painted &= classes != dataset.background
    mixed = cv2.addWeighted(image, 1 - strength, table[classes], strength, 0)
    return np.where(painted[:, :, None], mixed, image)


def write_sheet(path: Path, rows: Sequence[tuple[np.ndarray, np.ndarray | None, np.ndarray]], dataset: DatasetBase,
                width: int = 480) -> None:
    """A PNG with a row per frame: the image, the labels over it, the predictions over it."""
    lines = []
    for image, label, predicted in rows:
        labelled = image if label is None else overlay(image, label, dataset)
        height = round(image.shape[0] * width / image.shape[1])
        cells = [cv2.resize(cell, (width, height), interpolation=cv2.INTER_AREA)
                 for cell in (image, labelled, overlay(image, predicted, dataset))]
        lines.append(np.concatenate(cells, axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(np.concatenate(lines), cv2.COLOR_RGB2BGR))
