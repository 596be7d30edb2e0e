"""What the ground looks like: surfaces, damage, paint and its wear, grain, wheel tracks, shadows, and the air between.

All of it is composed in the facets' bird's-eye rasters. Paint is drawn at twice a raster's resolution and averaged.
"""

from statistics import NormalDist
from typing import Any

import cv2
import numpy as np

from pipeline.synth import texture, vehicles
from pipeline.synth.brush import Haze
from pipeline.synth.facets import Facet, Outlines, facets, fill
from pipeline.synth.markings import WHITE, YELLOW
from pipeline.synth.road import strip
from pipeline.synth.scene import Scene, whole
from pipeline.synth.streams import stream

SUPERSAMPLING = 2
LANE_M = 3.3  # between the wheel tracks of neighbouring lanes


def paint_ground(scene: Scene, canvas: np.ndarray, haze: Haze) -> None:
    """Draws the ground into an RGB uint8 image by daylight."""
    rng = stream(*scene.key, "ground")
    origin = rng.uniform(0, 5000, 2)  # where in the noise this ground lies
    surfaces = [
        (surface.colour, piece)
        for surface in scene.surfaces
        for piece in strip(surface.left, surface.right, surface.start_m, surface.end_m)
    ] + damage(scene, rng)
    paint = [(marking, outline) for marking in scene.markings for outline in marking.outlines]
    shades = sorted([*scene.shades, *vehicles.shadows(scene)], key=lambda shade: -shade.light)
    base, painted, shaded, tracks = (
        Outlines(scene.road, outlines)
        for outlines in (
            [piece for _, piece in surfaces],
            [outline for _, outline in paint],
            [shade.outline for shade in shades],
            wheel_tracks(scene),
        )
    )
    for facet in facets(scene, canvas.shape[:2]):
        raster = np.full((*facet.shape, 3), scene.verge, np.uint8)
        for k, pixels in base.on(facet):
            fill(raster, pixels, surfaces[k][0])
        strokes = painted.on(facet, SUPERSAMPLING)
        for colour in (WHITE, YELLOW):
            chosen = [(pixels, paint[k][0].strength) for k, pixels in strokes if paint[k][0].colour == colour]
            if chosen:
                blend(raster, colour, coverage(facet, chosen, origin, scene.wear))
        raster = multiplied(raster, grain(facet, origin, [pixels for _, pixels in tracks.on(facet)]), 128)
        chosen = [(pixels, shades[k].light) for k, pixels in shaded.on(facet)]
        if chosen or scene.weather.tree_shade:
            raster = multiplied(raster, light_left(scene, facet, chosen, origin), 255)
        facet.warp(through_air(raster, facet, haze), canvas, cv2.INTER_LINEAR)


def multiplied(raster: np.ndarray, factor: np.ndarray, one: int) -> np.ndarray:
    return cv2.multiply(raster, cv2.merge([factor] * 3), scale=1 / one)


def noise_at(facet: Facet, origin) -> tuple[tuple[int, int], float, float, float, float]:
    """Where a facet lies in the noise: the first arguments of texture's functions."""
    return facet.shape, facet.x0 + origin[0], facet.dx, facet.z0 + origin[1], facet.dz


def coverage(facet: Facet, chosen, origin, wear: float) -> np.ndarray:
    """[h, w] uint8: how much of each raster pixel is paint; a share `wear` of it, where noise is low, is gone."""
    height, width = facet.shape
    fine = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.uint8)
    for pixels, strength in chosen:
        fill(fine, pixels, int(round(255 * strength)), smooth=False)
    alpha = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)
    noise = texture.fractal(*noise_at(facet, origin), (0.02, 0.07, 0.35))
    limit = 128 + 40 * NormalDist().inv_cdf(np.clip(wear, 0.001, 0.999))
    return cv2.multiply(alpha, cv2.addWeighted(noise, 4.0, noise, 0.0, 128 - 4 * limit), scale=1 / 255)


def blend(raster: np.ndarray, colour, alpha: np.ndarray) -> None:
    """raster += alpha (colour - raster), on the rows that have paint at all."""
    rows = np.flatnonzero(alpha.any(axis=1))
    if len(rows) == 0:
        return
    part, alpha3 = raster[rows[0] : rows[-1] + 1], cv2.merge([alpha[rows[0] : rows[-1] + 1]] * 3)
    paint = cv2.multiply(alpha3, np.array([*colour, 0], np.float64), scale=1 / 255)
    part[:] = cv2.add(cv2.multiply(part, 255 - alpha3, scale=1 / 255), paint)


def grain(facet: Facet, origin, tracks) -> np.ndarray:
    """[h, w] uint8 brightness, 128 = as it is: grain, blotches, and the darker tracks of wheels."""
    at = noise_at(facet, origin)
    fine = cv2.addWeighted(texture.sample_noise(*at, 0.008, 0.5), 0.5, texture.sample_noise(*at, 0.03, 0.4), 0.5, 0)
    blotches = cv2.addWeighted(texture.sample_noise(*at, 0.25, 0.35), 0.5, texture.sample_noise(*at, 2.5, 0.6), 0.5, 0)
    brightness = cv2.addWeighted(fine, 1.0, blotches, 0.5, -64)
    worn = np.zeros(facet.shape, np.uint8)
    for pixels in tracks:
        fill(worn, pixels, 9)
    return cv2.subtract(brightness, cv2.blur(worn, (max(1, int(0.3 / facet.dx)) | 1, 1)))


def wheel_tracks(scene: Scene) -> list[np.ndarray]:
    lanes = {0} | {round(vehicle.offset / LANE_M) for vehicle in scene.vehicles}
    return [
        piece
        for lane in sorted(lanes)
        for side in (-0.75, 0.75)
        for piece in strip(lane * LANE_M + side - 0.28, lane * LANE_M + side + 0.28, -10, 90)
    ]


def damage(scene: Scene, rng) -> list[tuple[tuple[int, int, int], np.ndarray]]:
    """Repair patches, seams, joints and cracks: outlines with a colour that are no paint."""
    left, right = scene.edges
    found = []
    for _ in range(scene.distractors):
        grey = whole(np.clip(np.array(scene.asphalt) * rng.uniform(0.62, 1.16), 0, 255))
        s, offset, shape = rng.uniform(2, 60), rng.uniform(left, right), rng.random()
        if shape < 0.3:
            far_side = min(offset + rng.uniform(0.6, 3), right)
            found += [(grey, piece) for piece in strip(offset, far_side, s, s + rng.uniform(1, 9))]
        elif shape < 0.55:
            far_side = offset + rng.uniform(0.04, 0.12)
            found += [(grey, piece) for piece in strip(offset, far_side, s, s + rng.uniform(8, 60))]
        elif shape < 0.7:
            found.append((grey, np.array([[left, s], [left, s + 0.07], [right, s + 0.07], [right, s]])))
        else:
            steps = rng.normal(0, (0.35, 0.5), (int(rng.integers(5, 14)), 2)) + (0, rng.uniform(-0.3, 0.5))
            path = np.cumsum(np.concatenate([[[offset, s]], steps]), axis=0)
            dark = whole(c * 0.62 for c in scene.asphalt)
            found += [(dark, np.array([a, b, b + (0.035, 0.02), a + (0.035, 0.02)])) for a, b in zip(path, path[1:])]
    return found


def light_left(scene: Scene, facet: Facet, chosen, origin) -> np.ndarray:
    """[h, w] uint8: the light that shadows leave on the ground, 255 = all. `chosen` is ordered, the darkest last."""
    light: Any = np.full(facet.shape, 255, np.uint8)
    for pixels, left in chosen:
        fill(light, pixels, int(255 * left))
    light = cv2.blur(light, (max(1, int(0.12 / facet.dx)) | 1, 1))
    trees = scene.weather.tree_shade
    if trees:
        at = noise_at(facet, origin[::-1])
        mixed = cv2.addWeighted(texture.fractal(*at, (0.1, 0.3, 0.9)), 0.4, texture.sample_noise(*at, 2.2, 1.0), 0.6, 0)
        lit = cv2.addWeighted(mixed, 5.0, mixed, 0.0, 5.0 * (-100 - 55 * trees) + 128)
        depth = scene.weather.shadows
        light = cv2.min(light, cv2.addWeighted(lit, depth, lit, 0.0, 255 * (1 - depth)))
    return light


def through_air(raster: np.ndarray, facet: Facet, haze: Haze) -> np.ndarray:
    """The raster as haze leaves it, row by row."""
    z = facet.z0 + facet.dz * np.arange(facet.shape[0])[:, None]
    added = haze(np.zeros(3), z)
    kept = haze(np.full(3, 255.0), z) - added
    if kept.min() > 250:
        return raster
    kept, added = (np.tile(np.round(part).astype(np.uint8)[:, None], (1, facet.shape[1], 1)) for part in (kept, added))
    return cv2.add(cv2.multiply(raster, kept, scale=1 / 255), added)
