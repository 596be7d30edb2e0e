"""Thick lines, pixel for pixel as OpenCV 4 draws them with `cv::line` (8-connected), whatever OpenCV is installed.

Scores of lanes depend on the drawing, and OpenCV 5 draws lines that leave the frame, or begin far outside, on other
pixels than OpenCV 4. So the rule is stated here. A line of width w >= 2 from p to q, in fixed point with 16 fractional
bits, is the union of

- the rectangle with the corners p + d, p - d, q - d, q + d, filled row by row between two chains of edges whose slopes
  are rounded to 2^-16 px a row, where d is perpendicular to q - p and w / 2 long ((w + 1) / 2 for odd w);
- the four sides of this rectangle, one pixel wide, each first clipped to the frame. Clipping moves the start of the
  walk along the side, which is why a cropped frame may get other pixels;
- a disc of radius (w + 1) // 2 px (midpoint circle) around p and around q.

A line of width 1 is Bresenham's, clipped to the frame first. A rectangle with a corner that does not fit 32 bits is not
filled, but its sides are drawn: CULane's official program draws such lines for lanes that repeat a point.

H W the frame, S lines, R rows. Points are (x, y): int64, whole pixels in the range of int32.

Source: OpenCV 4.10, modules/imgproc/src/drawing.cpp (ThickLine, FillConvexPoly, Line2, Circle, clipLine).
"""

import functools
from collections.abc import Iterator

import numpy as np

SHIFT = 16
ONE, HALF = 1 << SHIFT, 1 << SHIFT - 1
WIDEST = 32767  # as in OpenCV


def draw(frame_HW: np.ndarray, start_S2: np.ndarray, end_S2: np.ndarray, width: int) -> None:
    """Set the pixels of S lines to 1. `frame_HW`: uint8; int64 points; `width` from 1 to WIDEST."""
    if width == 1:
        _draw_thin(frame_HW, start_S2, end_S2)
    else:
        draw_bodies(frame_HW, start_S2, end_S2, width)
        draw_sides(frame_HW, start_S2, end_S2, width)


def draw_bodies(frame_HW: np.ndarray, start_S2: np.ndarray, end_S2: np.ndarray, width: int) -> None:
    """The filled rectangles and the discs: the part whose pixels do not depend on the frame."""
    centres_P2, half_R = np.unique(np.concatenate([start_S2, end_S2]), axis=0), _disc((width + 1) // 2)
    x_P1, y_P1 = centres_P2.T[:, :, None]
    rows_PR = y_P1 + np.arange(len(half_R)) - len(half_R) // 2
    spans = [(rows_PR.ravel(), (x_P1 - half_R).ravel(), (x_P1 + half_R).ravel())]
    moved_S = (start_S2 != end_S2).any(axis=1)
    for corners in _corners(start_S2[moved_S], end_S2[moved_S], width).tolist():
        spans += _filled(corners, frame_HW.shape)
    _set_spans(frame_HW, *(np.concatenate(parts) for parts in zip(*spans)))


def draw_sides(frame_HW: np.ndarray, start_S2: np.ndarray, end_S2: np.ndarray, width: int) -> None:
    """The sides of the rectangles."""
    moved_S = (start_S2 != end_S2).any(axis=1)
    corners_S42 = _corners(start_S2[moved_S], end_S2[moved_S], width)
    before, after = np.roll(corners_S42, 1, axis=1).reshape(-1, 2), corners_S42.reshape(-1, 2)
    height, width_px = frame_HW.shape
    _draw_fine(frame_HW, *_both_clipped(before, after, (width_px << SHIFT) - 1, (height << SHIFT) - 1))


def _corners(start_S2: np.ndarray, end_S2: np.ndarray, width: int) -> np.ndarray:
    """[S, 4, 2] int64, fixed point; start and end differ."""
    rise_S2 = (end_S2 - start_S2).astype(np.float64)
    x, y = -rise_S2[:, 0], rise_S2[:, 1]
    reach = ((width << SHIFT - 1) + (width & 1) * HALF) / np.sqrt(x * x + y * y)
    d_S2 = np.stack([np.rint(y * reach), np.rint(x * reach)], axis=1).astype(np.int64)
    p, q = start_S2 << SHIFT, end_S2 << SHIFT
    return np.stack([p + d_S2, p - d_S2, q - d_S2, q + d_S2], axis=1)


@functools.lru_cache
def _disc(radius: int) -> np.ndarray:
    """[2 radius + 1] half widths, from the top row to the lowest."""
    half = [0] * (radius + 1)
    error, dx, dy = 0, radius, 0
    while dx >= dy:
        half[dy], half[dx] = max(half[dy], dx), max(half[dx], dy)
        dy += 1
        error += 2 * dy - 1
        if error > 0:
            error -= 2 * dx - 1
            dx -= 1
    return np.array(half[:0:-1] + half)


def _filled(corners: list[list[int]], shape: tuple[int, int]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows of a rectangle with the first and last column of each, in pieces between two corners."""
    columns, rows = ([corner[axis] + HALF >> SHIFT for corner in corners] for axis in (0, 1))
    if _int32(max(columns)) < 0 or _int32(max(rows)) < 0 or _int32(min(columns)) >= shape[1] or _int32(min(rows)) >= shape[0]:
        return  # also if a corner does not fit 32 bits
    y, last = min(rows), min(max(rows), shape[0] - 1)
    top = min(range(4), key=lambda k: corners[k][1])
    chains = [_Chain(top, 1, y), _Chain(top, 3, y)]
    left = 4  # corners that a chain may still go to
    while y <= last:
        for chain in chains:
            if y >= chain.until:
                left = chain.turn(y, corners, rows, left)
        if left < 0:
            return
        until = min(chains[0].until, chains[1].until, last + 1)
        rows_R = np.arange(max(y, 0), until)
        a_R, b_R = (chain.x + chain.slope * (rows_R - y) for chain in chains)
        first_R, last_R = ((x_R + HALF >> SHIFT).astype(np.int32) for x_R in (np.minimum(a_R, b_R), np.maximum(a_R, b_R)))
        yield rows_R, first_R, last_R
        for chain in chains:
            chain.x += chain.slope * (until - y)
        y = until


class _Chain:
    """The edges on one side of a rectangle, from the top corner down."""

    def __init__(self, corner: int, step: int, until: int):
        self.corner, self.step, self.until = corner, step, until
        self.x, self.slope = -ONE, 0

    def turn(self, y: int, corners: list[list[int]], rows: list[int], left: int) -> int:
        """Go on to the edge that crosses the next row; returns `left`, below 0 if there is none."""
        corner = self.corner
        following = (corner + self.step) % 4
        while left > 0:
            left -= 1
            if rows[following] > y:
                run, count = corners[following][0] - corners[corner][0], rows[following] - y
                self.corner, self.until, self.x = following, rows[following], corners[corner][0]
                self.slope = _quotient(2 * run + count, 2 * count)
                return left
            corner, following = following, (following + self.step) % 4
        return left - 1


def _set_spans(frame_HW: np.ndarray, rows_R: np.ndarray, left_R: np.ndarray, right_R: np.ndarray) -> None:
    """Columns from `left` to `right` of a row each, what lies outside the frame left out: ends are counted and summed up."""
    height, width = frame_HW.shape
    inside_R = (rows_R >= 0) & (rows_R < height) & (right_R >= 0) & (left_R < width)
    if not inside_R.any():
        return
    rows_R, left_R, right_R = rows_R[inside_R], left_R[inside_R].clip(0), right_R[inside_R].clip(None, width - 1)
    top, bottom = rows_R.min(), rows_R.max() + 1
    begin_R, size = (rows_R - top) * (width + 1), (bottom - top) * (width + 1)
    opened, closed = (np.bincount(begin_R + columns_R, minlength=size) for columns_R in (left_R, right_R + 1))
    frame_HW[top:bottom] |= ((opened - closed).cumsum() > 0).reshape(-1, width + 1)[:, :-1]


def _draw_fine(frame_HW: np.ndarray, x1: np.ndarray, y1: np.ndarray, x2: np.ndarray, y2: np.ndarray) -> None:
    """One pixel in each step along the longer axis of lines [S] between fixed-point ends, and the end itself."""
    height, width = frame_HW.shape
    flat = np.abs(x2 - x1) > np.abs(y2 - y1)
    u1, u2, v1, v2 = np.where(flat, (x1, x2, y1, y2), (y1, y2, x1, x2))  # u along the longer axis
    u1, u2, v1, v2 = np.where(u2 < u1, (u2, u1, v2, v1), (u1, u2, v1, v2))
    rise, run = v2 - v1 << SHIFT, u2 - u1 | 1
    slope = np.sign(rise) * (np.abs(rise) // run)
    line, k = _counted((u2 - u1 >> SHIFT) + 1)
    u = np.concatenate([u1[line] + (k << SHIFT), u2]) + HALF >> SHIFT
    v = np.concatenate([v1[line] + k * slope[line], v2]) + HALF >> SHIFT
    flat = np.concatenate([flat[line], flat])
    _set_pixels(frame_HW, np.where(flat, u, v), np.where(flat, v, u))


def _draw_thin(frame_HW: np.ndarray, start_S2: np.ndarray, end_S2: np.ndarray) -> None:
    """Bresenham's lines, from left to right."""
    x1, y1, x2, y2 = _both_clipped(start_S2, end_S2, frame_HW.shape[1] - 1, frame_HW.shape[0] - 1)
    x1, y1, x2, y2 = np.where(x2 < x1, (x2, y2, x1, y1), (x1, y1, x2, y2))
    run, rise, down = x2 - x1, np.abs(y2 - y1), np.sign(y2 - y1)
    long, short = np.maximum(run, rise), np.minimum(run, rise)
    line, k = _counted(long + 1)
    aside = np.maximum(-((long[line] - 2 * short[line] * k) // np.maximum(2 * long[line], 1)), 0)
    steep = (rise > run)[line]
    _set_pixels(frame_HW, x1[line] + np.where(steep, aside, k), y1[line] + down[line] * np.where(steep, k, aside))


def _counted(count_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each line that often its index, and 0, 1, 2, ... beside it."""
    line = np.repeat(np.arange(len(count_S)), count_S)
    return line, np.arange(len(line)) - np.repeat(np.cumsum(count_S) - count_S, count_S)


def _set_pixels(frame_HW: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    inside = (x >= 0) & (x < frame_HW.shape[1]) & (y >= 0) & (y < frame_HW.shape[0])
    frame_HW[y[inside], x[inside]] = 1


def _both_clipped(start_S2: np.ndarray, end_S2: np.ndarray, right: int, bottom: int) -> np.ndarray:
    return _clipped(start_S2[:, 0], start_S2[:, 1], end_S2[:, 0], end_S2[:, 1], right, bottom)


def _clipped(x1, y1, x2, y2, right: int, bottom: int) -> np.ndarray:
    """[4, lines that meet the frame]: x1, y1, x2, y2 within it, cut first above and below, then left and right."""
    ends = x1, y1, x2, y2 = np.array([x1, y1, x2, y2])

    def sides(x, y):
        return (x < 0) * 1 + (x > right) * 2 + (y < 0) * 4 + (y > bottom) * 8

    def moved(edge, u, u1, u2, v1, v2):  # in double precision, cut towards zero
        return ((edge - u).astype(np.float64) * (v2 - v1) / (u2 - u1)).astype(np.int64)

    one, two = sides(x1, y1), sides(x2, y2)
    cut = ((one & two) == 0) & ((one | two) != 0)
    for x, y, side in ((x1, y1, one), (x2, y2, two)):
        out = cut & (side >= 4)
        edge = np.where(side < 8, 0, bottom)[out]
        x[out] += moved(edge, y[out], y1[out], y2[out], x1[out], x2[out])
        y[out] = edge
        side[out] = sides(x[out], edge)
    cut &= ((one & two) == 0) & ((one | two) != 0)
    for x, y, side in ((x1, y1, one), (x2, y2, two)):
        out = cut & (side > 0)
        edge = np.where(side == 1, 0, right)[out]
        y[out] += moved(edge, x[out], x1[out], x2[out], y1[out], y2[out])
        x[out], side[out] = edge, 0
    return ends[:, (one | two) == 0]


def _quotient(a: int, b: int) -> int:
    """Towards zero, for b > 0."""
    return a // b if a >= 0 else -(-a // b)


def _int32(value: int) -> int:
    return (value + 2**31) % 2**32 - 2**31
