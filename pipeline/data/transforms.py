"""Flips, crops and affine maps of a batch that take images, labels, lane flags and the teacher's rows along, for a training
loop of one's own. What torchvision.transforms.v2 does to an image with its masks, here to a `Batch` of the cache that it came
from:

    flip = pipeline.transforms.RandomHorizontalFlip(cache, p=0.5)
    crop = pipeline.transforms.RandomCrop(cache, (96, 256))
    batch = crop(flip(batch))

A target whose rows are a map (logits, features, components, attention, pseudo_labels, top_classes) is resampled on its own
grid. All others say something of the whole view, as a graph does, and are refused. A network is not exactly equivariant: what
it would answer for the changed image differs somewhat from the changed rows. Views that the cache stores (`views.count`) have
the teacher's own answers.

B images, H W the batch's images, h w a target's grid, K classes, L lane slots.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.data import views as geometry
from pipeline.errors import ConfigError
from pipeline.losses.base import IGNORE, Batch
from pipeline.targets.base import Context, Field, TargetType

OF_CLASSES = {"pseudo_labels", "top_classes"}  # types of targets whose maps of integers hold classes
FRACTION = 1 << geometry.PX  # of a pixel, in which geometry.coordinates counts
HALF = FRACTION // 2


@dataclass(frozen=True)
class Symmetry:
    """What a mirrored image changes beside the place of its pixels."""

    classes: tuple[int, ...] | None  # class -> class; None: it is not known how classes change
    lane_classes: tuple[int, ...]
    lanes: tuple[int, ...] | None  # lane slot -> lane slot


class Source(Protocol):
    """A pipeline.Cache, as far as it is needed here."""

    @property
    def targets(self) -> Mapping[str, TargetType]: ...

    @property
    def symmetry(self) -> Symmetry: ...

    def context_at(self, size: tuple[int, int]) -> Context: ...


class RandomHorizontalFlip(nn.Module):
    """Mirrors each image with probability `p`, drawn by torch's global generator. Classes and lanes that change sides in a mirror
    change their names, as the dataset says. Raises ConfigError as `warp_affine` does."""

    def __init__(self, cache: Source, p: float = 0.5):
        super().__init__()
        self.cache, self.p = cache, p

    def forward(self, batch: Batch) -> Batch:
        return horizontal_flip(self.cache, batch, torch.rand(len(batch.labels_BHW)) < self.p)


class RandomCrop(nn.Module):
    """A part of each image of `size` (height, width) at a random place, drawn by torch's global generator. Losses on such a
    batch are made with `make_loss(..., size=size)`. Raises ConfigError as `warp_affine` does, and if the images are smaller."""

    def __init__(self, cache: Source, size: tuple[int, int]):
        super().__init__()
        self.cache, self.size = cache, size

    def forward(self, batch: Batch) -> Batch:
        (H, W), (height, width), B = batch.labels_BHW.shape[1:], self.size, len(batch.labels_BHW)
        if height > H or width > W:
            raise ConfigError(f"RandomCrop: {height} x {width} is larger than the batch's images, {H} x {W}; write a smaller size")
        return crop(self.cache, batch, torch.randint(H - height + 1, (B,)), torch.randint(W - width + 1, (B,)), height, width)


def horizontal_flip(cache: Source, batch: Batch, flipped_B: Tensor | None = None) -> Batch:
    """The mirrored images of a batch: all, or those where `flipped_B` (bool) is true."""
    B, width = len(batch.labels_BHW), batch.labels_BHW.shape[-1]
    flipped_B = torch.ones(B, dtype=torch.bool) if flipped_B is None else flipped_B.cpu()
    matrices_B23 = torch.eye(2, 3, dtype=torch.float64).repeat(B, 1, 1)
    matrices_B23[flipped_B, 0, 0], matrices_B23[flipped_B, 0, 2] = -1.0, float(width - 1)
    return warp_affine(cache, batch, matrices_B23)


def crop(cache: Source, batch: Batch, top: Tensor | int, left: Tensor | int, height: int, width: int) -> Batch:
    """The part of each image whose upper left pixel is (left, top), for each image or for all; as torchvision's `crop`."""
    matrices_B23 = torch.eye(2, 3, dtype=torch.float64).repeat(len(batch.labels_BHW), 1, 1)
    matrices_B23[:, 0, 2], matrices_B23[:, 1, 2] = torch.as_tensor(left).double(), torch.as_tensor(top).double()
    return warp_affine(cache, batch, matrices_B23, (height, width))


def warp_affine(cache: Source, batch: Batch, matrices_B23: Tensor, size: tuple[int, int] | None = None) -> Batch:
    """The batch seen through these matrices [B, 2, 3], in `size` (height, width) pixels or as many as before.

    `matrix @ (x, y, 1)` is the position in the batch's image from which pixel (x, y) of the result is taken: the inverse of the
    matrix that Kornia's and OpenCV's functions of this name take, and the direction of `batch.matrices_B23`, which comes out as
    the product of both. Whole numbers are centres of pixels. Images are sampled bilinearly, labels by the nearest pixel.
    Outside the images, pixels have ImageNet's mean colour, labels are 255 and `inside_BHW` is False. Rows that are maps are
    sampled on their own grids, at the same positions, bilinearly, or by the nearest cell where they hold classes.

    Raises ConfigError if a target of the batch cannot follow, if an image is mirrored and the dataset does not say how classes
    change, or if the teacher takes no images of `size`."""
    H, W = batch.labels_BHW.shape[1:]
    height, width = size or (H, W)
    matrices_B23 = matrices_B23.double().cpu()
    if matrices_B23.shape != (len(batch.labels_BHW), 2, 3):
        raise ConfigError(
            f"warp_affine: matrices of {list(matrices_B23.shape)} for {len(batch.labels_BHW)} images; write [B, 2, 3]"
        )
    unchanged = torch.eye(2, 3, dtype=torch.float64)
    if (height, width) == (H, W) and bool((matrices_B23 == unchanged).all()):
        return batch
    mirrored_B, symmetry = geometry.mirrored(matrices_B23), cache.symmetry
    if mirrored_B.any() and symmetry.classes is None:
        raise ConfigError(
            "warp_affine: an image is mirrored, and it is not known how classes change there; name the pairs under `mirror` in the "
            "dataset's classes.yaml, and open the cache by its config"
        )
    device, seen = batch.labels_BHW.device, (height, width)
    images = bilinear(batch.images_B3HW, matrices_B23, seen, fill=torch.tensor(geometry.FILL, device=device))
    labels = nearest(batch.labels_BHW[:, None], matrices_B23, seen, fill=IGNORE)[:, 0]
    labels = renamed(labels, mirrored_B, symmetry.classes)
    flags = batch.existence_BL
    if flags is not None:
        flags = geometry.existence(flags, labels, symmetry.lane_classes, matrices_B23, symmetry.lanes)
    return dataclasses.replace(
        batch,
        images_B3HW=images.contiguous(memory_format=torch.channels_last),
        labels_BHW=labels,
        inside_BHW=nearest(batch.inside_BHW[:, None], matrices_B23, seen, fill=False)[:, 0],
        existence_BL=flags,
        rows=_rows(cache, batch, matrices_B23, seen, mirrored_B),
        matrices_B23=None if batch.matrices_B23 is None else _product(batch.matrices_B23, matrices_B23),
    )


def _product(first_B23: Tensor, second_B23: Tensor) -> Tensor:
    linear_B22 = first_B23[:, :, :2]
    return torch.cat([linear_B22 @ second_B23[:, :, :2], linear_B22 @ second_B23[:, :, 2:] + first_B23[:, :, 2:]], dim=2)


# Rows


def _rows(
    cache: Source, batch: Batch, matrices_B23: Tensor, size: tuple[int, int], mirrored_B: Tensor
) -> dict[str, dict[str, Tensor]]:
    H, W = batch.labels_BHW.shape[1:]
    found: dict[str, dict[str, Tensor]] = {}
    before, after = cache.context_at((H, W)), cache.context_at(size)
    for name, rows in batch.rows.items():
        target = cache.targets[name]
        kind, fields = type(target).__module__.rpartition(".")[2], target.fields(before)
        if not all(is_map(fields.get(field), values) for field, values in rows.items()):
            raise ConfigError(
                f"{name}: the rows of a target of type {kind} say something of a whole view and cannot follow a flip, a crop or "
                f"another matrix; leave it out (open_cache(..., targets=[...])), or let the cache store more views (views.count)"
            )
        of_classes = any(not values.is_floating_point() for values in rows.values())
        if of_classes and mirrored_B.any() and kind not in OF_CLASSES:
            raise ConfigError(
                f"{name}: it is not known how the integers of a target of type {kind} change in a mirror; leave it out"
            )
        grids = {field: layout.shape[-2:] for field, layout in target.fields(after).items()}
        found[name] = {}
        for field, values in rows.items():
            matrices = on_grids(matrices_B23, (H, W), values.shape[-2:], size, grids[field])
            maps = values if values.dim() == 4 else values[:, None]
            warped = (nearest if of_classes else bilinear)(maps, matrices, grids[field])
            if not values.is_floating_point():
                warped = renamed(warped, mirrored_B, cache.symmetry.classes)
            elif fields[field].dims[0] == "class" and mirrored_B.any():
                order = torch.tensor(cache.symmetry.classes, device=values.device)
                warped = torch.where(mirrored_B.to(values.device)[:, None, None, None], warped[:, order], warped)
            found[name][field] = warped if values.dim() == 4 else warped[:, 0]
    return found


def is_map(field: Field | None, values: Tensor) -> bool:
    """Whether decoded values [B, ..., h, w] lie on the grid that the stored field of their name names in its dimensions."""
    return (
        field is not None
        and values.dim() in (3, 4)
        and bool(re.fullmatch(r"y\d+,x\d+", ",".join(field.dims[-2:])))
        and values.shape[-2:] == field.shape[-2:]
    )


def on_grids(
    matrices_B23: Tensor, size: tuple[int, int], grid: tuple[int, ...], new_size: tuple[int, int], new_grid: tuple[int, ...]
) -> Tensor:
    """The same matrices from cells of the new grid to cells of the old one, which cover images of the new and the old size."""
    steps = torch.tensor([new_size[1] / new_grid[1], new_size[0] / new_grid[0]], dtype=torch.float64)  # pixels a cell: x, y
    old = torch.tensor([grid[1] / size[1], grid[0] / size[0]], dtype=torch.float64)  # cells a pixel
    linear_B22, shift_B2 = matrices_B23[:, :, :2], matrices_B23[:, :, 2]
    first_B2 = linear_B22 @ (steps / 2 - 0.5) + shift_B2  # where the middle of cell (0, 0) lies, in pixels
    return torch.cat([(linear_B22 * steps) * old[:, None], ((first_B2 + 0.5) * old - 0.5)[:, :, None]], dim=2)


def renamed(classes: Tensor, mirrored_B: Tensor, permutation: tuple[int, ...] | None) -> Tensor:
    """Classes [B, ...], 255 for none, by the names that they have in a mirrored image."""
    if permutation is None or not mirrored_B.any():
        return classes
    table = geometry.class_table(permutation, classes.device).to(classes.dtype)
    shape = (-1, *[1] * (classes.dim() - 1))
    return torch.where(mirrored_B.to(classes.device).view(shape), table[classes.long()], classes)


# Sampling, at positions that are exact on every device


def bilinear(maps_BChw: Tensor, matrices_B23: Tensor, size: tuple[int, ...], fill: Tensor | None = None) -> Tensor:
    """[B, C, *size] at the positions of the matrices; outside, the colour `fill` [C], or the nearest cell."""
    xs, ys = geometry.coordinates(matrices_B23.to(maps_BChw.device), *size)
    x, y = xs.div(FRACTION, rounding_mode="floor"), ys.div(FRACTION, rounding_mode="floor")
    fx, fy = ((xs - x * FRACTION).float() / FRACTION)[:, None], ((ys - y * FRACTION).float() / FRACTION)[:, None]
    result = torch.zeros((), device=maps_BChw.device)
    for dx, dy, weight in ((0, 0, (1 - fx) * (1 - fy)), (1, 0, fx * (1 - fy)), (0, 1, (1 - fx) * fy), (1, 1, fx * fy)):
        result = result + weight * taken(maps_BChw, x + dx, y + dy, None if fill is None else fill[:, None])
    return result.unflatten(2, size)


def nearest(maps_BChw: Tensor, matrices_B23: Tensor, size: tuple[int, ...], fill: int | bool | None = None) -> Tensor:
    """The same by the nearest cell."""
    xs, ys = geometry.coordinates(matrices_B23.to(maps_BChw.device), *size)
    x, y = ((values + HALF).div(FRACTION, rounding_mode="floor") for values in (xs, ys))
    return taken(maps_BChw, x, y, fill).unflatten(2, size)


def taken(maps_BChw: Tensor, x_BP: Tensor, y_BP: Tensor, fill: Tensor | int | bool | None) -> Tensor:
    """[B, C, P]: what stands in these cells; beyond the border, `fill` or the nearest cell."""
    C, h, w = maps_BChw.shape[1:]
    near_x, near_y = x_BP.clamp(0, w - 1), y_BP.clamp(0, h - 1)
    values = maps_BChw.flatten(2).gather(2, (near_y * w + near_x)[:, None].expand(-1, C, -1))
    if fill is None:
        return values
    return torch.where(((near_x == x_BP) & (near_y == y_BP))[:, None], values, fill)
