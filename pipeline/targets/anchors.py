"""Embeddings at some cells of an image, as many of each class as there are, and the mean embedding of each class.

Source: Yang, Zhou, An, Jiang, Xu, Zhang, "Cross-Image Relational Knowledge Distillation for Semantic Segmentation",
CVPR 2022, relates every cell of an image to cells of other images and to mean embeddings of classes. A cache can hold
neither pairs nor a queue, but what both are made of; losses/cirkd.py puts them together. Settled readings:
- An embedding is the layer's features at a cell, of length 1. Layers of more than `channels` are brought to that many
  by random signs drawn from `seed`, as cosines allow (targets/_signs.py).
- `count` cells are kept instead of all: one of each class in the image, then a second of each, and so on, in an order
  drawn from the labels themselves, so that it belongs to image and view and is the same on every machine.
- A cell's class is the label of its middle pixel, on the teacher's grid for both networks.
- A class's mean is over all its cells, of embeddings of length 1. A cell that vanishes against the map has length 0.

B images, H W labels, C channels of the network, D of the embedding, h w the teacher's grid, P = h w, N anchors, K
classes.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models.base import Output
from pipeline.targets._cosines import ERRORS, inverse_length, scaled
from pipeline.targets._grid import cell_labels, grid_of, on_grid
from pipeline.targets._signs import signs
from pipeline.targets.base import STORED, Context, Field, Layer, TargetType

NONE = 255  # the class of an anchor that is not there


@dataclass(frozen=True, kw_only=True)
class Target(TargetType):
    layer: Layer
    count: Annotated[int, pydantic.Field(ge=1, description="Anchors of an image; fewer where the grid has fewer cells.")] = 256
    channels: Annotated[int, pydantic.Field(ge=1, description="Numbers of an embedding, at most.")] = 512
    seed: Annotated[int, pydantic.Field(ge=0, description="Seed of the choice of anchors and of the projection.")] = 0
    dtype: Annotated[Literal["float32", "float16"], STORED] = "float16"

    uses_labels: ClassVar[bool] = True

    def __post_init__(self):
        if self.count < 1 or self.channels < 1 or self.seed < 0:
            raise ConfigError(
                f"anchors: count {self.count}, channels {self.channels}, seed {self.seed}: write 1 or "
                f"more of the first two, and 0 or more"
            )

    def fields(self, context: Context) -> dict[str, Field]:
        h, w = grid_of(context, self.layer, "anchors.layer")
        N, D, K = min(self.count, h * w), self.width(context.channels[self.layer]), context.num_classes
        return {
            "embedding": Field((N, D), self.dtype, ("anchor", "channel"), **ERRORS[self.dtype]),
            "place": Field((N,), "int32", ("anchor",)),  # y * w + x
            "label": Field((N,), "uint8", ("anchor",)),  # 255: no anchor, its place and embedding are 0
            "mean": Field((K, D), self.dtype, ("class", "channel"), **ERRORS[self.dtype]),
            "cells": Field((K,), "int32", ("class",)),
        }

    def width(self, channels: int) -> int:
        return min(self.channels, channels)

    def compute(self, output: Output, labels_BHW: Tensor, context: Context) -> dict[str, Tensor]:
        grid = context.grids[self.layer]
        labels_BP = cell_labels(labels_BHW, grid).flatten(1)
        place_BN, label_BN = chosen(labels_BP, min(self.count, labels_BP.shape[1]), context.num_classes, self.seed)
        cells_BPD = self.embeddings(output, context)
        classes_K1 = torch.arange(context.num_classes, device=labels_BP.device)[:, None]
        members_BKP = (labels_BP[:, None] == classes_K1).float()
        cells_BK = members_BKP.sum(dim=2)
        return {
            "embedding": at(cells_BPD, place_BN) * (label_BN != NONE)[..., None],
            "place": place_BN.int(),
            "label": label_BN,
            "mean": members_BKP @ cells_BPD / cells_BK.clamp(min=1)[..., None],
            "cells": cells_BK.int(),
        }

    def embeddings(self, output: Output, context: Context) -> Tensor:
        """[B, P, D]: of every cell of the teacher's grid."""
        cells_BPC = scaled(self.features(output, context)).flatten(2).mT
        channels = cells_BPC.shape[2]
        if channels > self.channels:
            signs_DC = signs(self.seed, 0, self.channels * channels, cells_BPC.device).view(self.channels, channels)
            cells_BPC = cells_BPC @ signs_DC.T / math.sqrt(channels)
        return cells_BPC * inverse_length(cells_BPC)

    def features(self, output: Output, context: Context) -> Tensor:
        """[B, C, h, w]: a network's features on the teacher's grid."""
        return on_grid(output.features[self.layer].float(), context.grids[self.layer])

    def encode(self, values: dict[str, Tensor]) -> dict[str, np.ndarray]:
        if not (values["embedding"].isfinite().all() and values["mean"].isfinite().all()):
            raise OverflowError(f"anchors of {self.layer!r}: not finite; look for NaN or infinity in the teacher's features")
        dtype = getattr(torch, self.dtype)
        return {
            name: value.detach().to(dtype if value.is_floating_point() else value.dtype).cpu().numpy()
            for name, value in values.items()
        }

    def decode(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(rows) | {name: rows[name].float() for name in ("embedding", "mean")}


def at(cells_BPC: Tensor, place_BN: Tensor) -> Tensor:
    """[B, N, C]: what stands at these places."""
    return cells_BPC.gather(1, place_BN.long()[..., None].expand(-1, -1, cells_BPC.shape[2]))


def chosen(labels_BP: Tensor, count: int, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Places [B, N] and classes [B, N] of the anchors, the first of each class before the second of any.

    Integers alone, so that every device chooses the same.
    """
    place_P = torch.arange(labels_BP.shape[1], device=labels_BP.device)
    content_B1 = mixed(place_P * 256 + labels_BP).sum(dim=1, keepdim=True) % 2**32
    lot_BP = mixed(mixed(content_B1 ^ seed % 2**32) ^ mixed(place_P))
    by_class_BP = (labels_BP.long() * 2**32 + lot_BP).argsort(dim=1, stable=True)
    sorted_BP = labels_BP.gather(1, by_class_BP).long()
    first_BP = torch.searchsorted(sorted_BP, sorted_BP.contiguous())  # where each class begins
    rank_BP = torch.empty_like(by_class_BP).scatter(1, by_class_BP, place_P - first_BP)
    rank_BP = torch.where(labels_BP < num_classes, rank_BP, labels_BP.shape[1])
    place_BN = (rank_BP * 2**32 + lot_BP).argsort(dim=1, stable=True)[:, :count]
    label_BN = labels_BP.gather(1, place_BN)
    there_BN = label_BN < num_classes
    return torch.where(there_BN, place_BN, 0), torch.where(there_BN, label_BN, NONE)


def mixed(numbers: Tensor) -> Tensor:
    """Numbers below 2**32, one to one to numbers below 2**32 that look random: an integer hash with constants of
    Wellons' hash-prospector. No product leaves 63 bits."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        numbers = (numbers ^ numbers >> shift) * factor % 2**32
    return numbers ^ numbers >> 15
