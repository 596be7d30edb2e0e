"""What relates an image to its batch mates: a sketch of each layer, and how much it changes between layers.

Source: Liu, Cao, Li, Yuan, Hu, Li, Duan, "Knowledge Distillation via Instance Relationship Graph", CVPR 2019: edges
are squared distances between the images of a batch in one layer, transformations are squared distances between two
layers of one image. Edges depend on batch mates, which a cache can't know; so each layer's whole map is stored as a
sketch of `size` numbers (a sum of randomly signed values per bucket, the buckets taken in turn: Charikar, Chen,
Farach-Colton, "Finding Frequent Items in Data Streams", ICALP 2002). Squared distances between sketches are unbiased
for those between maps, divided by the map's size; they vary by sqrt(2 / size) of themselves, 4.4 % at 1024, where the
buckets hold equal shares. Transformations are exact.

A student's edges need no sketch. Layers of a network may differ in grid and channels; a transformation averages the
earlier map onto the later one's grid, and the channels of both, in groups, to the smaller count. All positions count,
those outside the image too: the sums are taken before a loss knows which they are.

B images, C channels, h w a layer's grid, S buckets, L layers.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.models.base import Output
from pipeline.targets._grid import area_means, grid_of, on_grid
from pipeline.targets._signs import signs
from pipeline.targets.base import STORED, Context, Field, Layer, TargetType

ERRORS = {"float32": (0.0, 0.0), "float16": (2**-11, 2**-24)}  # relative, absolute


@dataclass(frozen=True, kw_only=True)
class Target(TargetType):
    layers: Annotated[
        tuple[Layer, ...], pydantic.Field(min_length=2, description="Layers of the network, in the order of depth.")
    ] = ("mid", "high")
    size: Annotated[int, pydantic.Field(ge=1, description="Numbers of each layer's sketch.")] = 1024
    seed: Annotated[int, pydantic.Field(ge=0, description="Seed of the random signs.")] = 0
    dtype: Annotated[Literal["float32", "float16"], STORED] = "float16"

    fidelity: ClassVar = "distribution"

    def __post_init__(self):
        if len(self.layers) < 2:
            raise ConfigError(f"sketch.layers: {list(self.layers)}: a transformation needs two layers or more")
        if self.size < 1 or self.seed < 0:
            raise ConfigError(f"sketch: size {self.size}, seed {self.seed}: write 1 or more, and 0 or more")

    def fields(self, context: Context) -> dict[str, Field]:
        for layer in self.layers:
            grid_of(context, layer, "sketch.layers")
        shape, relative, absolute = (len(self.layers), self.size), *ERRORS[self.dtype]
        return {
            "sketch": Field(shape, self.dtype, ("layer", "bucket"), relative_error=relative, absolute_error=absolute),
            "scale": Field(shape=(len(self.layers),), dtype="float32", dims=("layer",)),  # each layer's maximum
            "transformation": Field(shape=(len(self.layers) - 1,), dtype="float32", dims=("step",)),
        }

    def compute(self, output: Output, labels_BHW: Tensor, context: Context) -> dict[str, Tensor]:
        sketches = []
        for place, layer in enumerate(self.layers):
            values_BN = output.features[layer].float().flatten(1)
            count = values_BN.shape[1]
            signed_BN = values_BN * signs(self.seed, place, count, values_BN.device)
            buckets_BS = F.pad(signed_BN, (0, -count % self.size)).unflatten(1, (-1, self.size)).sum(dim=1)
            sketches.append(buckets_BS / math.sqrt(count))
        return {"sketch": torch.stack(sketches, dim=1), "transformation": self.transformations(output)}

    def transformations(self, output: Output) -> Tensor:
        """[B, L - 1]: the mean squared difference of each layer to the next."""
        maps = [output.features[layer].float() for layer in self.layers]
        return torch.stack([change(earlier, later) for earlier, later in zip(maps, maps[1:])], dim=1)

    def encode(self, values: dict[str, Tensor]) -> dict[str, np.ndarray]:
        sketch_BLS, transformation_BL = values["sketch"].detach(), values["transformation"].detach()
        scale_BL = sketch_BLS.abs().amax(dim=2)
        if not (scale_BL.isfinite().all() and transformation_BL.isfinite().all()):
            raise OverflowError(
                f"sketch of {', '.join(self.layers)}: not finite; look for NaN or infinity in the teacher's features"
            )
        if self.dtype == "float32":
            scale_BL = torch.ones_like(scale_BL)
        share_BLS = sketch_BLS / torch.where(scale_BL > 0, scale_BL, 1)[..., None]
        sketch_BLS = share_BLS.to(getattr(torch, self.dtype))
        arrays = {"sketch": sketch_BLS, "scale": scale_BL, "transformation": transformation_BL}
        return {name: array.cpu().numpy() for name, array in arrays.items()}

    def decode(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sketch": rows["sketch"].float() * rows["scale"][..., None], "transformation": rows["transformation"]}


def change(earlier_BChw: Tensor, later_BChw: Tensor) -> Tensor:
    """[B]: the mean squared difference, on the later map's grid and the smaller number of channels."""
    channels = min(earlier_BChw.shape[1], later_BChw.shape[1])
    earlier, later = (
        area_means(map_BChw.flatten(2).mT, channels)
        for map_BChw in (on_grid(earlier_BChw, tuple(later_BChw.shape[-2:])), later_BChw)  # type: ignore[arg-type]
    )
    return (earlier - later).square().double().mean(dim=(1, 2)).float()
