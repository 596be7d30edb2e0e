"""SCNN's message passing: each row of a map hears from the row above it, then below; each column from the left, then the right.

Source: Pan, Shi, Luo, Wang, Tang, "Spatial As Deep: Spatial CNN for Traffic Scene Understanding", AAAI 2018, section 3 and
Eq. 1: a slice gets f(K * the slice before it, as it is by then), f a ReLU, K one kernel of 9 cells per direction, no bias;
down, up, right, left. The first slice stays as it is. One kernel acts as often as there are slices, so it begins small,
uniform within sqrt(2 / (5 * 9 C)), where sqrt(6 / (9 C)) would keep the variance of one step.

B images, C channels, h w the grid.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REACH = 9  # cells of a slice that a cell of the next one hears from


class Messages(nn.Module):
    down: nn.Parameter
    up: nn.Parameter
    right: nn.Parameter
    left: nn.Parameter

    def __init__(self, channels: int):
        super().__init__()
        bound = math.sqrt(2 / (5 * REACH * channels))
        for name, kernel in (("down", (1, REACH)), ("up", (1, REACH)), ("right", (REACH, 1)), ("left", (REACH, 1))):
            self.register_parameter(name, nn.Parameter(torch.empty(channels, channels, *kernel).uniform_(-bound, bound)))

    def forward(self, map_BChw: Tensor) -> Tensor:
        map_BChw = passed(passed(map_BChw, self.down, dim=2), self.up, dim=2, backwards=True)
        return passed(passed(map_BChw, self.right, dim=3), self.left, dim=3, backwards=True)


def passed(map_BChw: Tensor, kernel: Tensor, dim: int, backwards: bool = False) -> Tensor:
    slices = list(map_BChw.split(1, dim))
    if backwards:
        slices.reverse()
    for here in range(1, len(slices)):
        slices[here] = slices[here] + F.relu(F.conv2d(slices[here - 1], kernel, padding="same"))
    if backwards:
        slices.reverse()
    return torch.cat(slices, dim)
