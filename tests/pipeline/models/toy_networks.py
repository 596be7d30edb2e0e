"""Networks as other people write them, for the adapter."""

from dataclasses import dataclass

import torch
from torch import nn


class Plain(nn.Module):
    """Maps at strides 4 and 8, logits at stride 4; the ReLU after `early` works in place."""

    def __init__(self, classes: int = 5, width: int = 8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 4, 1), nn.BatchNorm2d(width))
        self.early = nn.Conv2d(width, width, 3, 1, 1)
        self.late = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(width, 2 * width, 3, 2, 1))
        self.classify = nn.Conv2d(2 * width, classes, 1)

    def forward(self, images):
        late = self.late(self.early(self.stem(images)))
        return {"out": nn.functional.interpolate(self.classify(late), scale_factor=2), "late": [late]}


@dataclass
class Found:
    tokens: torch.Tensor
    map_of_channels_last: torch.Tensor


class Tokens(nn.Module):
    """A class token and a register before the tokens of 16 x 16 pixels; looks at a value, so that meta tensors fail."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.extra = nn.Parameter(torch.full((2, width), 100.0))
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.layer = nn.Linear(width, width)

    def forward(self, images):
        map_BChw = self.patches(images)
        assert map_BChw.sum().item() < 1e9
        tokens_BNC = map_BChw.flatten(2).mT
        tokens_BNC = torch.cat((self.extra.expand(len(images), -1, -1), tokens_BNC), dim=1)
        return Found(self.layer(tokens_BNC), map_BChw.permute(0, 2, 3, 1))


def plain(classes=5, width=8):
    return Plain(classes, width)


class WithWeights(Plain):
    """A factory that loads weights of its own, as `from_pretrained` does."""

    def __init__(self, classes: int = 5, width: int = 8):
        with torch.device("cpu"):
            state = Plain(classes, width).state_dict()
        super().__init__(classes, width)
        self.load_state_dict(state)


class Corners(nn.Module):
    """Coarse logits to be upsampled with the corners aligned: each class's are the image's own, at the cells' corners."""

    def __init__(self, grid: tuple[int, int] = (5, 7)):
        super().__init__()
        self.grid, self.late = tuple(grid), nn.Conv2d(3, 4, 3, 8, 1)

    def forward(self, images):
        self.late(images)
        return nn.functional.interpolate(images, self.grid, mode="bilinear", align_corners=True)


class Pooled(nn.Module):
    """A branch over the whole image, as atrous spatial pyramids have, in a network that looks at a value."""

    def __init__(self, classes: int = 5):
        super().__init__()
        self.late = nn.Conv2d(3, 8, 3, 8, 1)
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.classify = nn.Conv2d(8, classes, 1)

    def forward(self, images):
        assert images.sum().item() >= 0
        late = self.late(images)
        return self.classify(late + self.whole(late))


def no_network():
    return 3
