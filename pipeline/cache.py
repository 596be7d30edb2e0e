"""What a cache of teacher targets is made from (its identity), what it holds (its passes), and one block's worth of answers.

A cache never holds pixels: it holds, per (image, view), the view's matrix and every target's fields.
"""

from pathlib import Path
from typing import Mapping, Sequence

import numpy as np
import torch

from pipeline import prepared, views as geometry, weights
from pipeline.config import Plugin, Prepare, Teacher, Views
from pipeline.datasets.base import DatasetBase
from pipeline.errors import ConfigError, StoreError
from pipeline.frames import canvas
from pipeline.lookup import find_class
from pipeline.models.base import ModelBase, Output, shapes
from pipeline.store import Pass
from pipeline.targets.base import Context, Field, TargetType

MATRIX = Pass("matrix", {"type": "matrix", "version": geometry.VERSION},
              {"matrix": Field((2, 3), "float64", ("row", "column"))})


def build_teacher(teacher: Teacher, dataset: DatasetBase, size: tuple[int, int]) -> ModelBase:
    return teacher.model.build(num_classes=len(dataset.classes), size=canvas(size), lanes=0)


def context(model: Plugin, dataset: DatasetBase, size: tuple[int, int], lanes: int = 0) -> Context:
    """Grids and channels of a network on this dataset, without running it."""
    height_width = canvas(size)
    num_classes = len(dataset.classes)
    output = shapes(lambda: model.build(num_classes=num_classes, size=height_width, lanes=lanes), height_width)
    named = {**output.features, "logits": output.logits}
    regions = tuple(range(num_classes)) if dataset.regions is None else tuple(dataset.regions)
    return Context(num_classes, regions, height_width, {role: tuple(f.shape[-2:]) for role, f in named.items()},
                   {role: f.shape[1] for role, f in named.items()})


def identity(dataset: DatasetBase, prepare: Prepare, views: Views, teacher: Teacher, weights_digest: str) -> dict:
    """All that changes a teacher's answer, but not which images, how many views, or which targets: those are the extent."""
    model = find_class("models", teacher.model.name)
    regions = range(len(dataset.classes)) if dataset.regions is None else dataset.regions
    return {
        "prepare": prepared.identity(dataset, prepare),
        "views": {"version": geometry.VERSION, "seed": views.seed, "scale": list(views.scale),
                  "rotate_deg": views.rotate_deg, "shift": views.shift, "mirror": views.mirror,
                  "permutation": list(dataset.mirror) if views.mirror and dataset.mirror else None},
        "regions": list(regions),
        "teacher": {"name": teacher.model.name, "args": dict(sorted(teacher.model.args.items())), "version": model.version,
                    "layers": dict(model.layers), "weights": weights_digest, "precision": teacher.precision},
    }


def check_views(views: Views, dataset: DatasetBase, where: str) -> None:
    """Raises ConfigError if mirroring is asked for where the dataset does not say how classes change."""
    if views.mirror and dataset.mirror is None:
        raise ConfigError(f"{where}: views.mirror: this dataset has no class permutation for mirrored images; write false")


def target_passes(targets: Mapping[str, Plugin], context: Context) -> dict[str, tuple[TargetType, Pass]]:
    """Each named target with where it is stored. Equal targets under two names share one pass."""
    result = {}
    for name, plugin in targets.items():
        target = plugin.build()
        result[name] = (target, Pass(plugin.name, target.record(plugin.name), target.fields(context)))
    return result


def weights_digest(teacher: Teacher, path: Path) -> str:
    """Digest of the teacher's weights. Raises StoreError that says how to get them, also if the YAML names a checkpoint that is
    not what was copied here."""
    if not path.exists():
        raise StoreError(f"{path}: no teacher weights; run `pipeline train-teacher` (or name a checkpoint in the YAML)")
    digest = weights.digest(weights.load_file(path))
    if teacher.checkpoint is not None and teacher.checkpoint.exists():
        if (named := weights.digest(weights.load_file(teacher.checkpoint))) != digest:
            raise StoreError(f"{path}: holds teacher.weights {digest[:12]}, but {teacher.checkpoint} holds {named[:12]}; run "
                             f"`pipeline train-teacher` to copy it")
    return digest


class BadAnswer(StoreError):
    """A teacher's answer from which nothing can be learned: for which of the images and targets, and what is wrong."""

    def __init__(self, image: int, targets: Sequence[int], what: str):
        super().__init__(f"image {image} of those asked about: {what}; check the teacher's weights and its precision")
        self.image, self.targets, self.what = image, list(targets), what


class Answers:
    """A teacher in eval mode that answers one block's view at a time, in batches of one fixed size.

    Batches never cross a block and the last is filled up with repeats, so a row does not depend on what else is filled.
    """

    def __init__(self, model: ModelBase, dataset: DatasetBase, context: Context, content: tuple[int, int], *, precision: str,
                 batch: int, device):
        self.device = torch.device(device)
        self.model = model.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.dataset, self.context, self.content, self.batch = dataset, context, content, batch
        self.bf16 = precision == "bf16"

    @torch.no_grad()
    def output(self, images: np.ndarray, labels: np.ndarray, matrices: np.ndarray) -> tuple[Output, torch.Tensor]:
        """The teacher's float32 output on these views, and the labels of the views. uint8 [B, H, W, 3] and [B, H, W]."""
        shown, labels_BHW, _ = geometry.apply(
            torch.from_numpy(images).to(self.device), torch.from_numpy(labels).to(self.device), torch.from_numpy(matrices),
            content=self.content, permutation=self.dataset.mirror)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.model(shown)
        return Output(output.logits.float(), {role: f.float() for role, f in output.features.items()}), labels_BHW

    def rows(self, targets: Sequence[TargetType], images: np.ndarray, labels: np.ndarray,
             matrices: np.ndarray) -> list[dict[str, np.ndarray]]:
        """For each target, its encoded fields [n, ...] for these n images. Raises BadAnswer."""
        parts = [[] for _ in targets]
        for start in range(0, len(images), self.batch):
            chosen = np.arange(start, start + self.batch).clip(max=len(images) - 1)
            kept = min(self.batch, len(images) - start)
            output, labels_BHW = self.output(images[chosen], labels[chosen], matrices[chosen])
            refuse_output(output, targets, start)
            for number, (part, target) in enumerate(zip(parts, targets)):
                values = target.compute(output, labels_BHW, self.context)
                refuse_values(values, target, number, labels_BHW, self.context, start)
                part.append({name: rows[:kept] for name, rows in encoded(values, target, number, start).items()})
        return [{name: np.concatenate([p[name] for p in part]) for name in part[0]} for part in parts]


# A teacher that is broken is noticed at its first answer, not when a student has learned nothing

def refuse_output(output: Output, targets: Sequence[TargetType], start: int) -> None:
    """Raises BadAnswer at NaN, infinity, or a map that is the same everywhere, in the layers that the targets read."""
    for role, map_BChw in {**output.features, "logits": output.logits}.items():
        readers = [number for number, target in enumerate(targets) if role in layers_of(target)]
        if readers and map_BChw[0, 0].numel() > 1:
            low_BC, high_BC = map_BChw.amin(dim=(2, 3)), map_BChw.amax(dim=(2, 3))
            finite_B = (low_BC.isfinite() & high_BC.isfinite()).all(dim=1)
            flat_B = (high_BC - low_BC <= 1e-6 * torch.maximum(high_BC.abs(), low_BC.abs())).all(dim=1)
            bad_B = (~finite_B | flat_B).cpu()
            if bad_B.any():
                image = int(bad_B.nonzero()[0])
                what = "the same at all positions" if finite_B[image] else "not finite"
                raise BadAnswer(start + image, readers, f"the teacher's {role!r} is {what}")


def refuse_values(values: Mapping[str, torch.Tensor], target: TargetType, number: int, labels_BHW: torch.Tensor,
                  context: Context, start: int) -> None:
    """Raises BadAnswer at what is not finite, or all zero for every image of a batch that shows a region: one alone may
    well be, e.g. where no labelled cell responds."""
    for name, value in values.items():
        if value.is_floating_point():
            flat_BN = value.flatten(1)
            finite_B, zero_B = torch.stack([flat_BN.isfinite().all(dim=1), (flat_BN == 0).all(dim=1)]).cpu()
            if not finite_B.all():
                raise BadAnswer(start + int((~finite_B).nonzero()[0]), [number], f"its {name} is not finite")
            if zero_B.any() and (shows_B := regions_shown(labels_BHW, target, context)).any() and zero_B[shows_B].all():
                raise BadAnswer(start + int(shows_B.nonzero()[0]), [number], f"its {name} is all zero")


def regions_shown(labels_BHW: torch.Tensor, target: TargetType, context: Context) -> torch.Tensor:
    """[B] bool on the CPU: whether the target has anything to compare, which without labels may not be so."""
    if not target.uses_labels:
        return torch.ones(len(labels_BHW), dtype=torch.bool)
    known = torch.zeros(256, dtype=torch.bool, device=labels_BHW.device)
    known[list(context.regions)] = True
    return known[labels_BHW.flatten(1).int()].any(dim=1).cpu()


def encoded(values: Mapping[str, torch.Tensor], target: TargetType, number: int, start: int) -> dict[str, np.ndarray]:
    try:
        return target.encode(values)
    except OverflowError as error:
        for image in range(len(next(iter(values.values())))):
            try:
                target.encode({name: value[image:image + 1] for name, value in values.items()})
            except OverflowError:
                raise BadAnswer(start + image, [number], str(error)) from None
        raise


def layers_of(target: TargetType) -> set[str]:
    """The layers a target is computed from, by its own parameters; without any, from the logits."""
    named = {getattr(target, "layer", None), *getattr(target, "layers", ())} - {None}
    return named or {"logits"}
