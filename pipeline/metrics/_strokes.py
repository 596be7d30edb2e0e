"""Lanes as strokes: the curve through a lane's points, its pixels in a frame, and the overlap of two of them.

The geometry of CULane's official program: natural cubic spline over chord length, sampled and kept as float32; segments
from whole pixel to whole pixel, drawn by OpenCV with round ends.

N points of a lane, S = N - 1 segments, H W the frame, h w the box of a stroke. Points are (x, y) in pixels.

Source: XingangPan/SCNN, tools/lane_evaluation (its spline and its lane comparison).
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

SAMPLES = 50                    # of the spline, a segment


def curve(lane_N2: np.ndarray) -> np.ndarray:
    """[50 (N - 1) + 1, 2] float32 samples of a lane of three points or more; shorter lanes as they are."""
    points = np.asarray(lane_N2, np.float32)
    if len(points) < 3:
        return points
    rise_S2 = np.diff(points, axis=0).astype(np.float64)        # S segments; subtracted in float32, as there
    length_S1 = np.sqrt(np.square(rise_S2).sum(axis=1, keepdims=True))
    if not length_S1.all():                             # a repeated point: 0 / 0 spreads to all but the last sample
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
    bends = [(0.0, 0.0)]                                # from the last point to the first
    for factor, x, y in reversed(eliminated):
        bends.append((x - factor * bends[-1][0], y - factor * bends[-1][1]))
    return np.array([(0.0, 0.0), *reversed(bends)])


class Stroke(NamedTuple):
    """The pixels of a drawn lane: a mask of its bounding box, cut at the frame."""

    top: int
    left: int
    mask_hw: np.ndarray             # bool
    area: int


class Canvas:
    """One frame, drawn on again and again.

    A stroke is drawn at its place in the whole frame, so that OpenCV clips it as on a fresh mask (in a cropped mask
    lines that leave it may fall on other pixels); only its box is then read and wiped, and that is what makes it
    fast.
    """

    def __init__(self, size: tuple[int, int], width: int):
        self.frame_HW = np.zeros(size, np.uint8)
        self.width, self.reach = width, width // 2 + 2

    def stroke(self, curve_N2: np.ndarray) -> Stroke:
        pixels = _pixels(curve_N2)
        moved = np.r_[True, (pixels[1:] != pixels[:-1]).any(axis=1)]
        pixels = np.concatenate([pixels[moved], pixels[-1:]])           # twice: OpenCV draws nothing for a lone point
        cv2.polylines(self.frame_HW, [pixels[:, None]], False, 1, self.width)   # equal to one cv2.line a segment
        bounds = np.array(self.frame_HW.shape)[::-1]
        left, top = np.clip(pixels.min(axis=0).astype(np.int64) - self.reach, 0, bounds)
        right, bottom = np.clip(pixels.max(axis=0).astype(np.int64) + self.reach + 1, 0, bounds)
        box = self.frame_HW[top:bottom, left:right]
        mask_hw = box.astype(bool)
        box[:] = 0
        return Stroke(int(top), int(left), mask_hw, np.count_nonzero(mask_hw))


def _pixels(curve_N2: np.ndarray) -> np.ndarray:
    """int32, ties to even; NaN and what does not fit become the least integer, as in OpenCV on x86."""
    rounded = np.rint(curve_N2)
    return np.where(np.abs(rounded) < 2**31, rounded, -2**31).astype(np.int32)


def overlap(a: Stroke, b: Stroke) -> float:
    """IoU of two strokes; NaN if both lie outside the frame."""
    top, left = max(a.top, b.top), max(a.left, b.left)
    bottom = min(a.top + a.mask_hw.shape[0], b.top + b.mask_hw.shape[0])
    right = min(a.left + a.mask_hw.shape[1], b.left + b.mask_hw.shape[1])
    shared = 0
    if top < bottom and left < right:
        shared = np.count_nonzero(a.mask_hw[top - a.top:bottom - a.top, left - a.left:right - a.left]
                                  & b.mask_hw[top - b.top:bottom - b.top, left - b.left:right - b.left])
    union = a.area + b.area - shared
    return shared / union if union else math.nan
