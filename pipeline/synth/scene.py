"""A road scene as plain values in metres: what `sampling` draws from a seed and what the renderer paints.

Nothing here knows an image size, so one scene can be rendered at any.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cmp_to_key
from typing import Any, TypeVar

import numpy as np

from pipeline.synth.camera import Camera
from pipeline.synth.markings import Line, Marking
from pipeline.synth.road import Road, Terrain

CATEGORIES = ("normal", "crowd", "hlight", "shadow", "noline", "arrow", "curve", "cross", "night")
DIMENSIONS = {
    "car": (1.80, 4.6, 1.46),
    "suv": (1.90, 4.7, 1.75),
    "van": (1.95, 5.2, 2.15),
    "truck": (2.45, 9.5, 3.6),
    "bus": (2.50, 11.5, 3.15),
}  # width, length, height in metres
Colour = tuple[int, int, int]


def whole(colour: Iterable[float]) -> Colour:
    red, green, blue = (int(c) for c in colour)
    return red, green, blue


@dataclass(frozen=True)
class Surface:
    """A strip of ground beside or under the paint, between two offsets."""

    colour: Colour
    left: float
    right: float
    start_m: float
    end_m: float


@dataclass(frozen=True)
class Shade:
    """A shadow on the ground: an outline in road coordinates and the light it leaves (0..1)."""

    outline: np.ndarray
    light: float


@dataclass(frozen=True, kw_only=True)
class Vehicle:
    kind: str  # a key of DIMENSIONS
    colour: Colour
    offset: float  # of its middle
    s: float  # of its near end
    oncoming: bool
    braking: bool

    @property
    def length_m(self) -> float:
        return DIMENSIONS[self.kind][1]


@dataclass(frozen=True, kw_only=True)
class Roadside:
    """A thing beside or above the road: tree, house, lamp, rail, hedge, sign, bridge."""

    kind: str
    offset: float
    s: float
    length_m: float = 0.0  # along the road
    width_m: float = 0.0  # across it
    height_m: float = 0.0
    variant: int = 0
    tint: Colour = (128, 128, 128)


@dataclass(frozen=True, kw_only=True)
class Weather:
    night: bool
    sun: tuple[float, float]  # where shadows fall per metre of height: (right, ahead)
    shadows: float  # depth of shadows, 0 overcast .. 1 hard sun
    tree_shade: float  # share of the road under the trees' shadow
    glare: float  # dazzle by a low sun or by headlights, 0..1
    glare_at: tuple[float, float]  # of width, of height
    rain: float  # 0..1: wet road, drops, veil
    visibility_m: float
    clouds: float  # 0 blue .. 1 overcast
    brightness: float
    noise: float  # standard deviation of sensor noise, grey values
    blur: float  # of a 590-row image, pixels


@dataclass(frozen=True, kw_only=True)
class Scene:
    key: tuple  # of its random streams
    camera: Camera
    road: Road
    terrain: Terrain
    setting: str  # city, highway, rural
    asphalt: Colour
    verge: Colour  # ground that no surface covers
    edges: tuple[float, float]  # offsets of the asphalt's sides
    surfaces: tuple[Surface, ...]
    lines: tuple[Line, ...]  # lane boundaries; none on a crossing
    markings: tuple[Marking, ...]  # all paint, that of the lines included
    wear: float  # share of the paint's area that is gone, 0..1
    distractors: int  # cracks, seams and patches
    vehicles: tuple[Vehicle, ...]
    roadside: tuple[Roadside, ...]
    shades: tuple[Shade, ...]
    weather: Weather
    annotated_m: float  # how far ahead lines are annotated

    @property
    def category(self) -> str:
        """CULane's category of a test frame; the first that fits, so that each frame has one."""
        near = sum(2 < v.s < 45 and abs(v.offset) < 9 for v in self.vehicles)
        tests = {
            "cross": not self.lines,
            "night": self.weather.night,
            "hlight": self.weather.glare > 0,
            "noline": bool(self.lines) and all(line.strength < 0.15 for line in self.lines),
            "curve": abs(self.road.curvature) > 1 / 220,
            "arrow": any(marking.kind.startswith("a_") for marking in self.markings),
            "shadow": self.weather.shadows > 0.5 and (self.weather.tree_shade > 0.35 or len(self.shades) > 0),
            "crowd": near >= 5,
        }
        return next((name for name, fits in tests.items() if fits), "normal")


Thing = TypeVar("Thing", Vehicle, Roadside, Vehicle | Roadside)


def drawing_order(things: Iterable[Thing]) -> list[Thing]:
    """The farther first; of things side by side, the outer one first."""

    def before(a, b) -> Any:  # whose sign counts
        side_by_side = a.s < b.s + b.length_m and b.s < a.s + a.length_m
        return abs(b.offset) - abs(a.offset) if side_by_side else b.s - a.s

    return sorted(things, key=cmp_to_key(before))
