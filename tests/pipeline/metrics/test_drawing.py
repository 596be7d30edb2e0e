"""Thick lines are OpenCV 4's, pixel for pixel. tests/golden/strokes-opencv-4.npz has what OpenCV 4.10 drew; `python
tests/pipeline/metrics/test_drawing.py FILE` writes such a file with the OpenCV that is installed.

OPENCV4_ROOT: a folder with OpenCV 4, as `pip install --no-deps --target FOLDER 'opencv-python-headless<5'` makes it. With it
fresh lines are compared too, and the tests of all metrics run on that library.
"""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

GOLDEN = Path(__file__).parents[2] / "golden" / "strokes-opencv-4.npz"
SIZES = [(590, 1640), (120, 200), (37, 61)]
WIDTHS = [30, 30, 30, 1, 2, 3, 7, 12, 31, 60, 150]
LEAST = -(2**31)


def polylines(seed: int, count: int) -> list[tuple[tuple[int, int], int, np.ndarray]]:
    """(height, width) of a frame, a line width and [N, 2] points: inside, outside, along the border, repeated, huge."""
    rng, found = np.random.default_rng(seed), []
    for k in range(count):
        h, w = size = SIZES[rng.integers(len(SIZES))]
        n = int(rng.integers(2, 9))
        points = [
            lambda: rng.integers((0, 0), (w, h), (n, 2)),
            lambda: rng.integers((-w // 3, -h // 3), (w + w // 3, h + h // 3), (n, 2)),
            lambda: rng.integers((-w, -h), (2 * w, 2 * h), (n, 2)),
            lambda: rng.integers(-4, 5, (8 * n, 2)).cumsum(axis=0) + rng.integers((-20, -20), (w + 20, h + 20)),
            lambda: rng.integers((0, 0), (w, h), (n, 2)).repeat(rng.integers(1, 3, n), axis=0),
            lambda: rng.integers(-20000, 20000, (n, 2)),
            lambda: np.stack(
                [rng.choice([0, -1, w - 1, w, 5, w // 2, -14, w + 15], n), rng.choice([0, -1, h - 1, h, h // 2, -16, h + 14], n)],
                axis=1,
            ),
            lambda: np.array([[LEAST, LEAST], rng.integers((-50, -50), (w + 50, h + 50))]),
            lambda: np.array([rng.integers((-50, -50), (w + 50, h + 50)), (rng.integers(LEAST, 2**31), rng.integers(-50, 2**31))]),
        ][k % 9]()
        found.append((size, int(rng.choice(WIDTHS)), points))
    return found


def by_opencv(size, width, points) -> np.ndarray:
    frame = np.zeros(size, np.uint8)
    for start, end in zip(points.tolist(), points[1:].tolist()):
        cv2.line(frame, start, end, 1, width)
    return frame


def by_rule(size, width, points) -> np.ndarray:
    from pipeline.metrics._drawing import draw

    frame = np.zeros(size, np.uint8)
    draw(frame, points[:-1], points[1:], width)
    return frame


def by_canvas(size, width, points) -> np.ndarray:
    from pipeline.metrics._strokes import Canvas

    canvas, frame = Canvas(size, width), np.zeros(size, np.uint8)
    stroke = canvas.stroke(points.astype(np.float64))
    assert not canvas.frame_HW.any() and stroke.area == stroke.mask_hw.sum()
    height, length = stroke.mask_hw.shape
    frame[stroke.top : stroke.top + height, stroke.left : stroke.left + length] = stroke.mask_hw
    return frame


def digests(draw, cases) -> np.ndarray:
    """[cases, 2]: pixels set, and the CRC-32 of the frame."""
    frames = [draw(*case) for case in cases]
    return np.array([(np.count_nonzero(frame), zlib.crc32(frame.tobytes())) for frame in frames])


def write(path: str, seed: int, count: int) -> None:
    cases = polylines(seed, count)
    sizes, widths, points = zip(*cases)
    np.savez_compressed(
        path,
        sizes=np.array(sizes, np.int16),
        widths=np.array(widths, np.int16),
        digests=digests(by_opencv, cases),
        counts=np.array([len(p) for p in points], np.int16),
        points=np.concatenate(points).astype(np.int32),
        opencv=cv2.__version__,
    )


def read(path: Path) -> tuple[list, np.ndarray, str]:
    with np.load(path) as file:
        points = np.split(file["points"].astype(np.int64), np.cumsum(file["counts"])[:-1])
        cases = list(zip(map(tuple, file["sizes"].tolist()), file["widths"].tolist(), points, strict=True))
        return cases, file["digests"], str(file["opencv"])


@pytest.mark.parametrize("draw", [by_rule, by_canvas])
def test_lines_are_those_that_opencv_4_drew(draw):
    cases, drawn, version = read(GOLDEN)
    assert version.startswith("4.") and len(cases) == 720 and 0.4 < (drawn[:, 0] > 0).mean()
    found = digests(draw, cases)
    wrong = np.flatnonzero((found != drawn).any(axis=1))
    assert not len(wrong), f"{len(wrong)} polylines differ, first {cases[wrong[0]]}: {found[wrong[0]]}, OpenCV: {drawn[wrong[0]]}"


@pytest.fixture
def opencv_4():
    root = os.environ.get("OPENCV4_ROOT")
    if not root:
        pytest.skip("OPENCV4_ROOT is not set: a folder with OpenCV 4")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, str(Path(__file__).parents[3])])}
    del environment["OPENCV4_ROOT"]
    return environment


def test_fresh_lines_are_opencv_4s(opencv_4, tmp_path):
    subprocess.run([sys.executable, __file__, str(tmp_path / "drawn.npz"), "1", "360"], env=opencv_4, check=True)
    cases, drawn, version = read(tmp_path / "drawn.npz")
    assert version.startswith("4.")
    assert np.array_equal(digests(by_rule, cases), drawn) and np.array_equal(digests(by_canvas, cases), drawn)


def test_the_metrics_pass_their_tests_on_opencv_4_too(opencv_4):
    here = Path(__file__).parent
    options = dict(env=opencv_4, cwd=here.parents[2], capture_output=True, text=True)
    version = subprocess.run([sys.executable, "-c", "import cv2; print(cv2.__version__)"], **options)
    assert version.stdout.startswith("4.")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(here)], **options)
    assert done.returncode == 0, done.stdout[-3000:]


if __name__ == "__main__":
    write(sys.argv[1], *(int(number) for number in sys.argv[2:] or (0, 720)))
