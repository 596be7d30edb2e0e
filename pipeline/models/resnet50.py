"""ResNet-50 at stride 8 with a pyramid pooling head. See _resnet.py.

`mid` is layer2 (conv3_x, 512 channels), `high` is layer4 (conv5_x, 2048 channels), both at stride 8, as are the logits.
"""

from pipeline.models._resnet import Bottleneck, Dilation, Head, ResNet
from pipeline.models.base import Width


class Model(ResNet):
    block = Bottleneck
    depths = (3, 4, 6, 3)

    def __init__(
        self,
        num_classes: int,
        *,
        size: tuple[int, int],
        lanes: int = 0,
        width: Width = 64,
        head: Head = "pyramid",
        dilation: Dilation = "paper",
    ):
        super().__init__(num_classes, size=size, lanes=lanes, width=width, head=head, dilation=dilation)
