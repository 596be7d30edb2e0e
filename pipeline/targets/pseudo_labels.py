"""The class that the teacher sees at each pixel: hard pseudo-labels, one byte each.

Source: Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks", ICML workshop,
2013; the threshold: Sohn et al., "FixMatch", NeurIPS 2020, Eq. 4. The logits are upsampled bilinearly to the network's input
before the largest is taken, as for a prediction; `grid: teacher` stores the largest on the grid of the logits instead, 64 times
fewer bytes at stride 8, and coarser edges. Where the probability of that class is below `threshold`, 255 is stored: no label.
Nothing is swapped in a mirrored view, on which the teacher answers itself.

B images, K classes, h w the grid of the logits.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.models.base import Output
from pipeline.targets.base import Context, Field, TargetType

UNSURE = 255


@dataclass(frozen=True, kw_only=True)
class Target(TargetType):
    grid: Annotated[
        Literal["input", "teacher"],
        pydantic.Field(description="Labels of each pixel of the networks' input, or of each cell of the teacher's logits."),
    ] = "input"
    threshold: Annotated[
        float, pydantic.Field(ge=0, lt=1, description="Pixels whose class has a lower probability get no label; 0 labels all.")
    ] = 0.0

    fidelity = "exact"

    def __post_init__(self):
        if not 0 <= self.threshold < 1:
            raise ConfigError(f"pseudo_labels.threshold: {self.threshold} is no probability that can be passed; write 0 to 0.99")

    def fields(self, context: Context) -> dict[str, Field]:
        if context.num_classes > UNSURE:
            raise ConfigError(f"pseudo_labels: {context.num_classes} classes and 255 for none do not fit a byte; leave it out")
        h, w = context.size if self.grid == "input" else context.grids["logits"]
        return {"labels": Field((h, w), "uint8", (f"y{h}", f"x{w}"))}

    def compute(self, output: Output, labels_BHW: Tensor, context: Context) -> dict[str, Tensor]:
        logits_BKhw = output.logits.float()  # type: ignore[union-attr]
        if self.grid == "input" and logits_BKhw.shape[-2:] != context.size:
            logits_BKhw = F.interpolate(logits_BKhw, context.size, mode="bilinear", align_corners=False)
        labels_Bhw = logits_BKhw.argmax(dim=1).to(torch.uint8)
        if self.threshold:
            sure_Bhw = logits_BKhw.softmax(dim=1).amax(dim=1) >= self.threshold
            labels_Bhw = torch.where(sure_Bhw, labels_Bhw, UNSURE)
        return {"labels": labels_Bhw}

    def encode(self, values: dict[str, Tensor]) -> dict[str, np.ndarray]:
        return {"labels": values["labels"].cpu().numpy()}

    def decode(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(rows)
