"""Is offline the same as online? Stored rows against the live teacher on the same view, and what the difference does to a
student's loss and its gradient.

A row may differ by what its codec declares and by what computing it again may change (another batch, thread count or device):
|stored - live| <= absolute_error * m + relative_error * |live| + compute_tolerance * m, with m the row's largest magnitude.
Of whole numbers, which are classes, a part may differ: compute_tolerance of a row, and one cell in any case.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.losses.base import Batch
from pipeline.models.base import Output
from pipeline.progress import Progress, table_lines
from pipeline.targets.base import Context, Field, TargetType
from pipeline.teacher.online import OnlineTargets


@dataclass(frozen=True)
class RowError:
    """Of one target over some rows, relative to each row's largest magnitude; `excess` is the largest error / allowed error."""

    target: str
    rows: int
    largest: float
    mean: float
    excess: float

    @property
    def holds(self) -> bool:
        return self.excess <= 1


# Two float32 passes differ in the last bits; TF32 keeps 10 bits of a factor and bfloat16 7, so other kernels differ by more.
LOOSER = {"fp32": 1.0, "tf32": 2.0**4, "bf16": 2.0**9}


def row_error(
    name: str,
    target: TargetType,
    stored: Mapping[str, Tensor],
    online: Mapping[str, Tensor],
    context: Context,
    precision: str = "fp32",
) -> RowError:
    """Decoded rows `stored` against computed `online`, both [B, ...] by field, of a teacher that runs in `precision`."""
    fields = target.fields(context)
    largest = excess = total = count = 0.0
    for field, found in stored.items():
        expected = online[field].to(found)
        magnitude = expected.flatten(1).abs().amax(1).clamp(min=1e-30).view(-1, *[1] * (expected.ndim - 1))
        error = (found - expected).abs()
        if not found.is_floating_point():  # classes: where two logits are nearly equal, another batch may find the other larger
            cells = found[0].numel()
            other = (found != expected).flatten(1).float().mean(1)
            excess = max(excess, float(other.max()) / max(1 / cells, LOOSER[precision] * target.compute_tolerance))
            largest, total, count = max(largest, float(other.max())), total + float(other.sum()) * cells, count + found.numel()
            continue
        declared = fields.get(field, Field((), "float32"))
        allowed = (
            declared.absolute_error + LOOSER[precision] * target.compute_tolerance
        ) * magnitude + declared.relative_error * expected.abs()
        worst = float((error / allowed).max())
        excess = max(excess, worst) if worst == worst else float("inf")  # NaN is no agreement
        relative = error / magnitude
        largest, total, count = max(largest, float(relative.max())), total + float(relative.sum()), count + relative.numel()
    return RowError(name, len(next(iter(stored.values()))), largest, total / count, excess)


@dataclass(frozen=True)
class LossError:
    """One loss of one batch: its value online, the relative difference offline, and the same of its gradient (2-norms)."""

    loss: str
    online: float
    difference: float
    gradient_difference: float


def loss_error(name: str, loss: nn.Module, output: Output, offline: Batch, online: Batch) -> LossError:
    """`offline` and `online` are the same batch with stored and with online rows; gradients are taken at the student's output."""
    leaves = [t for t in (output.logits, *output.features.values()) if t is not None and t.requires_grad]
    values, gradients = [], []
    for batch in (online, offline):
        value = loss(output, batch)
        found = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        values.append(float(value.detach()))
        gradients.append(torch.cat([g.flatten().double() for g in found if g is not None]))
    scale = max(abs(values[0]), 1e-30)
    norm = max(float(gradients[0].norm()), 1e-30)
    return LossError(name, values[0], abs(values[1] - values[0]) / scale, float((gradients[1] - gradients[0]).norm()) / norm)


def choose(num_images: int, num_views: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`count` random (image, view) pairs, without repetition, as two arrays."""
    rng = np.random.default_rng(seed)
    flat = rng.choice(num_images * num_views, min(count, num_images * num_views), replace=False)
    return flat // num_views, flat % num_views


def recomputed(
    teacher: OnlineTargets, cached: Any, positions: np.ndarray, numbers: np.ndarray, *, batch: int, precision: str
) -> list[RowError]:
    """Of each target, the error of these stored rows: the teacher answers the same views again, drawn by the stored matrices.
    `cached` reads rows of the images in `teacher.samples` (CachedTargets)."""
    stored: dict[str, list[dict[str, Tensor]]] = {name: [] for name in cached.targets}
    online: dict[str, list[dict[str, Tensor]]] = {name: [] for name in cached.targets}
    with Progress("teacher again", len(positions), "views") as progress:
        for start in range(0, len(positions), batch):
            here, view = positions[start : start + batch], numbers[start : start + batch]
            answered = teacher.answered(here, cached.matrices(here, view))
            read = cached.rows(here, view, lambda rows: torch.from_numpy(rows).to(teacher.answers.device))
            for name in cached.targets:
                online[name].append(answered[name])
                stored[name].append(read[name])
            progress.advance(len(here))
    return [
        row_error(name, target, joined(stored[name]), joined(online[name]), teacher.answers.context, precision)
        for name, (target, _) in cached.targets.items()
    ]


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Rows by field, of all batches."""
    return {field: torch.cat([part[field] for part in parts]) for field in parts[0]}


def table(errors: Sequence[RowError]) -> str:
    rows = [(e.target, e.rows, f"{e.largest:.2e}", f"{e.mean:.2e}", f"{e.excess:.2f}") for e in errors]
    return "\n".join(table_lines(["target", "rows", "largest error", "mean error", "of what is allowed"], rows))


def loss_table(errors: Sequence[LossError]) -> str:
    rows = [(e.loss, f"{e.online:.6g}", f"{e.difference:.2e}", f"{e.gradient_difference:.2e}") for e in errors]
    return "\n".join(table_lines(["loss", "online", "offline differs by", "its gradient by"], rows))
