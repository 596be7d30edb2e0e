"""What is farther than the road: sky, clouds, a skyline or a line of trees, and the haze that everything fades into."""

import cv2
import numpy as np

from pipeline.synth import texture
from pipeline.synth.brush import Haze
from pipeline.synth.scene import Scene
from pipeline.synth.streams import stream


def sky_colours(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """(zenith, horizon) RGB by daylight."""
    clouds = scene.weather.clouds
    zenith = (1 - clouds) * np.array((104, 152, 214)) + clouds * np.array((168, 174, 182))
    horizon = (1 - clouds) * np.array((206, 220, 234)) + clouds * np.array((206, 208, 210))
    return zenith, horizon


def haze_of(scene: Scene) -> Haze:
    """A function (colour, distance) -> colour seen through the air."""
    _, horizon = sky_colours(scene)

    def haze(colour, distance):
        clear = np.exp(-np.maximum(distance, 0.0) / scene.weather.visibility_m)
        return colour * clear + horizon * (1 - clear)

    return haze


def draw_backdrop(scene: Scene, canvas: np.ndarray, haze: Haze) -> None:
    height, width = canvas.shape[:2]
    rng = stream(*scene.key, "backdrop")
    end = scene.terrain.heights[-1] - scene.camera.height_m
    rise = scene.camera.focal * width * end / scene.terrain.edges[-1]
    line = int(np.clip(scene.camera.horizon * height - rise, 8, height - 8))  # the row where the ground ends
    zenith, horizon = sky_colours(scene)
    t = (np.linspace(0, 1, line + 4) ** 1.4)[:, None]
    canvas[: line + 4] = np.round(zenith * (1 - t) + horizon * t)[:, None].astype(np.uint8)
    draw_clouds(scene, canvas[: line + 4], rng)
    canvas[line + 4 :] = np.round(haze(np.array(scene.verge), 250.0)).astype(np.uint8)
    unit = height / 590  # sizes below are for a 590-row image
    if scene.setting == "city" or rng.random() < 0.4:
        towers(canvas, line, unit, rng, haze)
    for distance, tall in ((900.0, 22), (500.0, 14)):
        ridge(canvas, line, tall * unit * rng.uniform(0.5, 1.6), np.array((66, 78, 58)), distance, rng, haze)


def draw_clouds(scene, sky, rng) -> None:
    clouds = scene.weather.clouds
    shape = (max(2, sky.shape[0] // 4), sky.shape[1] // 4)
    scale = 590 / scene.camera.focal / sky.shape[1]
    noise = texture.fractal(shape, rng.uniform(0, 9999), scale, rng.uniform(0, 9999), scale * 3, (3, 8, 22, 50))
    cover = cv2.addWeighted(noise, 1.6, noise, 0.0, 1.6 * (-150 + 70 * clouds))
    cover = cv2.resize(cover, sky.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    white = np.array([246, 247, 249, 0]) * (1 - 0.22 * clouds)
    alpha = cv2.merge([cv2.multiply(cover, np.array([0.8, 0, 0, 0]))] * 3)
    sky[:] = cv2.add(cv2.multiply(sky, 255 - alpha, scale=1 / 255), cv2.multiply(alpha, white, scale=1 / 255))


def towers(canvas, line, unit, rng, haze) -> None:
    """Far buildings as pale boxes."""
    x = -30.0 * unit
    while x < canvas.shape[1]:
        wide, tall = rng.uniform(20, 110) * unit, rng.gamma(2.0, 22) * unit
        distance = rng.uniform(350, 1600)
        if rng.random() < 0.75:
            colour = haze(rng.uniform(90, 170) + rng.uniform(-12, 12, 3), distance)
            y0, y1 = int(max(0, line - tall)), line + 4
            x0, x1 = int(max(0, x)), int(min(canvas.shape[1], x + wide))
            if x1 > x0:
                canvas[y0:y1, x0:x1] = np.round(colour).astype(np.uint8)
                step = max(3, int(5 * unit))
                canvas[y0 + 2 : y1 : step, x0:x1] = np.round(colour * 0.88).astype(np.uint8)
        x += wide * rng.uniform(0.5, 1.4)


def ridge(canvas, line, tall, colour, distance, rng, haze) -> None:
    """A line of far trees or hills."""
    width = canvas.shape[1]
    x = np.arange(width) / width
    top = np.zeros(width)
    for waves, share in ((2, 0.45), (7, 0.3), (31, 0.15), (90, 0.1)):
        top += share * np.interp(x, np.linspace(0, 1, waves + 2), rng.uniform(0, 1, waves + 2))
    edge = np.stack([np.arange(width), line - tall * top * 1.6], -1)
    polygon = np.concatenate([edge, [[width, line + 6], [0, line + 6]]])
    cv2.fillPoly(canvas, [np.round(polygon * 16).astype(np.int32)], haze(colour, distance).tolist(), cv2.LINE_AA, 4)
