"""Self-attention distillation: the student's attention map of `high` is the target of that of `mid`.

Source: Hou, Ma, Liu, Loy, "Learning Lightweight Lane Detection CNNs by Self Attention Distillation", ICCV 2019; nothing
is stored: squared difference of two softmaxes over positions, summed over them, mean over images. The deeper map is
resized bilinearly to the shallower one's grid and passes no gradient. The paper switches it on once the student has
learnt something, at step 40,000: that is the term's `start`. Departures: one pair, mid to high, where ENet has
blocks 2 to 3 to 4; the mean over channels of F^2 (targets/attention.py), because the softmax of their sum is one cell
at the usual size of activations; `energy: sum` is the paper's. `normalise: l2` is that of attention.py. Cells that
lie more than half outside the image are left out.

B images, h w the grid of `mid`.
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pipeline.losses.attention import Normalise, softmax, unit
from pipeline.losses.base import Batch, LossModule
from pipeline.models.base import Output
from pipeline.targets.attention import Target

Energy = Annotated[Literal["mean", "sum"], Field(description="How the squares of the channels become one map.")]


class Loss(LossModule):
    def __init__(self, *, reads, context, student, normalise: Normalise = "softmax", energy: Energy = "mean"):
        super().__init__(reads=reads, context=context, student=student)
        self.normalised, self.energy = {"softmax": softmax, "l2": unit}[normalise], energy

    def forward(self, output: Output, batch: Batch) -> Tensor:
        mid_Bhw, high_Bhw = (self.map(output, batch, role) for role in ("mid", "high"))
        grid = mid_Bhw.shape[-2:]
        high_Bhw = F.interpolate(high_Bhw.detach()[:, None], grid, mode="bilinear", align_corners=False)[:, 0]
        inside_Bhw = F.adaptive_avg_pool2d(batch.inside_BHW[:, None].float(), grid)[:, 0] >= 0.5  # type: ignore[arg-type]  # a Size will do
        difference_Bhw = self.normalised(mid_Bhw, inside_Bhw) - self.normalised(high_Bhw, inside_Bhw)
        return difference_Bhw.square().sum(dim=(1, 2)).mean()

    def map(self, output: Output, batch: Batch, role: str) -> Tensor:
        energy_Bhw = Target(layer=role).compute(output, batch.labels_BHW, self.student)["energy"]
        return energy_Bhw if self.energy == "mean" else energy_Bhw * output.features[role].shape[1]
