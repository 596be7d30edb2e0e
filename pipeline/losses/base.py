"""The contract of a loss: a module that compares a student's output with a teacher's stored rows.

`Loss(*, reads, context, student, ...)`: `reads` maps the YAML's target names to Target instances (empty for
self-distillation), `context` is the teacher's (see targets/base.py), `student` the student's own context (its grids and
channels, for adapters); further keywords are the YAML's keys of this entry. Parameters it holds are optimised and
checkpointed with the student.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Mapping

from torch import Tensor, nn

from pipeline.models.base import Output
from pipeline.targets.base import Context, TargetType


@dataclass(frozen=True)
class Batch:
    """What a training step sees. B images, H W the network input."""

    images_B3HW: Tensor                             # float32 RGB 0..255, as shown: view and photometric changes applied
    labels_BHW: Tensor                              # uint8, 255 = ignored
    inside_BHW: Tensor                              # bool: False where the view looks outside the image, and on padding
    existence_BL: Tensor | None                     # uint8 lane flags of this view; 255 = unknown
    rows: Mapping[str, Mapping[str, Tensor]]        # target name -> decoded fields [B, ...]
    step: int

    def with_rows(self, rows: Mapping[str, Mapping[str, Tensor]]) -> "Batch":
        return dataclasses.replace(self, rows=rows)


class LossModule(nn.Module):
    reads_types: ClassVar[tuple[str, ...]] = ()     # target types it can read, e.g. ("affinity",)

    def __init__(self, *, reads: Mapping[str, TargetType], context: Context | None, student: Context):
        super().__init__()
        self.reads, self.context, self.student = dict(reads), context, student

    def forward(self, output: Output, batch: Batch) -> Tensor:
        """A scalar: a sum over what it reads, a mean over the batch. 0 with zero gradient where nothing can be compared."""
        raise NotImplementedError
