"""Residual networks dilated to stride 8, with a choice of heads.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, with the stride in the 3x3 convolution;
dilated as in Yu et al., "Dilated Residual Networks", CVPR 2017: the strides of layer3 and layer4 become dilations of
2 and 4. Two conventions exist for the first block of each, and weights do not tell which one they were trained with:

- `paper`: every block of a layer has its dilation, as in IntRA-KD's and PSPNet's code;
- `torchvision`: the first convolution of stride 2 keeps the dilation of the layer before, and all 3x3 convolutions after it
  have the layer's own, which is exactly the strided network, read at every position (so ImageNet weights mean what they
  meant); torchvision's and CIRKD's checkpoints. torchvision itself dilates networks of bottlenecks only.

Parameters are named as torchvision's, so its ImageNet checkpoints fit; `head.*` and `existence.*` are ours.
Heads: `pyramid` (PSPNet), `fcn` (3x3 convolution to a quarter of the channels, classifier: the ResNet-101 of earlier
lane work), `plain` (1x1 convolution to twice the width, classifier: a light head for students), `scnn` (the same with SCNN's
message passing in between, _messages.py).

B images, H W the input, C channels, K classes, h w = H/8 W/8.
"""

from typing import Annotated, Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models._existence import Existence
from pipeline.models._messages import Messages
from pipeline.models._network import check_size, initialise, name
from pipeline.models._pyramid import Pyramid, layer
from pipeline.models.base import ModelBase, Output

Head = Annotated[
    Literal["pyramid", "fcn", "plain", "scnn"],
    Field(
        description="What makes logits of the features: PSPNet's pyramid, a 3x3 convolution, a light 1x1 convolution, or that with "
        "SCNN's message passing."
    ),
]
Dilation = Annotated[
    Literal["paper", "torchvision"],
    Field(
        description="Dilation of the first blocks of layer3 and layer4: as in IntRA-KD's code, or as in torchvision's, whose ImageNet "  # noqa: E501
        "weights it fits."
    ),
]

STRIDES = (1, 2, 1, 1)
DILATIONS = {  # of the first block's 3x3 convolution of stride 2, and of the others
    "paper": ((1, 1), (1, 1), (2, 2), (4, 4)),
    "torchvision": ((1, 1), (1, 1), (1, 2), (2, 4)),
}


class Block(nn.Module):
    """Adds `branch`, a residual of its input, to a shortcut. `dilations` are those of its first and second 3x3 convolution."""

    expansion: ClassVar[int]

    def __init__(self, channels: int, planes: int, stride: int):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or channels != planes * self.expansion:
            shortcut = nn.Conv2d(channels, planes * self.expansion, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(planes * self.expansion))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.branch(x) + (x if self.downsample is None else self.downsample(x)))

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Bottleneck(Block):
    expansion = 4

    def __init__(self, channels: int, planes: int, stride: int, dilations: tuple[int, int]):
        super().__init__(channels, planes, stride)
        dilation, _ = dilations
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class BasicBlock(Block):
    """`paper` dilates only the first convolution, as IntRA-KD's code does."""

    expansion = 1

    def __init__(self, channels: int, planes: int, stride: int, dilations: tuple[int, int]):
        super().__init__(channels, planes, stride)
        dilation, second_dilation = dilations
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=second_dilation, dilation=second_dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


class ResNet(ModelBase):
    """`width` is the stem's number of channels, 64 as published; all others follow in proportion."""

    layers = {"mid": "layer2", "high": "layer4"}
    backbone: ClassVar[tuple[str, ...]] = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    block: ClassVar[Any]  # a Block, which is made of channels, planes, stride and dilations
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential
    depths: ClassVar[tuple[int, int, int, int]]

    def __init__(self, num_classes: int, *, size: tuple[int, int], lanes: int, width: int, head: Head, dilation: Dilation):
        super().__init__()
        check_size(self, size)
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for index, (depth, stride, dilations) in enumerate(zip(self.depths, STRIDES, self.chosen(DILATIONS, dilation))):
            blocks = []
            for position in range(depth):
                first = position == 0
                of_block = dilations[not first], dilations[1] if dilation == "torchvision" else 1
                blocks.append(self.block(channels, width << index, stride if first else 1, of_block))
                channels = (width << index) * self.block.expansion
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        self.head = self.chosen(HEADS, head)(channels, width, num_classes)
        grid = size[0] // 8, size[1] // 8
        self.existence = Existence(num_classes, lanes, grid, hidden=2 * width) if lanes else None
        initialise(self)

    def chosen(self, options: dict, option: str):
        if option not in options:
            raise ConfigError(f"{name(self)}: {option!r} is not one of {', '.join(options)}")
        return options[option]

    def forward(self, images_B3HW: Tensor, labels_BHW: Tensor | None = None) -> Output:
        x = F.relu(self.bn1(self.conv1(self.normalise(images_B3HW))))
        x = self.layer1(F.max_pool2d(x, 3, stride=2, padding=1))
        mid_BChw = self.layer2(x)
        high_BChw = self.layer4(self.layer3(mid_BChw))
        logits_BKhw = self.head(high_BChw)
        existence = self.existence(logits_BKhw) if self.existence is not None else None
        return Output(logits_BKhw, {"mid": mid_BChw, "high": high_BChw}, existence)


def reduced(channels: int, middle: int, num_classes: int, kernel: int, *between: nn.Module) -> nn.Sequential:
    return nn.Sequential(layer(channels, middle, kernel), *between, nn.Dropout2d(0.1), nn.Conv2d(middle, num_classes, 1))


HEADS = {
    "pyramid": lambda channels, width, num_classes: Pyramid(channels, num_classes),
    "fcn": lambda channels, width, num_classes: reduced(channels, channels // 4, num_classes, kernel=3),
    "plain": lambda channels, width, num_classes: reduced(channels, 2 * width, num_classes, kernel=1),
    "scnn": lambda channels, width, num_classes: reduced(channels, 2 * width, num_classes, 1, Messages(2 * width)),
}
