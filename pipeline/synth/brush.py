"""Fills convex world polygons in an image, paler with distance."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from pipeline.synth.camera import Camera, outline

SHIFT = 4  # fractional bits of corners
Haze = Callable[[np.ndarray, Any], np.ndarray]  # (colour, distance in metres) -> colour seen through the air


class Brush:
    def __init__(self, camera: Camera, canvas: np.ndarray, haze: Haze):
        self.canvas, self.haze = canvas, haze
        self.matrix = camera.matrix(canvas.shape[:2])

    def fill(self, polygon, colour) -> None:
        """`polygon`: world points [n, 3]; what lies behind the camera is cut off."""
        polygon = np.asarray(polygon)
        corners = outline(self.matrix, polygon)
        if corners is not None:
            pixels = np.round(np.clip(corners, -8000, 8000) * 2**SHIFT).astype(np.int32)
            seen = np.clip(self.haze(np.asarray(colour), polygon[:, 2].mean()), 0, 255)
            cv2.fillConvexPoly(self.canvas, pixels, seen.tolist(), cv2.LINE_AA, SHIFT)
