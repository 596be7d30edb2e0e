"""Pyramid pooling head: the features beside their averages over 1, 2 x 2, 3 x 3 and 6 x 6 parts of the image.

Source: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, section 3.2, with average pooling. IntRA-KD's teacher
has the same layers and parameters but fills its bins by bilinear resizing to cells of fixed size, so that their number
follows the image; the published bins are used here.

B images, C channels, K classes, h w the grid, n a number of bins.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BINS = (1, 2, 3, 6)


class Pyramid(nn.Module):
    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        part = channels // 4
        self.branches = nn.ModuleList(layer(channels, part, kernel=1) for _ in BINS)
        self.merge = layer(channels + len(BINS) * part, part, kernel=3)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(part, num_classes, 1)

    def forward(self, features_BChw: Tensor) -> Tensor:
        grid = features_BChw.shape[-2:]
        maps = [features_BChw]
        for bins, branch in zip(BINS, self.branches):
            parts_BCnn = branch(averages(averages(features_BChw, bins).mT, bins).mT)
            maps.append(F.interpolate(parts_BCnn, size=grid, mode="bilinear", align_corners=False))
        return self.classifier(self.dropout(self.merge(torch.cat(maps, dim=1))))


def layer(channels_in: int, channels_out: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True))


def averages(values: Tensor, bins: int) -> Tensor:
    """Averages over `bins` parts of the last axis; part i reaches from floor(i L / bins) to ceil((i + 1) L / bins).

    A matrix product, because `F.adaptive_avg_pool2d` (the same bins) has no deterministic gradient on CUDA.
    """
    length = values.shape[-1]
    place = torch.arange(length, device=values.device)[:, None]
    part = torch.arange(bins, device=values.device)
    inside = (place >= part * length // bins) & (place < ((part + 1) * length + bins - 1) // bins)
    return values @ inside.to(values.dtype) / inside.sum(dim=0).to(values.dtype)
