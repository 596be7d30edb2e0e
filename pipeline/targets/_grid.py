"""What targets made of a layer's map share: the layer's grid, and a map or labels brought to another grid.

B images, H W labels, C channels, h w a grid.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.targets.base import Context


def grid_of(context: Context, layer: str, key: str) -> tuple[int, int]:
    """The teacher's grid of a layer. Raises ConfigError, naming the key, if it has no such layer."""
    layers = [role for role in context.grids if role != "logits"]
    if layer not in layers:
        raise ConfigError(f"{key}: the teacher has no {layer!r}; it has {', '.join(layers)}")
    return context.grids[layer]


def on_grid(map_BChw: Tensor, grid: tuple[int, int]) -> Tensor:
    """Averages over each cell's area where the grid is coarser, bilinear where it is finer in some axis."""
    (h, w), (rows, columns) = map_BChw.shape[-2:], grid
    if rows > h or columns > w:
        return F.interpolate(map_BChw, grid, mode="bilinear", align_corners=False)
    return area_means(area_means(map_BChw, columns).mT, rows).mT


def area_means(values: Tensor, cells: int) -> Tensor:
    """Means over `cells` areas of the last axis, the first of which begins at 0: the areas of adaptive pooling.

    A product with a matrix, because adaptive pooling has no deterministic gradient on CUDA.
    """
    length = values.shape[-1]
    if length == cells:
        return values
    place = torch.arange(length, device=values.device)[:, None]
    cell = torch.arange(cells, device=values.device)
    first, end = cell * length // cells, ((cell + 1) * length + cells - 1) // cells
    return values @ ((place >= first) & (place < end)).div(end - first).to(values.dtype)


def cell_labels(labels_BHW: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, h, w]: the label of each cell's middle pixel (the lower right of four), the same everywhere."""
    rows, columns = (
        torch.arange(cells, device=labels_BHW.device) * 2 * size + size for cells, size in zip(grid, labels_BHW.shape[-2:])
    )
    return labels_BHW[:, (rows // (2 * grid[0]))[:, None], columns // (2 * grid[1])]
