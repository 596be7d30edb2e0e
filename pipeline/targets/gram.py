"""The flow between two layers: the Gram matrix of their channels over all positions, after a fixed random projection.

Source: Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
Learning", CVPR 2017, Eq. 1: G_ij = sum over positions of F1_i F2_j / (h w), the earlier map averaged onto the later
one's grid. Departure: G is C1 x C2, which is large (512 x 2048: 4 MB) and fits no student of fewer channels. So each
layer's channels are first projected to `channels` by a matrix of random signs over sqrt(C), drawn from `seed` once for
all images: the expected mean square of an entry of P1 G P2^T, or of a difference of two, is that of G.

All positions count, those outside the image too: the sum over positions is taken before a loss knows which they are.

B images, h w a grid, C a layer's channels, D channels after the projection.
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
from pipeline.targets._grid import grid_of, on_grid
from pipeline.targets._signs import signs
from pipeline.targets.base import STORED, Context, Field, Layer, Seed, TargetType

ERRORS = {"float32": (0.0, 0.0), "float16": (2**-11, 2**-24)}  # relative, absolute


@dataclass(frozen=True, kw_only=True)
class Target(TargetType):
    layers: Annotated[tuple[Layer, Layer], pydantic.Field(description="Two layers of the network, the earlier one first.")] = (
        "mid",
        "high",
    )
    channels: Annotated[int, pydantic.Field(ge=1, description="Channels that each layer is projected to.")] = 64
    seed: Seed = 0
    dtype: Annotated[Literal["float32", "float16"], STORED] = "float16"

    def __post_init__(self):
        if self.channels < 1 or self.seed < 0:
            raise ConfigError(f"gram: channels {self.channels}, seed {self.seed}: write 1 or more, and 0 or more")

    def fields(self, context: Context) -> dict[str, Field]:
        for layer in self.layers:
            grid_of(context, layer, "gram.layers")
        shape, relative, absolute = (self.channels, self.channels), *ERRORS[self.dtype]
        return {
            "gram": Field(shape, self.dtype, ("row", "column"), relative_error=relative, absolute_error=absolute),
            "scale": Field(shape=(), dtype="float32"),  # the row's maximum, to which its absolute error is relative
        }

    def compute(self, output: Output, labels_BHW: Tensor, context: Context) -> dict[str, Tensor]:
        maps = [output.features[layer].float() for layer in self.layers]
        projected = []
        for place, map_BChw in enumerate(maps):
            signs_DC = self.signs(place, map_BChw.shape[1], map_BChw.device)
            projected.append((signs_DC @ map_BChw.flatten(2)).unflatten(2, map_BChw.shape[2:]))
        return {"gram": gram(*projected) / math.sqrt(maps[0].shape[1] * maps[1].shape[1])}

    def signs(self, place: int, channels: int, device: torch.device) -> Tensor:
        """[D, C] of -1 and 1, another matrix for each place."""
        return signs(self.seed, place, self.channels * channels, device).view(self.channels, channels)

    def encode(self, values: dict[str, Tensor]) -> dict[str, np.ndarray]:
        gram_BDD = values["gram"].detach()
        scale_B = gram_BDD.abs().amax(dim=(1, 2))
        if not scale_B.isfinite().all():
            raise OverflowError(
                f"Gram matrix of {' and '.join(self.layers)}: not finite; look for NaN or infinity in the teacher's features"
            )
        if self.dtype == "float32":
            scale_B = torch.ones_like(scale_B)
        share_BDD = gram_BDD / torch.where(scale_B > 0, scale_B, 1)[:, None, None]
        return {"gram": share_BDD.to(getattr(torch, self.dtype)).cpu().numpy(), "scale": scale_B.cpu().numpy()}

    def decode(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"gram": rows["gram"].float() * rows["scale"][:, None, None]}


def gram(first_BDhw: Tensor, second_BDhw: Tensor) -> Tensor:
    """Eq. 1 on the second map's grid: [B, D, D]."""
    grid = tuple(second_BDhw.shape[-2:])
    return on_grid(first_BDhw, grid).flatten(2) @ second_BDhw.flatten(2).mT / (grid[0] * grid[1])  # type: ignore[arg-type]
