"""A trained network: built as the YAML says, its weights loaded, ready to answer."""

from pathlib import Path

import torch

from pipeline import records, weights
from pipeline.config import Evaluate, Plugin, Prepare, Training
from pipeline.data.frames import canvas
from pipeline.datasets.base import DatasetBase
from pipeline.errors import PipelineError
from pipeline.identity import diff, join_names
from pipeline.lookup import version_record
from pipeline.models._flipped import FlipAveraged
from pipeline.models._sliding import Sliding
from pipeline.models.base import ModelBase, set_precision
from pipeline.progress import say


def build(model: Plugin, source: DatasetBase, size: tuple[int, int], training: Training | None) -> ModelBase:
    """For inputs of this size, with the heads that `training` asks for; None is a teacher without an existence head."""
    lanes = source.lanes if training is not None and training.existence_weight else 0
    return model.build(num_classes=len(source.classes), size=canvas(size), lanes=lanes)


def sliding(network: ModelBase, prepare: Prepare, evaluate: Evaluate) -> ModelBase:
    """The network as it answers prepared images: whole ones itself, or window by window."""
    if evaluate.window is None or evaluate.steps is None:
        return network
    return Sliding(network, prepare.size, evaluate.window, evaluate.steps)


def load(
    model: Plugin,
    source: DatasetBase,
    prepare: Prepare,
    training: Training | None,
    weights_file: Path | None,
    device: str,
    flip_average: bool = False,
    window: tuple[int, int] | None = None,
) -> ModelBase:
    """In eval mode, in fp32, for inputs of `window` or whole prepared images; a teacher with an existence head if its weights have
    one. Without a file the weights are those that the network's factory brings. Raises PipelineError where there are no weights,
    or those of something else."""
    size = window or prepare.size
    if weights_file is None:
        return _ready(build(model, source, size, training), device)
    if not weights_file.exists():
        command = "train-teacher" if training is None else "train-student"
        raise PipelineError(f"{weights_file}: no trained weights; run `pipeline {command}` first")
    refuse_other_run(weights_file.with_name("run.json"), model, prepare)
    state = weights.load_file(weights_file, say)
    if training is None and weights.has_existence(state):
        network = model.build(num_classes=len(source.classes), size=canvas(size), lanes=source.lanes)
    else:
        network = build(model, source, size, training)
    weights.load_into(network, state, str(weights_file), say)
    if flip_average:
        network = FlipAveraged(network, source.mirror, source.mirror_lanes)
    return _ready(network, device)


def _ready(network, device: str) -> ModelBase:
    set_precision("fp32")
    return network.to(device, memory_format=torch.channels_last).eval()


def refuse_other_run(record: Path, model: Plugin, prepare: Prepare) -> None:
    """Raises PipelineError if the run was trained as another network or at another size than it would be used."""
    if not record.exists():  # weights from elsewhere carry no record
        return
    made = records.read(record)
    network = {"student": model} if "student" in made else {"teacher": model}
    version = {name: made[name] for name in ("network_version",) if name in made}
    prepared = made["prepared"]["identity"]["record"]
    there = {
        **{name: made[name] for name in network},
        **version,
        "prepare": {"size": prepared["size"], "fit": prepared.get("fit", "stretch")},
    }
    asked = {**network, **version_record(model.name, model.args), "prepare": {"size": prepare.size, "fit": prepare.fit}}
    apart = diff(there, records.recorded(asked))
    if apart:
        raise PipelineError(
            f"{record.parent}: was trained with something else ({join_names(apart)}); use it with the same "
            "settings (its config.yaml has them), or train it again"
        )
