"""The shape of the road: a curve of given curvature in plan, and a vertical profile of flat facets.

Road coordinates are (offset, s): metres to the right of the reference line (the middle of the camera's lane), and
metres along it. The curve is integrated from its curvature, so lines at a fixed offset are exact parallels. The profile
depends on the distance z alone and is linear between facet edges: each facet is a plane, projected by one homography.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

STEP_M = 0.5
BEHIND_M, AHEAD_M = 30.0, 420.0
MAX_TURN = 0.8  # radians; beyond it the curve goes straight on, so that z keeps growing with s


@dataclass(frozen=True, kw_only=True)
class Road:
    lateral_m: float  # where the camera is, right of the reference line
    heading: float  # direction of the road at s = 0 seen from the camera, radians to the right
    curvature: float  # 1/m, positive to the right
    onset_m: float  # where the bend begins ...
    transition_m: float  # ... and over how many metres it builds up (clothoid)
    s_curve: bool  # the bend swings back

    @cached_property
    def _curve(self) -> tuple[np.ndarray, ...]:
        s = np.arange(-BEHIND_M, AHEAD_M + STEP_M, STEP_M)
        ahead = s - self.onset_m
        if self.s_curve:
            bend = np.where(ahead > 0, np.sin(2 * np.pi * np.clip(ahead / (4 * self.transition_m), 0, 1)), 0.0)
        else:
            bend = np.clip(ahead / self.transition_m, 0, 1)
        turn = np.clip(integral(self.curvature * bend), -MAX_TURN, MAX_TURN)
        angle = self.heading + turn
        x, z = integral(np.sin(angle)), integral(np.cos(angle))
        at_camera = np.searchsorted(s, 0.0)
        cos_h, sin_h = np.cos(angle[at_camera]), np.sin(angle[at_camera])
        return s, x - x[at_camera] - self.lateral_m * cos_h, z - z[at_camera] + self.lateral_m * sin_h, angle

    def plan(self, offset, s) -> np.ndarray:
        """Ground points [..., 2] = (x, z) of road coordinates."""
        at, x, z, _ = self._curve
        angle = self.angle(s)
        x, z = np.interp(s, at, x), np.interp(s, at, z)
        return np.stack([x + offset * np.cos(angle), z - offset * np.sin(angle)], -1)

    def angle(self, s) -> np.ndarray:
        """Direction of the road, radians to the right of the camera's heading."""
        at, _, _, angle = self._curve
        return np.interp(s, at, angle)


# Where long outlines are cut: within 0.02 m of the tightest bend nearby, a pixel farther off.
STATIONS = np.concatenate([np.arange(-BEHIND_M, 20, 2.0), np.arange(20, 80, 4.0), np.arange(80, AHEAD_M, 12.0)])


def strip(left: float, right: float, start_m: float, end_m: float) -> list[np.ndarray]:
    """A band along the road between two offsets: outlines in road coordinates, short enough to follow a bend."""
    s = np.concatenate([[start_m], STATIONS[(STATIONS > start_m) & (STATIONS < end_m)], [end_m]])
    return [np.array([[left, a], [left, b], [right, b], [right, a]]) for a, b in zip(s, s[1:])]


def integral(values: np.ndarray) -> np.ndarray:
    """Running trapezoid integral over steps of STEP_M, zero at the first sample."""
    return np.concatenate([[0.0], np.cumsum((values[1:] + values[:-1]) / 2)]) * STEP_M


@dataclass(frozen=True, kw_only=True)
class Terrain:
    grade: float  # slope after the change, positive uphill; 0: flat
    start_m: float
    length_m: float  # over which the slope builds up

    @cached_property
    def edges(self) -> np.ndarray:
        """Distances of the facet edges, metres; each facet is 1.3 times as far as the one before."""
        return 1.6 * 1.3 ** np.arange(22)

    @cached_property
    def heights(self) -> np.ndarray:
        """Height of the ground at the facet edges."""
        t = np.clip(self.edges - self.start_m, 0, None)
        curved = np.minimum(t, self.length_m)
        return self.grade * (curved**2 / (2 * self.length_m) + np.clip(t - self.length_m, 0, None))

    def height(self, z) -> np.ndarray:
        return np.interp(z, self.edges, self.heights)

    def lift(self, points: np.ndarray) -> np.ndarray:
        """World points [..., 3] of ground points [..., 2]."""
        return np.stack([points[..., 0], self.height(points[..., 1]), points[..., 1]], -1)
