"""Inter-region affinity graph: how alike the regions of one image look to a layer, by mean, variance and skewness.

Source: Hou, Ma, Liu, Hui, Loy, "Inter-Region Affinity Distillation for Road Marking Segmentation", CVPR 2020: the
areas of interest (AOI) of section 3.2, Eq. 2 (moment pooling) and Eq. 3 (cosines). Departures and settled readings:
- AOI: a class's label, dilated by `aoi_kernel` px at label size; a cell belongs to every region that touches it. It
  is made on the teacher's grid and handed on to the student's (`aoi_grid: own` makes it there). Ignored pixels are in
  no region.
- Eq. 2 sums inside the region and divides the third moment by the standard deviation, (mu2 + eps)^1.5, since to the
  letter (`reading: literal`: all positions, by mu2^3) mu2 of a small region is (mu1)^2 times its inverse area. `eps`
  keeps channels that are nearly dead from deciding the skewness; `relative`: times the map's mean channel variance,
  without gradient. The literal reading is NaN at eps = 0 wherever a channel is dead, and finite at any eps > 0
  because it is computed in float64.
- A node that vanishes against the map's own deviation (an absent region, the variance of one cell, the skewness of
  two) is zero, and so are its cosines and their gradient; in rounded numbers it would be noise that Eq. 3 blows up to
  -1..1.
- `regions: teacher` takes regions from the teacher's prediction, `both` only where an image has no label at all. The
  prediction is then stored, so that the student sees the same regions.

The graph is stored as float32: 12 n^2 bytes (300 on CULane) leave nothing to save, and no rounding comes on top.

B images, H W labels, h w a layer's grid, P = h * w positions, C channels, K regions, R = 3 moments.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models.base import Output
from pipeline.targets.base import LOGITS, Context, Field, Layer, TargetType

CHUNK = {"cpu": 2**19, "cuda": 2**25}  # features made float64 at a time: 4 MiB fit a cache, 256 MiB are few launches
VANISHING = 1e-6  # a node's norm, in units of the map's deviation


@dataclass(frozen=True, kw_only=True)
class Target(TargetType):
    layer: Layer
    aoi_kernel: Annotated[
        int,
        pydantic.Field(
            ge=1, description="Side of the square that each region is dilated by, in pixels of the network's input; an odd number."
        ),
    ] = 5
    aoi_grid: Annotated[
        Literal["teacher", "own"],
        pydantic.Field(description="The grid of the regions: the teacher's for both networks, or each network's own."),
    ] = "teacher"
    regions: Annotated[
        Literal["label", "teacher", "both"],
        pydantic.Field(
            description="Regions come from the labels, from the teacher's prediction, or from the labels and, where an image has none, "  # noqa: E501
            "from the prediction."
        ),
    ] = "label"
    reading: Annotated[
        Literal["masked", "literal"],
        pydantic.Field(description="Sum the moments inside each region, or take the paper's equation to the letter."),
    ] = "masked"
    eps: Annotated[float, pydantic.Field(gt=0, description="Added to the variance before the third moment is divided by it.")] = (
        1e-2
    )
    eps_scale: Annotated[
        Literal["relative", "absolute"],
        pydantic.Field(description="`eps` is a part of the map's mean channel variance, or the number itself."),
    ] = "relative"

    fidelity = "exact"

    def __post_init__(self):
        if self.aoi_kernel < 1 or self.aoi_kernel % 2 == 0:
            raise ConfigError(f"affinity.aoi_kernel: {self.aoi_kernel} px has no centre; write an odd number as 5")
        if not self.eps > 0:
            raise ConfigError(f"affinity.eps: {self.eps} divides by 0 where a channel is dead; write a number above 0")

    @property
    def uses_labels(self) -> bool:  # type: ignore[override]  # of an instance; a class knows no `regions`
        return self.regions != "teacher"

    def source_layers(self) -> frozenset[str]:
        return super().source_layers() | (LOGITS if self.regions != "label" else frozenset())

    def fields(self, context: Context) -> dict[str, Field]:
        if self.layer not in context.grids:
            raise ConfigError(f"affinity.layer: the teacher has no {self.layer!r}; it has {', '.join(context.grids)}")
        n = len(context.regions)
        fields = {
            "graph": Field(shape=(3, n, n), dtype="float32", dims=("moment", "region", "other_region")),
            "cells": Field(shape=(n,), dtype="int32", dims=("region",)),  # per region, on the teacher's grid
        }
        if self.regions != "label":
            h, w = context.grids["logits"]
            fields["prediction"] = Field(shape=(h, w), dtype="uint8", dims=(f"y{h}", f"x{w}"))
        return fields

    def compute(self, output: Output, labels_BHW: Tensor, context: Context) -> dict[str, Tensor]:
        prediction = {}
        if self.regions != "label":
            prediction["prediction"] = output.logits.argmax(dim=1).to(torch.uint8)  # type: ignore[union-attr]
        seen_BHW = self.seen(labels_BHW, **prediction)
        return self.graph(output.features[self.layer], seen_BHW, context) | prediction

    def seen(self, labels_BHW: Tensor, prediction: Tensor | None = None, **_) -> Tensor:
        """The labels that regions are made from; the loss hands in a stored row's fields."""
        if self.regions == "label":
            return labels_BHW
        (H, W), (h, w), device = labels_BHW.shape[1:], prediction.shape[1:], labels_BHW.device  # type: ignore[union-attr]
        rows, columns = (torch.arange(size, device=device) * cells // size for size, cells in ((H, h), (W, w)))
        predicted_BHW = prediction[:, rows[:, None], columns]  # type: ignore[index]
        if self.regions == "teacher":
            return predicted_BHW
        labelled_B11 = (labels_BHW != 255).any(dim=2, keepdim=True).any(dim=1, keepdim=True)
        return torch.where(labelled_B11, labels_BHW, predicted_BHW)

    def graph(self, features_BChw: Tensor, labels_BHW: Tensor, context: Context) -> dict[str, Tensor]:
        """What both networks are compared by: `graph` [B, 3, K, K] in -1..1, `cells` [B, K] on these features' grid."""
        grid = tuple(features_BChw.shape[-2:])
        made_on = context.grids[self.layer] if self.aoi_grid == "teacher" else grid
        packed = any_pixel(pack(labels_BHW, context.regions), made_on, margin=self.aoi_kernel // 2)  # type: ignore[arg-type]
        aoi_BKhw = unpack(any_pixel(packed, grid), len(context.regions))  # type: ignore[arg-type]
        nodes_BRKC = nodes(features_BChw, aoi_BKhw, self.reading, self.eps, self.eps_scale)
        return {"graph": cosines(nodes_BRKC).float(), "cells": aoi_BKhw.sum(dim=(2, 3)).float()}

    def encode(self, values: dict[str, Tensor]) -> dict[str, np.ndarray]:
        if not values["graph"].isfinite().all():
            raise OverflowError(f"affinity graph of {self.layer!r}: not finite; look for NaN in the teacher's features")
        arrays = {name: value.detach().cpu().numpy() for name, value in values.items()}
        return arrays | {"cells": arrays["cells"].astype(np.int32)}

    def decode(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(rows) | {"cells": rows["cells"].float()}


# The AOI: one bit a region, eight regions a byte, so that one OR serves eight maps and no [B, K, H, W] map is made.


def pack(labels_BHW: Tensor, regions: tuple[int, ...]) -> Tensor:
    """[K / 8, B, H, W] bytes: bit k % 8 of byte k // 8 is set where the label is regions[k]."""
    table = torch.zeros(-(-len(regions) // 8), 256, dtype=torch.uint8)
    for k, label in enumerate(regions):
        table[k // 8, label] |= 1 << k % 8
    return table.to(labels_BHW.device).index_select(1, labels_BHW.flatten().int()).unflatten(1, labels_BHW.shape)


def unpack(packed: Tensor, num_regions: int) -> Tensor:
    """[B, K, h, w] bool."""
    bits = torch.arange(8, dtype=torch.uint8, device=packed.device).view(8, 1, 1, 1)
    return (packed[:, None] >> bits & 1).flatten(0, 1)[:num_regions].transpose(0, 1).bool()


def any_pixel(packed: Tensor, size: tuple[int, int], margin: int = 0) -> Tensor:
    """Each cell of a grid gets every bit found in its area of the map, widened by `margin` map pixels on all sides.

    Areas are those of adaptive pooling. A finer grid thus repeats (nearest) where its size is a multiple. At a whole
    stride s and margin 2 this is dilation by 5x5, then any pixel: a max-pool of kernel s + 4, stride s, padding 2.
    """
    for dim, cells in ((-2, size[0]), (-1, size[1])):
        pixels = packed.shape[dim]
        cell = torch.arange(cells, device=packed.device)
        first = (cell * pixels // cells - margin).clamp(min=0)
        last = (((cell + 1) * pixels + cells - 1) // cells + margin).clamp(max=pixels) - 1
        widest = -(-pixels // cells) + (pixels % cells > 0) + 2 * margin
        found = packed.index_select(dim, first)
        for step in range(1, widest):
            found |= packed.index_select(dim, torch.minimum(first + step, last))
        packed = found
    return packed


def nodes(features_BChw: Tensor, aoi_BKhw: Tensor, reading: str, eps: float, eps_scale: str) -> Tensor:
    """Eq. 2: [B, 3, K, C] float64 in units of the map's deviation, which Eq. 3 forgets; absent regions are zero."""
    features_BCP = features_BChw.flatten(2)
    cells_BK1 = aoi_BKhw.sum(dim=(2, 3)).double()[..., None]
    areas_BKP = aoi_BKhw.flatten(2) / cells_BK1.clamp(min=1)
    whole_B1P = torch.full_like(areas_BKP[:, :1], 1 / areas_BKP.shape[2])
    shift_BC1 = features_BCP.detach().mean(dim=2, keepdim=True).double()
    powers = PowerMeans.apply(features_BCP, torch.cat((areas_BKP, whole_B1P), dim=1), shift_BC1)
    with torch.no_grad():
        variance_B = (powers[:, 1, -1] - powers[:, 0, -1].square()).mean(dim=1)
        unit_B11 = variance_B.clamp(min=1e-30).sqrt().view(-1, 1, 1)
        eps = eps / (unit_B11.square() if eps_scale == "absolute" else 1)

    e1, e2, e3 = (powers[:, p, :-1] / unit_B11 ** (p + 1) for p in range(3))
    mean = shift_BC1.transpose(1, 2) / unit_B11 + e1
    variance = e2 - e1.square()
    constant = variance < 1e-12 * e2  # what is left is rounding, which a small eps would blow up
    variance = variance.masked_fill(constant, 0)
    third = (e3 - 3 * e1 * e2 + 2 * e1**3).masked_fill(constant, 0)
    if reading == "literal":
        outside = areas_BKP.shape[2] / cells_BK1.clamp(min=1) - 1  # positions outside add (0 - mu1)^r
        variance, third = variance + outside * mean**2, third - outside * mean**3
    skewness = third / (variance + eps) ** (3 if reading == "literal" else 1.5)
    return torch.stack((mean, variance, skewness), dim=1) * (cells_BK1 > 0)[:, None]


class PowerMeans(torch.autograd.Function):
    """[B, 3, K, C]: area-weighted means of (F - shift)^p, p = 1, 2, 3, with central moments as differences of these.

    These differences cancel: in float32 they are tens of times worse than a second pass over the features. Hence
    float64, which neither autocast nor TF32 touches. Widened a chunk at a time, forward and backward, it keeps nothing
    but the features and is several times faster than autograd (12 maps of 128 x 26 x 122 on a core: 28 ms, not 210).
    """

    @staticmethod
    def forward(ctx, features_BCP, areas_BKP, shift_BC1):
        ctx.save_for_backward(features_BCP, areas_BKP, shift_BC1)
        means = []
        for features, areas, shift in chunks(features_BCP, areas_BKP, shift_BC1):
            x = features.to(torch.float64, copy=True).sub_(shift)
            power = x * x
            first, second = areas @ x.mT, areas @ power.mT
            means.append(torch.stack((first, second, areas @ power.mul_(x).mT), dim=1))
        return torch.cat(means)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slopes_BRKC):
        slopes = []
        for features, areas, shift, slope in chunks(*ctx.saved_tensors, slopes_BRKC):
            x = features.to(torch.float64, copy=True).sub_(shift)
            first, second, third = slope.transpose(2, 3).unbind(dim=1)
            total = (3 * third) @ areas
            total = total.mul_(x).baddbmm_(2 * second, areas).mul_(x).baddbmm_(first, areas)
            slopes.append(total.to(features.dtype))
        return torch.cat(slopes), None, None


def chunks(features_BCP: Tensor, *others: Tensor):
    images = max(1, CHUNK[features_BCP.device.type] // features_BCP[0].numel())
    return zip(*(tensor.split(images) for tensor in (features_BCP, *others)))


def cosines(nodes_BRKC: Tensor) -> Tensor:
    """Eq. 3: [B, 3, K, K]; a vanishing node has cosine 0 with every node, itself too, and no gradient."""
    squares = nodes_BRKC.square().sum(dim=-1, keepdim=True)
    vanishing = squares < VANISHING**2  # False for NaN, which stays
    units = (nodes_BRKC * squares.masked_fill(vanishing, 1).rsqrt()).masked_fill(vanishing, 0)
    return units @ units.mT
