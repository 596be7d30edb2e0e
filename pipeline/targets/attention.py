"""Spatial attention energy: where a layer responds, with the channels averaged away.

Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, the map that IntRA-KD's Eq. 6
follows: the mean over channels of F^2. Stored un-normalised, because cells outside the image are masked before a loss
normalises, and divided by its maximum, because energies of large activations overflow float16. `uint8` halves the
bytes at 8 times the largest error.

B images, C channels, h w the layer's grid.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models.base import Output
from pipeline.targets.base import STORED, Context, Field, Layer, TargetType


@dataclass(frozen=True, kw_only=True)
class Target(TargetType):
    layer: Layer
    dtype: Annotated[Literal["float32", "float16", "uint8"], STORED] = "float16"

    def fields(self, context: Context) -> dict[str, Field]:
        if self.layer not in context.grids:
            raise ConfigError(f"attention.layer: the teacher has no {self.layer!r}; it has {', '.join(context.grids)}")
        h, w = context.grids[self.layer]
        relative, absolute = (2**-11, 2**-24) if self.dtype == "float16" else (0.0, 1 / 509)
        return {
            "energy": Field((h, w), self.dtype, (f"y{h}", f"x{w}"), relative_error=relative, absolute_error=absolute),
            "scale": Field(shape=(), dtype="float32"),  # the row's maximum, to which its absolute error is relative
        }

    def compute(self, output: Output, labels_BHW: Tensor, context: Context) -> dict[str, Tensor]:
        return {"energy": Energy.apply(output.features[self.layer].float())}

    def encode(self, values: dict[str, Tensor]) -> dict[str, np.ndarray]:
        energy_Bhw = values["energy"].detach()
        scale_B = energy_Bhw.amax(dim=(1, 2))
        if not scale_B.isfinite().all():
            raise OverflowError(f"attention of {self.layer!r}: not finite; look for NaN in the teacher's features")
        if self.dtype == "float32":
            return {"energy": energy_Bhw.cpu().numpy(), "scale": torch.ones_like(scale_B).cpu().numpy()}
        share_Bhw = energy_Bhw / torch.where(scale_B > 0, scale_B, 1)[:, None, None]
        stored_Bhw = share_Bhw.half() if self.dtype == "float16" else (share_Bhw * 255).round().to(torch.uint8)
        return {"energy": stored_Bhw.cpu().numpy(), "scale": scale_B.cpu().numpy()}

    def decode(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        steps = 255 if self.dtype == "uint8" else 1
        return {"energy": rows["energy"].float() * (rows["scale"] / steps)[:, None, None]}


class Energy(torch.autograd.Function):
    """[B, h, w]: the mean over channels of F^2. Its gradient is one product, bit for bit what autograd makes in four passes."""

    @staticmethod
    def forward(ctx, features_BChw: Tensor) -> Tensor:
        ctx.save_for_backward(features_BChw)
        return features_BChw.square().mean(dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope_Bhw: Tensor) -> Tensor:
        (features_BChw,) = ctx.saved_tensors
        return features_BChw * (slope_Bhw[:, None] / features_BChw.shape[1] * 2)
