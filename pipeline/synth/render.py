"""Renders a scene: picture, CULane label, annotated lines and existence flags at a given size."""

from dataclasses import dataclass

import numpy as np

from pipeline.synth.backdrop import draw_backdrop, haze_of
from pipeline.synth.brush import Brush
from pipeline.synth.ground import paint_ground
from pipeline.synth.labels import annotate, draw_label, existence
from pipeline.synth.light import expose
from pipeline.synth.roadside import draw_thing
from pipeline.synth.scene import Roadside, Scene, Vehicle, drawing_order
from pipeline.synth.vehicles import draw_vehicle


@dataclass(frozen=True)
class Frame:
    image: np.ndarray  # [H, W, 3] uint8 RGB
    label: np.ndarray  # [H, W] uint8, 0..4
    lines: list[np.ndarray]  # [n, 2] each, left to right, bottom to top
    existence: list[int]  # flags of slots 1..4


def render(scene: Scene, size: tuple[int, int]) -> Frame:
    lanes = annotate(scene, size)
    return Frame(picture(scene, size), draw_label(lanes, size), [lane.points for lane in lanes], existence(lanes))


def picture(scene: Scene, size: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] uint8 RGB."""
    canvas, haze = np.zeros((*size, 3), np.uint8), haze_of(scene)
    draw_backdrop(scene, canvas, haze)
    paint_ground(scene, canvas, haze)
    brush = Brush(scene.camera, canvas, haze)
    things: list[Roadside | Vehicle] = [*scene.roadside, *scene.vehicles]
    for thing in drawing_order(things):
        if isinstance(thing, Vehicle):
            draw_vehicle(scene, thing, brush)
        else:
            draw_thing(scene, thing, brush)
    return expose(scene, canvas)
