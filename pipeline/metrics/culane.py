"""CULane: probability maps to lane points, and the official F1 with the counts of the official C++ program.

F1 = 2PR / (P + R), with P = TP / (TP + FP) and R = TP / (TP + FN) summed over the frames of a list. Per frame each
lane becomes a curve (natural cubic spline over chord length, 50 samples a segment, float32), the curve a stroke 30 px
wide (`_strokes.py`), a pair of lanes the IoU of their strokes; lanes are assigned one to one (`_assignment.py`) and a
pair is a hit if its IoU is **above** 0.5. Crossroad frames have no true lanes: tables give their number of false
positives.

A lane is [N, 2] (x, y) in pixels of the full frame, from the bottom up; x may lie outside the frame. A file has one
lane a line, `x y x y ...`. Sizes are (height, width).

Sources: Pan et al., "Spatial As Deep: Spatial CNN for Traffic Scene Understanding", AAAI 2018, and its code
(XingangPan/SCNN, tools/lane_evaluation); cardwing/Codes-for-Lane-Detection, ERFNet-CULane-PyTorch (maps to points).
Departures: a missing truth file is an error (there: a frame without lanes); every frame of a list is counted
(multi-threaded builds have been seen to leave out the last n mod 20). A lane that repeats a point has no defined
spline there; here its NaNs become pixels as they do on x86.
"""

import contextlib
import functools
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from pipeline.errors import DatasetError
from pipeline.metrics._assignment import assign
from pipeline.metrics._strokes import Canvas, curve, overlap
from pipeline.paths import below, path_fault
from pipeline.progress import Progress

FRAME = (590, 1640)
ROW_STEP = 20                   # px of the full frame between two predicted points
BLUR = (9, 9)
LEAST = 77                      # of 255: the first 8-bit value above a probability of 0.3
FRAMES_A_TASK = 64

# What `stream >> double` takes: an exponent sign without digits spoils the number, anything else ends it.
NUMBER = re.compile(rb"\s*((?>[+-]?(?:\d+\.?\d*|\.\d+))(?:[eE][+-]?\d+|(?![eE])))")


def read_lines(path: Path) -> list[np.ndarray]:
    """Lanes as float32. Every line is one, also a blank one; pairs are read until a token is no number."""
    *lines, rest = Path(path).read_bytes().split(b"\n")
    return [_points(line) for line in (lines + [rest] if rest else lines)]


def _points(line: bytes) -> np.ndarray:
    values, at = [], 0
    while found := NUMBER.match(line, at):
        values.append(float(found[1]))
        at = found.end()
    return np.array(values[:len(values) // 2 * 2], np.float32).reshape(-1, 2)


def write_lines(path: Path, lanes: Iterable[np.ndarray]) -> None:
    """Write a `.lines.txt`, also if there are no lanes; whole numbers without a point."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("".join(f"{_text(value)} " for value in np.ravel(lane)) + "\n" for lane in lanes))


def _text(value) -> str:
    return np.format_float_positional(value, trim="-")


def probabilities_to_lines(
    probabilities: np.ndarray, existence: Sequence[float], frame: tuple[int, int] = FRAME, crop_top: int = 240
) -> list[np.ndarray]:
    """[N, 2] int32 points of each lane that exists, in slot order, for maps of the frame below `crop_top`.

    `probabilities`: [5, H, W] with the background first, or [4, H, W]; `existence`: four probabilities. Each map is
    cut (not rounded) to 8 bits and averaged over 9 x 9; every 20 px of the frame from its bottom row, the first
    maximum of the nearest map row is a point if its probability is above 0.3. A lane needs an existence above 0.5 and
    two points. On CULane these are 18 rows; other frames have as many as there are steps of 20 px below `crop_top`.
    """
    maps_LHW = np.asarray(probabilities)[-4:]
    height, width = maps_LHW.shape[1:]
    frame_height, frame_width = frame
    lanes = []
    for map_HW, exists in zip(maps_LHW, existence, strict=True):
        if not exists > 0.5:
            continue
        mean_HW = cv2.blur((map_HW * 255).astype(np.uint8), BLUR)       # border reflect-101, to the nearest
        points = []
        for up in range(0, frame_height - crop_top, ROW_STEP):
            row = _round(height - up / (frame_height - crop_top) * height)      # rows and columns count from 1
            if row < 1:
                break
            column = int(mean_HW[row - 1].argmax()) + 1
            if mean_HW[row - 1, column - 1] >= LEAST:
                points.append((_round(column * frame_width / width) - 1, frame_height - up - 1))
        if len(points) >= 2:
            lanes.append(np.array(points, np.int32))
    return lanes


def _round(value: float) -> int:
    return math.floor(value + 0.5)                      # halves up; Python's round would take the even one


def lane_ious(truths: Sequence[np.ndarray], predictions: Sequence[np.ndarray], canvas: Canvas) -> list[list[float]]:
    """IoU of each true lane with each predicted one; 0 if either has fewer than two points."""
    true, predicted = ([canvas.stroke(curve(lane)) if len(lane) >= 2 else None for lane in lanes]
                       for lanes in (truths, predictions))
    return [[overlap(a, b) if a and b else 0.0 for b in predicted] for a in true]


def matched_ious(truths: Sequence[np.ndarray], predictions: Sequence[np.ndarray], canvas: Canvas) -> list[float]:
    """IoU of each pair of the assignment; those above the threshold are the true positives."""
    if not truths or not predictions:
        return []
    ious = lane_ious(truths, predictions, canvas)
    return [ious[i][j] for i, j in enumerate(assign(ious)) if j >= 0]


def score(
    pred_root: Path,
    truth_root: Path,
    lists: Mapping[str, Path],
    iou: float = 0.5,
    width: int = 30,
    size: tuple[int, int] = FRAME,
    workers: int | None = None,
) -> dict:
    """Official counts and ratios of the `.lines.txt` below `pred_root` against those below `truth_root`.

    `lists`: the test lists by category, e.g. {"normal": .../test0_normal.txt}; of each line the first word counts.
        {"categories": {name: ratios}, "total": ratios of the sums, "frames": count, "missing": count}
    with the counts and ratios of `ratios`; missing are the frames without a prediction file, which means no lanes.
    `workers`: processes, None for one a core. Raises DatasetError for a list, a truth file or a folder that does not
    exist.
    """
    return scores(pred_root, truth_root, lists, [iou], width, size, workers)[iou]


def scores(
    pred_root: Path,
    truth_root: Path,
    lists: Mapping[str, Path],
    ious: Sequence[float],
    width: int = 30,
    size: tuple[int, int] = FRAME,
    workers: int | None = None,
) -> dict[float, dict]:
    """`score` at each of these thresholds; lanes are drawn and assigned once, as that does not depend on a threshold."""
    pred_root, truth_root = Path(pred_root), Path(truth_root)
    for root in (pred_root, truth_root):
        if not root.is_dir():
            raise DatasetError(f"{root}: no such folder; it should hold the .lines.txt files at the paths of the lists")
    tasks = []
    for name, path in lists.items():
        frames = read_list(path)
        tasks += [(name, frames[start:start + FRAMES_A_TASK]) for start in range(0, len(frames), FRAMES_A_TASK)]
    count = functools.partial(_count, pred_root, truth_root, ious, width, size)
    chunks = [frames for _, frames in tasks]
    workers = min(workers or os.cpu_count() or 1, len(tasks))
    counted = []
    with contextlib.ExitStack() as opened:
        progress = opened.enter_context(Progress("comparing lanes", sum(map(len, chunks)), "frames"))
        apply = map
        if workers > 1:                                 # a fork would copy torch's locks
            apply = opened.enter_context(ProcessPoolExecutor(workers, get_context("spawn"))).map
        for chunk, counts in zip(chunks, apply(count, chunks)):
            counted.append(counts)
            progress.advance(len(chunk))
    summed_T4 = {name: np.zeros((len(ious), 4), np.int64) for name in lists}
    for (name, _), counts_T4 in zip(tasks, counted):
        summed_T4[name] += counts_T4
    found = {}
    for place, iou in enumerate(ious):
        summed = {name: counts_T4[place] for name, counts_T4 in summed_T4.items()}
        *total, missing = sum(summed.values()).tolist()
        found[iou] = {"categories": {name: ratios(*counts[:3].tolist()) for name, counts in summed.items()},
                      "total": ratios(*total), "frames": sum(map(len, chunks)), "missing": missing}
    return found


def _count(pred_root: Path, truth_root: Path, ious: Sequence[float], width: int, size: tuple[int, int], frames: list[str]):
    """[T, 4]: TP, FP, FN and missing prediction files of some frames, at each of the T thresholds."""
    canvas = Canvas(size, width)
    counts_T4 = np.zeros((len(ious), 4), np.int64)
    for frame in frames:
        truth_path, prediction_path = truth_root / frame, below(pred_root, frame, DatasetError)
        if not truth_path.exists():
            raise DatasetError(f"{truth_path}: no such file; a frame without lanes needs an empty one")
        truths = read_lines(truth_path)
        missing = not prediction_path.exists()
        predictions = [] if missing else read_lines(prediction_path)
        matched = matched_ious(truths, predictions, canvas)
        for counts, iou in zip(counts_T4, ious):
            hits = sum(value > iou for value in matched)
            counts += hits, len(predictions) - hits, len(truths) - hits, missing
    return counts_T4


def ratios(tp: int, fp: int, fn: int) -> dict:
    """Counts, and precision and recall as the official program prints them (-1 for 0 of 0).

    `f1` is None where there are no true lanes (crossroad: tables give `fp`), and 0 where nothing was hit.
    """
    precision = tp / (tp + fp) if tp + fp else -1.0
    recall = tp / (tp + fn) if tp + fn else -1.0
    f1 = None if recall < 0 else 2 * precision * recall / (precision + recall) if tp else 0.0
    return {"tp": tp, "fp": fp, "fn": fn, "precision": precision, "recall": recall, "f1": f1}


def read_list(path: Path) -> list[str]:
    """The `.lines.txt` of each frame of a list, relative to a root: lists begin their paths with `/`. Raises DatasetError naming
    the line that leads out of a root."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such list; CULane's are list/test.txt and list/test_split/*.txt") from None
    frames = []
    for number, line in enumerate(lines, 1):
        if words := line.split():
            frame = words[0].lstrip("/")
            if fault := path_fault(frame) or path_fault(frame.rsplit(".", 1)[0]):
                raise DatasetError(f"{path}: line {number}: {words[0]!r} {fault}; correct it, or leave it out")
            frames.append(frame.rsplit(".", 1)[0] + ".lines.txt")
    return frames
