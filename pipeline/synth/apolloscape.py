"""Writes road scenes in ApolloScape's layout: every kind of marking a class, the hood ignored, test without labels.

    ColorImage_road02/ColorImage/Record001/Camera 5/171206_025742296_Camera_5.jpg
    Labels_road02/Label/Record001/Camera 5/171206_025742296_Camera_5_bin.png    official colours, or ids with a palette
    ColorImage_road05/171206_025742296_Camera_5.jpg                             flat, no labels

The kinds of `markings.py` have the official names, so each has its class. Departure: paint is labelled through the
vehicles that hide it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from pipeline.datasets.apolloscape import IGNORED, MARKINGS
from pipeline.synth.facets import marking_map
from pipeline.synth.markings import KINDS
from pipeline.synth.render import picture
from pipeline.synth.sampling import draw_scene
from pipeline.synth.scene import Scene
from pipeline.synth.settings import JPEG_QUALITY, Settings

CAMERA, TEST = "Camera 5", "road05"
HOOD_TOP, HOOD_COLOUR = 2310 / 2710, (38, 40, 44)  # of the rows, as in the real frames
ID = {name: official for official, name, *_ in MARKINGS} | {"none": 0}
COLOUR = {official: rgb for official, _, _, rgb, _ in MARKINGS} | dict([IGNORED])


def write(root: Path, settings: Settings, counts: Mapping[str, int], form: Literal["rgb", "palette"] = "rgb") -> None:
    """`counts`: frames of each record, e.g. {"road02/Record001": 4, "road04/Record015": 2, "road05": 2}."""
    for place, count in counts.items():
        for index in range(count):
            scene = draw_scene(settings.seed, place, index, settings.difficulty)
            write_frame(
                Path(root),
                place,
                f"171206_{25742296 + 100 * index:09d}_{CAMERA.replace(' ', '_')}",
                *draw(scene, settings.size),
                form,
            )


def draw(scene: Scene, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The picture [H, W, 3] and its label of official ids [H, W], uint8 both; the hood is in both."""
    image = picture(scene, size)
    ids = np.array([ID[kind] for kind in KINDS], np.uint8)[marking_map(scene, size)]
    height, width = size
    ellipse = (width // 2, height), (round(0.55 * width), round((1 - HOOD_TOP) * height)), 0, 0, 360
    cv2.ellipse(image, *ellipse, HOOD_COLOUR, cv2.FILLED)
    cv2.ellipse(ids, *ellipse, IGNORED[0], cv2.FILLED)
    return image, ids


def write_frame(root: Path, place: str, stem: str, image: np.ndarray, ids: np.ndarray, form: str) -> None:
    road, *record = place.split("/")
    folder = root / f"ColorImage_{road}"
    if road != TEST:
        folder = folder / "ColorImage" / record[0] / CAMERA
        labels = root / f"Labels_{road}" / "Label" / record[0] / CAMERA
        labels.mkdir(parents=True, exist_ok=True)
        encoded(ids, form).save(labels / f"{stem}_bin.png")
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"{stem}.jpg", quality=JPEG_QUALITY)


def encoded(ids: np.ndarray, form: str) -> Image.Image:
    """Official colours; or the ids under a palette that is not the official one, as in the sample archive."""
    if form == "rgb":
        table = np.zeros((256, 3), np.uint8)
        table[list(COLOUR)] = list(COLOUR.values())
        return Image.fromarray(table[ids])
    assert form == "palette", form
    label = Image.fromarray(ids).convert("P")
    label.putpalette([(37 * value + 11) % 256 for value in range(768)])
    return label
