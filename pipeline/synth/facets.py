"""Bird's-eye rasters of the ground, in metres, and their projection: one homography a facet.

A facet is a stripe of ground between two distances that doubles as a level of a resolution pyramid: its raster's
pixels have the size that an image pixel covers in its middle, across and along separately, so that the bilinear filter
of `warpPerspective` is enough. Facets are drawn from far to near, over one another, so a crest hides what lies behind.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.synth.camera import project
from pipeline.synth.markings import KINDS
from pipeline.synth.road import Road
from pipeline.synth.scene import Scene

SHIFT = 4  # fractional bits of OpenCV's polygon corners
BORDER = 3  # pixels beyond a facet's near and far edge, so that neighbours overlap


@dataclass(frozen=True)
class Facet:
    """A raster over a stripe of ground: pixel (j, i) lies at x0 + j dx, z0 + i dz; `to_image` projects (j, i, 1)."""

    x0: float
    dx: float
    z0: float
    dz: float
    shape: tuple[int, int]
    to_image: np.ndarray
    rows: tuple[int, int]  # of the image, those that it can touch

    def pixels(self, points_xz: np.ndarray, scale: int = 1) -> np.ndarray:
        """Corners for `fill` on this raster, or on one `scale` times as fine."""
        pixel = (points_xz - (self.x0, self.z0)) / (self.dx, self.dz)
        pixel = (pixel + 0.5) * scale - 0.5
        return np.round(np.clip(pixel, -20_000, 20_000) * 2**SHIFT).astype(np.int32)

    def warp(self, raster: np.ndarray, canvas: np.ndarray, interpolation: int) -> None:
        """Draws the raster into the image; pixels that it does not cover stay as they are."""
        first, last = self.rows
        to_rows = np.array([[1, 0, 0], [0, 1, -first], [0, 0, 1]]) @ self.to_image
        part = canvas[first:last]
        cv2.warpPerspective(
            raster, to_rows, (part.shape[1], part.shape[0]), dst=part, flags=interpolation, borderMode=cv2.BORDER_TRANSPARENT
        )


def fill(raster: np.ndarray, pixels: np.ndarray, colour, smooth: bool = True) -> None:
    cv2.fillPoly(raster, [pixels], colour, cv2.LINE_AA if smooth else cv2.LINE_8, SHIFT)


def facets(scene: Scene, size: tuple[int, int]) -> list[Facet]:
    """The visible facets, far to near."""
    height, width = size
    matrix, terrain = scene.camera.matrix(size), scene.terrain
    focal_px = scene.camera.focal * width
    found = []
    for z0, z1, y0, y1 in zip(terrain.edges, terrain.edges[1:], terrain.heights, terrain.heights[1:]):
        slope = (y1 - y0) / (z1 - z0)
        if y0 - slope * z0 >= scene.camera.height_m - 0.02:  # seen from below: hidden by the crest before it
            continue
        reach = z1 * (width / 2 / focal_px * 1.06 + 0.02)
        corners, _ = project(matrix, np.array([[x, y, z] for x in (-reach, reach) for y, z in ((y0, z0), (y1, z1))]))
        top, bottom = corners[:, 1].min(), corners[:, 1].max()
        if bottom < 0 or top > height:
            continue
        rows = max(4, int(np.ceil((bottom - top) * 1.1)))
        dx, dz = np.sqrt(z0 * z1) / focal_px, (z1 - z0) / rows
        shape = rows + 2 * BORDER, int(np.ceil(2 * reach / dx))
        first_z = z0 - BORDER * dz
        to_ground = np.array([[dx, 0, -reach], [0, dz, first_z], [0, 0, 1]])
        to_world = np.array([[1, 0, 0], [0, slope, y0 - slope * z0], [0, 1, 0], [0, 0, 1]])
        margin = 2 + 2 * BORDER * (bottom - top) / rows
        found.append(
            Facet(
                -reach,
                dx,
                first_z,
                dz,
                shape,
                matrix @ to_world @ to_ground,
                (max(0, int(top - margin)), min(height, int(bottom + margin) + 1)),
            )
        )
    return found[::-1]


class Outlines:
    """Outlines [n, 2] in road coordinates, laid on the ground."""

    def __init__(self, road: Road, outlines: list[np.ndarray]):
        ends = np.cumsum([len(outline) for outline in outlines], dtype=int)
        corners = np.concatenate(outlines) if outlines else np.zeros((0, 2))
        self.ground = road.plan(corners[:, 0], corners[:, 1])
        self.spans = list(zip(ends - [len(outline) for outline in outlines], ends))
        self.low = np.array([self.ground[a:b].min(axis=0) for a, b in self.spans]).reshape(-1, 2)
        self.high = np.array([self.ground[a:b].max(axis=0) for a, b in self.spans]).reshape(-1, 2)

    def on(self, facet: Facet, scale: int = 1) -> list[tuple[int, np.ndarray]]:
        """(number, pixels on the facet's raster) of the outlines that may touch it, in their order."""
        x1, z1 = facet.x0 + facet.dx * facet.shape[1], facet.z0 + facet.dz * facet.shape[0]
        touching = np.flatnonzero(
            (self.high[:, 1] > facet.z0) & (self.low[:, 1] < z1) & (self.high[:, 0] > facet.x0) & (self.low[:, 0] < x1)
        )
        pixels = facet.pixels(self.ground, scale)
        return [(k, pixels[slice(*self.spans[k])]) for k in touching.tolist()]


def marking_map(scene: Scene, size: tuple[int, int]) -> np.ndarray:
    """[H, W] uint8: the class of paint (its place in `markings.KINDS`) at each pixel, through whatever hides it.

    From the outlines that the picture's paint is drawn from. Worn paint counts as paint.
    """
    canvas = np.zeros(size, np.uint8)
    paint = [(KINDS.index(marking.kind), outline) for marking in scene.markings for outline in marking.outlines]
    outlines = Outlines(scene.road, [outline for _, outline in paint])
    for facet in facets(scene, size):
        raster = np.zeros(facet.shape, np.uint8)
        for k, pixels in outlines.on(facet):
            fill(raster, pixels, paint[k][0], smooth=False)
        facet.warp(raster, canvas, cv2.INTER_NEAREST)
    return canvas
