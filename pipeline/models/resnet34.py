"""ResNet-34 at stride 8 with a light head: a student (21.3M parameters). See _resnet.py.

`mid` is layer2 (conv3_x, 128 channels), `high` is layer4 (conv5_x, 512 channels), both at stride 8, as are the logits.
"""

from pipeline.models._resnet import BasicBlock, Dilation, Head, ResNet
from pipeline.models.base import Width


class Model(ResNet):
    block = BasicBlock
    depths = (3, 4, 6, 3)

    def __init__(
        self,
        num_classes: int,
        *,
        size: tuple[int, int],
        lanes: int = 0,
        width: Width = 64,
        head: Head = "plain",
        dilation: Dilation = "paper",
    ):
        super().__init__(num_classes, size=size, lanes=lanes, width=width, head=head, dilation=dilation)
