"""From the scene by daylight to the camera's picture: darkness and lamps, glare, rain, lens and sensor.

Brightness maps are smooth, so they are made at an eighth of the resolution and enlarged.
"""

from typing import Any

import cv2
import numpy as np

from pipeline.synth import texture
from pipeline.synth.brush import Brush
from pipeline.synth.camera import project
from pipeline.synth.roadside import lamp_head
from pipeline.synth.scene import Scene, drawing_order
from pipeline.synth.streams import stream
from pipeline.synth.vehicles import draw_lamps

COARSE = 8


def expose(scene: Scene, canvas: np.ndarray) -> np.ndarray:
    """The finished picture, [H, W, 3] uint8, of a scene drawn by daylight."""
    height, width = canvas.shape[:2]
    weather, rng = scene.weather, stream(*scene.key, "sensor")
    if weather.rain:
        wet(scene, canvas)
    gain, veil = light_maps(scene, (height, width))
    picture: Any = cv2.multiply(canvas.astype(np.float32), cv2.resize(gain, (width, height)))
    picture += cv2.resize(veil, (width, height))
    if weather.night:
        picture += cv2.resize(lamp_light(scene, (height, width)), (width, height))
    if weather.rain:
        picture = drops(picture, weather.rain, rng)
    sigma = weather.blur * height / 590
    if sigma > 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    tile = texture.sensor_noise()
    y, x = rng.integers(tile.shape[0]), rng.integers(tile.shape[1])
    noise = tile.take(np.arange(y, y + height), axis=0, mode="wrap").take(np.arange(x, x + width), axis=1, mode="wrap")
    strength = weather.noise / 16
    return cv2.addWeighted(picture, 1.0, noise.astype(np.float32), strength, -128 * strength, dtype=cv2.CV_8U)


def light_maps(scene: Scene, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Per-pixel factor and summand [h, w, 3] float32 at a coarse resolution."""
    height, width = size
    h, w = max(8, height // COARSE), max(8, width // COARSE)
    v, u = np.mgrid[0:h, 0:w].astype(np.float32)
    v, u = (v + 0.5) * height / h, (u + 0.5) * width / w
    weather, camera = scene.weather, scene.camera
    below = np.maximum(v - camera.horizon * height, 0.5)
    ahead = camera.focal * width * camera.height_m / below  # of the level ground
    across = (u - width / 2) * ahead / (camera.focal * width)
    gain, veil = np.ones((h, w, 3), np.float32), np.zeros((h, w, 3), np.float32)
    ground = (v > camera.horizon * height)[..., None]
    if weather.night:
        tint = np.array([0.25, 0.235, 0.25])
        beam = np.exp(-((across / (2.2 + 0.13 * ahead)) ** 2)) * np.exp(-ahead / 26) * np.clip(ahead / 9, 0, 1) ** 0.5
        street = 0.3 * np.exp(-(((v - 0.75 * height) / (0.5 * height)) ** 2))
        warm = np.array([1.0, 0.88, 0.66])
        upper = np.where(v < camera.horizon * height, np.clip(v / (camera.horizon * height), 0.25, 1), 1)[..., None]
        lit = 0.95 * beam[..., None] * np.array([1, 0.97, 0.88]) + street[..., None] * warm
        dark = tint * upper * 0.8 + lit * ground
        gain = (gain * dark).astype(np.float32)
    if weather.glare:
        gx, gy = weather.glare_at[0] * width, weather.glare_at[1] * height
        far = np.hypot((u - gx) / width, (v - gy) / width * 1.1)
        burst = weather.glare * (330 * np.exp(-((far / 0.03) ** 2)) + 190 * np.exp(-far / 0.13) + 60 * np.exp(-far / 0.4))
        streak = weather.glare * 60 * np.exp(-(((u - gx) / (0.03 * width)) ** 2)) * ground[..., 0]
        veil += (burst + streak + 26 * weather.glare)[..., None] * np.array([1.0, 0.97, 0.9])
        gain *= 1 - 0.35 * weather.glare
    edge = 1 - 0.16 * (((u / width - 0.5) / 0.5) ** 2 + ((v / height - 0.5) / 0.5) ** 2) / 2
    exposure = weather.brightness * edge[..., None]
    return (gain * exposure).astype(np.float32), (veil * exposure).astype(np.float32)


def lamp_light(scene: Scene, size: tuple[int, int]) -> np.ndarray:
    """Light sources with their glow, [H/2, W/2, 3] float32, to be added."""
    height, width = size[0] // 2, size[1] // 2
    canvas = np.zeros((height, width, 3), np.uint8)
    brush = Brush(scene.camera, canvas, lambda colour, distance: colour)
    for lamp in (thing for thing in scene.roadside if thing.kind == "lamp"):
        pixel, depth = project(brush.matrix, lamp_head(scene, lamp))
        if depth > 4 and np.all(np.abs(pixel) < 8000):
            radius = max(1, int(np.round(0.35 * scene.camera.focal * width / depth)))
            cv2.circle(canvas, tuple(int(p) for p in pixel), radius, (255, 214, 150), -1, cv2.LINE_AA)
    for vehicle in drawing_order(scene.vehicles):
        draw_lamps(scene, vehicle, brush)
    light = canvas.astype(np.float32)
    small = cv2.resize(canvas, (width // 4, height // 4), interpolation=cv2.INTER_AREA).astype(np.float32)
    reach = height / 295
    glow = 1.6 * cv2.GaussianBlur(small, (0, 0), 2.5 * reach) + 2.2 * cv2.GaussianBlur(small, (0, 0), 9 * reach)
    streak = cv2.blur(small, (1, max(3, int(50 * reach)) | 1)) * (0.9 if scene.weather.rain else 0.3)
    return light + cv2.resize(glow + streak, (width, height))


def wet(scene: Scene, canvas) -> None:
    """A wet road mirrors what stands above the horizon, smeared along the line of sight."""
    height, width = canvas.shape[:2]
    line = int(scene.camera.horizon * height)
    mirrored = cv2.resize(cv2.flip(canvas[:line], 0), (width // 4, (height - line) // 4), interpolation=cv2.INTER_AREA)
    mirrored = cv2.blur(mirrored, (3, max(3, (height - line) // 10) | 1))
    mirrored = cv2.resize(mirrored, (width, height - line))
    share = (0.15 + 0.2 * scene.weather.rain) * np.linspace(0, 1, height - line, dtype=np.float32)[:, None, None] ** 0.5
    canvas[line:] = canvas[line:] * (1 - 1.4 * share) + mirrored * share


def drops(picture: np.ndarray, rain: float, rng) -> np.ndarray:
    """Drops on the windscreen: round spots that show a blurred, shifted picture."""
    height, width = picture.shape[:2]
    small = cv2.resize(picture, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    soft = cv2.resize(cv2.GaussianBlur(small, (0, 0), 3 * height / 590), (width, height))
    mask: Any = np.zeros((height, width), np.float32)
    for _ in range(int(90 * rain)):
        radius = rng.gamma(2.0, 2.6) * height / 590 + 1
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.ellipse(
            mask,
            centre,
            (max(1, int(radius)), max(1, int(radius * rng.uniform(1, 1.7)))),
            0,
            0,
            360,
            float(rng.uniform(0.5, 0.95)),
            -1,
            cv2.LINE_AA,
        )
    mask = cv2.GaussianBlur(mask, (0, 0), max(0.5, 1.5 * height / 590))[..., None]
    return picture + mask * (soft * 1.06 - picture)
