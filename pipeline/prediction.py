"""A network's answer on a full frame: cropped and resized as in training, put back to the frame's own size and place.

K classes, H W the network input.
"""

from pathlib import Path
from typing import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.datasets.base import DatasetBase
from pipeline.frames import canvas, frame
from pipeline.models.base import ModelBase


@torch.no_grad()
def class_logits(model: ModelBase, image: np.ndarray, dataset: DatasetBase, size: tuple[int, int], device) -> Tensor:
    """[K, h, w] logits on the frame's own pixels below the crop: upsampled to the canvas, padding cut, resized to the frame."""
    canvas_image, _ = frame(image, None, dataset.crop_top, size)
    shown = torch.from_numpy(canvas_image).to(device).permute(2, 0, 1)[None].float()
    logits = model(shown).logits.float()
    logits = F.interpolate(logits, canvas(size), mode="bilinear", align_corners=False)
    logits = logits[:, :, :size[0], :size[1]]
    below_crop = (image.shape[0] - dataset.crop_top, image.shape[1])
    return F.interpolate(logits, below_crop, mode="bilinear", align_corners=False)[0]


def class_map(model: ModelBase, image: np.ndarray, dataset: DatasetBase, size: tuple[int, int], device) -> np.ndarray:
    """[H, W] uint8 train ids of the full frame; the rows cut at the top are background."""
    predicted = np.full(image.shape[:2], dataset.background or 0, np.uint8)
    predicted[dataset.crop_top:] = class_logits(model, image, dataset, size, device).argmax(0).to(torch.uint8).cpu().numpy()
    return predicted


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
