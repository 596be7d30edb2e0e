"""A layer's features in the principal components of the image itself: the largest target, made several times smaller.

Stored are the mean over the image's cells, its `rank` strongest directions in the space of channels, and each cell's
coefficients. By Eckart and Young ("The approximation of one matrix by another of lower rank", Psychometrika, 1936) no
other `rank` directions come nearer to this image's features in the mean square; a basis made for a dataset would cost
less (no directions in a row), fit each image worse, and change with the dataset. A row is `rank` (C + h w) + C numbers
instead of C h w, so the rank that pays is well below both C and h w.

How near the features come depends on the features. `error` is the largest difference that is accepted, as a share of
the image's largest feature: it is what the rows declare, and an image that errs by more is refused, with the figure.
A direction's sign is made that of its largest entry, so that rows don't depend on the decomposition's choice.

Losses get features of the layer back, as from `features` (and `pool` is as there).

B images, C channels, h w the stored grid, P = h w cells, r = rank.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models.base import Output
from pipeline.targets._grid import grid_of, on_grid
from pipeline.targets.base import STORED, Context, Field, Layer, Pool, TargetType, check_pool


@dataclass(frozen=True, kw_only=True)
class Target(TargetType):
    layer: Layer
    rank: Annotated[int, pydantic.Field(ge=1, description="Directions that are kept; fewer than the layer has channels.")]
    error: Annotated[
        float,
        pydantic.Field(gt=0, description="The largest difference that is accepted, as a part of the image's largest feature."),
    ] = 1.0
    pool: Pool = 1
    dtype: Annotated[Literal["float32", "float16"], STORED] = "float16"

    def __post_init__(self):
        if self.rank < 1 or self.pool < 1 or self.error <= 0:
            raise ConfigError(
                f"components: rank {self.rank}, pool {self.pool}, error {self.error}: "
                "write 1 or more, 1 or more, and a positive share"
            )

    def check(self, size: tuple[int, int]) -> None:
        check_pool("components.pool", self.pool, size)

    def grid(self, context: Context) -> tuple[int, int]:
        h, w = grid_of(context, self.layer, "components.layer")
        self.check((h, w))
        return -(-h // self.pool), -(-w // self.pool)

    def fields(self, context: Context) -> dict[str, Field]:
        C, (h, w) = context.channels[self.layer], self.grid(context)
        if self.rank >= min(C, h * w):
            raise ConfigError(
                f"components.rank: {self.rank} of {C} channels on {h} x {w} cells saves nothing; "
                "write less, or take a target of type features"
            )
        return {
            "features": Field((self.rank, h, w), self.dtype, ("component", f"y{h}", f"x{w}"), absolute_error=self.error),
            "basis": Field((self.rank, C), self.dtype, ("direction", "channel")),
            "mean": Field((C,), "float32", ("channel",)),
            "scale": Field((), "float32"),  # of the coefficients; an absolute error is relative to the row
        }

    def compute(self, output: Output, labels_BHW: Tensor, context: Context) -> dict[str, Tensor]:
        return {"features": on_grid(output.features[self.layer].float(), self.grid(context))}

    def encode(self, values: dict[str, Tensor]) -> dict[str, np.ndarray]:
        features_BChw = values["features"].detach()
        largest_B = features_BChw.abs().amax(dim=(1, 2, 3))
        if not largest_B.isfinite().all():
            raise OverflowError(f"features of {self.layer!r}: not finite; look for NaN or infinity in the teacher's features")
        unit_B = torch.where(largest_B > 0, largest_B, 1)
        shares_BCP = features_BChw.flatten(2).double() / unit_B[:, None, None]
        mean_BC1 = shares_BCP.mean(dim=2, keepdim=True)
        basis_BrC = directions(shares_BCP - mean_BC1, self.rank)
        coefficients_Brhw = (basis_BrC @ (shares_BCP - mean_BC1)).unflatten(2, features_BChw.shape[2:])
        scale_B = coefficients_Brhw.abs().amax(dim=(1, 2, 3))
        scale_B = torch.where(scale_B > 0, scale_B, 1)
        stored = getattr(torch, self.dtype)
        rows = {
            "features": (coefficients_Brhw / scale_B[:, None, None, None]).to(stored),
            "basis": basis_BrC.to(stored),
            "mean": (mean_BC1[..., 0] * unit_B[:, None]).float(),
            "scale": (scale_B * unit_B).float(),
        }
        found_B = (self.decode(rows)["features"] - features_BChw).abs().amax(dim=(1, 2, 3)) / unit_B
        if (found_B > self.error).any():
            raise OverflowError(
                f"features of {self.layer!r}: {self.rank} components leave an error of "
                f"{found_B.max().item():.3g} of the largest feature, and {self.error:g} is declared; "
                "raise `rank` or `error`"
            )
        return {name: row.cpu().numpy() for name, row in rows.items()}

    def decode(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        coefficients_BrP = rows["features"].float().flatten(2) * rows["scale"][:, None, None]
        features_BCP = rows["basis"].float().mT @ coefficients_BrP + rows["mean"][..., None]
        return {"features": features_BCP.unflatten(2, rows["features"].shape[2:])}


def directions(centred_BCP: Tensor, rank: int) -> Tensor:
    """[B, r, C]: unit vectors of the largest variance, the largest first, each with a positive largest entry."""
    vectors_BCC = torch.linalg.eigh(centred_BCP @ centred_BCP.mT)[1]  # by rising variance
    vectors_BrC = vectors_BCC[..., -rank:].mT.flip(1)
    peak_Br1 = vectors_BrC.gather(2, vectors_BrC.abs().argmax(dim=2, keepdim=True))
    return vectors_BrC * torch.where(peak_Br1 < 0, -1, 1)
