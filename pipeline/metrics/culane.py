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
spline there; here its NaNs become pixels as they do on x86, and a warning says so. Strokes are those of OpenCV 4,
with which the official program is built, whatever OpenCV is installed.

Rules of our own. Lines are 30 px wide on frames of 590 rows, and on frames of another height the same share of it: at another
height only scores of that height compare with each other. Where a network has no existence head, all four slots are looked at
(either way a lane needs two points). Maps of a network smaller than the published 208 x 976 are enlarged to it first, since the
rule's mean over 9 x 9 pixels wipes out lines of 2 pixels (at 48 x 216 the labels themselves score 57, not 100).
"""

import contextlib
import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from pipeline.datasets.base import DatasetBase
from pipeline.errors import ConfigError, DatasetError
from pipeline.metrics._assignment import assign
from pipeline.metrics._drawing import WIDEST
from pipeline.metrics._maps import require_probabilities
from pipeline.metrics._strokes import Canvas, curve, overlap
from pipeline.metrics.base import Answer, Counted, MetricBase
from pipeline.paths import below, path_fault
from pipeline.progress import Progress, say

FRAME = (590, 1640)
PUBLISHED = (208, 976)  # height, width of the maps that the rule from maps to points was made for
LINE_WIDTH_PX = 30
IOUS = {"culane_f1": 0.5, "culane_f1_30": 0.3}
FEW = 200  # frames; below, starting processes takes longer than the counting
ROW_STEP = 20  # px of the full frame between two predicted points
BLUR = (9, 9)
LEAST = 77  # of 255: the first 8-bit value above a probability of 0.3
FRAMES_A_TASK = 64
LARGEST = 2**14  # px, a side of a frame

# What `stream >> double` takes: an exponent sign without digits spoils the number, anything else ends it.
NUMBER = re.compile(rb"\s*((?>[+-]?(?:\d+\.?\d*|\.\d+))(?:[eE][+-]?\d+|(?![eE])))")


class Line(NamedTuple):
    points_N2: np.ndarray  # float32
    rest: str  # what follows the last pair that could be read; "" if all was


def read_lines(path: Path) -> list[np.ndarray]:
    """Lanes as float32. Every line is one, also a blank one; pairs are read until a token is no number. Raises DatasetError on a
    file that cannot be read."""
    found = _read_lines(Path(path))
    if found is None:
        raise DatasetError(f"{path}: no such file; a frame without lanes needs an empty one")
    return [line.points_N2 for line in found]


def _read_lines(path: Path) -> list[Line] | None:
    """None if there is no such file."""
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise DatasetError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}); it should be a file of points") from None
    return [_line(line) for line in (lines + [rest] if rest else lines)]


@np.errstate(over="ignore")
def _line(line: bytes) -> Line:
    values, at, pair_end = [], 0, 0
    while found := NUMBER.match(line, at):
        values.append(float(found[1]))
        at = found.end()
        pair_end = at if len(values) % 2 == 0 else pair_end
    points = np.array(values[: len(values) // 2 * 2], np.float32).reshape(-1, 2)
    return Line(points, line[pair_end:].strip().decode("utf-8", "replace"))


def write_lines(path: Path, lanes: Iterable[np.ndarray]) -> None:
    """Write a `.lines.txt`, also if there are no lanes; whole numbers without a point."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("".join(f"{_text(value)} " for value in np.ravel(lane)) + "\n" for lane in lanes), encoding="utf-8")


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
    Raises DatasetError on values outside 0..1.
    """
    maps_LHW = np.asarray(probabilities)[-4:]
    require_probabilities(maps_LHW)
    height, width = maps_LHW.shape[1:]
    frame_height, frame_width = frame
    lanes = []
    for map_HW, exists in zip(maps_LHW, existence, strict=True):
        if not exists > 0.5:
            continue
        mean_HW = cv2.blur((map_HW * 255).astype(np.uint8), BLUR)  # border reflect-101, to the nearest
        points = []
        for up in range(0, frame_height - crop_top, ROW_STEP):
            row = _round(height - up / (frame_height - crop_top) * height)  # rows and columns count from 1
            if row < 1:
                break
            column = int(mean_HW[row - 1].argmax()) + 1
            if mean_HW[row - 1, column - 1] >= LEAST:
                points.append((_round(column * frame_width / width) - 1, frame_height - up - 1))
        if len(points) >= 2:
            lanes.append(np.array(points, np.int32))
    return lanes


def _round(value: float) -> int:
    return math.floor(value + 0.5)  # halves up; Python's round would take the even one


def lane_ious(truths: Sequence[np.ndarray], predictions: Sequence[np.ndarray], canvas: Canvas) -> list[list[float]]:
    """IoU of each true lane with each predicted one; 0 if either has fewer than two points."""
    true, predicted = (
        [canvas.stroke(curve(lane)) if len(lane) >= 2 else None for lane in lanes] for lanes in (truths, predictions)
    )
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
    `workers`: processes, None for one a core. Warns on stderr of lines that cannot be read to their end, lanes that
    repeat a point, and true lanes that do not fit frames of `size`. Raises DatasetError for a list, a truth file or a
    folder that does not exist, ConfigError for an `iou`, `width` or `size` that cannot be.
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
    if not all(0 <= iou <= 1 for iou in ious):
        raise ConfigError(f"iou: expected thresholds from 0 to 1, got {', '.join(f'{iou:g}' for iou in ious)}")
    if not 1 <= width <= WIDEST:
        raise ConfigError(f"width: expected 1 to {WIDEST} pixels, got {width}")
    require_frame_size(size)
    pred_root, truth_root = Path(pred_root), Path(truth_root)
    for root in (pred_root, truth_root):
        if not root.is_dir():
            raise DatasetError(f"{root}: no such folder; it should hold the .lines.txt files at the paths of the lists")
    tasks = []
    for name, path in lists.items():
        frames = read_list(path)
        tasks += [(name, frames[start : start + FRAMES_A_TASK]) for start in range(0, len(frames), FRAMES_A_TASK)]
    count = functools.partial(_count, pred_root, truth_root, ious, width, size)
    chunks = [frames for _, frames in tasks]
    workers = min(workers or os.cpu_count() or 1, len(tasks))
    counted, remarks = [], Remarks()
    with contextlib.ExitStack() as opened:
        progress = opened.enter_context(Progress("comparing lanes", sum(map(len, chunks)), "frames"))
        apply: Callable[..., Iterable[Any]] = map
        if workers > 1:  # a fork would copy torch's locks
            apply = opened.enter_context(ProcessPoolExecutor(workers, get_context("spawn"))).map
        for chunk, (counts, noted) in zip(chunks, apply(count, chunks)):
            counted.append(counts)
            remarks.add(noted)
            progress.advance(len(chunk))
    for text in remarks.warnings(size):
        say(f"Warning: {text}")
    summed_T4 = {name: np.zeros((len(ious), 4), np.int64) for name in lists}
    for (name, _), counts_T4 in zip(tasks, counted):
        summed_T4[name] += counts_T4
    found = {}
    for place, iou in enumerate(ious):
        summed = {name: counts_T4[place] for name, counts_T4 in summed_T4.items()}
        *total, missing = sum(summed.values()).tolist()
        found[iou] = {
            "categories": {name: ratios(*counts[:3].tolist()) for name, counts in summed.items()},
            "total": ratios(*total),
            "frames": sum(map(len, chunks)),
            "missing": missing,
        }
    return found


def require_frame_size(size: tuple[int, int]) -> None:
    if not all(1 <= side <= LARGEST for side in size):
        raise ConfigError(f"size: expected a height and a width from 1 to {LARGEST} pixels, got {size[0]} and {size[1]}")


@dataclass
class Remarks:
    """What a user should know of the lanes: how many of each kind, and where the first is."""

    count: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    lowest: float = -math.inf  # y of all true points

    def note(self, kind: str, where: str, count: int = 1) -> None:
        self.count[kind] = self.count.get(kind, 0) + count
        self.first.setdefault(kind, where)

    def add(self, other: "Remarks") -> None:
        for kind, count in other.count.items():
            self.note(kind, other.first[kind], count)
        self.lowest = max(self.lowest, other.lowest)

    def look_at(self, path: Path, lines: Sequence[Line]) -> None:
        for number, (points_N2, rest) in enumerate(lines, 1):
            if rest:
                self.note("cut", f"{path}: line {number} is not read from {rest[:24]!r} on")
            if len(points_N2) > 2 and (points_N2[1:] == points_N2[:-1]).all(axis=1).any():
                self.note("repeated", f"{path}: line {number} repeats a point")

    def look_at_truth(self, path: Path, lines: Sequence[Line], height: int) -> None:
        for number, (points_N2, _) in enumerate(lines, 1):
            lowest = points_N2[:, 1].max(initial=-math.inf)
            self.lowest = max(self.lowest, float(lowest))
            if lowest > height:
                self.note("below", f"{path}: line {number} is a true lane down to y = {lowest:g}, below frames of {height} rows")

    def warnings(self, size: tuple[int, int]) -> list[str]:
        endings = {
            "cut": ("line", "as in the official program; write a lane as 'x y x y ...', in plain text, with spaces"),
            "repeated": (
                "lane",
                "the official program draws only pieces of such a lane, and so it is scored here; leave out the second point",
            ),
            "below": ("lane", "give the size of your frames: --size HEIGHT WIDTH"),
        }
        texts = []
        for kind, (what, to_do) in endings.items():
            if kind in self.count:
                others = self.count[kind] - 1
                also = f", and so {'is' if others == 1 else 'are'} {others} other {what}{'s' * (others > 1)}" if others else ""
                texts.append(f"{self.first[kind]}{also}; {to_do}")
        if -math.inf < self.lowest < size[0] / 2:
            texts.append(
                f"no true lane reaches the lower half of frames of {size[0]} rows, the lowest point is at y = "
                f"{self.lowest:g}; if your frames are smaller, give their size: --size HEIGHT WIDTH"
            )
        return texts


def _count(
    pred_root: Path, truth_root: Path, ious: Sequence[float], width: int, size: tuple[int, int], frames: list[str]
) -> tuple[np.ndarray, Remarks]:
    """[T, 4]: TP, FP, FN and missing prediction files of some frames, at each of the T thresholds; and remarks."""
    canvas, remarks = Canvas(size, width), Remarks()
    counts_T4 = np.zeros((len(ious), 4), np.int64)
    for frame in frames:
        truth_path, prediction_path = truth_root / frame, below(pred_root, frame, DatasetError)
        truths, predictions = _read_lines(truth_path), _read_lines(prediction_path)
        if truths is None:
            raise DatasetError(f"{truth_path}: no such file; a frame without lanes needs an empty one")
        remarks.look_at(truth_path, truths)
        remarks.look_at_truth(truth_path, truths, size[0])
        missing = predictions is None
        predictions = predictions or []
        if pred_root != truth_root:
            remarks.look_at(prediction_path, predictions)
        matched = matched_ious([line.points_N2 for line in truths], [line.points_N2 for line in predictions], canvas)
        for counts, iou in zip(counts_T4, ious):
            hits = sum(value > iou for value in matched)
            counts += hits, len(predictions) - hits, len(truths) - hits, missing
    return counts_T4, remarks


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
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); a list is a file of one frame a line") from None
    except UnicodeDecodeError:
        raise DatasetError(f"{path}: is not UTF-8 text; save the list as UTF-8, one frame a line") from None
    frames = []
    for number, line in enumerate(lines, 1):
        if words := line.split():
            frame = words[0].lstrip("/")
            if fault := path_fault(frame) or path_fault(frame.rsplit(".", 1)[0]):
                raise DatasetError(f"{path}: line {number}: {words[0]!r} {fault}; correct it, or leave it out")
            frames.append(frame.rsplit(".", 1)[0] + ".lines.txt")
    return frames


# An evaluation's files and score


class Metric(MetricBase):
    headline = "culane_f1"

    def write_files(self, folder: Path, image_id: str, answer: Answer) -> None:
        write_answer(folder, image_id, answer, self.dataset)

    def scores(self, split: str, ids: Sequence[str], counted: Counted, folder: Path, workers: int) -> dict[str, Any]:
        """Of every frame of the list, whether or not its pixels are labelled."""
        assert counted.size is not None  # a frame was seen
        return line_scores(self.dataset, split, ids, folder, counted.size, workers) | {"images": len(ids)}

    def image_id(self, path: Path, root: Path) -> str:
        return path.relative_to(root).with_suffix("").as_posix()


def write_answer(folder: Path, name: str, answer: Answer, dataset: DatasetBase) -> None:
    """The frame's `.lines.txt`, of any dataset of lanes."""
    write_lines(below(folder, f"{name}.lines.txt", DatasetError), [lane for lane in lanes(answer, dataset) if len(lane)])


def lanes(answer: Answer, dataset: DatasetBase) -> list[np.ndarray]:
    """A lane a slot: [N, 2] (x, y) in pixels of the full frame, from the bottom up; N is 0 where there is none."""
    existence = np.ones(dataset.lanes) if answer.existence is None else answer.existence
    maps = answer.probabilities_Khw
    assert maps is not None  # a dataset of lanes asks for them
    if maps.shape[1] < PUBLISHED[0] and maps.shape[2] < PUBLISHED[1]:
        maps = np.stack([cv2.resize(map_hw, PUBLISHED[::-1], interpolation=cv2.INTER_LINEAR) for map_hw in maps])
    found = []
    for alone in np.diag(existence):
        lane = probabilities_to_lines(maps, alone, answer.classes_HW.shape, dataset.rows_cut(len(answer.classes_HW)))
        found.append(lane[0] if lane else np.empty((0, 2), np.int32))
    return found


def line_scores(dataset: Any, split: str, ids: Sequence[str], folder: Path, size: tuple[int, int], workers: int) -> dict[str, Any]:
    """F1 of the `.lines.txt` in `folder` against the dataset's, for frames of `size` = (height, width)."""
    lists = category_lists(dataset, split, ids)
    width = max(1, round(LINE_WIDTH_PX * size[0] / FRAME[0]))
    said: dict[str, Any] = {"culane": {}}
    at = scores(folder, dataset.root, lists, list(IOUS.values()), width, size, workers if len(ids) > FEW else 1)
    for name, iou in IOUS.items():
        found = at[iou]
        said[name] = found["total"]["f1"]
        said["culane"][f"iou {iou}"] = {**(found["categories"] if len(lists) > 1 else {}), "total": found["total"]}
    return said


def category_lists(dataset: Any, split: str, ids: Sequence[str]) -> Mapping[str, Path]:
    """The lists of the categories if together they are the split, as in CULane's test; else the split's own."""
    lists = dataset.root / "list"
    found = {path.stem.split("_", 1)[1]: path for path in sorted((lists / f"{split}_split").glob(f"{split}*_*.txt"))}
    listed = [frame for path in found.values() for frame in read_list(path)]
    if sorted(listed) == sorted(f"{image_id}.lines.txt" for image_id in ids):
        return found
    if found:
        say(f"{lists / f'{split}_split'}: the categories are not the frames of {split!r}; scored without them")
    paths = (lists / f"{split}_gt.txt", lists / f"{split}.txt")
    return {split: next(path for path in paths if path.exists())}
