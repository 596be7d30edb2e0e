"""Attention of neighbouring layers: each student layer matches the teacher's maps of its own layer and the next ones.

Source: the baseline that IntRA-KD (Hou et al., CVPR 2020) names BiFPN and describes in one sentence, "attention maps
of neighbouring layers" as targets, after Zhu et al., "Bidirectional Feature Pyramid Network with Recurrent Attention
Residual Modules for Shadow Detection", ECCV 2018, which has no distillation in it. The reading is ours: the sum of Eq.
6 (see `attention`) over all pairs of a student's layer i and a teacher's layer j with |i - j| <= 1, the layers being
those of `reads`, in the order written there. So with `reads: [attention_mid, attention_high]` there are four terms.

B images, h w a layer's grid.
"""

from torch import Tensor

from pipeline.losses import attention
from pipeline.losses.base import Batch
from pipeline.models.base import Output


class Loss(attention.Loss):
    def forward(self, output: Output, batch: Batch) -> Tensor:
        student = [target.compute(output, batch.labels_BHW, self.context)["energy"] for target in self.reads.values()]
        pairs = [
            (student_Bhw, batch.rows[name]["energy"])
            for j, name in enumerate(self.reads)
            for student_Bhw in student[max(j - 1, 0) : j + 2]
        ]
        return self.distance(pairs, batch.inside_BHW)
