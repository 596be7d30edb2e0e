"""Intra-class feature variation: how alike each cell's features are to the mean feature of its class in the image.

Source: Wang, Zhou, Jiang, Bai, Xu, "Intra-class Feature Variation Distillation for Semantic Segmentation", ECCV 2020:
the cosine of a cell's features with the mean of its class. Settled readings:
- A cell's class is the label of its middle pixel, on the teacher's grid for both networks; a student's features are
  first brought to that grid, so that both speak of the same cells of the same classes.
- An ignored cell belongs to no class: it is in no mean, its value is 0, and the loss leaves it out.
- A cell or a mean that vanishes against the rest of the map has cosine 0 and no gradient.

B images, H W labels, C channels, h w the teacher's grid of the layer, P = h * w positions, K classes.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.models.base import Output
from pipeline.targets._cosines import ERRORS, coded, cosines, decoded, scaled
from pipeline.targets._grid import cell_labels, grid_of, on_grid
from pipeline.targets.base import STORED, Context, Field, Layer, TargetType


@dataclass(frozen=True, kw_only=True)
class Target(TargetType):
    layer: Layer
    dtype: Annotated[Literal["float32", "float16", "int8"], STORED] = "float16"

    uses_labels: ClassVar[bool] = True

    def fields(self, context: Context) -> dict[str, Field]:
        h, w = grid_of(context, self.layer, "class_similarity.layer")
        fields = {"similarity": Field((h, w), self.dtype, (f"y{h}", f"x{w}"), **ERRORS[self.dtype])}
        return fields | ({"scale": Field((), "float32")} if self.dtype == "int8" else {})

    def compute(self, output: Output, labels_BHW: Tensor, context: Context) -> dict[str, Tensor]:
        grid = context.grids[self.layer]
        features_BCP = scaled(on_grid(output.features[self.layer].float(), grid)).flatten(2)
        classes_K1 = torch.arange(context.num_classes, device=labels_BHW.device)[:, None]
        members_BKP = (cell_labels(labels_BHW, grid).flatten(1)[:, None] == classes_K1).to(features_BCP.dtype)
        means_BKC = members_BKP @ features_BCP.mT / members_BKP.sum(dim=2, keepdim=True).clamp(min=1)
        return {"similarity": (cosines(means_BKC, features_BCP.mT) * members_BKP).sum(dim=1).unflatten(1, grid)}

    def encode(self, values: dict[str, Tensor]) -> dict[str, np.ndarray]:
        similarity_Bhw = values["similarity"].detach()
        if not similarity_Bhw.isfinite().all():
            raise OverflowError(
                f"class similarity of {self.layer!r}: not finite; look for NaN or infinity in the teacher's features"
            )
        return coded("similarity", similarity_Bhw, self.dtype, over=(1, 2))

    def decode(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        return decoded("similarity", rows)
