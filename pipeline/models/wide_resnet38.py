"""Wide-ResNet-38 at stride 8: few and wide residual blocks, a teacher.

Source: Wu, Shen, van den Hengel, "Wider or Deeper: Revisiting the ResNet Model for Visual Recognition", 2016, the network A2
dilated to stride 8: a 3x3 convolution, then 3, 3, 6, 3, 1 and 1 blocks that normalise before they convolve, with a maximum over
3x3 cells of stride 2 before the first two groups and a stride in the third; groups four to six have dilations of 2, 4 and 4. The
last two blocks are bottlenecks, with dropout. Two 3x3 convolutions make logits. Parameters of the trunk are named as in the public
code of the network (`mod1.conv1`, `mod2.block1.convs.conv1`, ...), so its ImageNet files fit as `backbone`.

`mid` is `mod4`, the third group (512 channels), `high` the last map after its batch norm and ReLU (4096 channels); both stand at
stride 8.

B images, H W the input, K classes.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models._existence import Existence
from pipeline.models._network import check_size, initialise
from pipeline.models._pyramid import layer
from pipeline.models.base import ModelBase, Output, Width

BLOCKS = (3, 3, 6, 3, 1, 1)
CHANNELS = ((2, 2), (4, 4), (8, 8), (8, 16), (8, 16, 32), (16, 32, 64))  # of a block's convolutions, in units of the width
STRIDES = (1, 1, 2, 1, 1, 1)  # of a group's first block
DILATIONS = (1, 1, 1, 2, 4, 4)
DROPOUT = (0.0, 0.0, 0.0, 0.0, 0.3, 0.5)


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1, each behind batch norm and ReLU; their sum with the input."""

    def __init__(self, channels: int, planes: tuple[int, ...], stride: int, dilation: int, dropout: float):
        super().__init__()
        self.bn1 = normalised(channels)
        parts: list[tuple[str, nn.Module]] = []
        for number, (before, after) in enumerate(zip((channels, *planes), planes), 1):
            side = 3 if len(planes) == 2 or number == 2 else 1
            if number > 1:
                parts.append((f"bn{number}", normalised(before)))
                if dropout and number == len(planes):
                    parts.append(("dropout", nn.Dropout2d(dropout)))
            own_stride, own_dilation = stride if number == 1 else 1, dilation if side == 3 else 1
            padding = side // 2 * dilation
            parts.append((f"conv{number}", nn.Conv2d(before, after, side, own_stride, padding, own_dilation, bias=False)))
        self.convs = nn.Sequential(OrderedDict(parts))
        changed = stride > 1 or channels != planes[-1]
        self.proj_conv = nn.Conv2d(channels, planes[-1], 1, stride, bias=False) if changed else None

    def forward(self, x: Tensor) -> Tensor:
        normed = self.bn1(x)
        return self.convs(normed) + (x if self.proj_conv is None else self.proj_conv(normed))


class Model(ModelBase):
    layers = {"mid": "mod4", "high": "bn_out"}
    mod2: nn.Sequential
    mod3: nn.Sequential
    mod4: nn.Sequential
    mod5: nn.Sequential
    mod6: nn.Sequential
    mod7: nn.Sequential
    backbone = ("mod1", "mod2", "mod3", "mod4", "mod5", "mod6", "mod7", "bn_out")

    def __init__(self, num_classes: int, *, size: tuple[int, int], lanes: int = 0, width: Width = 64):
        super().__init__()
        check_size(self, size)
        self.mod1 = nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, width, 3, padding=1, bias=False)))
        channels = width
        for index, count in enumerate(BLOCKS):
            planes, blocks = tuple(width * share for share in CHANNELS[index]), OrderedDict[str, nn.Module]()
            for position in range(count):
                stride = 1 if position else STRIDES[index]
                blocks[f"block{position + 1}"] = Block(channels, planes, stride, DILATIONS[index], DROPOUT[index])
                channels = planes[-1]
            self.add_module(f"mod{index + 2}", nn.Sequential(blocks))
        self.bn_out = normalised(channels)
        self.head = nn.Sequential(layer(channels, 8 * width, kernel=3), nn.Conv2d(8 * width, num_classes, 3, padding=1))
        self.existence = Existence(num_classes, lanes, (size[0] // 8, size[1] // 8), hidden=2 * width) if lanes else None
        initialise(self)

    def forward(self, images_B3HW: Tensor, labels_BHW: Tensor | None = None) -> Output:
        x = self.mod1(self.normalise(images_B3HW))
        x = self.mod2(F.max_pool2d(x, 3, stride=2, padding=1))
        x = self.mod3(F.max_pool2d(x, 3, stride=2, padding=1))
        mid_BChw = self.mod4(x)
        high_BChw = self.bn_out(self.mod7(self.mod6(self.mod5(mid_BChw))))
        logits_BKhw = self.head(high_BChw)
        existence = self.existence(logits_BKhw) if self.existence is not None else None
        return Output(logits_BKhw, {"mid": mid_BChw, "high": high_BChw}, existence)


def normalised(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
