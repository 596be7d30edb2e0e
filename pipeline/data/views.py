"""A view is one geometric version of an image: a 2x3 matrix from network-input pixels to prepared-image pixels.

`matrix @ (x, y, 1)` is where the view's pixel (x, y) looks in the prepared image; whole numbers are pixel centres, a negative
determinant means mirrored. The matrix is stored beside the teacher's answers and the student warps with the stored one, so
both see the same pixels. Sampling coordinates are whole numbers of 1/65536 px, computed in 64-bit integers, so labels come out
bit-equal on every device; float coordinates would differ at half-pixel ties. On the CPU OpenCV gathers the pixels, one image
at a time: the same products and sums of the same numbers as by PyTorch's operations, and so the same bits, in a fifth of the time.

With `views.crop` a view is smaller than the prepared image: the same matrix, read at fewer pixels.

B images, H W the prepared image, h w the network input (H W without a crop), K classes.
"""

import functools
import itertools
import math
from collections.abc import Iterable

import cv2
import numpy as np
import torch
from torch import Tensor

from pipeline.config import Views
from pipeline.datasets.base import IGNORE
from pipeline.seeds import text_digest

VERSION = 1  # bump when the same matrix would give other pixels or labels
FILL = (124, 116, 104)  # RGB of what lies outside the image: ImageNet's mean
PX = 16  # coordinates have 16 fraction bits,
_FINE = 32  # matrix entries 32: rounding them moves no coordinate by 1/65536 px
_ROUND = 1 << (_FINE - PX - 1)  # half of 1/65536 px


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
        room = np.array([width - views.crop[1], height - views.crop[0]])
        corner = np.sign(room) * np.floor([shift_x, shift_y] * (np.abs(room) + 1))
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


def drawn(
    views: Views, image_ids: Iterable[str], numbers: Iterable[int], size: tuple[int, int], contents_B2: np.ndarray | None = None
) -> np.ndarray:
    """[B, 2, 3] float64: `draw` of a view of each image. With `fit: pad`, a crop lies in what its image fills of the prepared size
    (`contents`, height and width each) and not in the padding."""
    sizes = itertools.repeat(size) if contents_B2 is None or views.crop is None else contents_B2.tolist()
    return np.stack([draw(views, image_id, int(view), side) for image_id, view, side in zip(image_ids, numbers, sizes)])


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
    H, W = labels_BHW.shape[1:]
    h, w = size or (H, W)
    on_cpu = images_BHW3.device.type == "cpu" and _fits_opencv(matrices_B23, H, W, h, w)
    assert permutation is not None or not mirrored(matrices_B23).any(), "a mirrored view of a dataset without a permutation"
    return (_by_opencv if on_cpu else _by_torch)(images_BHW3, labels_BHW, matrices_B23, content, permutation, h, w)


def _by_torch(images_BHW3, labels_BHW, matrices_B23, content, permutation, h, w):
    B, _, W, _ = images_BHW3.shape
    device = images_BHW3.device
    some_flipped = bool(mirrored(matrices_B23).any())
    matrices_B23 = _moved(matrices_B23, device)
    xs, ys = coordinates(matrices_B23, h, w)
    half = 1 << (PX - 1)
    nearest, inside = _index((xs + half) >> PX, (ys + half) >> PX, W, content)
    labels = torch.where(inside, labels_BHW.reshape(B, -1).gather(1, nearest), IGNORE)
    if some_flipped:
        labels = torch.where(mirrored(matrices_B23)[:, None], class_table(permutation, device)[labels.int()], labels)

    pixels = images_BHW3.reshape(B, -1, 3)
    fill = _fill(device)
    x0, y0 = xs >> PX, ys >> PX
    mask = (1 << PX) - 1
    fx, fy = (xs & mask).float() / 65536.0, (ys & mask).float() / 65536.0
    result = torch.zeros(B, h * w, 3, dtype=torch.float32, device=device)
    for dx, dy, weight in ((0, 0, (1 - fx) * (1 - fy)), (1, 0, fx * (1 - fy)), (0, 1, (1 - fx) * fy), (1, 1, fx * fy)):
        index, there = _index(x0 + dx, y0 + dy, W, content)
        tap = pixels.gather(1, index[:, :, None].expand(-1, -1, 3)).float()
        result += weight[:, :, None] * torch.where(there[:, :, None], tap, fill)
    # NHWC memory: what channels-last convolutions want, at no cost
    return result.view(B, h, w, 3).permute(0, 3, 1, 2), labels.view(B, h, w), inside.view(B, h, w)


_OPENCV_LIMIT = 2**15 - 2  # its maps are of int16
_BAND = 2**15  # pixels at a time: what is made of them stays in the processor's cache


def _fits_opencv(matrices_B23, H, W, h, w) -> bool:
    """Whether all positions fit int16, and so all coordinates int32; positions are linear in x and y, so corners tell."""
    corners_34 = torch.tensor([[0, w - 1, 0, w - 1], [0, 0, h - 1, h - 1], [1, 1, 1, 1]], dtype=torch.float64)
    return max(H, W, h, w) < _OPENCV_LIMIT and bool((matrices_B23.double() @ corners_34).abs().lt(_OPENCV_LIMIT).all())


def _by_opencv(images_BHW3, labels_BHW, matrices_B23, content, permutation, h, w):
    B = len(images_BHW3)
    shown, labels = np.empty((B, h, w, 3), np.float32), np.empty((B, h, w), np.uint8)
    inside = np.empty((B, h, w), bool)
    table = None if permutation is None else class_table(permutation, torch.device("cpu")).numpy()
    contents = content.tolist() if isinstance(content, Tensor) else [content] * B
    for i, (flipped, (height, width)) in enumerate(zip(mirrored(matrices_B23).tolist(), contents)):
        image, label = (whole[i, :height, :width].numpy() for whole in (images_BHW3, labels_BHW))
        _warp(image, label, _fine(matrices_B23[i]).numpy(), table if flipped else None, shown[i], labels[i], inside[i])
    # NHWC memory: what channels-last convolutions want, at no cost
    return torch.from_numpy(shown).permute(0, 3, 1, 2), torch.from_numpy(labels), torch.from_numpy(inside)


def _warp(image, label, fine, table, shown, labels, inside) -> None:
    """One view into `shown`, `labels` and `inside`; `image` and `label` are without padding, `table` is that of a mirrored view."""

    def gather(source, at, outside):
        nearest = dict(interpolation=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=outside)
        return cv2.remap(source, at, None, **nearest)  # type: ignore[call-overload]  # None is right for maps of int16

    (height, width), (h, w) = label.shape, labels.shape
    framed = cv2.copyMakeBorder(
        image, 1, 0, 1, 0, cv2.BORDER_CONSTANT, value=FILL
    )  # its pixel (x + 1, y + 1) is the image's (x, y)
    half, one, columns = 1 << (PX - 1), 1 << PX, fine[:, 0, None] * np.arange(w)
    for top in range(0, h, max(1, _BAND // w)):
        band = slice(top, min(top + max(1, _BAND // w), h))
        starts = fine[:, 1, None] * np.arange(band.start, band.stop) + fine[:, 2, None] + _ROUND
        x, y = (((columns[row] + starts[row, :, None]) >> (_FINE - PX)).astype(np.int32) for row in (0, 1))
        near_x, near_y = (((c + half) >> PX).astype(np.int16) for c in (x, y))
        inside[band] = (near_x >= 0) & (near_x < width) & (near_y >= 0) & (near_y < height)
        nearest = gather(label, cv2.merge([near_x, near_y]), IGNORE)
        labels[band] = nearest if table is None else cv2.LUT(nearest, table)

        at = cv2.merge([((c + one) >> PX).astype(np.int16) for c in (x, y)])
        fx, fy = ((c & (one - 1)).astype(np.float32) * np.float32(1 / one) for c in (x, y))
        if not fx.any() and not fy.any():  # weights of 1, 0, 0 and 0
            shown[band] = gather(framed, at, FILL)
            continue
        shown[band] = 0
        for dx, dy, weight in ((0, 0, (1 - fx) * (1 - fy)), (1, 0, fx * (1 - fy)), (0, 1, (1 - fx) * fy), (1, 1, fx * fy)):
            product = cv2.merge([weight] * 3)
            product *= gather(framed[dy:, dx:], at, FILL)
            shown[band] += product


# Constants stay on the device: making one there waits for all the work before it


@functools.cache
def _fill(device: torch.device) -> Tensor:
    return torch.tensor(FILL, dtype=torch.float32, device=device)


@functools.cache
def class_table(permutation: tuple[int, ...], device: torch.device) -> Tensor:
    """What a class, a lane or 255 becomes in a mirrored view."""
    return torch.tensor((*permutation, *range(len(permutation), 256)), dtype=torch.uint8, device=device)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def coordinates(matrices_B23, h, w):
    """x and y of every output pixel in the source, [B, h * w] int64 in 1/65536 px."""
    fine = _fine(matrices_B23)
    x = torch.arange(w, device=fine.device).repeat(h)
    y = torch.arange(h, device=fine.device).repeat_interleave(w)
    return (
        (fine[:, row, 0, None] * x + fine[:, row, 1, None] * y + fine[:, row, 2, None] + _ROUND) >> (_FINE - PX) for row in (0, 1)
    )


def _fine(matrices):
    return torch.round(matrices.double() * 2.0**_FINE).to(torch.int64)


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
            flipped[:, None], flags_BL[:, class_table(permutation, flags_BL.device)[: len(permutation)].int()], flags_BL
        )
    least = labels_BHW[0].numel() / 10_000
    if labels_BHW.device.type == "cpu":  # NumPy counts in a fiftieth of the time in which PyTorch adds
        pixels_BL = torch.tensor([[np.count_nonzero(label == c) for c in lane_classes] for label in labels_BHW.numpy()])
    else:
        pixels_BL = torch.stack([(labels_BHW == c).flatten(1).sum(1) for c in lane_classes], dim=1)
    return torch.where(flags_BL == IGNORE, flags_BL, flags_BL * (pixels_BL >= least))
