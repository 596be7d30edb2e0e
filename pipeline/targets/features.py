"""A layer's features themselves, for losses that compare them cell by cell: the largest target.

Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, gives the use. Two ways to make them smaller:
`uint8`, affine per image and channel between the channel's least and largest value (half the bytes), and `pool`, which
averages patches of cells (a quarter of the bytes at 2); targets/components.py is a third. A student's features are
brought to the same grid before they are compared.

B images, C channels, h w the stored grid.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models.base import Output
from pipeline.targets._grid import grid_of, on_grid
from pipeline.targets.base import STORED, Context, Field, Layer, Pool, TargetType, check_pool


@dataclass(frozen=True, kw_only=True)
class Target(TargetType):
    layer: Layer
    dtype: Annotated[Literal["float32", "float16", "uint8"], STORED] = "float16"
    pool: Pool = 1

    def __post_init__(self):
        if self.pool < 1:
            raise ConfigError(f"features.pool: {self.pool} cells have no average; write 1 or more")

    def check(self, size: tuple[int, int]) -> None:
        check_pool("features.pool", self.pool, size)

    def grid(self, context: Context) -> tuple[int, int]:
        h, w = grid_of(context, self.layer, "features.layer")
        self.check((h, w))
        return -(-h // self.pool), -(-w // self.pool)

    def fields(self, context: Context) -> dict[str, Field]:
        h, w = self.grid(context)
        shape, dims = (context.channels[self.layer], h, w), ("channel", f"y{h}", f"x{w}")
        if self.dtype != "uint8":
            relative, absolute = (2**-11, 2**-24) if self.dtype == "float16" else (0.0, 0.0)
            return {"features": Field(shape, self.dtype, dims, relative_error=relative, absolute_error=absolute)}
        return {
            # Half a step of the widest channel, whose range is at most twice the row's maximum.
            "features": Field(shape=shape, dtype="uint8", dims=dims, absolute_error=1 / 254),
            "scale": Field(shape=shape[:1], dtype="float32", dims=dims[:1]),
            "offset": Field(shape=shape[:1], dtype="float32", dims=dims[:1]),
        }

    def compute(self, output: Output, labels_BHW: Tensor, context: Context) -> dict[str, Tensor]:
        return {"features": on_grid(output.features[self.layer].float(), self.grid(context))}

    def encode(self, values: dict[str, Tensor]) -> dict[str, np.ndarray]:
        features_BChw = values["features"].detach()
        if self.dtype != "uint8":
            arrays = {"features": features_BChw.to(getattr(torch, self.dtype))}
            fits = arrays["features"].isfinite().all()
        else:
            offset_BC = features_BChw.amin(dim=(2, 3))
            scale_BC = (features_BChw.amax(dim=(2, 3)) - offset_BC) / 255
            fits = scale_BC.isfinite().all()
            steps_BC = torch.where(scale_BC > 0, scale_BC, 1)
            levels_BChw = ((features_BChw - offset_BC[..., None, None]) / steps_BC[..., None, None]).round()
            arrays = {"features": levels_BChw.clamp(0, 255).to(torch.uint8), "scale": scale_BC, "offset": offset_BC}
        if not fits:
            largest = features_BChw.abs().max().item()
            raise OverflowError(f"features of {self.layer!r} up to {largest:g} do not fit {self.dtype}")
        return {name: array.cpu().numpy() for name, array in arrays.items()}

    def decode(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        features_BChw = rows["features"].float()
        if self.dtype == "uint8":
            features_BChw = features_BChw * rows["scale"][..., None, None] + rows["offset"][..., None, None]
        return {"features": features_BChw}
