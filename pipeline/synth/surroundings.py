"""Draws what stands and drives on and beside a road: vehicles, roadside things, and the shadows that fall across."""

import numpy as np

from pipeline.synth.cross_section import CrossSection
from pipeline.synth.scene import Roadside, Shade, Vehicle, Weather, whole

CAR_COLOURS = (
    (232, 232, 232),
    (28, 30, 34),
    (168, 172, 176),
    (96, 100, 106),
    (128, 26, 30),
    (36, 58, 112),
    (196, 188, 170),
    (70, 76, 70),
    (214, 170, 40),
    (60, 90, 120),
)
VEHICLES = {"car": 0.55, "suv": 0.22, "van": 0.1, "truck": 0.06, "bus": 0.07}
LEAVES = ((62, 84, 42), (84, 92, 48), (52, 70, 44), (96, 90, 56))


def draw_vehicles(rng, section: CrossSection, difficulty: float) -> tuple[Vehicle, ...]:
    if rng.random() < 0.15 - 0.1 * difficulty:
        return ()
    mean_gap = rng.uniform(9, 60 - 25 * difficulty) / (0.4 + 0.6 * difficulty)
    vehicles = []
    for offset in section.centres + section.oncoming:
        own = abs(offset) < 0.1
        s = rng.uniform(6, 14) if own else rng.uniform(-6, 10)
        s += rng.exponential(mean_gap * (1.2 if own else 0.6))
        while s < 130:
            kind = str(rng.choice(list(VEHICLES), p=list(VEHICLES.values())))
            if own and s < 9 and kind in ("truck", "bus"):
                kind = "car"  # nothing but a wall of paint would be seen
            vehicle = Vehicle(
                kind=kind,
                colour=CAR_COLOURS[rng.integers(len(CAR_COLOURS))],
                offset=offset + rng.normal(0, 0.2),
                s=s,
                oncoming=offset in section.oncoming,
                braking=bool(rng.random() < 0.3),
            )
            vehicles.append(vehicle)
            s += vehicle.length_m + rng.uniform(2, 5) + rng.exponential(mean_gap)
    return tuple(vehicles)


def draw_roadside(rng, section: CrossSection) -> tuple[Roadside, ...]:
    city, things = section.setting == "city", []
    trees, houses = rng.random() < 0.75, city and rng.random() < 0.8
    green = LEAVES[rng.integers(len(LEAVES))]
    for side, edge in ((-1, section.edges[0]), (1, section.edges[1])):
        if houses:
            things += draw_houses(rng, section, side, edge)
        if trees:
            s, step = rng.uniform(6, 16), rng.uniform(6, 15)
            away, scatter = (rng.uniform(1.6, 3.0), 0.8) if city else (rng.uniform(4, 9), 9.0)
            while s < 190:
                if section.clear_of_crossing(s, s, 3):
                    things.append(
                        Roadside(
                            kind="tree",
                            offset=edge + side * (away + rng.uniform(0, scatter)),
                            s=s,
                            height_m=rng.uniform(4.5, 9),
                            variant=int(rng.integers(6)),
                            tint=green,
                        )
                    )
                s += step * rng.uniform(0.7, 1.6) * (1 + s / 120)
        if rng.random() < 0.6:
            things += [
                Roadside(kind="lamp", offset=edge + side * 0.9, s=s, height_m=9.0, variant=side)
                for s in np.arange(rng.uniform(8, 35), 220, 32)
            ]
        if (section.setting == "highway" or rng.random() < 0.2) and not section.has_crossing:
            things += barrier("rail", edge + side * 0.5, 200, green)
    if section.divided:
        kind = str(rng.choice(["hedge" if city else "wall", "rail"]))
        end = section.crossing_s - 1 if section.has_crossing else 200
        things += barrier(kind, section.left - 0.3 - section.median / 2, end, green)
    if rng.random() < 0.1:
        things.append(Roadside(kind="bridge", offset=0, s=rng.uniform(18, 90), length_m=rng.uniform(5, 16), height_m=5.5))
    if rng.random() < 0.2:
        things.append(
            Roadside(
                kind="sign",
                offset=(section.left + section.right) / 2,
                s=rng.uniform(30, 110),
                width_m=section.right - section.left,
                height_m=6.0,
                variant=int(rng.integers(2)),
            )
        )
    return tuple(things)


def draw_houses(rng, section: CrossSection, side: int, edge: float) -> list[Roadside]:
    houses, s = [], rng.uniform(-10, 20)
    while s < 260:
        length = rng.uniform(14, 45)
        if section.clear_of_crossing(s, s + length, 0):
            houses.append(
                Roadside(
                    kind="house",
                    offset=edge + side * rng.uniform(7, 16),
                    s=s,
                    length_m=length,
                    height_m=rng.choice([8, 14, 22, 40, 60]) * rng.uniform(0.8, 1.2),
                    variant=int(rng.integers(8)),
                    tint=whole(rng.uniform(85, 150) + rng.uniform(-10, 10, 3)),
                )
            )
        s += length + rng.uniform(0, 18)
    return houses


def barrier(kind: str, offset: float, end_m: float, tint) -> list[Roadside]:
    """In pieces, so that what stands between two of them can be drawn between them."""
    s = np.concatenate([np.arange(-5, 40, 4.0), np.arange(43, end_m, 12.0)])
    s = np.append(s[s < end_m], end_m)
    return [Roadside(kind=kind, offset=offset, s=a, length_m=b - a, height_m=0.9, tint=tint) for a, b in zip(s, s[1:])]


def draw_shades(rng, section: CrossSection, weather: Weather, roadside: tuple[Roadside, ...]) -> tuple[Shade, ...]:
    """Shadows of bridges, and of houses beyond the picture. Trees and vehicles throw theirs when ground is painted."""
    left, right = section.edges
    shades = []
    for bridge in (thing for thing in roadside if thing.kind == "bridge"):
        a = bridge.s + 0.6 * bridge.height_m * weather.sun[1]
        b = a + bridge.length_m
        outline = np.array([[left - 30, a], [left - 30, b], [right + 30, b], [right + 30, a]])
        shades.append(Shade(outline, min(1 - weather.shadows, 0.6)))
    if weather.shadows and section.setting == "city" and rng.random() < 0.3:
        to_right, ahead = weather.sun
        side = np.sign(to_right)
        start = left - 6 if side > 0 else right + 6
        s = rng.uniform(-10, 10)
        for _ in range(rng.integers(1, 6)):
            length, reach = rng.uniform(8, 40), rng.uniform(6, 20)
            slant = 0.4 * reach * ahead / max(abs(to_right), 0.3)
            shades.append(
                Shade(
                    np.array(
                        [
                            [start, s],
                            [start, s + length],
                            [start + side * reach, s + length + slant],
                            [start + side * reach, s + slant],
                        ]
                    ),
                    1 - weather.shadows,
                )
            )
            s += length + rng.uniform(3, 25)
    return tuple(shades)
