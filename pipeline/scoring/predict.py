"""A network's answers on full frames: cropped and resized as in training, put back to the frame's own size and place.

K classes, H W the full frame, h w the network input without its padding.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config.schema import Fit
from pipeline.data.frames import canvas, content_of, frame
from pipeline.datasets.base import DatasetBase
from pipeline.errors import PipelineError
from pipeline.metrics.base import Answer
from pipeline.models.base import ModelBase


class Sample(NamedTuple):
    image_id: str
    image: np.ndarray  # [H, W, 3]
    label: np.ndarray | None  # [H, W]


def answered(
    model: ModelBase,
    dataset: DatasetBase,
    samples: Iterable[Sample],
    size: tuple[int, int],
    *,
    device,
    batch: int,
    fit: Fit = "stretch",
) -> Iterator[tuple[Sample, Answer]]:
    """Every frame with its answer, in order."""
    waiting = iter(samples)
    while group := list(islice(waiting, batch)):
        yield from zip(group, answers(model, group, dataset, size, device, fit))


@torch.no_grad()
def answers(
    model: ModelBase, samples: Sequence[Sample], dataset: DatasetBase, size: tuple[int, int], device, fit: Fit = "stretch"
) -> list[Answer]:
    """One answer a frame, from one pass of the network; the frames may differ in size."""
    images, unlabelled = [sample.image for sample in samples], [sample.image_id for sample in samples if sample.label is None]
    if model.uses_labels and unlabelled:
        raise PipelineError(f"{unlabelled[0]}: has no label, and this network answers from labels alone; choose another")
    shown, labels = (
        torch.from_numpy(np.stack(parts)).to(device)
        for parts in zip(
            *(
                frame(sample.image, sample.label if model.uses_labels else None, dataset.rows_cut(len(sample.image)), size, fit)
                for sample in samples
            )
        )
    )
    logits, existence = scores(model, shown.permute(0, 3, 1, 2).float(), size, labels)
    nothing = [None] * len(images)
    filled = [content_of((len(image) - dataset.rows_cut(len(image)), image.shape[1]), size, fit) for image in images]

    def cropped(maps):  # without the padding of `fit: pad`
        return [one[:, :height, :width] for one, (height, width) in zip(maps, filled)]

    probabilities = cropped(logits.softmax(dim=1).cpu().numpy()) if dataset.lanes else nothing
    flags = nothing if existence is None else existence.cpu().numpy()
    classes = [class_map(one, image.shape[:2], dataset) for one, image in zip(cropped(logits), images)]
    return [Answer(*parts) for parts in zip(classes, probabilities, flags)]


def scores(
    model: ModelBase, images_B3HW: Tensor, size: tuple[int, int], labels_BHW: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """[B, K, h, w] logits of the input without its padding, and [B, lanes] probabilities of existence."""
    output = model(images_B3HW, labels_BHW)
    if output.logits is None:
        raise PipelineError("this network has no logits (an adapter with `logits: null`) and predicts nothing; choose another")
    logits = F.interpolate(output.logits.float(), canvas(size), mode="bilinear", align_corners=False)
    existence = None if output.existence is None else output.existence.float().sigmoid()
    return logits[:, :, : size[0], : size[1]], existence


def class_map(logits_Khw: Tensor, shape: tuple[int, int], dataset: DatasetBase) -> np.ndarray:
    """[H, W] uint8: the greatest logit of each pixel. A class at a time: all of an ApolloScape frame take 0.5 GB."""
    cut = dataset.rows_cut(shape[0])
    below_crop = (shape[0] - cut, shape[1])
    best = torch.full(below_crop, -torch.inf, device=logits_Khw.device)
    classes = torch.zeros(below_crop, dtype=torch.uint8, device=logits_Khw.device)
    for train_id, logits_hw in enumerate(logits_Khw):
        here = F.interpolate(logits_hw[None, None], below_crop, mode="bilinear", align_corners=False)[0, 0]
        classes.masked_fill_(here > best, train_id)
        torch.maximum(best, here, out=best)
    predicted = np.full(shape, dataset.background or 0, np.uint8)
    predicted[cut:] = classes.cpu().numpy()
    return predicted


def overlay(image: np.ndarray, classes: np.ndarray, dataset: DatasetBase, strength: float = 0.55) -> np.ndarray:
    """The image [H, W, 3] with classes painted over it; background and ignored pixels stay as they are."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(dataset.colours)] = dataset.colours
    painted = classes < len(dataset.colours)
    if dataset.background is not None:
        painted &= classes != dataset.background
    mixed = cv2.addWeighted(image, 1 - strength, table[classes], strength, 0)
    return np.where(painted[:, :, None], mixed, image)


def write_sheet(path: Path, rows: Sequence[tuple[str, np.ndarray, np.ndarray | None, np.ndarray]], dataset: DatasetBase) -> None:
    """A PNG with a row per frame (id, image [H, W, 3], labels [H, W] or None, predictions [H, W]): the image, the labels over it,
    the predictions over it; below, a legend of the classes that occur."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    width = 640  # of a picture, in pixels, before matplotlib scales it
    present = np.unique(np.concatenate([np.unique(part) for _, _, *parts in rows for part in parts if part is not None]))
    painted = [number for number in present if number < len(dataset.classes) and number != dataset.background]
    highest = max(image.shape[0] / image.shape[1] for _, image, _, _ in rows)
    columns, lines = min(5, max(1, len(painted))), -(-len(painted) // 5)
    below = 0.22 * lines + (0.2 if lines else 0)
    figure = Figure(figsize=(12.3, len(rows) * (4 * highest + 0.25) + 0.3 + below), layout="constrained", dpi=120)
    for number, (cells, (image_id, image, label, predicted)) in enumerate(zip(figure.subplots(len(rows), 3, squeeze=False), rows)):
        parts = image, None if label is None else overlay(image, label, dataset), overlay(image, predicted, dataset)
        for axes, part, title in zip(cells, parts, ("image", "labels", "prediction")):
            axes.axis("off")
            if part is not None:
                height = max(1, round(part.shape[0] * width / part.shape[1]))
                axes.imshow(cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA))
            words = [title] * (number == 0) + [image_id if len(image_id) <= 60 else f"...{image_id[-57:]}"] * (title == "image")
            axes.set_title("\n".join([*words, "no labels"] if part is None else words), fontsize=8, parse_math=False)
    if painted:
        patches = [Patch(facecolor="#{:02x}{:02x}{:02x}".format(*dataset.colours[number]), edgecolor="0.5") for number in painted]
        legend = figure.legend(
            patches, [dataset.classes[number] for number in painted], loc="outside lower center", ncols=columns, fontsize=8
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
