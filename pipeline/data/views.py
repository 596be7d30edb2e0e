"""A view is one geometric version of an image: a 2x3 matrix from network-input pixels to prepared-image pixels.

`matrix @ (x, y, 1)` is where the view's pixel (x, y) looks in the prepared image; whole numbers are pixel centres, a negative
determinant means mirrored. The matrix is stored beside the teacher's answers and the student warps with the stored one, so
both see the same pixels. Sampling coordinates are whole numbers of 1/65536 px, computed in 64-bit integers, so labels come out
bit-equal on every device; float coordinates would differ at half-pixel ties.

With `views.crop` a view is smaller than the prepared image: the same matrix, read at fewer pixels.

B images, H W the prepared image, h w the network input (H W without a crop), K classes.
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor

from pipeline.config import Views
from pipeline.datasets.base import IGNORE
from pipeline.seeds import text_digest

VERSION = 1  # bump when the same matrix would give other pixels or labels
FILL = (124, 116, 104)  # RGB of what lies outside the image: ImageNet's mean
_PX = 16  # coordinates have 16 fraction bits,
_FINE = 32  # matrix entries 32: rounding them moves no coordinate by 1/65536 px


def identity() -> np.ndarray:
    return np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def draw(views: Views, image_id: str, view: int, size: tuple[int, int]) -> np.ndarray:
    """The matrix [2, 3] float64 of one view of a prepared image of `size` (height, width); view 0 is the plain image, or a crop of
    it in whole pixels. Depends on (seed, id, view) and on no order."""
    if view == 0 and views.crop is None:
        return identity()
    height, width = size
    zoom, angle, shift_x, shift_y, coin = _uniform(f"{views.seed}/{view}/{image_id}", 5)
    if view == 0:
        assert views.crop is not None
        corner = np.floor([shift_x * (width - views.crop[1] + 1), shift_y * (height - views.crop[0] + 1)])
        return np.concatenate([np.eye(2), corner[:, None]], axis=1)
    zoom = views.scale[0] + (views.scale[1] - views.scale[0]) * zoom
    angle = math.radians(views.rotate_deg) * (2 * angle - 1)
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    linear = np.array([[cos, -sin], [sin, cos]])
    if views.mirror and coin < 0.5:
        linear[:, 0] = -linear[:, 0]
    if views.crop is not None:
        # Of a zoomed image larger than the crop, the crop lies within it; of a smaller one, the image lies within the crop
        seen = np.array([views.crop[1], views.crop[0]])
        place = seen / zoom / 2 + np.array([shift_x, shift_y]) * (np.array([width, height]) - seen / zoom) - 0.5
        return np.concatenate([linear, (place - linear @ ((seen - 1) / 2))[:, None]], axis=1)
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    shift = np.array([width * (2 * shift_x - 1), height * (2 * shift_y - 1)]) * views.shift
    return np.concatenate([linear, (centre + shift - linear @ centre)[:, None]], axis=1)


def _uniform(key: str, count: int) -> list[float]:
    """Numbers in [0, 1) that depend on the key alone: a hash as a counter-based generator, the same for ever and everywhere."""
    digest = text_digest(key, 8 * count)
    return [(int.from_bytes(digest[8 * i : 8 * i + 8], "little") >> 11) * 2.0**-53 for i in range(count)]


def view_of_epoch(image_id: str, epoch: int, count: int) -> int:
    """Which of K views an image is shown in; offset by the id, so that an epoch mixes views."""
    return (epoch + int.from_bytes(text_digest(image_id, 4), "little")) % count


def mirrored(matrices_B23: Tensor) -> Tensor:
    return matrices_B23[:, 0, 0] * matrices_B23[:, 1, 1] < matrices_B23[:, 0, 1] * matrices_B23[:, 1, 0]


def apply(
    images_BHW3: Tensor,
    labels_BHW: Tensor,
    matrices_B23: Tensor,
    *,
    content: tuple[int, int] | Tensor,
    permutation: tuple[int, ...] | None = None,
    size: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and inside-mask of the views: float32 [B, 3, h, w] in 0..255, uint8 [B, h, w], bool [B, h, w], where (h, w) is
    `size`, or (H, W) if that is None.

    Images are bilinear, labels the nearest pixel at floor(x + 1/2), exactly. Outside the image, and outside its `content`
    (height, width, or [B, 2] of them; the rest is padding), pixels have the FILL colour, labels are 255 and `inside` is False.
    A mirrored view permutes the classes. Runs on the device of `images`, and waits for it nowhere if `matrices` lie on the host.
    """
    B, H, W, _ = images_BHW3.shape
    h, w = size or (H, W)
    device = images_BHW3.device
    some_flipped = bool(mirrored(matrices_B23).any())
    matrices_B23 = _moved(matrices_B23, device)
    xs, ys = coordinates(matrices_B23, h, w)
    half = 1 << (_PX - 1)
    nearest, inside = _index((xs + half) >> _PX, (ys + half) >> _PX, W, content)
    labels = torch.where(inside, labels_BHW.reshape(B, -1).gather(1, nearest), IGNORE)
    if some_flipped:
        assert permutation is not None, "a mirrored view of a dataset without a permutation"
        labels = torch.where(mirrored(matrices_B23)[:, None], _table(permutation, device)[labels.int()], labels)

    pixels = images_BHW3.reshape(B, -1, 3)
    fill = _fill(device)
    x0, y0 = xs >> _PX, ys >> _PX
    mask = (1 << _PX) - 1
    fx, fy = (xs & mask).float() / 65536.0, (ys & mask).float() / 65536.0
    result = torch.zeros(B, h * w, 3, dtype=torch.float32, device=device)
    for dx, dy, weight in ((0, 0, (1 - fx) * (1 - fy)), (1, 0, fx * (1 - fy)), (0, 1, (1 - fx) * fy), (1, 1, fx * fy)):
        index, there = _index(x0 + dx, y0 + dy, W, content)
        tap = pixels.gather(1, index[:, :, None].expand(-1, -1, 3)).float()
        result += weight[:, :, None] * torch.where(there[:, :, None], tap, fill)
    # NHWC memory: what channels-last convolutions want, at no cost
    return result.view(B, h, w, 3).permute(0, 3, 1, 2), labels.view(B, h, w), inside.view(B, h, w)


# Constants stay on the device: making one there waits for all the work before it


@functools.cache
def _fill(device: torch.device) -> Tensor:
    return torch.tensor(FILL, dtype=torch.float32, device=device)


@functools.cache
def _table(permutation: tuple[int, ...], device: torch.device) -> Tensor:
    """What a class, a lane or 255 becomes in a mirrored view."""
    return torch.tensor((*permutation, *range(len(permutation), 256)), dtype=torch.uint8, device=device)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def coordinates(matrices_B23, h, w):
    """x and y of every output pixel in the source, [B, h * w] int64 in 1/65536 px."""
    fine = torch.round(matrices_B23.double() * 2.0**_FINE).to(torch.int64)
    x = torch.arange(w, device=fine.device).repeat(h)
    y = torch.arange(h, device=fine.device).repeat_interleave(w)
    half = 1 << (_FINE - _PX - 1)
    return (
        (fine[:, row, 0, None] * x + fine[:, row, 1, None] * y + fine[:, row, 2, None] + half) >> (_FINE - _PX) for row in (0, 1)
    )


def _index(x, y, W, content):
    """Flat source index of whole-pixel positions, 0 where they lie outside, and whether they lie inside."""
    height, width = content.T[:, :, None] if isinstance(content, Tensor) else content
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return torch.where(inside, y * W + x, 0), inside


def existence(
    flags_BL: Tensor, labels_BHW: Tensor, lane_classes: tuple[int, ...], matrices_B23: Tensor, permutation: tuple[int, ...] | None
) -> Tensor:
    """Lane flags of the views, uint8 [B, L]: permuted where mirrored, and gone where too few of the lane's pixels are left.

    Too few is under one in ten thousand of the view's pixels. 255 (unknown) stays.
    """
    if permutation is not None:
        flipped = _moved(mirrored(matrices_B23), flags_BL.device)
        flags_BL = torch.where(
            flipped[:, None], flags_BL[:, _table(permutation, flags_BL.device)[: len(permutation)].int()], flags_BL
        )
    least = labels_BHW[0].numel() / 10_000
    left = torch.stack([(labels_BHW == c).flatten(1).sum(1) >= least for c in lane_classes], dim=1)
    return torch.where(flags_BL == IGNORE, flags_BL, flags_BL * left)
