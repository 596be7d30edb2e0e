"""The teacher's most likely classes at each cell, with what is left for all others together: logits for few bytes.

Stored are the logarithms of the `count` largest class probabilities, largest first, the logarithm of the tail, which is
the sum of all others, and the classes. A cell's logits are read back as these logarithms, with the tail shared equally
among the other classes; with one class in the tail that is the teacher's distribution itself. A softmax over classes
forgets each cell's shift, so only losses on class probabilities can read this; those that take a softmax over
positions, or the logits' own size, read `logits`. Worth it where 3 count + 2 bytes a cell are well below the K of 8-bit logits.

Two classes that are as likely as each other to the last bit may stand in either order, so `classes` declares no bound;
the sorted logarithms move no further than the logits do.

B images, K classes, k = count, h w the teacher's logit grid.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models.base import Output
from pipeline.targets.base import STORED, Context, Field, TargetType


@dataclass(frozen=True, kw_only=True)
class Target(TargetType):
    count: Annotated[int, pydantic.Field(ge=1, description="Classes that are kept at each cell; fewer than the dataset has.")]
    dtype: Annotated[Literal["float32", "float16"], STORED] = "float16"

    def __post_init__(self):
        if self.count < 1:
            raise ConfigError(f"top_classes.count: {self.count} classes say nothing; write 1 or more")

    def fields(self, context: Context) -> dict[str, Field]:
        k, (h, w) = self.count, context.grids["logits"]
        if k >= context.num_classes:
            raise ConfigError(
                f"top_classes.count: {k} of {context.num_classes} classes leaves no tail; "
                "write less, or take a target of type logits"
            )
        relative, absolute = (2**-11, 2**-24) if self.dtype == "float16" else (0.0, 0.0)
        return {
            "logs": Field((k + 1, h, w), self.dtype, ("rank", f"y{h}", f"x{w}"), relative, absolute),
            "classes": Field((k, h, w), "uint8", ("place", f"y{h}", f"x{w}"), absolute_error=1.0),
        }

    def compute(self, output: Output, labels_BHW: Tensor, context: Context) -> dict[str, Tensor]:
        logs_BKhw, classes_BKhw = output.logits.float().log_softmax(dim=1).sort(dim=1, descending=True, stable=True)  # type: ignore[union-attr]
        tail_B1hw = logs_BKhw[:, self.count :].logsumexp(dim=1, keepdim=True)
        return {"logs": torch.cat([logs_BKhw[:, : self.count], tail_B1hw], dim=1), "classes": classes_BKhw[:, : self.count]}

    def encode(self, values: dict[str, Tensor]) -> dict[str, np.ndarray]:
        logs_BRhw = values["logs"].detach().to(getattr(torch, self.dtype))
        if not logs_BRhw.isfinite().all():
            raise OverflowError(f"log probabilities down to {values['logs'].min().item():g} do not fit {self.dtype}")
        return {"logs": logs_BRhw.cpu().numpy(), "classes": values["classes"].to(torch.uint8).cpu().numpy()}

    def decode(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logs": rows["logs"].float(), "classes": rows["classes"].long()}

    def logits(self, rows: dict[str, Tensor], context: Context) -> Tensor:
        """[B, K, h, w]: logarithms of probabilities, the tail shared equally by the classes that are not kept."""
        logs_BRhw, K = rows["logs"], context.num_classes
        shares_B1hw = logs_BRhw[:, -1:] - math.log(K - self.count)
        return shares_B1hw.repeat(1, K, 1, 1).scatter(1, rows["classes"], logs_BRhw[:, :-1])
