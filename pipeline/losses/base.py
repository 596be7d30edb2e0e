"""The contract of a loss: a module that compares a student's output with a teacher's stored rows.

`Loss(*, reads, context, student, ...)`: `reads` maps the YAML's target names to Target instances (empty for
self-distillation), `context` is the teacher's (see targets/base.py), `student` the student's own context (its grids and
channels, for adapters); further keywords are the YAML's keys of this entry. Parameters it holds are optimised and
checkpointed with the student.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.base import Output
from pipeline.targets.base import Context, TargetType

Temperature = Annotated[float, Field(gt=0, description="Logits are divided by this before the softmax.")]
Share = Annotated[float, Field(ge=0)]  # a weight within a loss
IGNORE = 255  # of a pixel without a label, as in datasets/base.py


@dataclass(frozen=True)
class Batch:
    """What a training step sees. B images, H W the network input."""

    images_B3HW: Tensor  # float32 RGB 0..255, as shown: view and photometric changes applied
    labels_BHW: Tensor  # uint8, 255 = ignored
    inside_BHW: Tensor  # bool: False where the view looks outside the image, and on padding
    existence_BL: Tensor | None  # uint8 lane flags of this view; 255 = unknown
    rows: Mapping[str, Mapping[str, Tensor]]  # target name -> decoded fields [B, ...]
    step: int
    ids: tuple[str, ...] = ()  # of the B images; empty where nobody asks
    views: tuple[int, ...] = ()  # the view that each image is shown in
    matrices_B23: Tensor | None = None  # float64, always on the CPU: from pixels of the view to pixels of the prepared image
    stored: tuple[int, ...] | None = None  # which of the B images `rows` are of, in order; None: all of them

    @property
    def has_label_B(self) -> Tensor:
        """Whether any pixel of an image is labelled."""
        return (self.labels_BHW != IGNORE).flatten(1).any(dim=1)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """On this device, as a tensor's `to`; a training loop of one's own, or Lightning, moves batches so."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """As DataLoader's `pin_memory` asks for."""
        return self._each(torch.Tensor.pin_memory)

    def parts(self, count: int) -> list["Batch"]:
        """Equal parts, in order."""
        if count == 1:
            return [self]
        size = len(self.images_B3HW) // count
        return [self._part(slice(start, start + size)) for start in range(0, count * size, size)]

    def _part(self, own: slice) -> "Batch":
        within: Any = own  # of the rows
        stored = self.stored
        if stored is not None:
            within = [i for i, image in enumerate(stored) if own.start <= image < own.stop]
            stored = tuple(stored[i] - own.start for i in within)
        rows = {name: {field: values[within] for field, values in fields.items()} for name, fields in self.rows.items()}
        return self._some(own, range(own.start, own.stop), rows, stored)

    def _some(self, own: Any, images: Sequence[int], rows: Mapping[str, Mapping[str, Tensor]], stored: Any) -> "Batch":
        """These images, `own` as an index of tensors, with these rows."""
        return dataclasses.replace(
            self.with_rows({})._each(lambda tensor: tensor[own]),
            rows=rows,
            ids=tuple(self.ids[i] for i in images) if self.ids else (),
            views=tuple(self.views[i] for i in images) if self.views else (),
            matrices_B23=None if self.matrices_B23 is None else self.matrices_B23[list(images)],
            stored=stored,
        )

    def with_targets(self, output: Output) -> tuple[Output, "Batch"]:
        """The images that have rows, and a network's output for them."""
        if self.stored is None:
            return output, self
        own = torch.tensor(self.stored, device=self.images_B3HW.device)
        logits, existence = (None if values is None else values[own] for values in (output.logits, output.existence))
        return Output(logits, {role: values[own] for role, values in output.features.items()}, existence), self._some(
            own, self.stored, self.rows, None
        )

    def tensors(self) -> list[Tensor]:
        found: list[Tensor] = []

        def take(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self._each(take)
        return found

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        rows = {name: {field: change(values) for field, values in fields.items()} for name, fields in self.rows.items()}
        return dataclasses.replace(
            self,
            images_B3HW=change(self.images_B3HW),
            labels_BHW=change(self.labels_BHW),
            inside_BHW=change(self.inside_BHW),
            existence_BL=None if self.existence_BL is None else change(self.existence_BL),
            rows=rows,
        )

    def with_rows(self, rows: Mapping[str, Mapping[str, Tensor]]) -> "Batch":
        return dataclasses.replace(self, rows=rows)


class LossModule(nn.Module):
    reads_types: ClassVar[tuple[str, ...]] = ()  # target types it can read, e.g. ("affinity",)
    needs_scan: bool = False  # whether `scan` must be called before the first `forward`

    def __init__(self, *, reads: Mapping[str, TargetType], context: Context | None, student: Context):
        super().__init__()
        self.reads: dict[str, Any] = dict(reads)  # of reads_types, whose own keys and methods a loss knows
        self.context: Any = context  # a Context, or None where the loss reads no target
        self.student = student

    def forward(self, output: Output, batch: Batch) -> Tensor:
        """A scalar: a sum over what it reads, a mean over the batch. 0 with zero gradient where nothing can be compared."""
        raise NotImplementedError

    @classmethod
    def check(cls, reads: Mapping[str, TargetType], **args: Any) -> None:
        """Raises ConfigError if no such loss can be made, told when a file is read: `args` are its keys, each of which is right
        by its annotation."""

    def scan(self, rows: Iterable[Mapping[str, Mapping[str, Tensor]]]) -> None:
        """Looks through the dataset once before the first step, and keeps what it needs of it in buffers. `rows` are decoded as
        in Batch, some images at a time, of the plain view, in an order that follows from the images' ids alone."""
        raise NotImplementedError
