"""Score a trained student (or the teacher) on full frames: mean IoU, and the score of the dataset's own evaluator."""

from pathlib import Path

from pipeline import weights
from pipeline.config import Evaluate, Plugin, Prepare, Training
from pipeline.data.frames import canvas
from pipeline.errors import DatasetError
from pipeline.files import write_json
from pipeline.identity import sha256
from pipeline.metrics import base as metrics
from pipeline.metrics.names import WORDS
from pipeline.scoring import load as trained
from pipeline.scoring import predict as prediction
from pipeline.scoring.cost import cost_of
from pipeline.scoring.score import answer_all, scores_of


def run(
    *,
    dataset: Plugin,
    prepare: Prepare,
    training: Training | None,
    evaluate: Evaluate,
    model: Plugin,
    weights_file: Path | None,
    report: Path,
    picture: Path,
    predictions: Path,
    device: str,
    batch: int,
    workers: int,
    flip_average: bool = False,
) -> str:
    """Writes the scores as JSON, a picture of some predictions, and the files that the official evaluator reads.

    `weights_file`: None scores a network with the weights that its factory brings. Frames without a label are left out of the
    mean IoU. Where there is no truth at all the files are written all the same, for a server; a dataset that has no such files
    raises DatasetError.
    """
    source = dataset.build()
    network = trained.load(model, source, prepare, training, weights_file, device, flip_average, evaluate.window)
    ids, folder = source.ids(evaluate.split), predictions / evaluate.split
    shown = trained.sliding(network, prepare, evaluate)
    passed = answer_all(shown, source, ids, prepare, folder, device=device, batch=batch, workers=workers)
    scores = scores_of(source, evaluate.split, ids, folder, passed, workers)
    metric = metrics.of(source)
    if scores["images"] == 0 and not metric.has_files:
        raise DatasetError(
            f"{dataset.name}: the split {evaluate.split!r} has no labels to score against; choose "
            f"another with --set evaluate.split=val"
        )
    if network.uses_labels:
        scores["reconstruction"] = True
    scores |= evaluate.windows
    # so that a later reader sees a score that is out of date
    scores["weights"] = (weights.digest(network.state_dict()) if weights_file is None else sha256(weights_file.read_bytes()))[:16]
    scores["network"] = cost_of(shown, canvas(prepare.size), device)  # of all windows
    write_json(report, scores)
    prediction.write_sheet(picture, passed.shown, source)
    written = f"; files for its evaluator in {folder}" if metric.has_files else ""
    rebuilt = "; a reconstruction of the labels it was shown, no prediction" if network.uses_labels else ""
    return f"{report}: {in_words(scores)}{written}{rebuilt}"


def in_words(scores: dict) -> str:
    values = [
        f"{words} {'-' if scores[name] is None else format(scores[name], '.4f')}" for name, words in WORDS.items() if name in scores
    ]
    classes = ", ".join(f"{name} {v:.3f}" for name, v in scores["iou"].items() if v is not None)
    return f"{', '.join(values)} on {scores['images']} images ({classes or 'no labels'})"
