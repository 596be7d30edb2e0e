"""What a method reads of several teachers, side by side.

Stands in for loading.CachedTargets: each part holds the targets of one teacher, from its cache or from the network itself. A target
of several teachers is the mean of what each of them has, with weights: of logits it is the geometric mean of the probabilities, up
to a factor, as in Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class SeveralTargets:
    parts: Mapping[str, Any]  # by teacher: CachedTargets, FillingTargets or OnlineTargets
    teachers: Mapping[str, Mapping[str, float]]  # of each target, its teachers' weights

    @property
    def readers(self) -> list[Any]:
        return [reader for part in self.parts.values() for reader in getattr(part, "readers", ())]

    def matrices(self, positions: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """[B, 2, 3]; all teachers see the same views."""
        found: np.ndarray = next(iter(self.parts.values())).matrices(positions, numbers)
        return found

    def rows(self, positions: np.ndarray, numbers: np.ndarray, to_device: Callable) -> dict[str, dict[str, Tensor]]:
        """[B, ...] by target and field, decoded."""
        read = {teacher: part.rows(positions, numbers, to_device) for teacher, part in self.parts.items()}
        return {
            name: {
                field: mean([read[teacher][name][field] for teacher in weights], [*weights.values()])
                for field in read[next(iter(weights))][name]
            }
            for name, weights in self.teachers.items()
        }


def mean(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Of tensors of one shape, with weights of any sum. Equal values give themselves, to the bit: numbers of cells stay whole."""
    first, *others = values
    for value, weight in zip(others, weights[1:]):
        first = first + weight / sum(weights) * (value - values[0])
    return first
