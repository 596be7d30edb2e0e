"""Score a trained student (or the teacher) on full frames, at the dataset's own resolution."""

from pathlib import Path

import numpy as np
import torch

from pipeline import prediction, weights
from pipeline.config import Evaluate, Plugin, Prepare, Training
from pipeline.errors import DatasetError, PipelineError
from pipeline.files import write_json
from pipeline.frames import canvas
from pipeline.metrics.segmentation import Confusion
from pipeline.progress import Progress

PICTURES = 6


def run(*, dataset: Plugin, prepare: Prepare, training: Training | None, evaluate: Evaluate, model: Plugin, weights_file: Path,
        report: Path, picture: Path, device: str) -> str:
    """Writes the scores as JSON and a picture of some predictions. Frames without a label are left out."""
    source = dataset.build()
    if not weights_file.exists():
        raise PipelineError(f"{weights_file}: no trained weights; run `pipeline train-student` (or train-teacher) first")
    size = prepare.size
    lanes = source.lanes if training is not None and training.existence_weight else 0
    network = model.build(num_classes=len(source.classes), size=canvas(size), lanes=lanes)
    weights.load_into(network, weights.load_file(weights_file), str(weights_file))
    network = network.to(device, memory_format=torch.channels_last).eval()
    ids = source.ids(evaluate.split)
    confusion = Confusion(len(source.classes))
    shown = set(np.linspace(0, len(ids) - 1, min(PICTURES, len(ids))).round().astype(int))
    rows, scored = [], 0
    with Progress("scoring", len(ids), "images") as progress:
        for number, image_id in enumerate(ids):
            image, label = source.image(image_id), source.label(image_id)
            if label is not None or number in shown:
                predicted = prediction.class_map(network, image, source, size, device)
            if label is not None:
                confusion.add(label, predicted)
                scored += 1
            if number in shown:
                rows.append((image, label, predicted))
            progress.advance()
    if not scored:
        raise DatasetError(f"{dataset.name}: the split {evaluate.split!r} has no labels to score against; choose another "
                           f"with --set evaluate.split=val")
    iou = confusion.iou()
    scores = {"mean_iou": round(float(confusion.mean_iou()), 6), "images": scored,
              "iou": {name: None if np.isnan(v) else round(float(v), 6) for name, v in zip(source.classes, iou)}}
    write_json(report, scores)
    prediction.write_sheet(picture, rows, source)
    classes = ", ".join(f"{name} {v:.3f}" for name, v in scores["iou"].items() if v is not None)
    return f"{report}: mean IoU {scores['mean_iou']:.4f} on {scored} images ({classes})"
