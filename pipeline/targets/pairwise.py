"""Pair-wise similarity: cosines between all pairs of nodes, a node being the pooled features of a patch of the map.

Source: Liu, Chen, Liu, Qin, Luo, Wang, "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019,
section 3.1: a_ij = f_i . f_j / (|f_i| |f_j|). Its best setting averages patches of 2x2 cells, the default here; its
code takes the maximum over patches of half the map (`nodes: [2, 2]`, `pool: max`). The nodes tile the image alike for
both networks, `patch` being counted in cells of the teacher's grid. Where the grid is no multiple of the patch, nodes
overlap by a cell, or, with `short_last`, the last one of a row or column is short, as in the published code, whose
pooling rounds up. `pool: max` has no deterministic gradient on CUDA.

What is stored is the smaller of two: the n (n - 1) / 2 cosines above the diagonal, or the n nodes as unit vectors,
from which the cosines follow. A node that vanishes has cosine 0 with every node, and no gradient.

B images, C channels, h w the teacher's grid of the layer, N = n nodes, E = n (n - 1) / 2 pairs.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.later import AddedLater
from pipeline.models.base import Output
from pipeline.targets._cosines import ERRORS, coded, cosines, decoded, inverse_length, scaled
from pipeline.targets._grid import grid_of, on_grid
from pipeline.targets.base import STORED, Context, Field, Layer, TargetType, check_pool


@dataclass(frozen=True, kw_only=True)
class Target(TargetType):
    layer: Layer
    patch: Annotated[int, pydantic.Field(ge=1, description="Height and width of a node, in cells of the teacher.")] = 2
    nodes: Annotated[
        tuple[Annotated[int, pydantic.Field(ge=1)], Annotated[int, pydantic.Field(ge=1)]] | None,
        pydantic.Field(description="Rows and columns of nodes, instead of a patch."),
    ] = None
    pool: Annotated[Literal["average", "max"], pydantic.Field(description="How the cells of a node become one.")] = "average"
    keeps: Annotated[
        Literal["smaller", "cosines", "nodes"],
        pydantic.Field(description="Store the cosines of all pairs, the nodes, or what is smaller."),
    ] = "smaller"
    dtype: Annotated[Literal["float32", "float16", "int8"], STORED] = "float16"
    short_last: Annotated[
        bool,
        AddedLater(False),
        pydantic.Field(description="Patches side by side, the last one short, as published; or equal parts, which may overlap."),
    ] = False

    def __post_init__(self):
        if self.patch < 1 or min(self.nodes or (1, 1)) < 1:
            raise ConfigError(f"pairwise: patch {self.patch}, nodes {self.nodes}: no area is left; write 1 or more")
        if self.short_last and self.nodes:
            raise ConfigError("pairwise.short_last: it counts in patches; write patch instead of nodes")

    def check(self, size: tuple[int, int]) -> None:
        check_pool("pairwise.patch", self.patch, size)

    def node_grid(self, context: Context) -> tuple[int, int]:
        h, w = grid_of(context, self.layer, "pairwise.layer")
        return self.nodes or (-(-h // self.patch), -(-w // self.patch))

    def keeps_nodes(self, context: Context) -> bool:
        if self.keeps != "smaller":
            return self.keeps == "nodes"
        return math.prod(self.node_grid(context)) - 1 > 2 * context.channels[self.layer]

    def fields(self, context: Context) -> dict[str, Field]:
        n, channels = math.prod(self.node_grid(context)), context.channels[self.layer]
        if n == 1:
            raise ConfigError("pairwise.nodes: 1 x 1 is one node, and pairs need two; make the patch smaller")
        if self.keeps_nodes(context):
            fields = {"nodes": Field((n, channels), self.dtype, ("node", "channel"), **ERRORS[self.dtype])}
            scale = Field((n,), "float32", ("node",))
        else:
            fields = {"cosines": Field((n * (n - 1) // 2,), self.dtype, ("pair",), **ERRORS[self.dtype])}
            scale = Field((), "float32")
        return fields | ({"scale": scale} if self.dtype == "int8" else {})

    def compute(self, output: Output, labels_BHW: Tensor, context: Context) -> dict[str, Tensor]:
        nodes_BNC = self.pooled(output.features[self.layer], context)
        if self.keeps_nodes(context):
            return {"nodes": nodes_BNC * inverse_length(nodes_BNC)}
        first_E, second_E = pairs(nodes_BNC.shape[1], nodes_BNC.device)
        return {"cosines": cosines(nodes_BNC, nodes_BNC)[:, first_E, second_E]}

    def pooled(self, features_BChw: Tensor, context: Context) -> Tensor:
        """[B, N, C]: the nodes, in a unit of the image's own."""
        if not self.short_last:
            pool = on_grid if self.pool == "average" else F.adaptive_max_pool2d
            return scaled(pool(features_BChw.float(), self.node_grid(context))).flatten(2).mT
        cells_BChw = on_grid(features_BChw.float(), grid_of(context, self.layer, "pairwise.layer"))
        return scaled(self.patches(cells_BChw, self.pool)).flatten(2).mT

    def patches(self, cells_BChw: Tensor, pool: str) -> Tensor:
        if pool == "max":
            return F.max_pool2d(cells_BChw, self.patch, ceil_mode=True)
        return F.avg_pool2d(cells_BChw, self.patch, ceil_mode=True)

    def inside(self, inside_BHW: Tensor, context: Context) -> Tensor:
        """[B, N]: whether at least half of a node lies inside the image."""
        share_B1HW = inside_BHW[:, None].float()
        if not self.short_last:
            return F.adaptive_avg_pool2d(share_B1HW, self.node_grid(context)).flatten(1) >= 0.5
        cells_B1hw = F.adaptive_avg_pool2d(share_B1HW, grid_of(context, self.layer, "pairwise.layer"))
        return self.patches(cells_B1hw, "average").flatten(1) >= 0.5

    def graph(self, features_BChw: Tensor, context: Context, fixed_lengths: bool = False) -> Tensor:
        """[B, N, N]: the cosines of all pairs, from either network's features; the diagonal means nothing."""
        nodes_BNC = self.pooled(features_BChw, context)
        return cosines(nodes_BNC, nodes_BNC, fixed_lengths)

    def stored_graph(self, values: dict[str, Tensor], context: Context) -> Tensor:
        """The same from a decoded row."""
        if "nodes" in values:
            return values["nodes"] @ values["nodes"].mT
        cosines_BE, n = values["cosines"], math.prod(self.node_grid(context))
        first_E, second_E = pairs(n, cosines_BE.device)
        cosines_BNN = cosines_BE.new_zeros(len(cosines_BE), n, n)
        cosines_BNN[:, first_E, second_E] = cosines_BNN[:, second_E, first_E] = cosines_BE
        return cosines_BNN

    def encode(self, values: dict[str, Tensor]) -> dict[str, np.ndarray]:
        ((name, value),) = values.items()
        value = value.detach()
        if not value.isfinite().all():
            raise OverflowError(
                f"pair-wise {name} of {self.layer!r}: not finite; look for NaN or infinity in the teacher's features"
            )
        return coded(name, value, self.dtype, over=(value.dim() - 1,))

    def decode(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        return decoded("nodes" if "nodes" in rows else "cosines", rows)


def pairs(nodes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Both nodes of each pair, the earlier one first."""
    return torch.triu_indices(nodes, nodes, offset=1, device=device).unbind()  # type: ignore[return-value]
