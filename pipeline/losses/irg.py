"""Instance relationship graph: how a batch's images relate, by their distances in each layer and between layers.

Source: Liu, Cao, Li, Yuan, Hu, Li, Duan, "Knowledge Distillation via Instance Relationship Graph", CVPR 2019. Edges:
squared distances between the images of the batch in one layer, divided by the batch's largest. Transformations:
squared distances between two layers of an image, divided by the batch's largest. Both: mean squared difference between
student and teacher, added up over layers. Vertices, where a `logits` target is read: mean squared difference of logits
over classes and the pixels inside, the teacher's resized to the student's grid. `edges`, `transformations` and
`vertices` are their weights inside this term.

The teacher's edges come from sketches (targets/sketch.py), for any batch, and err by a few per cent; the student's are
exact. From `features` targets instead, named in the order of depth, the teacher's are exact too, for any batch, at the
price of the features; the student's maps are then brought to the stored grid first. Distances that vanish against the
features' own size are 0, without gradient. Images that see nothing are in no edge. The loss relates images, so it is no
mean over them. Edges of two images say nothing (the largest is 1 on both sides).

B images, N values of a layer's map, K classes, h w the student's logit grid, L layers.
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pipeline.losses._logits import resized
from pipeline.losses.base import Batch, LossModule, Share
from pipeline.models.base import Output
from pipeline.targets.sketch import change

VANISHING = 1e-10  # a squared distance, in units of the mean squared length


Edges = Annotated[Share, Field(description="Weight of the distances between the images of a batch.")]
Transformations = Annotated[Share, Field(description="Weight of the distances between the layers of an image.")]
Vertices = Annotated[Share, Field(description="Weight of the logits, where a target of type logits is read.")]


class Loss(LossModule):
    reads_types = ("sketch", "logits", "features")

    def __init__(
        self, *, reads, context, student, edges: Edges = 5.0, transformations: Transformations = 5.0, vertices: Vertices = 0.1
    ):
        super().__init__(reads=reads, context=context, student=student)
        self.edges, self.transformations, self.vertices = edges, transformations, vertices

    def forward(self, output: Output, batch: Batch) -> Tensor:
        total: Any = 0.0  # a Tensor after the first
        seen_B = batch.inside_BHW.flatten(1).any(dim=1)
        counts_BB, earlier = seen_B[:, None] & seen_B, None
        for name, target in self.reads.items():
            rows = batch.rows[name]
            if "logits" in rows:
                assert output.logits is not None
                total = total + self.vertices * vertices(output.logits.float(), rows["logits"], batch.inside_BHW)
                continue
            if "features" in rows:
                pair = target.compute(output, batch.labels_BHW, self.context)["features"], rows["features"]
                total = total + self.edges * difference(distances(pair[0].flatten(1)), distances(pair[1].flatten(1)), counts_BB)
                if earlier is not None:
                    total = total + self.transformations * difference(
                        change(earlier[0], pair[0]), change(earlier[1], pair[1]), seen_B
                    )
                earlier = pair
                continue
            for layer, teacher_BS in zip(target.layers, rows["sketch"].unbind(dim=1)):
                student_BB, teacher_BB = distances(output.features[layer].float().flatten(1)), distances(teacher_BS)
                total = total + self.edges * difference(student_BB, teacher_BB, counts_BB)
            student_BL, teacher_BL = target.transformations(output), rows["transformation"]
            for student_B, teacher_B in zip(student_BL.unbind(dim=1), teacher_BL.unbind(dim=1)):
                total = total + self.transformations * difference(student_B, teacher_B, seen_B)
        return total


def distances(values_BN: Tensor) -> Tensor:
    """[B, B] squared, of float32's precision relative to the images' spread about their mean."""
    centred_BN = values_BN - values_BN.detach().mean(dim=0)
    products_BB = centred_BN @ centred_BN.mT
    lengths_B = products_BB.diagonal()
    squares_BB = (lengths_B[:, None] + lengths_B - 2 * products_BB).fill_diagonal_(0)
    return torch.where(squares_BB > VANISHING * values_BN.detach().square().sum(dim=1).mean(), squares_BB, 0)


def difference(student: Tensor, teacher: Tensor, counts: Tensor) -> Tensor:
    """Mean squared difference where it counts, each side divided by its own largest."""
    student, teacher = (torch.where(counts, side, 0) for side in (student, teacher))
    student, teacher = (side / torch.where(side.max() > 0, side.max(), 1) for side in (student, teacher))
    return (student - teacher).square().sum() / counts.sum().clamp(min=1)


def vertices(student_BKhw: Tensor, teacher_BKhw: Tensor, inside_BHW: Tensor) -> Tensor:
    teacher_BKhw = resized(teacher_BKhw, student_BKhw.shape[-2:])
    inside_Bhw = F.adaptive_avg_pool2d(inside_BHW[:, None].float(), student_BKhw.shape[-2:])[:, 0] >= 0.5  # type: ignore[arg-type]  # a Size will do
    squares_Bhw = torch.where(inside_Bhw, (student_BKhw - teacher_BKhw).square().mean(dim=1), 0)
    return (squares_Bhw.sum(dim=(1, 2)) / inside_Bhw.sum(dim=(1, 2)).clamp(min=1)).mean()
