"""Speed of each evaluator beside the slow version that its tests compare it with: `python -m bench.metrics`.

Frames are drawn, not real: curved lanes at CULane's 1640 x 590, lane-like probability maps at LLAMAS's 1276 x 717,
blocky labels. Folders are scored from files, as by a user; start-up of processes is in the figure. A table goes to
stderr, the same as JSON to stdout. Takes 15 s on two cores.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bench.needs import need
from pipeline.metrics import culane, llamas
from pipeline.metrics.segmentation import Confusion

TESTS = Path(__file__).parents[1] / "tests" / "pipeline" / "metrics"


def slow_versions(name: str):
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def frames_per_second(count: int, work) -> tuple[float, Any]:
    """And what comes of the work."""
    start = time.perf_counter()
    result = work()
    return count / (time.perf_counter() - start), result


def label_pair(rng, size, values):
    """A blocky label, and a prediction that is wrong in a tenth of its pixels."""
    small = rng.choice(values, (size[0] // 10 + 1, size[1] // 10 + 1)).astype(np.uint8)
    truth = np.repeat(np.repeat(small, 10, axis=0), 10, axis=1)[: size[0], : size[1]]
    return truth, np.where(rng.random(size) < 0.9, truth, rng.choice(values, size)).astype(np.uint8)


def segmentation(size, num_classes: int, frames: int, slow_frames: int) -> dict:
    pairs = [label_pair(np.random.default_rng(k), size, np.arange(num_classes)) for k in range(min(4, frames))]

    def fast(count):
        confusion = Confusion(num_classes)
        for k in range(count):
            confusion.add(*pairs[k % len(pairs)])
        return confusion.iou()

    slow_rate, equal = None, True
    if slow_frames:
        slow = slow_versions("test_segmentation_metric").slow_ious
        groups = [[c] for c in range(num_classes)]
        slow_rate, ious = frames_per_second(slow_frames, lambda: slow(pairs[:slow_frames], range(num_classes), groups))
        equal = fast(slow_frames).tolist() == ious
    fast_rate, _ = frames_per_second(frames, lambda: fast(frames))
    return row(f"confusion, {num_classes} classes", size, fast_rate, slow_rate, equal)


def culane_frame(rng):
    """Four lanes every 10 px from 590 up, as annotated, and as predicted every 20 px, a few pixels off."""
    truths: list[np.ndarray] = []
    predictions: list[np.ndarray] = []
    for bottom in (-100, 500, 1100, 1700):
        bend, off = rng.normal(0, 60), rng.normal(0, 6)
        for lanes, ys in ((truths, np.arange(590, 270, -10)), (predictions, np.arange(589, 289, -20))):
            up = (590 - ys) / 350
            x = bottom + (820 - bottom) * 0.9 * up + bend * up**2 + off * (lanes is predictions)
            lanes.append(np.stack([np.round(x, 2) if lanes is truths else np.round(x), ys], 1).astype(np.float32))
    return truths, predictions


def culane_f1(folder: Path, frames: int, slow_frames: int, workers: int) -> dict:
    rng, names = np.random.default_rng(0), [f"clip/{k:05d}" for k in range(frames)]
    content = [culane_frame(rng) for _ in names]
    for name, (truths, predictions) in zip(names, content):
        culane.write_lines(folder / "truth" / f"{name}.lines.txt", truths)
        culane.write_lines(folder / "predicted" / f"{name}.lines.txt", predictions)
    (folder / "list.txt").write_text("".join(f"/{name}.jpg\n" for name in names))
    slow = slow_versions("test_culane_metric").slow_ious
    canvas = culane.Canvas(culane.FRAME, 30)
    lists = {"all": folder / "list.txt"}
    fast_rate, _ = frames_per_second(frames, lambda: culane.score(folder / "predicted", folder / "truth", lists, workers=workers))
    slow_rate, ious = frames_per_second(slow_frames, lambda: [slow(*frame) for frame in content[:slow_frames]])
    equal = ious == [culane.lane_ious(truths, predictions, canvas) for truths, predictions in content[:slow_frames]]
    return row("CULane F1, 4 + 4 lanes", culane.FRAME, fast_rate, slow_rate, equal)


def culane_points(frames: int, slow_frames: int) -> dict:
    maps, existence = lane_maps((208, 976)), [1, 1, 1, 1]
    slow = slow_versions("test_culane_metric").slow_lines
    fast = culane.probabilities_to_lines
    fast_rate, (lines, *_) = frames_per_second(frames, lambda: [fast(maps, existence) for _ in range(frames)])
    slow_rate, (slow_lines, *_) = frames_per_second(slow_frames, lambda: [slow(maps, existence) for _ in range(slow_frames)])
    equal = [lane.tolist() for lane in lines] == slow_lines
    return row("CULane maps to points", maps.shape[1:], fast_rate, slow_rate, equal)


def lane_maps(size, shift: int = 0) -> np.ndarray:
    """[5, H, W] probabilities: four soft lanes on a background."""
    height, width = size
    maps = np.full((5, *size), 0.01, np.float32)
    for slot in range(1, 5):
        line = np.zeros(size, np.float32)
        bottom, top = ((slot - 1) * width // 3 + shift, height), (width // 2 + slot * 12, height // 4)
        cv2.line(line, bottom, top, 1.0, width // 80)
        maps[slot] += cv2.GaussianBlur(line, (0, 0), width / 300)
    maps[0] = np.clip(1 - maps[1:].sum(axis=0), 0.01, 1)
    return maps / maps.sum(axis=0)


def llamas_ap(folder: Path, frames: int, slow_frames: int, workers: int) -> dict:
    size, names = (717, 1276), [f"run/{k}_0" for k in range(frames)]
    labels = {}
    for k, name in enumerate(names):
        labels[name] = lane_maps(size, 3 * (k % 5)).argmax(axis=0).astype(np.uint8)
        llamas.write_maps(folder, name, lane_maps(size, 2 * (k % 7)))
    slow = slow_versions("test_llamas_metric").slow_curve

    def slow_frame(name):
        return [slow(llamas.read_map(llamas.map_path(folder, name, c)), labels[name] == c) for c in range(5)]

    first = [llamas.read_map(llamas.map_path(folder, names[0], c)) for c in range(5)]
    fast_rate, _ = frames_per_second(frames, lambda: llamas.score(folder, names, labels, workers=workers))
    slow_rate, (curves, *_) = frames_per_second(slow_frames, lambda: [slow_frame(name) for name in names[:slow_frames]])
    equal = [tuple(curve) for curve in llamas.image_curves(first, labels[names[0]])] == curves
    return row("LLAMAS AP, 5 maps", size, fast_rate, slow_rate, equal)


def row(what: str, size, fast: float, slow: float | None, equal: bool) -> dict:
    assert equal, f"{what}: the fast version differs from the slow one"
    return {
        "what": what,
        "height": size[0],
        "width": size[1],
        "frames_per_s": round(fast, 1),
        "slow_frames_per_s": slow and round(slow, 2),
        "times": slow and round(fast / slow),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="processes or threads of the folder scorers (2)")
    parser.add_argument("--frames", type=int, help="of each evaluator at most")
    args = parser.parse_args()
    workers, most = args.workers, args.frames or 10**6
    need("pytest")  # the slow versions are tests
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            segmentation((590, 1640), 5, frames=min(200, most), slow_frames=1),
            segmentation((2710, 3384), 38, frames=min(20, most), slow_frames=0),
            culane_f1(Path(folder) / "culane", frames=min(2000, most), slow_frames=min(10, most), workers=workers),
            culane_points(frames=min(200, most), slow_frames=min(5, most)),
            llamas_ap(Path(folder) / "llamas", frames=min(40, most), slow_frames=1, workers=workers),
        ]
    layout = "{:<24}{:>12}{:>10}{:>10}{:>9}{:>7}"
    print(layout.format("evaluator", "frame", "frames/s", "a minute", "slow /s", "times"), file=sys.stderr)
    for r in rows:
        rates = r["frames_per_s"], round(60 * r["frames_per_s"]), r["slow_frames_per_s"] or "-", r["times"] or "-"
        print(layout.format(r["what"], f"{r['width']} x {r['height']}", *rates), file=sys.stderr)
    print(json.dumps({"workers": workers, "evaluators": rows}, indent=1))


if __name__ == "__main__":
    main()
