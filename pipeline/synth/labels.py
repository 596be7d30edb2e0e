"""Labels of a scene as CULane has them: annotated lines, their slots, existence flags, and the label drawn from them.

A line is annotated as points on rows H, H - 10, H - 20, ... (row H is one below the image), from the bottom upward,
through whatever hides it. Sources: Pan et al., "Spatial As Deep: Spatial CNN for Traffic Scene Understanding", AAAI
2018, and its seg_label_generate. Departures: the label is drawn through the projected line itself, not through a spline
of its points; the slope at the bottom is that of the first two points, not of the first of 34 equal parts.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from pipeline.synth.camera import project
from pipeline.synth.scene import Scene

ROW_STEP = 10
LINE_WIDTH = 16 / 590  # of the image height
NEAR_PAIR = 120 / 1640  # of the image width: of two lines nearer than this, only the inner one counts
OUTSIDE = 0.04  # of the image width: how far beyond the image's sides points are kept
SLOTS = 4


@dataclass(frozen=True, eq=False)
class Lane:
    """An annotated line."""

    points: np.ndarray  # [n, 2], on the rows, from the bottom upward
    curve: np.ndarray  # [m, 2], the same line on every row between
    slot: int = 0


def annotate(scene: Scene, size: tuple[int, int]) -> list[Lane]:
    """The lines that get a slot, 1..4, from left to right."""
    lanes = [lane for trace in traces(scene, size) for lane in cut_to_rows(trace, size)]
    lanes = nearest_four(lanes, size)
    while True:
        slots = assign_slots([lane.points for lane in lanes], size)
        if 0 not in slots:
            return [replace(lane, slot=slot) for lane, slot in zip(lanes, slots)]
        # Dropping a line may move the others: the slots must be those that the written lines have by themselves.
        lanes = [lane for lane, slot in zip(lanes, slots) if slot]


def traces(scene: Scene, size: tuple[int, int]) -> list[np.ndarray]:
    """Projected centre lines [n, 2], upward and up to the crest that hides the rest."""
    matrix = scene.camera.matrix(size)
    found = []
    for line in scene.lines:
        s = np.arange(line.start_m, min(line.end_m, scene.annotated_m), 0.1)
        pixels, depth = project(matrix, scene.terrain.lift(scene.road.plan(line.offset, s)))
        pixels = pixels[depth > 0.8]
        rising = np.flatnonzero(np.diff(pixels[:, 1]) >= 0)
        found.append(pixels[: rising[0] + 1] if len(rising) else pixels)
    return [trace for trace in found if len(trace) > 1]


def cut_to_rows(trace: np.ndarray, size: tuple[int, int]) -> list[Lane]:
    """The line on its rows; none if too little of it is in the image."""
    height, width = size
    rows = np.arange(height, -1, -ROW_STEP)
    rows = rows[(rows <= trace[0, 1]) & (rows >= trace[-1, 1])]
    x = at_rows(trace, rows)
    kept = np.flatnonzero((x > -OUTSIDE * width) & (x < (1 + OUTSIDE) * width))
    if len(kept) == 0:
        return []
    kept = kept[: np.flatnonzero(np.diff(np.append(kept, -1)) != 1)[0] + 1]  # the lowest unbroken run
    x, rows = x[kept], rows[kept]
    if np.sum((x >= 0) & (x < width) & (rows < height)) < max(2, 0.1 * height / ROW_STEP):
        return []
    every = np.arange(rows[0], rows[-1] - 1, -1)
    return [Lane(np.stack([x, rows], -1), np.stack([at_rows(trace, every), every], -1))]


def at_rows(points: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """x of a line on these rows."""
    return np.interp(-rows, -points[:, 1], points[:, 0])


def bottom_crossing(points: np.ndarray, height: int) -> float:
    """Where the straight line through all points (least squares, x over y) meets the bottom."""
    return float(np.polyval(np.polyfit(points[:, 1], points[:, 0], 1), height))


def slope(points: np.ndarray) -> float:
    """dx/dy at the bottom: negative for a line that leans to the right on its way up."""
    return float((points[1, 0] - points[0, 0]) / (points[1, 1] - points[0, 1]))


def nearest_four(lanes: list[Lane], size: tuple[int, int]) -> list[Lane]:
    """The two lines nearest to the camera on either side, as CULane's annotators mark them; from left to right."""
    height, width = size
    ordered = sorted((bottom_crossing(lane.points, height), k) for k, lane in enumerate(lanes))
    left = [lanes[k] for x, k in ordered if x <= width / 2]
    right = [lanes[k] for x, k in ordered if x > width / 2]
    return left[-2:] + right[:2]


def assign_slots(lines: list[np.ndarray], size: tuple[int, int]) -> list[int]:
    """The slot of each line, given from left to right; 0 for a line that gets none."""
    height, width = size
    kept = list(range(len(lines)))
    for a, b in zip(range(len(lines)), range(1, len(lines))):
        common = np.intersect1d(lines[a][:, 1], lines[b][:, 1])
        if len(common) and np.mean(at_rows(lines[b], common) - at_rows(lines[a], common)) < NEAR_PAIR * width:
            outer = a if lines[a][0, 0] < lines[a][-1, 0] else b
            kept = [k for k in kept if k != outer]
    slots = [0] * len(lines)
    slopes = [slope(lines[k]) for k in kept]
    if len(kept) == 1:
        slots[kept[0]] = 2 if slopes[0] <= 0 else 3
    elif len(kept) == 2:
        slots[kept[0]], slots[kept[1]] = 2, 3
    elif kept:
        change = [n for n in range(1, len(kept)) if slopes[n - 1] <= 0 < slopes[n]]
        right = [n for n, k in enumerate(kept) if bottom_crossing(lines[k], height) > width / 2]
        first_right = (change or right or [len(kept)])[0]
        for n, k in enumerate(kept):
            slot = 3 + n - first_right
            slots[k] = slot if 1 <= slot <= SLOTS else 0
    return slots


def existence(lanes: list[Lane]) -> list[int]:
    """One flag a slot: 1 with at least two annotated rows."""
    return [int(any(lane.slot == slot and len(lane.points) >= 2 for lane in lanes)) for slot in range(1, SLOTS + 1)]


def draw_label(lanes: list[Lane], size: tuple[int, int]) -> np.ndarray:
    """[H, W] uint8: 0 background, 1..4 the slots; lines 16 px wide at 590 rows, later slots over earlier ones."""
    label = np.zeros(size, np.uint8)
    for lane in sorted(lanes, key=lambda lane: lane.slot):
        cv2.polylines(
            label,
            [np.round(lane.curve * 16).astype(np.int32)],
            False,
            lane.slot,
            max(1, round(LINE_WIDTH * size[0])),
            cv2.LINE_8,
            4,
        )
    return label
