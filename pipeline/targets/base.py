"""The contract of a target: what is stored of a teacher for one view of one image, and how a student computes the same.

A target is a frozen dataclass whose fields are its YAML keys. `compute` is differentiable, float32 inside, and the *same
code* for teacher and student, so the two cannot drift apart. It knows what the numbers mean; the store knows only bytes.

B images, H W the network input, h w a layer's grid, K regions.
"""

import dataclasses
import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import numpy as np
import pydantic
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.later import leave_out
from pipeline.models.base import Output

# what keys of several targets say
STORED = pydantic.Field(description="Type of the stored numbers.")
IS_LAYER = object()
Layer = Annotated[str, IS_LAYER, pydantic.Field(min_length=1, description="The layer of the network: `mid` or `high`.")]
Pool = Annotated[int, pydantic.Field(ge=1, description="Height and width of a stored cell, in cells of the teacher.")]
Seed = Annotated[int, pydantic.Field(ge=0, description="Seed of the random projection.")]
LOGITS = frozenset({"logits"})


@dataclass(frozen=True)
class Field:
    """One stored array: `shape` and `dims` of one row (one view of one image)."""

    shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...] = ()  # dimension names, unique per grid: ("y26", "x122"); needed as many as shape has
    relative_error: float = 0.0  # the largest rounding error of the stored dtype: |decoded - computed| <=
    absolute_error: float = 0.0  #   absolute_error * (the row's largest magnitude) + relative_error * |computed|


@dataclass(frozen=True)
class Context:
    """What a target may know besides the output: all of it about the *teacher*, and the same for teacher and student."""

    num_classes: int
    regions: tuple[int, ...]  # classes that are nodes of the affinity graph
    size: tuple[int, int]  # network input (height, width)
    grids: Mapping[str, tuple[int, int]]  # of the teacher: "mid", "high", "logits" -> (h, w)
    channels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TargetType:
    version: ClassVar[int] = 1  # bump when compute or encode would give other bytes
    uses_labels: ClassVar[bool] = False  # then a changed label refuses the rows
    fidelity: ClassVar[Literal["exact", "codec", "distribution"]] = "codec"
    compute_tolerance: ClassVar[float] = 1e-4  # relative, fp32: the same row from another batch, thread count or device

    def check(self, size: tuple[int, int]) -> None:
        """Raises ConfigError if there can be no such target on images of this height and width; told when a file is read. What
        depends on the teacher's grids is told by `fields`."""

    def source_layers(self) -> frozenset[str]:
        """The maps of `Output` that rows are made from: names of features, and "logits". Those that keys of type `Layer` name, or
        the logits if the target has no such key; a target that is made otherwise says so itself."""
        own: type = type(self)
        named = [getattr(self, key) for key in _layer_keys(own)]
        return frozenset(layer for value in named for layer in ((value,) if isinstance(value, str) else value)) or LOGITS

    def fields(self, context: Context) -> dict[str, Field]:
        """The arrays stored per (image, view). Sizes are fixed; what varies is padded to a maximum and counted."""
        raise NotImplementedError

    def compute(self, output: Output, labels_BHW: Tensor, context: Context) -> dict[str, Tensor]:
        """[B, ...] tensors from a network's output (teacher's or student's); differentiable, float32. Labels: 255 = ignored."""
        raise NotImplementedError

    def encode(self, values: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """Computed tensors -> arrays of the declared dtype, one row an image; raises OverflowError if a value does not fit."""
        raise NotImplementedError

    def decode(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Stored rows (already tensors, on any device) -> what `compute` gave, float32, up to the declared error."""
        raise NotImplementedError

    def record(self, type_name: str) -> dict:
        """What makes two targets the same target: type, parameters, version, whether labels count."""
        return {
            "type": type_name,
            "version": self.version,
            "uses_labels": self.uses_labels,
            **leave_out(dataclasses.asdict(self), type(self)),
        }


@functools.cache
def _layer_keys(target: type) -> tuple[str, ...]:
    hints = typing.get_type_hints(target, include_extras=True)
    return tuple(key.name for key in dataclasses.fields(target) if _is_layer(hints[key.name]))


def _is_layer(hint: typing.Any) -> bool:
    """Whether a key's type is `Layer`, or a tuple of such."""
    return IS_LAYER in getattr(hint, "__metadata__", ()) or any(map(_is_layer, typing.get_args(hint)))


def check_pool(key: str, pool: int, size: tuple[int, int]) -> None:
    """Raises ConfigError if a cell of this side is larger than all of this height and width."""
    if pool > max(size):
        raise ConfigError(
            f"{key}: a cell of {pool} x {pool} is larger than all of {size[0]} x {size[1]}; write {max(size)} or less"
        )
