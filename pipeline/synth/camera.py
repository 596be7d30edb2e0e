"""A pinhole camera above the road, and the projection of points and convex outlines.

World axes in metres: x right, y up, z ahead along the camera's heading; the origin lies on the road under the camera.
Pixel coordinates as in OpenCV: (u, v), whole numbers at pixel centres.
"""

from dataclasses import dataclass

import numpy as np

NEAR_M = 0.4  # nothing nearer than this is drawn


@dataclass(frozen=True, kw_only=True)
class Camera:
    height_m: float
    focal: float  # of the image width
    horizon: float  # row of the level horizon, of the image height
    pitch: float  # radians, downward
    roll: float  # radians

    def matrix(self, size: tuple[int, int]) -> np.ndarray:
        """The 3x4 projection to an image of this (height, width)."""
        height, width = size
        focal_px = self.focal * width
        cos_p, sin_p, cos_r, sin_r = np.cos(self.pitch), np.sin(self.pitch), np.cos(self.roll), np.sin(self.roll)
        intrinsics = np.array(
            [[focal_px, 0, (width - 1) / 2], [0, focal_px, self.horizon * height + focal_px * np.tan(self.pitch)], [0, 0, 1]]
        )
        rotation = (
            np.array([[cos_r, -sin_r, 0], [sin_r, cos_r, 0], [0, 0, 1]])
            @ np.array([[1, 0, 0], [0, cos_p, -sin_p], [0, sin_p, cos_p]])
            @ np.diag([1.0, -1.0, 1.0])
        )  # image rows count downward
        return intrinsics @ np.column_stack([rotation, -rotation @ [0.0, self.height_m, 0.0]])


def project(matrix: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [..., 2] and depths [...] of world points [..., 3]."""
    homogeneous = points @ matrix[:, :3].T + matrix[:, 3]
    return homogeneous[..., :2] / homogeneous[..., 2:], homogeneous[..., 2]


def outline(matrix: np.ndarray, polygon: np.ndarray) -> np.ndarray | None:
    """Pixels [n, 2] of a convex world polygon cut at the near plane; None if all of it is behind."""
    points = polygon @ matrix[:, :3].T + matrix[:, 3]
    inside = points[:, 2] >= NEAR_M
    if not inside.any():
        return None
    if not inside.all():
        kept = []
        for a, b in zip(points, np.roll(points, -1, axis=0)):
            if a[2] >= NEAR_M:
                kept.append(a)
            if (a[2] >= NEAR_M) != (b[2] >= NEAR_M):
                kept.append(a + (b - a) * (NEAR_M - a[2]) / (b[2] - a[2]))
        points = np.array(kept)
    return points[:, :2] / points[:, 2:]
