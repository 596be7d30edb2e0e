"""A network's score on a split, at the frames' own size: mean IoU, and the score of the dataset's own evaluator."""

import functools
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from pipeline.config import Config, Prepare
from pipeline.data.frames import require_frame
from pipeline.datasets.base import DatasetBase
from pipeline.errors import ConfigError
from pipeline.metrics import base as metrics
from pipeline.metrics.base import Counted
from pipeline.metrics.segmentation import Confusion
from pipeline.models.base import ModelBase, Output
from pipeline.progress import Progress
from pipeline.scoring import predict as prediction
from pipeline.scoring.load import sliding
from pipeline.threads import map_in_order

PICTURES = 6


class Answering(nn.Module):
    """A network of anybody's, called as those of this package are: RGB in 0..255; it may return its logits alone."""

    uses_labels = False

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images_B3HW: Tensor, labels_BHW: Tensor | None = None) -> Output:
        found = self.network(images_B3HW)
        if isinstance(found, Output):
            return found
        if not isinstance(found, Tensor) or found.dim() != 4:
            raise ConfigError(
                f"{type(self.network).__name__}: returns {type(found).__name__}; return pipeline.Output(logits, features), or "
                f"logits [B, classes, h, w]"
            )
        return Output(found, {})


def score(
    network: nn.Module,
    config: Config,
    *,
    split: str | None = None,
    predictions: Path | None = None,
    batch: int = 8,
    workers: int | None = None,
) -> dict[str, Any]:
    """What `pipeline.evaluate` returns."""
    source, split = config.dataset.build(), split or config.evaluate.split
    device = next((tensor.device for tensor in network.parameters()), "cpu")
    answering: Any = network if isinstance(network, ModelBase) else Answering(network)
    workers, trained, ids = workers or os.cpu_count() or 1, network.training, source.ids(split)
    try:
        with tempfile.TemporaryDirectory() as passing:
            folder = (predictions or Path(passing)) / split
            shown = sliding(answering.eval(), config.prepare, config.evaluate)
            passed = answer_all(shown, source, ids, config.prepare, folder, device=device, batch=batch, workers=workers)
            return scores_of(source, split, ids, folder, passed, workers)
    finally:
        network.train(trained)


@dataclass
class Passed(Counted):
    """What is kept of a pass over a split."""

    shown: list[tuple[str, np.ndarray, np.ndarray | None, np.ndarray]] = field(default_factory=list)


def answer_all(
    network: ModelBase,
    source: DatasetBase,
    ids: list[str],
    prepare: Prepare,
    folder: Path,
    *,
    device: Any,
    batch: int,
    workers: int,
) -> Passed:
    """The network's answer on every frame: counted, written to `folder`, some kept for the picture.

    Threads read ahead of the network and count and write behind it.
    """
    passed, metric = Passed(Confusion(len(source.classes))), metrics.of(source)
    shown = {ids[number] for number in np.linspace(0, len(ids) - 1, min(PICTURES, len(ids))).round().astype(int)}

    def finish(pair):
        (image_id, image, label), answer = pair
        metric.write(folder, image_id, answer)
        counts = None
        if label is not None:
            counts = Confusion(len(source.classes))
            counts.add(label, answer.classes_HW)
        return image_id, image.shape[:2], counts, (image_id, image, label, answer.classes_HW) if image_id in shown else None

    with ThreadPoolExecutor(workers) as pool, Progress("scoring", len(ids), "images") as progress:
        samples = map_in_order(pool, functools.partial(sample, source, prepare), ids, 2 * workers)
        pairs = prediction.answered(network, source, samples, prepare.size, device=device, batch=batch, fit=prepare.fit)
        for image_id, frame_size, counts, picture in map_in_order(pool, finish, pairs, workers):
            passed.size = frame_size
            if counts is not None:
                passed.confusion.merge(counts)
                passed.labelled.append(image_id)
            if picture is not None:
                passed.shown.append(picture)
            progress.advance()
    return passed


def sample(source: DatasetBase, prepare: Prepare, image_id: str) -> prediction.Sample:
    image = source.image(image_id)
    require_frame(source.files(image_id)[0], image.shape[:2], source, prepare)
    return prediction.Sample(image_id, image, source.label(image_id))


def scores_of(source: DatasetBase, split: str, ids: list[str], folder: Path, passed: Passed, workers: int) -> dict:
    """`metric` names the entry that is the dataset's official score; None where there is no truth for it."""
    iou = {name: rounded(value) for name, value in zip(source.classes, passed.confusion.iou())}
    metric, classes = metrics.of(source), len(source.classes)
    scores = {
        "metric": metric.headline,
        "images": len(passed.labelled),
        "mean_iou": rounded(passed.confusion.mean_iou()),
        "iou": iou,
        "one_class": only_class(source, passed.confusion),
        "confusion": passed.confusion.matrix[:classes, :classes].tolist(),  # pixels, [truth][prediction]
    }
    scores |= metric.scores(split, ids, passed, folder, workers)
    return {metric.headline: None} | scores


def only_class(source: DatasetBase, confusion: Confusion) -> str | None:
    """The class that every pixel of the labelled frames is predicted as; None if there are several."""
    predicted = np.flatnonzero(confusion.matrix.sum(axis=0))
    return source.classes[predicted[0]] if len(predicted) == 1 else None


def rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
