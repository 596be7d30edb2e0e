"""Writes road scenes in LLAMAS's layout: colour images and JSON labels of every dash, in metres and in pixels.

    color_images/{train,valid,test}/<recording>/<stamp>_color_rect.png
    labels/{train,valid}/<recording>/<stamp>.json

World coordinates are the camera's, as there: metres, x right, y down, z ahead; markers begin at their nearer end and
their numbers are texts. A dash is a marker, a solid line many short ones; a double line is its middle. Markers stand
through vehicles, since LLAMAS takes them from a map. What lies outside the image is cut off.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.synth.markings import Line
from pipeline.synth.render import picture
from pipeline.synth.sampling import draw_scene
from pipeline.synth.scene import Scene
from pipeline.synth.settings import Settings

STEP_M, PIECE_M = 0.1, 2.0  # between the points of a marker that are looked at; of a solid line, a marker
NEAREST_M = 0.8


def write(root: Path, settings: Settings, counts: Mapping[str, int]) -> None:
    """`counts`: frames of each recording, e.g. {"train/images-a": 8, "valid/images-b": 2, "test/images-c": 2}."""
    for place, count in counts.items():
        for index in range(count):
            scene = draw_scene(settings.seed, place, index, settings.difficulty)
            stamp = f"{1419283000 + index:010d}_{100000 * index:010d}"
            path = Path(root) / "color_images" / place / f"{stamp}_color_rect.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(scene, settings.size)).save(path)
            if not place.startswith("test/"):
                path = Path(root) / "labels" / place / f"{stamp}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(label(scene, settings.size, stamp)), encoding="utf-8")


def label(scene: Scene, size: tuple[int, int], stamp: str) -> dict:
    """What LLAMAS's JSON files hold: l0, l1, ... from the car to the left, r0, r1, ... to the right."""
    intrinsics, to_camera = apart(scene.camera.matrix(size))
    sides: dict[str, list] = {"l": [], "r": []}
    for line in sorted(scene.lines, key=lambda line: abs(line.offset - scene.road.lateral_m)):
        found = list(markers(scene, line, intrinsics, to_camera, size))
        if found:
            sides["l" if line.offset < scene.road.lateral_m else "r"].append(found)
    lanes = [
        {"lane_id": f"{side}{number}", "markers": found} for side, lines in sides.items() for number, found in enumerate(lines)
    ]
    return {"image_name": f"{stamp}_gray_rect.png", "projection_matrix": intrinsics.tolist(), "lanes": lanes}


def apart(matrix_34: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[[f, 0, cx], [0, f, cy], [0, 0, 1]] and the [3, 4] from world to camera, whose product is a camera's matrix."""
    u, v, ahead = matrix_34[:, :3]
    cx, cy = u @ ahead, v @ ahead
    intrinsics = np.array([[np.linalg.norm(u - cx * ahead), 0, cx], [0, np.linalg.norm(v - cy * ahead), cy], [0, 0, 1]])
    return intrinsics, np.linalg.solve(intrinsics, matrix_34)


def markers(scene: Scene, line: Line, intrinsics: np.ndarray, to_camera: np.ndarray, size: tuple[int, int]) -> Iterator[dict]:
    """The markers of a line from near to far, up to the crest that hides the rest."""
    height, width = size
    row = height
    for start, end in pieces(line):
        s = np.arange(start, min(end, scene.annotated_m), STEP_M)
        ground = scene.terrain.lift(scene.road.plan(line.offset, s))
        points = ground @ to_camera[:, :3].T + to_camera[:, 3]
        points = points[points[:, 2] > NEAREST_M]
        pixels = (points @ intrinsics.T)[:, :2] / points[:, 2:]
        inside = (pixels[:, 0] >= 0) & (pixels[:, 0] < width) & (pixels[:, 1] >= 0) & (pixels[:, 1] < height)
        if inside.sum() < 2:
            continue
        (first, *_, last), (near, *_, far) = points[inside], pixels[inside]
        if not row >= near[1] >= far[1]:
            return
        row = far[1]
        yield {"lane_marker_id": f"{start:.1f}", **corner("start", first, near), **corner("end", last, far)}


def pieces(line: Line) -> list[tuple[float, float]]:
    """(start, end) in metres along the road: the dashes of a broken line, short ones without gaps of another."""
    broken = line.kind.startswith(("b", "db"))
    period, length = (line.dash_m + line.gap_m, line.dash_m) if broken else (PIECE_M, PIECE_M)
    starts = np.arange(line.start_m - line.phase_m, line.end_m, period)
    return [(max(a, line.start_m), min(a + length, line.end_m)) for a in starts if a + length > line.start_m]


def corner(end: str, point: np.ndarray, pixel: np.ndarray) -> dict:
    return {
        f"world_{end}": {axis: f"{value:.5f}" for axis, value in zip("xyz", point)},
        f"pixel_{end}": {axis: str(int(value)) for axis, value in zip("xy", pixel)},
    }
