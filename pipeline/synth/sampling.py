"""Draws scenes: the same (seed, split, index, difficulty) gives the same scene anywhere.

`difficulty` runs from 0 (clear paint, mostly daylight, few vehicles) to 1 (much of the paint worn, dark or hidden); at
0.5 the nine categories have roughly the shares that they have in CULane's test split, the rarest ones more.
"""

import numpy as np

from pipeline.synth.camera import Camera
from pipeline.synth.cross_section import CrossSection
from pipeline.synth.road import Road, Terrain
from pipeline.synth.scene import Scene, Weather
from pipeline.synth.streams import stream
from pipeline.synth.surroundings import draw_roadside, draw_shades, draw_vehicles


def draw_scene(seed: int, split: str, index: int, difficulty: float) -> Scene:
    key = (seed, split, index)
    rng = stream(*key, "kind")
    setting = str(rng.choice(["city", "highway", "rural"], p=[0.55, 0.33, 0.12]))
    on_crossing = bool(setting != "highway" and rng.random() < 0.05 + 0.18 * difficulty)
    no_paint = bool(rng.random() < 0.03 + 0.22 * difficulty)
    wear = 0.8 if no_paint else rng.beta(1.2, 4.5 - 3 * difficulty) * (0.25 + 0.75 * difficulty)
    distractors, annotated_m = int(rng.poisson(2 + 9 * difficulty)), rng.uniform(55, 85)
    weather = draw_weather(stream(*key, "weather"), difficulty)
    road, terrain = draw_road(stream(*key, "road"), setting, straight=on_crossing)
    section = CrossSection(stream(*key, "section"), setting, on_crossing, no_paint, difficulty)
    roadside = draw_roadside(stream(*key, "roadside"), section)
    return Scene(
        key=key,
        camera=draw_camera(stream(*key, "camera")),
        road=road,
        terrain=terrain,
        setting=setting,
        asphalt=section.asphalt,
        verge=section.verge,
        edges=section.edges,
        surfaces=tuple(section.surfaces),
        lines=tuple(section.lines),
        markings=(*section.symbols, *(line.marking() for line in section.lines)),
        wear=float(wear),
        distractors=distractors,
        vehicles=draw_vehicles(stream(*key, "vehicles"), section, difficulty),
        roadside=roadside,
        shades=draw_shades(stream(*key, "shades"), section, weather, roadside),
        weather=weather,
        annotated_m=annotated_m,
    )


def draw_camera(rng) -> Camera:
    return Camera(
        height_m=rng.uniform(1.2, 1.75),
        focal=rng.uniform(0.52, 0.7),
        horizon=rng.uniform(0.43, 0.55),
        pitch=np.deg2rad(rng.normal(0, 1.5)),
        roll=np.deg2rad(rng.normal(0, 0.6)),
    )


def draw_road(rng, setting: str, straight: bool) -> tuple[Road, Terrain]:
    bends = 0.0 if straight else {"city": 0.3, "highway": 0.45, "rural": 0.6}[setting]
    radius = rng.uniform(*{"city": (110, 500), "highway": (250, 1200), "rural": (90, 500)}[setting])
    curvature = rng.choice([-1, 1]) / radius if rng.random() < bends else rng.uniform(-1, 1) / 4000
    road = Road(
        lateral_m=float(np.clip(rng.normal(0, 0.35), -1.1, 1.1)),
        heading=np.deg2rad(rng.normal(0, 1.2)),
        curvature=float(curvature),
        onset_m=rng.uniform(-25, 30),
        transition_m=rng.uniform(15, 60),
        s_curve=bool(rng.random() < 0.25),
    )
    grade = rng.uniform(-0.035, 0.05) if rng.random() < 0.3 else 0.0
    return road, Terrain(grade=grade, start_m=rng.uniform(8, 40), length_m=rng.uniform(25, 90))


def draw_weather(rng, difficulty: float) -> Weather:
    night = bool(rng.random() < 0.06 + 0.3 * difficulty)
    rain = rng.uniform(0.3, 1.0) if rng.random() < 0.03 + 0.12 * difficulty else 0.0
    glare = rng.uniform(0.35, 1.0) if rng.random() < 0.02 + 0.08 * difficulty else 0.0
    clouds = rng.beta(0.8, 0.8)
    if rain:
        clouds = max(clouds, 0.85)
    elif glare:
        clouds *= 0.3
    sunny = not night and not rain and clouds < 0.6
    direction, reach = rng.uniform(-np.pi, np.pi), rng.uniform(0.3, 1.8)
    hazy = rain or rng.random() < 0.1 + 0.15 * difficulty
    return Weather(
        night=night,
        sun=(reach * np.sin(direction), reach * np.cos(direction)),
        shadows=rng.uniform(0.45, 0.75) if sunny else 0.0,
        tree_shade=rng.uniform(0.2, 0.8) if sunny and rng.random() < 0.35 else 0.0,
        glare=glare,
        glare_at=(rng.uniform(0.25, 0.75), rng.uniform(0.15, 0.42)),
        rain=rain,
        visibility_m=rng.uniform(90, 300) if hazy else rng.uniform(500, 3000),
        clouds=clouds,
        brightness=rng.uniform(0.8, 1.15),
        blur=rng.uniform(0.4, 0.8 + 0.8 * difficulty),
        noise=rng.uniform(0.5, 1.5) + 3.5 * difficulty * rng.random() + (2.5 if night else 0.0),
    )
