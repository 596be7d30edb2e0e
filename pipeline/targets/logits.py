"""The teacher's logits on its own grid (stride 8 of a ResNet, every pixel of an ERFNet or ENet).

Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, gives the use; logits instead of
probabilities are stored because they serve any temperature, and every loss that takes a softmax of its own over
classes or over positions. Two ways to make them smaller: `uint8`, affine per image and class, between the class's least
and largest logit, and `pool`, which averages patches of cells.

B images, K classes, h w the stored grid.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models.base import Output
from pipeline.targets._grid import on_grid
from pipeline.targets.base import STORED, Context, Field, Pool, TargetType, check_pool


@dataclass(frozen=True, kw_only=True)
class Target(TargetType):
    dtype: Annotated[Literal["float32", "float16", "uint8"], STORED] = "float16"
    pool: Pool = 1

    def __post_init__(self):
        if self.pool < 1:
            raise ConfigError(f"logits.pool: {self.pool} cells have no average; write 1 or more")

    def record(self, type_name: str) -> dict:
        """Without `pool` where it says nothing: stores from before there was one remain what they are."""
        record = super().record(type_name)
        return record if self.pool > 1 else {key: value for key, value in record.items() if key != "pool"}

    def check(self, size: tuple[int, int]) -> None:
        check_pool("logits.pool", self.pool, size)

    def grid(self, context: Context) -> tuple[int, int]:
        h, w = context.grids["logits"]
        self.check((h, w))
        return -(-h // self.pool), -(-w // self.pool)

    def fields(self, context: Context) -> dict[str, Field]:
        h, w = self.grid(context)
        shape, dims = (context.num_classes, h, w), ("class", f"y{h}", f"x{w}")
        if self.dtype == "float32":
            return {"logits": Field(shape, "float32", dims)}
        if self.dtype == "float16":
            return {"logits": Field(shape, "float16", dims, relative_error=2**-11, absolute_error=2**-24)}
        return {
            # Half a step of the widest class, whose range is at most twice the row's maximum.
            "logits": Field(shape, "uint8", dims, absolute_error=1 / 254),
            "scale": Field(shape[:1], "float32", dims[:1]),
            "offset": Field(shape[:1], "float32", dims[:1]),
        }

    def compute(self, output: Output, labels_BHW: Tensor, context: Context) -> dict[str, Tensor]:
        logits_BKhw = output.logits.float()  # type: ignore[union-attr]
        return {"logits": logits_BKhw if self.pool == 1 else on_grid(logits_BKhw, self.grid(context))}

    def encode(self, values: dict[str, Tensor]) -> dict[str, np.ndarray]:
        logits_BKhw = values["logits"].detach()
        if self.dtype != "uint8":
            arrays = {"logits": logits_BKhw.to(getattr(torch, self.dtype))}
            fits = arrays["logits"].isfinite().all()
        else:
            offset_BK = logits_BKhw.amin(dim=(2, 3))
            scale_BK = (logits_BKhw.amax(dim=(2, 3)) - offset_BK) / 255
            fits = scale_BK.isfinite().all()
            steps_BK = torch.where(scale_BK > 0, scale_BK, 1)
            levels_BKhw = ((logits_BKhw - offset_BK[..., None, None]) / steps_BK[..., None, None]).round()
            arrays = {"logits": levels_BKhw.clamp(0, 255).to(torch.uint8), "scale": scale_BK, "offset": offset_BK}
        if not fits:
            raise OverflowError(f"logits of {logits_BKhw.abs().max().item():g} do not fit {self.dtype}")
        return {name: array.cpu().numpy() for name, array in arrays.items()}

    def decode(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        logits_BKhw = rows["logits"].float()
        if self.dtype == "uint8":
            logits_BKhw = logits_BKhw * rows["scale"][..., None, None] + rows["offset"][..., None, None]
        return {"logits": logits_BKhw}
