"""U-Net on a ResNet-34: a decoder that brings the features back to the image's size, step by step beside those of the encoder.

Source: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015, with the encoder
of He et al., CVPR 2016, at its own strides, and batch norm, as in later work: each step doubles height and width by repeating
cells, joins the encoder's map of that size, and has two 3x3 convolutions, of 256, 128, 64, 32 and 16 channels; a last 3x3
convolution makes the logits, at every pixel. The encoder's parameters are named as torchvision's, so its ImageNet checkpoints fit.
Where height or width is no multiple of 32, a map is brought to the size of the one that it joins.

`mid` is the encoder's layer2 (128 channels), `high` the decoder's second step (128 channels), both at stride 8.

B images, H W the input, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models._existence import EncoderExistence
from pipeline.models._network import check_size, initialise
from pipeline.models._pyramid import layer
from pipeline.models._resnet import BasicBlock
from pipeline.models.base import ModelBase, Output, Width

DEPTHS = (3, 4, 6, 3)
ONCE = (1, 1)  # no dilation


class Model(ModelBase):
    layers = {"mid": "layer2", "high": "decoder.1"}
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential
    backbone = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")

    def __init__(self, num_classes: int, *, size: tuple[int, int], lanes: int = 0, width: Width = 64):
        super().__init__()
        check_size(self, size)
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for index, depth in enumerate(DEPTHS):
            planes, blocks = width << index, []
            for position in range(depth):
                blocks.append(BasicBlock(channels, planes, 2 if index and not position else 1, ONCE))
                channels = planes
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        skips = (4 * width, 2 * width, width, width, 0)  # of layer3, layer2, layer1, and the stem before pooling
        self.decoder = nn.ModuleList()
        for index, skip in enumerate(skips):
            planes = max(1, 4 * width >> index)
            self.decoder.append(nn.Sequential(layer(channels + skip, planes, kernel=3), layer(planes, planes, kernel=3)))
            channels = planes
        self.classifier = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.existence = EncoderExistence(2 * width, lanes, (size[0] // 8, size[1] // 8)) if lanes else None
        initialise(self)

    def forward(self, images_B3HW: Tensor, labels_BHW: Tensor | None = None) -> Output:
        stem = F.relu(self.bn1(self.conv1(self.normalise(images_B3HW))))
        first = self.layer1(F.max_pool2d(stem, 3, stride=2, padding=1))
        mid_BChw = self.layer2(first)
        third = self.layer3(mid_BChw)
        x, high_BChw = self.layer4(third), mid_BChw
        for index, (step, skip) in enumerate(zip(self.decoder, (third, mid_BChw, first, stem, None))):
            x = F.interpolate(x, (images_B3HW if skip is None else skip).shape[-2:], mode="nearest")
            x = step(x if skip is None else torch.cat([x, skip], dim=1))
            if index == 1:
                high_BChw = x
        existence = self.existence(high_BChw) if self.existence is not None else None
        return Output(self.classifier(x), {"mid": mid_BChw, "high": high_BChw}, existence)
