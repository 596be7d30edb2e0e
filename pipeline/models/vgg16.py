"""VGG-16 at stride 8, with SCNN's message passing on top: CULane's own network (20.7M parameters with its existence head).

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks", ICLR 2015, with batch norm; dilated as in Chen et al.,
"DeepLab", TPAMI 2018 (LargeFOV): the fourth and fifth pooling are left out, the fifth stage has dilation 2, and a 3x3
convolution of dilation 4 to 1024 channels and a 1x1 to 128 follow. On these Pan et al., "Spatial As Deep", AAAI 2018, pass
messages (`head: scnn`; `plain` leaves them out), then dropout and the classifier. The paper's network was Torch7's; that its
pooling in the existence head is by maximum, and the two layers' batch norms, follow PyTorch versions of it.

Parameters are named as torchvision's vgg16_bn, so its ImageNet checkpoints fit; `head.*` and `existence.*` are ours.
`mid` is conv4_3 (512 channels), `high` is conv5_3 (512 channels), after their ReLU; both have stride 8, as have the logits.

B images, H W the input, C channels, K classes, h w = H/8 W/8.
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models._existence import Existence
from pipeline.models._messages import Messages
from pipeline.models._network import check_size, initialise
from pipeline.models.base import ModelBase, Output, Width

STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))  # convolutions, and their channels in widths
LAST_POOLED = 2  # stages after it keep stride 8


class Model(ModelBase):
    """`width` is the first stage's number of channels, 64 as published; all others follow in proportion."""

    layers = {"mid": "features.32", "high": "features"}
    backbone = ("features",)

    def __init__(
        self,
        num_classes: int,
        *,
        size: tuple[int, int],
        lanes: int = 0,
        width: Width = 64,
        head: Annotated[
            Literal["scnn", "plain"], Field(description="DeepLab's large field of view, with or without SCNN's message passing.")
        ] = "scnn",
    ):
        super().__init__()
        check_size(self, size)
        if head not in ("scnn", "plain"):
            raise ConfigError(f"vgg16: {head!r} is not one of scnn, plain")
        self.features = nn.Sequential()
        channels = 3
        for stage, (count, widths) in enumerate(STAGES):
            dilation = 2 if stage == 4 else 1
            for _ in range(count):
                self.features.extend(
                    (
                        nn.Conv2d(channels, widths * width, 3, padding=dilation, dilation=dilation),
                        nn.BatchNorm2d(widths * width),
                        nn.ReLU(inplace=True),
                    )
                )
                channels = widths * width
            self.features.append(nn.MaxPool2d(2) if stage <= LAST_POOLED else nn.Identity())  # torchvision's count goes on
        messages = [Messages(2 * width)] if head == "scnn" else []
        self.head = nn.Sequential(
            nn.Conv2d(channels, 16 * width, 3, padding=4, dilation=4, bias=False),
            nn.BatchNorm2d(16 * width),
            nn.ReLU(inplace=True),
            nn.Conv2d(16 * width, 2 * width, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
            *messages,
            nn.Dropout2d(0.1),
            nn.Conv2d(2 * width, num_classes, 1),
        )
        grid = size[0] // 8, size[1] // 8
        self.existence = Existence(num_classes, lanes, grid, hidden=2 * width) if lanes else None
        initialise(self)

    def forward(self, images_B3HW: Tensor, labels_BHW: Tensor | None = None) -> Output:
        mid_BChw = self.features[:33](self.normalise(images_B3HW))
        high_BChw = self.features[33:](mid_BChw)
        logits_BKhw = self.head(high_BChw)
        existence = self.existence(logits_BKhw) if self.existence is not None else None
        return Output(logits_BKhw, {"mid": mid_BChw, "high": high_BChw}, existence)
