"""Write a trained network as ONNX, after comparing it with torch on the dataset's images. No stage of dvc.yaml."""

import os
from pathlib import Path

import numpy as np

from pipeline import weights
from pipeline.config import Evaluate, Plugin, Prepare, Training
from pipeline.data.frames import frame
from pipeline.datasets.base import DatasetBase
from pipeline.deployment import onnx as exporting
from pipeline.errors import PipelineError
from pipeline.files import plain
from pipeline.identity import identity_digest
from pipeline.progress import byte_size
from pipeline.scoring import load as trained


def run(
    *,
    dataset: Plugin,
    prepare: Prepare,
    training: Training | None,
    evaluate: Evaluate,
    model: Plugin,
    weights_file: Path | None,
    out: Path,
    takes: exporting.Input,
    split: str,
    images: int,
    force: bool,
    flip_average: bool = False,
) -> str:
    """Writes `out`. Raises PipelineError, and leaves nothing behind, if ONNX Runtime and torch disagree."""
    if out.exists() and not force:
        raise PipelineError(f"{out}: is there already; choose another --out, or replace it with --force")
    source = dataset.build()
    network = trained.load(model, source, prepare, training, weights_file, "cpu", flip_average, evaluate.window)
    size = evaluate.window or prepare.size
    deployed = exporting.Deployed(network, (size[0], size[1]), takes).eval()
    record = plain({"model": model, "weights": weights.digest(network.state_dict())})
    described = exporting.metadata(dataset.name, source, deployed, record, prepare, evaluate)
    proto = exporting.to_onnx(deployed, {**described, "identity": identity_digest(described)})
    found = exporting.compared(proto.SerializeToString(), deployed, batches(source, split, images, prepare, size))
    exporting.refuse_disagreement(found, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.tmp")
    partial.write_bytes(proto.SerializeToString())
    os.replace(partial, out)
    return f"{out}: {byte_size(out.stat().st_size)}, opset {exporting.OPSET}; on {found.images} images {exporting.in_words(found)}"


def batches(source: DatasetBase, split: str, images: int, prepare: Prepare, size: tuple[int, int]):
    """Frames [B, h, w, 3] evenly from the split, or their upper left windows of this size: the first alone, the others four at a
    time."""
    ids = source.ids(split)
    chosen = [ids[number] for number in np.linspace(0, len(ids) - 1, min(images, len(ids))).round().astype(int)]
    for group in (chosen[:1], *(chosen[start : start + 4] for start in range(1, len(chosen), 4))):
        frames = [source.image(image_id) for image_id in group]
        shown = np.stack([frame(one, None, source.rows_cut(len(one)), prepare.size, prepare.fit)[0] for one in frames])
        yield shown[:, : size[0], : size[1]]
