"""ERFNet: an encoder-decoder of factorised residual blocks; the paper's student (2.06M parameters).

`mid` is block 2 (64 channels, stride 4), `high` is block 3 (128 channels, stride 8, the encoder's end), a block being
what lies between two downsamplers. Logits are at the input's resolution.

Source: Romera et al., "ERFNet: Efficient Residual Factorized ConvNet for Real-Time Semantic Segmentation", IEEE
Transactions on Intelligent Transportation Systems, 2018, Table I; written from that description. Dropout is 0.1 in both
encoder blocks, as in the lane detection versions (published: 0.03 and 0.3); the existence branch is theirs too. Left
out: the encoder's own 1x1 classifier, which published counts include though only its pre-training uses it.

Weights of two repositories load by `layout`: `eromera` is the authors' PyTorch version (github.com/Eromera/erfnet_pytorch),
`cardwing` that of the lane detection benchmarks (github.com/cardwing/Codes-for-Lane-Detection). The network is the same;
names of weights, and the pixels they were trained on, are others.
"""

import re
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.later import AddedLater
from pipeline.models._existence import EncoderExistence
from pipeline.models._network import check_size, check_width, initialise
from pipeline.models._published import Published
from pipeline.models.base import ModelBase, Output, Width

EPS = 1e-3  # of every batch norm
Rate = Annotated[float, Field(ge=0, lt=1)]


class Downsampler(nn.Module):
    """A strided convolution and a max pool side by side, together `channels_out`."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out - channels_in, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(channels_out, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        convolved = self.conv(x)
        pooled = F.max_pool2d(x, 2).to(convolved.dtype)  # a float32 image would keep autocast out of what follows
        return F.relu(self.bn(torch.cat([convolved, pooled], dim=1)))


class NonBottleneck1D(nn.Module):
    """Two 3x3 convolutions, each split into 3x1 and 1x3, the second pair dilated, added to the input."""

    def __init__(self, channels: int, dilation: int = 1, dropout: float = 0.0):
        super().__init__()
        self.conv1_rows = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.conv1_columns = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.bn1 = nn.BatchNorm2d(channels, eps=EPS)
        self.conv2_rows = nn.Conv2d(channels, channels, (3, 1), padding=(dilation, 0), dilation=(dilation, 1))
        self.conv2_columns = nn.Conv2d(channels, channels, (1, 3), padding=(0, dilation), dilation=(1, dilation))
        self.bn2 = nn.BatchNorm2d(channels, eps=EPS)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        branch = F.relu(self.bn1(self.conv1_columns(F.relu(self.conv1_rows(x)))))
        branch = self.bn2(self.conv2_columns(F.relu(self.conv2_rows(branch))))
        return F.relu(self.dropout(branch) + x)


class Upsampler(nn.Sequential):
    def __init__(self, channels_in: int, channels_out: int):
        super().__init__(
            nn.ConvTranspose2d(channels_in, channels_out, 3, stride=2, padding=1, output_padding=1),
            nn.BatchNorm2d(channels_out, eps=EPS),
            nn.ReLU(inplace=True),
        )


# Names of published weights

NAMES = [  # pattern of a published name, ours; {} is the first group less the number after it
    (r"encoder\.initial_block\.", "block1.", 0),
    (r"encoder\.layers\.([0-5])\.", "block2.{}.", 0),
    (r"encoder\.layers\.(\d+)\.", "block3.{}.", 6),
    (r"decoder\.layers\.([03])\.conv\.", "decoder.{}.0.", 0),
    (r"decoder\.layers\.([03])\.bn\.", "decoder.{}.1.", 0),
    (r"decoder\.layers\.(\d+)\.", "decoder.{}.", 0),
    (r"decoder\.output_conv\.", "classifier.", 0),
    (r"lane_exist\.layers\.([01])\.", "existence.{}.", 0),
    (r"lane_exist\.layers_final\.1\.", "existence.4.", 0),
    (r"lane_exist\.linear1\.", "existence.5.hidden.", 0),
    (r"lane_exist\.linear2\.", "existence.5.lanes.", 0),
]
PARTS = {"conv3x1_1": "conv1_rows", "conv1x3_1": "conv1_columns", "conv3x1_2": "conv2_rows", "conv1x3_2": "conv2_columns"}


def our_name(published_name: str) -> str | None:
    """None for the encoder's own classifier."""
    if published_name.startswith("encoder.output_conv."):
        return None
    for pattern, ours, less in NAMES:
        if found := re.match(pattern, published_name):
            place = int(found[1]) - less if found.groups() else ""
            part, dot, rest = published_name[found.end() :].partition(".")
            return f"{ours.format(place)}{PARTS.get(part, part)}{dot}{rest}"
    return published_name


class Model(ModelBase):
    """`width` is block 1's number of channels, 16 as published; the others have 4 and 8 times as many."""

    published = Published(
        "encoder.initial_block.conv.weight",
        our_name,
        {
            "eromera": "Eromera's, trained on RGB / 255",
            "cardwing": "cardwing's, trained on BGR less its mean, as OpenCV reads a picture",
        },
    )
    layers = {"mid": "block2", "high": "block3"}

    def __init__(
        self,
        num_classes: int,
        *,
        size: tuple[int, int],
        lanes: int = 0,
        width: Annotated[Width, Field(ge=4)] = 16,
        dropout: Annotated[tuple[Rate, Rate], Field(description="Dropout of the encoder's second and third block.")] = (0.1, 0.1),
        layout: Annotated[
            Literal["paper", "eromera", "cardwing"],
            AddedLater("paper"),
            Field(description="Whose weights load: ours, or those of a published repository, with its pixels."),
        ] = "paper",
    ):
        if layout == "eromera":
            super().__init__((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
        elif layout == "cardwing":
            super().__init__((103.939, 116.779, 123.68), (1.0, 1.0, 1.0), "bgr")
        else:
            super().__init__()
        self.layout = layout
        check_size(self, size)
        check_width(self, width, least=4)
        thin, middle, thick = width, 4 * width, 8 * width
        self.block1 = Downsampler(3, thin)
        self.block2 = nn.Sequential(Downsampler(thin, middle), *(NonBottleneck1D(middle, dropout=dropout[0]) for _ in range(5)))
        self.block3 = nn.Sequential(
            Downsampler(middle, thick), *(NonBottleneck1D(thick, dilation, dropout[1]) for dilation in (2, 4, 8, 16, 2, 4, 8, 16))
        )
        self.decoder = nn.Sequential(
            Upsampler(thick, middle),
            NonBottleneck1D(middle),
            NonBottleneck1D(middle),
            Upsampler(middle, thin),
            NonBottleneck1D(thin),
            NonBottleneck1D(thin),
        )
        self.classifier = nn.ConvTranspose2d(thin, num_classes, 2, stride=2)
        self.existence = EncoderExistence(thick, lanes, (size[0] // 8, size[1] // 8)) if lanes else None
        initialise(self)

    def forward(self, images_B3HW: Tensor, labels_BHW: Tensor | None = None) -> Output:
        mid = self.block2(self.block1(self.normalise(images_B3HW)))
        high = self.block3(mid)
        logits_BKHW = self.classifier(self.decoder(high))
        existence = self.existence(high) if self.existence is not None else None
        return Output(logits_BKHW, {"mid": mid, "high": high}, existence)
