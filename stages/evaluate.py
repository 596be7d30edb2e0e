"""Score a trained student (or the teacher) on full frames: mean IoU, and the score of the dataset's own evaluator."""

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.config import Evaluate, Plugin, Prepare, Training
from pipeline.data.frames import require_frame
from pipeline.datasets.base import DatasetBase
from pipeline.errors import DatasetError
from pipeline.files import write_json
from pipeline.identity import sha256
from pipeline.metrics import base as metrics
from pipeline.metrics.base import Counted
from pipeline.metrics.names import WORDS
from pipeline.metrics.segmentation import Confusion
from pipeline.models.base import ModelBase
from pipeline.progress import Progress
from pipeline.scoring import load as trained
from pipeline.scoring import predict as prediction

PICTURES = 6


def run(
    *,
    dataset: Plugin,
    prepare: Prepare,
    training: Training | None,
    evaluate: Evaluate,
    model: Plugin,
    weights_file: Path,
    report: Path,
    picture: Path,
    predictions: Path,
    device: str,
    batch: int,
    workers: int,
    flip_average: bool = False,
) -> str:
    """Writes the scores as JSON, a picture of some predictions, and the files that the official evaluator reads.

    Frames without a label are left out of the mean IoU. Where there is no truth at all the files are written all the
    same, for a server; a dataset that has no such files raises DatasetError.
    """
    source = dataset.build()
    network = trained.load(model, source, prepare, training, weights_file, device, flip_average)
    ids, folder = source.ids(evaluate.split), predictions / evaluate.split
    passed = answer_all(network, source, ids, prepare, folder, device=device, batch=batch, workers=workers)
    scores = scores_of(source, evaluate.split, ids, folder, passed, workers)
    metric = metrics.of(source)
    if scores["images"] == 0 and not metric.has_files:
        raise DatasetError(
            f"{dataset.name}: the split {evaluate.split!r} has no labels to score against; choose "
            f"another with --set evaluate.split=val"
        )
    if network.uses_labels:
        scores["reconstruction"] = True
    scores["weights"] = sha256(weights_file.read_bytes())[:16]  # so that a later reader sees a score that is out of date
    write_json(report, scores)
    prediction.write_sheet(picture, passed.shown, source)
    written = f"; files for its evaluator in {folder}" if metric.has_files else ""
    shown = "; a reconstruction of the labels it was shown, no prediction" if network.uses_labels else ""
    return f"{report}: {in_words(scores)}{written}{shown}"


@dataclass
class Passed(Counted):
    """What is kept of a pass over a split."""

    shown: list[tuple[np.ndarray, np.ndarray | None, np.ndarray]] = field(default_factory=list)


def answer_all(
    network: ModelBase,
    source: DatasetBase,
    ids: list[str],
    prepare: Prepare,
    folder: Path,
    *,
    device: str,
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
        return image_id, image.shape[:2], counts, (image, label, answer.classes_HW) if image_id in shown else None

    with ThreadPoolExecutor(workers) as pool, Progress("scoring", len(ids), "images") as progress:
        samples = prediction.ahead(pool, functools.partial(sample, source, prepare), ids, 2 * workers)
        pairs = prediction.answered(network, source, samples, prepare.size, device=device, batch=batch, fit=prepare.fit)
        for image_id, frame_size, counts, picture in prediction.ahead(pool, finish, pairs, workers):
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
    metric = metrics.of(source)
    scores = {
        "metric": metric.headline,
        "images": len(passed.labelled),
        "mean_iou": rounded(passed.confusion.mean_iou()),
        "iou": iou,
        "one_class": only_class(source, passed.confusion),
    }
    scores |= metric.scores(split, ids, passed, folder, workers)
    return {metric.headline: None} | scores


def only_class(source: DatasetBase, confusion: Confusion) -> str | None:
    """The class that every pixel of the labelled frames is predicted as; None if there are several."""
    predicted = np.flatnonzero(confusion.matrix.sum(axis=0))
    return source.classes[predicted[0]] if len(predicted) == 1 else None


def rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)


def in_words(scores: dict) -> str:
    values = [
        f"{words} {'-' if scores[name] is None else format(scores[name], '.4f')}" for name, words in WORDS.items() if name in scores
    ]
    classes = ", ".join(f"{name} {v:.3f}" for name, v in scores["iou"].items() if v is not None)
    return f"{', '.join(values)} on {scores['images']} images ({classes or 'no labels'})"
