"""Lane existence heads: one logit for each lane slot, "is this lane in the image?".

Source: Pan et al., "Spatial As Deep: Spatial CNN for Traffic Scene Understanding", AAAI 2018 (probability maps, 2x2
pooling, two linear layers). The light lane networks of Hou et al., "Learning Lightweight Lane Detection CNNs by Self
Attention Distillation", ICCV 2019, take the maps from the encoder through a branch of its own. Pooling is by maximum
in every network. The linear layers tie a network with such a head to one input size.

B images, C channels, K maps, h w the grid they are on.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Existence(nn.Module):
    """Scores on a grid -> [B, lanes] logits."""

    def __init__(self, maps: int, lanes: int, grid: tuple[int, int], hidden: int):
        super().__init__()
        self.hidden = nn.Linear(maps * (grid[0] // 2) * (grid[1] // 2), hidden)
        self.lanes = nn.Linear(hidden, lanes)

    def forward(self, scores_BKhw: Tensor) -> Tensor:
        pooled = F.max_pool2d(scores_BKhw.softmax(dim=1), 2)
        return self.lanes(F.relu(self.hidden(pooled.flatten(1))))


class EncoderExistence(nn.Sequential):
    """Encoder features -> [B, lanes] logits, through maps of its own: one a lane and one for the rest."""

    def __init__(self, channels: int, lanes: int, grid: tuple[int, int]):
        super().__init__(
            nn.Conv2d(channels, channels // 4, 3, padding=4, dilation=4, bias=False),
            nn.BatchNorm2d(channels // 4, eps=1e-3),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.1),
            nn.Conv2d(channels // 4, lanes + 1, 1),
            Existence(lanes + 1, lanes, grid, hidden=channels),
        )
