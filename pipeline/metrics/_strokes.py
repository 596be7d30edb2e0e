"""Lanes as strokes: the curve through a lane's points, its pixels in a frame, and the overlap of two of them.

The geometry of CULane's official program: natural cubic spline over chord length, sampled and kept as float32; segments
from whole pixel to whole pixel, drawn as OpenCV 4 draws them (`_drawing.py`).

N points of a lane, S = N - 1 segments, H W the frame, h w the box of a stroke. Points are (x, y) in pixels.

Source: XingangPan/SCNN, tools/lane_evaluation (its spline and its lane comparison).
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from pipeline.metrics._drawing import draw, draw_bodies, draw_sides

SAMPLES = 50  # of the spline, a segment
FAR = 2**15  # px from the frame's corner; below, a line stays within its box
PIECE = 8  # segments that are drawn once, if each is this short and no wider, in px
LONGEST, WIDEST = 4, 128


@np.errstate(over="ignore", invalid="ignore")
def curve(lane_N2: np.ndarray) -> np.ndarray:
    """[50 (N - 1) + 1, 2] float32 samples of a lane of three points or more; shorter lanes as they are."""
    points = np.asarray(lane_N2, np.float32)
    if len(points) < 3:
        return points
    rise_S2 = np.diff(points, axis=0).astype(np.float64)  # S segments; subtracted in float32, as there
    length_S1 = np.sqrt(np.square(rise_S2).sum(axis=1, keepdims=True))
    if not length_S1.all():  # a repeated point: 0 / 0 spreads to all but the last sample
        return np.concatenate([np.full_like(points[:1], np.nan), points[-1:]])
    slope_S2 = rise_S2 / length_S1
    bend_N2 = _second_derivatives(length_S1[:, 0].tolist(), (6 * np.diff(slope_S2, axis=0)).tolist())
    a, b = points[:-1].astype(np.float64), slope_S2 - (2 * length_S1 * bend_N2[:-1] + length_S1 * bend_N2[1:]) / 6
    c, d = bend_N2[:-1] / 2, (bend_N2[1:] - bend_N2[:-1]) / (6 * length_S1)
    t_S50 = length_S1 / SAMPLES * np.arange(SAMPLES)
    samples = np.empty((len(a) * SAMPLES + 1, 2), np.float32)
    for axis in (0, 1):
        a1, b1, c1, d1 = (part[:, axis, None] for part in (a, b, c, d))
        samples[:-1, axis] = (a1 + b1 * t_S50 + c1 * (t_S50 * t_S50) + d1 * (t_S50 * t_S50 * t_S50)).ravel()
    samples[-1] = points[-1]
    return samples


def _second_derivatives(lengths: list[float], rights: list[list[float]]) -> np.ndarray:
    """[N, 2] of a natural spline, eliminated in the C++ program's order: SciPy's splines differ in the last digits."""
    factor = x = y = 0.0
    eliminated = []
    for before, after, (right_x, right_y) in zip(lengths, lengths[1:], rights):
        pivot = 2 * (before + after) - before * factor
        factor, x, y = after / pivot, (right_x - before * x) / pivot, (right_y - before * y) / pivot
        eliminated.append((factor, x, y))
    bends = [(0.0, 0.0)]  # from the last point to the first
    for factor, x, y in reversed(eliminated):
        bends.append((x - factor * bends[-1][0], y - factor * bends[-1][1]))
    return np.array([(0.0, 0.0), *reversed(bends)])


class Stroke(NamedTuple):
    """The pixels of a drawn lane: a mask of its bounding box, cut at the frame."""

    top: int
    left: int
    mask_hw: np.ndarray  # bool
    area: int


class Canvas:
    """One frame, drawn on again and again: only the box of a stroke is read and wiped.

    The pieces of a curve, PIECE short segments each, recur: each kind is drawn once and pasted from then on. Where a piece
    does not lie in the frame as a whole, the sides of its rectangles are drawn for this frame (`_drawing.py` says why).
    """

    def __init__(self, size: tuple[int, int], width: int):
        self.frame_HW = np.zeros(size, np.uint8)
        self.width, self.reach = width, width // 2 + 2

    def stroke(self, curve_N2: np.ndarray) -> Stroke:
        pixels = _pixels(curve_N2)
        moved = (pixels[1:] != pixels[:-1]).any(axis=1)
        moved[:1] |= not moved.any()  # a lone point is a disc
        left, top, right, bottom = self._draw(pixels[:-1][moved], pixels[1:][moved])
        box = self.frame_HW[top:bottom, left:right]
        mask_hw = box.astype(bool)
        box[:] = 0
        return Stroke(top, left, mask_hw, int(np.count_nonzero(mask_hw)))

    def _draw(self, start_S2: np.ndarray, end_S2: np.ndarray) -> list[int]:
        """Draws S segments of one curve; returns left, top, right, bottom of a box that holds them in the frame. P pieces."""
        rise_S2, firsts_P = end_S2 - start_S2, np.arange(0, len(start_S2), PIECE)
        low_P2 = np.minimum.reduceat(np.minimum(start_S2, end_S2), firsts_P) - self.reach
        high_P2 = np.maximum.reduceat(np.maximum(start_S2, end_S2), firsts_P) + self.reach + 1
        bounds = np.array(self.frame_HW.shape[::-1])
        far_P = np.maximum(-low_P2, high_P2).max(axis=1) >= FAR
        seen_P = ((low_P2 < bounds) & (high_P2 > 0)).all(axis=1) | far_P
        whole_P: Any = ((low_P2 >= 0) & (high_P2 <= bounds)).all(axis=1)
        longest_P = np.maximum.reduceat(np.abs(rise_S2).max(axis=1), firsts_P)
        pasted_P = seen_P & ~far_P & (longest_P <= LONGEST) & (1 < self.width <= WIDEST)
        for piece in np.flatnonzero(pasted_P).tolist():
            rises = rise_S2[piece * PIECE : (piece + 1) * PIECE].tobytes()
            self._paste(_stamp(rises, self.width, bool(whole_P[piece])), *low_P2[piece].tolist())
        for chosen_P, how in ((seen_P & ~pasted_P, draw), (pasted_P & ~whole_P, draw_sides)):
            if chosen_P.any():
                chosen_S = chosen_P.repeat(PIECE)[: len(start_S2)]
                how(self.frame_HW, start_S2[chosen_S], end_S2[chosen_S], self.width)
        if far_P.any():
            return [0, 0, *bounds.tolist()]
        return [*low_P2.min(axis=0).clip(0, bounds).tolist(), *high_P2.max(axis=0).clip(0, bounds).tolist()]

    def _paste(self, stamp_hw: np.ndarray, left: int, top: int) -> None:
        height, width = stamp_hw.shape
        part = self.frame_HW[max(top, 0) : top + height, max(left, 0) : left + width]
        part |= stamp_hw[max(-top, 0) :, max(-left, 0) :][: part.shape[0], : part.shape[1]]


@functools.lru_cache(maxsize=4096)
def _stamp(rises: bytes, width: int, sides: bool) -> np.ndarray:
    """uint8 [h, w]: successive segments with these (dx, dy) in their box, `width` >= 2; without the sides of their rectangles,
    which may depend on the frame, if asked."""
    rise_S2 = np.frombuffer(rises, np.int64).reshape(-1, 2)
    points = np.concatenate([[[0, 0]], rise_S2.cumsum(axis=0)])
    points += width // 2 + 2 - points.min(axis=0)
    stamp_hw = np.zeros(points.max(axis=0)[::-1] + width // 2 + 3, np.uint8)
    if len(rise_S2) == 1:
        (draw if sides else draw_bodies)(stamp_hw, points[:1], points[1:], width)
        return stamp_hw
    middle = len(rise_S2) // 2
    for part_S2, place in ((rise_S2[:middle], points[: middle + 1]), (rise_S2[middle:], points[middle:])):
        part_hw = _stamp(part_S2.tobytes(), width, sides)
        left, top = place.min(axis=0) - width // 2 - 2
        stamp_hw[top : top + part_hw.shape[0], left : left + part_hw.shape[1]] |= part_hw
    return stamp_hw


def _pixels(curve_N2: np.ndarray) -> np.ndarray:
    """int64, ties to even; NaN and what does not fit 32 bits become the least such integer, as in OpenCV on x86."""
    rounded = np.rint(curve_N2)
    return np.where(np.abs(rounded) < 2**31, rounded, -(2**31)).astype(np.int64)


def overlap(a: Stroke, b: Stroke) -> float:
    """IoU of two strokes; NaN if both lie outside the frame."""
    top, left = max(a.top, b.top), max(a.left, b.left)
    bottom = min(a.top + a.mask_hw.shape[0], b.top + b.mask_hw.shape[0])
    right = min(a.left + a.mask_hw.shape[1], b.left + b.mask_hw.shape[1])
    shared = 0
    if top < bottom and left < right:
        shared = int(
            np.count_nonzero(
                a.mask_hw[top - a.top : bottom - a.top, left - a.left : right - a.left]
                & b.mask_hw[top - b.top : bottom - b.top, left - b.left : right - b.left]
            )
        )
    union = a.area + b.area - shared
    return shared / union if union else math.nan
