"""Vehicles as a few tapered boxes with windows, lights, wheels and a plate, drawn face by face into the image."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.synth.brush import Brush
from pipeline.synth.scene import DIMENSIONS, Scene, Shade, Vehicle

GLASS, RUBBER, TRIM, HUB = (44, 52, 60), (22, 22, 24), (38, 39, 42), (104, 106, 110)
REAR_LIGHT, BRAKE_LIGHT, HEADLIGHT, PLATE = (150, 22, 24), (255, 60, 40), (240, 240, 225), (40, 70, 150)
LAMPS = REAR_LIGHT, BRAKE_LIGHT, HEADLIGHT


@dataclass(frozen=True)
class Box:
    """A frustum: half widths and ends below and above, heights between; a decal is (face, u0, u1, v0, v1, colour)."""

    bottom: float
    top: float
    half: tuple[float, float]  # below, above
    rear: tuple[float, float]
    front: tuple[float, float]
    decals: tuple = ()
    colour: tuple | None = None  # None: the vehicle's own

    def faces(self) -> dict[str, np.ndarray]:
        """Corners [4, 3] (right, up, ahead) of each face: from its lower left one, seen from outside, to the right."""
        (wb, wt), (rb, rt), (fb, ft), b, t = self.half, self.rear, self.front, self.bottom, self.top
        return {
            "rear": np.array([[-wb, b, rb], [wb, b, rb], [wt, t, rt], [-wt, t, rt]]),
            "front": np.array([[wb, b, fb], [-wb, b, fb], [-wt, t, ft], [wt, t, ft]]),
            "left": np.array([[-wb, b, fb], [-wb, b, rb], [-wt, t, rt], [-wt, t, ft]]),
            "right": np.array([[wb, b, rb], [wb, b, fb], [wt, t, ft], [wt, t, rt]]),
            "top": np.array([[-wt, t, rt], [wt, t, rt], [wt, t, ft], [-wt, t, ft]]),
        }


def boxes(vehicle: Vehicle) -> list[Box]:
    """The parts of a vehicle that points ahead, from the ground up."""
    rear = BRAKE_LIGHT if vehicle.braking else REAR_LIGHT
    width, length, height = DIMENSIONS[vehicle.kind]
    half = width / 2
    under = Box(0.17, 0.4, (half * 0.86,) * 2, (0.15, 0.05), (length - 0.15, length), colour=RUBBER)
    if vehicle.kind in ("truck", "bus"):
        lights = (
            ("rear", 0.03, 0.12, 0.10, 0.17, rear),
            ("rear", 0.88, 0.97, 0.10, 0.17, rear),
            ("rear", 0.40, 0.60, 0.07, 0.12, PLATE),
            ("rear", 0.0, 1.0, 0.0, 0.05, TRIM),
            ("front", 0.05, 0.2, 0.1, 0.2, HEADLIGHT),
            ("front", 0.8, 0.95, 0.1, 0.2, HEADLIGHT),
            ("front", 0.08, 0.92, 0.42, 0.8, GLASS),
        )
        if vehicle.kind == "bus":
            windows = (
                ("rear", 0.1, 0.9, 0.52, 0.82, GLASS),
                ("left", 0.03, 0.97, 0.46, 0.8, GLASS),
                ("right", 0.03, 0.97, 0.46, 0.8, GLASS),
            )
            return [under, Box(0.32, height, (half, half * 0.97), (0, 0.1), (length, length - 0.15), lights + windows)]
        cab = Box(0.5, 2.7, (half * 0.95,) * 2, (7.4, 7.4), (9.4, 9.1), lights[4:])
        doors = ("rear", 0.495, 0.505, 0.0, 1.0, TRIM)
        load = Box(0.85, height, (half,) * 2, (0, 0), (7.2, 7.2), (*lights[:3], doors))
        frame = Box(0.45, 0.85, (half * 0.8,) * 2, (0, 0), (7.4, 7.4), colour=TRIM)
        return [frame, cab, load]
    waist = {"car": 0.93, "suv": 1.08, "van": 1.15}[vehicle.kind]
    cabin_rear, cabin_front = {
        "car": ((0.35, 0.95), (3.55, 2.75)),
        "suv": ((0.05, 0.35), (3.6, 2.95)),
        "van": ((0.0, 0.1), (4.7, 4.0)),
    }[vehicle.kind]
    y = 0.62 if vehicle.kind == "car" else 0.72
    body = Box(
        0.26,
        waist,
        (half, half * 0.96),
        (0.0, 0.06),
        (length, length - 0.12),
        (
            ("rear", 0.03, 0.22, y, y + 0.22, rear),
            ("rear", 0.78, 0.97, y, y + 0.22, rear),
            ("rear", 0.38, 0.62, 0.34, 0.5, PLATE),
            ("rear", 0.0, 1.0, 0.0, 0.2, TRIM),
            ("front", 0.04, 0.24, 0.55, 0.8, HEADLIGHT),
            ("front", 0.76, 0.96, 0.55, 0.8, HEADLIGHT),
            ("front", 0.25, 0.75, 0.2, 0.62, TRIM),
            ("front", 0.38, 0.62, 0.06, 0.2, PLATE),
            ("left", 0.0, 1.0, 0.0, 0.14, TRIM),
            ("right", 0.0, 1.0, 0.0, 0.14, TRIM),
        ),
    )
    cabin = Box(
        waist,
        height,
        (half * 0.92, half * 0.74),
        cabin_rear,
        cabin_front,
        (
            ("rear", 0.08, 0.92, 0.12, 0.88, GLASS),
            ("front", 0.06, 0.94, 0.08, 0.92, GLASS),
            ("left", 0.06, 0.48, 0.12, 0.88, GLASS),
            ("left", 0.52, 0.94, 0.12, 0.88, GLASS),
            ("right", 0.06, 0.48, 0.12, 0.88, GLASS),
            ("right", 0.52, 0.94, 0.12, 0.88, GLASS),
        ),
    )
    return [under, body, cabin]


def wheels(vehicle: Vehicle, side: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What is seen of the wheels: treads [4, 3] from behind or ahead, and discs [16, 3] on one side."""
    width, length, _ = DIMENSIONS[vehicle.kind]
    radius = 0.48 if vehicle.kind in ("truck", "bus") else 0.34
    turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    at = [0.17 * length, 0.8 * length]
    treads = [
        np.array([[x - 0.13, 0, c], [x + 0.13, 0, c], [x + 0.13, radius, c], [x - 0.13, radius, c]])
        for c in (at[0] - radius, at[1] + radius)
        for x in (-width / 2 + 0.16, width / 2 - 0.16)
    ]
    x = np.full(16, side * (width / 2 + 0.01))
    discs = [np.stack([x, radius + radius * np.sin(turn), c + radius * np.cos(turn)], -1) for c in at]
    return treads, discs


def facing(scene: Scene, vehicle: Vehicle) -> Iterator[tuple[np.ndarray, tuple, float]]:
    """(world polygon, colour, light on it) of what faces the camera, in the order of drawing."""
    rotation, origin = pose(scene, vehicle)
    eye = rotation.T @ (np.array([0, scene.camera.height_m, 0]) - origin)  # the camera in the vehicle's axes
    sun = np.array([-scene.weather.sun[0], 1.0, -scene.weather.sun[1]])
    sun = rotation.T @ (sun / np.linalg.norm(sun))
    treads, discs = wheels(vehicle, 1 if eye[0] > 0 else -1)
    for tread in treads:
        yield tread @ rotation.T + origin, RUBBER, 1.0
    parts = boxes(vehicle)
    if vehicle.kind == "truck" and eye[2] > 8:
        parts[-1], parts[-2] = parts[-2], parts[-1]  # from ahead, the cab hides the load
    for box in parts:
        for name, corners in box.faces().items():
            inward = np.cross(corners[1] - corners[0], corners[3] - corners[0])
            inward /= np.linalg.norm(inward)
            if inward @ (corners[0] - eye) <= 0:
                continue
            light = 0.78 - 0.3 * (0.3 + 0.7 * scene.weather.shadows) * float(inward @ sun)
            yield corners @ rotation.T + origin, box.colour or vehicle.colour, light
            for face, u0, u1, v0, v1, colour in box.decals:
                if face == name:
                    yield patch(corners, u0, u1, v0, v1) @ rotation.T + origin, colour, 0.6 + 0.4 * light
    if abs(eye[0]) > DIMENSIONS[vehicle.kind][0] / 2:
        for disc in discs:
            centre = disc.mean(axis=0)
            yield disc @ rotation.T + origin, RUBBER, 1.0
            yield (centre + 0.55 * (disc - centre)) @ rotation.T + origin, HUB, 1.0


def draw_vehicle(scene: Scene, vehicle: Vehicle, brush: Brush) -> None:
    for polygon, colour, light in facing(scene, vehicle):
        brush.fill(polygon, np.array(colour) * light)


def draw_lamps(scene: Scene, vehicle: Vehicle, brush: Brush) -> None:
    """The vehicle's lights; the rest of it in black, for it hides the lights behind it."""
    for polygon, colour, _ in facing(scene, vehicle):
        brush.fill(polygon, colour if colour in LAMPS else (0, 0, 0))


def pose(scene: Scene, vehicle: Vehicle) -> tuple[np.ndarray, np.ndarray]:
    """Rotation [3, 3] and origin [3] that take a vehicle's own axes (right, up, ahead) to the world."""
    length = vehicle.length_m
    turn = float(scene.road.angle(vehicle.s + length / 2)) + (np.pi if vehicle.oncoming else 0)
    origin = scene.terrain.lift(scene.road.plan(vehicle.offset, vehicle.s + (length if vehicle.oncoming else 0)))
    cos, sin = np.cos(turn), np.sin(turn)
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]), origin


def patch(corners, u0, u1, v0, v1) -> np.ndarray:
    """A part of a face by bilinear coordinates: u to the right, v up."""
    a, b, c, d = corners
    return np.array(
        [(1 - v) * ((1 - u) * a + u * b) + v * ((1 - u) * d + u * c) for u, v in ((u0, v0), (u1, v0), (u1, v1), (u0, v1))]
    )


def shadows(scene: Scene) -> list[Shade]:
    """What vehicles darken: the ground under them, and their shadow in the sun."""
    found = []
    for vehicle in scene.vehicles:
        width, length, height = DIMENSIONS[vehicle.kind]

        def footprint(grown: float) -> np.ndarray:
            x, a, b = width / 2 + grown, vehicle.s - grown, vehicle.s + length + grown
            return np.array([[-x, a], [-x, b], [x, b], [x, a]]) + (vehicle.offset, 0)

        if scene.weather.shadows > 0:
            thrown = footprint(0) + 0.8 * height * np.array(scene.weather.sun)
            hull = cv2.convexHull(np.concatenate([footprint(0), thrown]).astype(np.float32))[:, 0]
            found.append(Shade(hull.astype(np.float64), 1 - scene.weather.shadows))
        found += [Shade(footprint(grown), light) for grown, light in ((0.35, 0.75), (0.15, 0.5), (-0.05, 0.28))]
    return found
