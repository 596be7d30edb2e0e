"""Cross-entropy on the teacher's hard labels, as if somebody had drawn them.

Source: Lee, "Pseudo-Label", ICML workshop, 2013; the divisor: Sohn et al., "FixMatch", NeurIPS 2020, Eq. 4. The student's logits
are upsampled bilinearly to the network's input, as for the cross-entropy on labels; pseudo-labels on the teacher's grid are
repeated by nearest. The sum is divided by all pixels inside the image, those without a sure label too, so that few sure pixels
count for little; then mean over images. With `skip_labelled` images that have a label are left to it, and the mean is over the
others. Departure: `class_weights` weigh a pixel by its pseudo-label, in the divisor as well (1 where there is none).

B images, K classes, H W the network input.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.losses.base import Batch, LossModule, Share
from pipeline.models.base import Output

NONE = 255


class Loss(LossModule):
    reads_types = ("pseudo_labels",)

    def __init__(
        self,
        *,
        reads,
        context,
        student,
        skip_labelled: Annotated[bool, Field(description="Images that have a label learn from it alone.")] = False,
        class_weights: Annotated[
            tuple[Share, ...] | None, Field(description="Weights of the classes, in their order; `null` is 1 for each.")
        ] = None,
    ):
        super().__init__(reads=reads, context=context, student=student)
        self.skip_labelled = skip_labelled
        self.weights_N: Tensor
        weights_N = torch.ones(256)
        if class_weights is not None:
            if len(class_weights) != context.num_classes:
                raise ConfigError(f"pseudo_labels.class_weights: {len(class_weights)} weights for {context.num_classes} classes")
            weights_N[: len(class_weights)] = torch.tensor(class_weights)
        self.register_buffer("weights_N", weights_N, persistent=False)

    def forward(self, output: Output, batch: Batch) -> Tensor:
        assert output.logits is not None
        inside_BHW = batch.inside_BHW
        size = inside_BHW.shape[-2:]
        logits_BKHW = output.logits.float()
        if logits_BKHW.shape[-2:] != size:
            logits_BKHW = F.interpolate(logits_BKHW, size, mode="bilinear", align_corners=False)
        if self.skip_labelled:
            inside_BHW = inside_BHW & ~batch.has_label_B[:, None, None]
        total = logits_BKHW.sum() * 0
        for name in self.reads:
            labels_BHW = torch.where(inside_BHW, nearest(batch.rows[name]["labels"], size), NONE).long()
            weights_BHW = self.weights_N[labels_BHW]
            entropy_BHW = F.cross_entropy(logits_BKHW, labels_BHW, ignore_index=NONE, reduction="none") * weights_BHW
            weight_B = (weights_BHW * inside_BHW).sum(dim=(1, 2))
            mean_B = entropy_BHW.sum(dim=(1, 2)) / weight_B.clamp(min=1e-6)
            total = total + mean_B.sum() / (weight_B > 0).sum().clamp(min=1)
        return total


def nearest(labels_Bhw: Tensor, size: torch.Size) -> Tensor:
    """[B, H, W]: each pixel has the label of the cell that it lies in."""
    (h, w), (H, W), device = labels_Bhw.shape[1:], size, labels_Bhw.device
    if (h, w) == (H, W):
        return labels_Bhw
    rows, columns = (torch.arange(to, device=device) * cells // to for to, cells in ((H, h), (W, w)))
    return labels_Bhw[:, rows[:, None], columns]
