"""The val split scored while a network trains: mean IoU on the canvas, and cross-entropy.

Frames are cropped and resized as `pipeline prepare` does it, and predictions are counted on those pixels. So the score costs one
pass of the network, and is not the one of `pipeline evaluate`, which counts on full frames and with the dataset's own evaluator.

B images, H W the canvas.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import Evaluate, Prepare, Training
from pipeline.data.frames import canvas, frame, require_frame
from pipeline.datasets.base import IGNORE, DatasetBase
from pipeline.errors import DatasetError
from pipeline.metrics.segmentation import Confusion
from pipeline.models._sliding import Sliding
from pipeline.models.base import as_float
from pipeline.training import distributed
from pipeline.training.label_losses import upsampled
from pipeline.training.run import SPLIT

HELD_BYTES = 1 << 30  # decoded frames up to this size stay in memory; others are read anew each time


class Validation:
    """Called with a network, it returns {"mean_iou": 0..1, "cross_entropy": mean over labelled pixels} over the labelled frames of
    the split `val`. The network is left in eval mode; no random number is drawn. Several processes share the frames.

    Raises DatasetError if the split is missing, or none of its frames has a label.
    """

    def __init__(self, source: DatasetBase, prepare: Prepare, training: Training, evaluate: Evaluate, weights_K: Tensor):
        self.evaluate = evaluate
        self.source, self.prepare, self.batch, self.weights_K = source, prepare, training.batch, weights_K
        ids = source.ids(SPLIT)
        if all(source.label(image_id) is None for image_id in ids):
            raise DatasetError(
                f"the split {SPLIT!r} has no labels, so that training.validate_every has nothing to score; write validate_every: 0"
            )
        rank, processes = distributed.rank_and_world_size()
        self.ids = ids[rank::processes]
        height, width = canvas(prepare.size)
        self.holds = 4 * height * width * len(self.ids) <= HELD_BYTES
        self._held: list[tuple[np.ndarray, np.ndarray]] | None = None

    def __call__(self, network: nn.Module) -> dict[str, float]:
        network.eval()
        if self.evaluate.window is not None and self.evaluate.steps is not None:
            network = Sliding(network, self.prepare.size, self.evaluate.window, self.evaluate.steps)
        confusion, device = Confusion(len(self.source.classes)), self.weights_K.device
        sums = torch.zeros(2, dtype=torch.float64)  # cross-entropy, and the weight of its pixels
        for images, labels in self._batches():
            labels_BHW = torch.from_numpy(labels).to(device)
            images_B3HW = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()
            with torch.no_grad():
                logits = as_float(network(images_B3HW.contiguous(memory_format=torch.channels_last), labels_BHW)).logits
                assert logits is not None  # or training would have been refused
                logits_BKHW = upsampled(logits, labels_BHW.shape[-2:])
                targets = labels_BHW.long()
                per_pixel = F.cross_entropy(logits_BKHW, targets, self.weights_K, ignore_index=IGNORE, reduction="none")
                weight = self.weights_K[targets.where(targets != IGNORE, 0)] * (targets != IGNORE)
            sums += torch.stack([per_pixel.double().sum(), weight.double().sum()]).cpu()
            for truth, predicted in zip(labels, logits_BKHW.argmax(1).to(torch.uint8).cpu().numpy()):
                confusion.add(truth, predicted)
        counts, sums = torch.from_numpy(confusion.matrix).to(device), sums.to(device)
        distributed.all_reduce_sum(counts)
        distributed.all_reduce_sum(sums)
        confusion.matrix = counts.cpu().numpy()
        return {"mean_iou": confusion.mean_iou(), "cross_entropy": float(sums[0] / sums[1].clamp(min=1e-6))}

    def _batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """[B, H, W, 3] uint8 images and [B, H, W] uint8 labels."""
        if self._held is not None:
            yield from self._grouped(self._held)
            return
        kept: list[tuple[np.ndarray, np.ndarray]] = []
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(self.ids), self.batch):  # a batch is read, then answered: no more than one waits in memory
                found = [pair for pair in pool.map(self._frame, self.ids[start : start + self.batch]) if pair is not None]
                if self.holds:
                    kept += found
                yield from self._grouped(found)
        if self.holds:
            self._held = kept

    def _grouped(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(pairs), self.batch):
            images, labels = zip(*pairs[start : start + self.batch])
            yield np.stack(images), np.stack(labels)

    def _frame(self, image_id: str) -> tuple[np.ndarray, np.ndarray] | None:
        label = self.source.label(image_id)
        if label is None:
            return None
        image = self.source.image(image_id)
        require_frame(self.source.files(image_id)[0], image.shape[:2], self.source, self.prepare)
        return frame(image, label, self.source.rows_cut(len(image)), self.prepare.size, self.prepare.fit)
