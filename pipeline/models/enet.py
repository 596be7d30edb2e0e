"""ENet: a very small encoder-decoder of bottlenecks (0.35M parameters).

`mid` is stage 2, `high` is stage 3, the encoder's end; both have 128 channels at stride 8. Logits are at the input's
resolution.

Source: Paszke et al., "ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation", arXiv 1606.02147,
Table 1 and Figure 2. Where the paper leaves room, the reading that gives the 0.35M of the public lane versions: a
bottleneck's inner width is a quarter of its *input* channels, a PReLU has one slope, transposed convolutions are 2x2.

`layout: pytorch_enet` is the network of github.com/davidtvs/PyTorch-ENet, whose weights load by it: its first pool
overlaps (3x3), an activation follows the expansion, batch norm and activation stand between the halves of an asymmetric
convolution, the classifier is a 3x3 transposed convolution without bias, and pixels are RGB / 255.
"""

import re
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.later import AddedLater
from pipeline.models._existence import EncoderExistence
from pipeline.models._network import check_size, check_width, initialise
from pipeline.models._published import Published
from pipeline.models.base import ModelBase, Output, Width

Layout = Literal["paper", "pytorch_enet"]


class Initial(nn.Module):
    def __init__(self, channels: int, layout: Layout = "paper"):
        super().__init__()
        self.pool = nn.MaxPool2d(2) if layout == "paper" else nn.MaxPool2d(3, stride=2, padding=1)
        self.conv = nn.Conv2d(3, channels - 3, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.activation = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.bn(torch.cat([self.conv(x), self.pool(x)], dim=1)))


def convolution(*convolutions: nn.Module, activation: type[nn.Module]) -> nn.Sequential:
    channels: Any = convolutions[-1].out_channels
    return nn.Sequential(*convolutions, nn.BatchNorm2d(channels), activation())


def filters(convolutions: list[nn.Module], activation: type[nn.Module], layout: Layout) -> nn.Sequential:
    """PyTorch-ENet normalises and activates after each half of an asymmetric convolution, too."""
    if layout == "paper":
        return convolution(*convolutions, activation=activation)
    return nn.Sequential(*(part for each in convolutions for part in convolution(each, activation=activation)))


def branch(
    channels_in: int,
    channels_out: int,
    first,
    middle,
    dropout: float,
    activation: type[nn.Module],
    layout: Layout,
    last: type[nn.Module] = nn.Identity,
) -> nn.Sequential:
    """Reduce (`first`), filter (`middle`), expand; both are given as functions of their channels. `last` follows the expansion."""
    inner = channels_in // 4
    return nn.Sequential(
        convolution(first(channels_in, inner), activation=activation),
        filters(middle(inner), activation, layout),
        convolution(nn.Conv2d(inner, channels_out, 1, bias=False), activation=last),
        nn.Dropout2d(dropout),
    )


def after_expansion(activation: type[nn.Module], layout: Layout) -> type[nn.Module]:
    """Of the encoder's blocks and the decoder's bottlenecks; no activation follows an upsampler's expansion in either layout."""
    return nn.Identity if layout == "paper" else activation


def dilated(inner: int, dilation: int) -> list[nn.Module]:
    return [nn.Conv2d(inner, inner, 3, padding=dilation, dilation=dilation, bias=False)]


def asymmetric(inner: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inner, inner, (5, 1), padding=(2, 0), bias=False),
        nn.Conv2d(inner, inner, (1, 5), padding=(0, 2), bias=False),
    ]


def doubled(inner: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(inner, inner, 2, stride=2, bias=False)]


pointwise = partial(nn.Conv2d, kernel_size=1, bias=False)
halved = partial(nn.Conv2d, kernel_size=2, stride=2, bias=False)
regular = partial(dilated, dilation=1)


class Bottleneck(nn.Module):
    def __init__(
        self, channels: int, middle=regular, dropout: float = 0.1, activation: type[nn.Module] = nn.PReLU, layout: Layout = "paper"
    ):
        super().__init__()
        self.branch = branch(
            channels, channels, pointwise, middle, dropout, activation, layout, after_expansion(activation, layout)
        )
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x + self.branch(x))


class Downsampler(nn.Module):
    """Returns also where the maxima stood, for the upsampler of the same grid; new channels begin as zeros."""

    def __init__(self, channels_in: int, channels_out: int, dropout: float, layout: Layout = "paper"):
        super().__init__()
        self.branch = branch(
            channels_in, channels_out, halved, regular, dropout, nn.PReLU, layout, after_expansion(nn.PReLU, layout)
        )
        self.activation = nn.PReLU()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled, places = F.max_pool2d(x, 2, return_indices=True)
        branch = self.branch(x)
        padded = F.pad(pooled, (0, 0, 0, 0, 0, branch.shape[1] - pooled.shape[1]))
        return self.activation(padded + branch), places


class Upsampler(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, layout: Layout = "paper"):
        super().__init__()
        self.main = convolution(pointwise(channels_in, channels_out), activation=nn.Identity)
        self.branch = branch(channels_in, channels_out, pointwise, doubled, 0.1, nn.ReLU, layout)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        return F.relu(unpool(self.main(x), places) + self.branch(x))


def unpool(x_BChw: Tensor, places_BChw: Tensor) -> Tensor:
    """[B, C, 2h, 2w]: each value where its maximum stood, zero elsewhere.

    The places are compared, not scattered to: `F.max_unpool2d` (the same result) is not deterministic on CUDA.
    """
    height, width = 2 * x_BChw.shape[2], 2 * x_BChw.shape[3]
    position_HW = torch.arange(height * width, device=x_BChw.device).view(height, width)
    return doubled_grid(x_BChw) * (doubled_grid(places_BChw) == position_HW)


def doubled_grid(x_BChw: Tensor) -> Tensor:
    batch, channels, h, w = x_BChw.shape
    return x_BChw[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).reshape(batch, channels, 2 * h, 2 * w)


def eight(channels: int, layout: Layout) -> list[nn.Module]:
    """The bottlenecks that stages 2 and 3 share."""
    middles = (
        regular,
        partial(dilated, dilation=2),
        asymmetric,
        partial(dilated, dilation=4),
        regular,
        partial(dilated, dilation=8),
        asymmetric,
        partial(dilated, dilation=16),
    )
    return [Bottleneck(channels, middle, layout=layout) for middle in middles]


# Names of published weights

BLOCKS = {
    "downsample1_0": "down1",
    "downsample2_0": "down2",
    "upsample4_0": "up4",
    "upsample5_0": "up5",
    "regular5_1": "stage5",
    "initial_block": "initial",
    "transposed_conv": "classifier",
}
PARTS = {
    "main_branch": "conv",
    "batch_norm": "bn",
    "out_activation": "activation",
    "main_conv1": "main",
    "ext_conv1": "branch.0",
    "ext_conv2": "branch.1",
    "ext_conv3": "branch.2",
    "ext_tconv1": "branch.1.0",
    "ext_tconv1_bnorm": "branch.1.1",
}


def our_name(published_name: str) -> str:
    block, _, rest = published_name.partition(".")
    part, dot, rest = rest.partition(".")
    ours = BLOCKS.get(block, block)
    if found := re.fullmatch(r"(?:regular|dilated|asymmetric)([1-4])_(\d)", block):
        ours = f"stage{found[1]}.{int(found[2]) - (found[1] != '3')}"  # stage 3 is counted from 0 there
    part = "branch.2" if ours in ("up4", "up5") and part == "ext_conv2" else PARTS.get(part, part)
    return f"{ours}.{part}{dot}{rest}"


class Model(ModelBase):
    """`width` is the initial block's number of channels, 16 as published; the others have 4 and 8 times as many."""

    published = Published("initial_block.main_branch.weight", our_name, {"pytorch_enet": "PyTorch-ENet's, trained on RGB / 255"})
    layers = {"mid": "stage2", "high": "stage3"}

    def __init__(
        self,
        num_classes: int,
        *,
        size: tuple[int, int],
        lanes: int = 0,
        width: Annotated[Width, Field(ge=4)] = 16,
        layout: Annotated[
            Layout,
            AddedLater("paper"),
            Field(description="Whose version of the network: the paper's, or PyTorch-ENet's, whose weights load by it."),
        ] = "paper",
    ):
        if layout == "paper":
            super().__init__()
        else:
            super().__init__((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
        self.layout = layout
        check_size(self, size)
        check_width(self, width, least=4)
        thin, middle, thick = width, 4 * width, 8 * width
        self.initial = Initial(thin, layout)
        self.down1 = Downsampler(thin, middle, dropout=0.01, layout=layout)
        self.stage1 = nn.Sequential(*(Bottleneck(middle, dropout=0.01, layout=layout) for _ in range(4)))
        self.down2 = Downsampler(middle, thick, dropout=0.1, layout=layout)
        self.stage2 = nn.Sequential(*eight(thick, layout))
        self.stage3 = nn.Sequential(*eight(thick, layout))
        self.up4 = Upsampler(thick, middle, layout)
        self.stage4 = nn.Sequential(*(Bottleneck(middle, activation=nn.ReLU, layout=layout) for _ in range(2)))
        self.up5 = Upsampler(middle, thin, layout)
        self.stage5 = Bottleneck(thin, activation=nn.ReLU, layout=layout)
        self.classifier = (
            nn.ConvTranspose2d(thin, num_classes, 2, stride=2)
            if layout == "paper"
            else nn.ConvTranspose2d(thin, num_classes, 3, stride=2, padding=1, output_padding=1, bias=False)
        )
        self.existence = EncoderExistence(thick, lanes, (size[0] // 8, size[1] // 8)) if lanes else None
        initialise(self)

    def forward(self, images_B3HW: Tensor, labels_BHW: Tensor | None = None) -> Output:
        x, places1 = self.down1(self.initial(self.normalise(images_B3HW)))
        x, places2 = self.down2(self.stage1(x))
        mid = self.stage2(x)
        high = self.stage3(mid)
        x = self.stage4(self.up4(high, places2))
        logits_BKHW = self.classifier(self.stage5(self.up5(x, places1)))
        existence = self.existence(high) if self.existence is not None else None
        return Output(logits_BKHW, {"mid": mid, "high": high}, existence)
