"""The dataset's own metric while a network trains (`training.validate_metric: own`): beside the scores on the canvas, those of
`pipeline evaluate` on the split `val`.

Frames are answered at their full size, and the files of the dataset's evaluator are written and scored as there, so it costs what
`pipeline evaluate` costs. Of several processes the first one scores, while the others wait.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

from pipeline import progress
from pipeline.config import Prepare, Training
from pipeline.datasets.base import DatasetBase
from pipeline.errors import DatasetError
from pipeline.metrics import base as metrics
from pipeline.scoring.load import sliding
from pipeline.scoring.score import answer_all, scores_of
from pipeline.training import distributed
from pipeline.training.run import OWN, SPLIT
from pipeline.training.validation import Validation

WORKERS = 2  # threads that read and count beside the network


class OwnMetric:
    """Called with a network, it returns what `canvas` returns, and "own": the dataset's score, 0..1. No random number is drawn.
    Raises DatasetError where `val` has no truth for the metric."""

    def __init__(self, canvas: Validation, source: DatasetBase, prepare: Prepare, training: Training):
        self.canvas, self.source, self.prepare, self.batch = canvas, source, prepare, training.batch
        self.headline = metrics.of(source).headline

    def __call__(self, network: nn.Module) -> dict[str, float]:
        found = self.canvas(network)
        device = next(network.parameters()).device
        score = torch.zeros(1, dtype=torch.float64, device=device)
        if distributed.is_main_process():
            score += self._score(network, device)
        distributed.all_reduce_sum(score)
        return found | {OWN: float(score)}

    def _score(self, network, device) -> float:
        network = sliding(network, self.prepare, self.canvas.evaluate)
        ids, said = self.source.ids(SPLIT), progress.verbosity
        progress.verbosity = -1  # the training has the line
        try:
            with tempfile.TemporaryDirectory() as folder:
                passed = answer_all(
                    network, self.source, ids, self.prepare, Path(folder), device=device, batch=self.batch, workers=WORKERS
                )
                score = scores_of(self.source, SPLIT, ids, Path(folder), passed, WORKERS)[self.headline]
        finally:
            progress.verbosity = said
        if score is None:
            raise DatasetError(f"the split {SPLIT!r} has no truth for {self.headline}; write training.validate_metric: mean_iou")
        return float(score)
