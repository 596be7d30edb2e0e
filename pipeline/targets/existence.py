"""The teacher's lane-existence logits: which lanes it says are there, before any sigmoid.

The head is that of Pan et al., "Spatial As Deep: Spatial CNN for Traffic Scene Understanding", AAAI 2018; as a target it is
ours. A teacher has one if it was trained with `existence_weight`, or if its checkpoint brings one. It answers on the view
itself, so nothing is swapped in a mirrored view and nothing is masked: of a lane that has left the picture it says that it
is not there.

B images, L lanes.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pydantic
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models.base import Output
from pipeline.targets.base import Context, Field, TargetType


@dataclass(frozen=True, kw_only=True)
class Target(TargetType):
    lanes: Annotated[int, pydantic.Field(ge=1, description="As many as the dataset has: 4 on CULane.")]

    fidelity = "exact"

    def __post_init__(self):
        if self.lanes < 1:
            raise ConfigError(f"existence.lanes: {self.lanes} lanes say nothing; write 1 or more, or leave the target out")

    def source_layers(self) -> frozenset[str]:
        return frozenset()  # made from the head's answer, which is no map

    def fields(self, context: Context) -> dict[str, Field]:
        return {"existence": Field((self.lanes,), "float32", ("lane",))}

    def compute(self, output: Output, labels_BHW: Tensor, context: Context) -> dict[str, Tensor]:
        if output.existence is None:
            raise ConfigError(
                "existence: this network has no lane-existence head; train it with existence_weight above 0, "
                "or leave the target out"
            )
        if output.existence.shape[1] != self.lanes:
            raise ConfigError(f"existence.lanes: {self.lanes}, but the network answers for {output.existence.shape[1]}; write that")
        return {"existence": output.existence.float()}

    def encode(self, values: dict[str, Tensor]) -> dict[str, np.ndarray]:
        return {"existence": values["existence"].detach().cpu().numpy()}

    def decode(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(rows)
