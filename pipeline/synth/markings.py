"""Paint on the road: the classes of markings, and their outlines in road coordinates (offset, s), metres.

Class names are ApolloScape's: s solid, b broken, ds and db doubled, sb solid and broken; w white, y yellow; d and dn
divide, g guides, s stops; a_ arrows (t through, l left, r right, u turn); c_wy_z zebra. So a map of all classes can be
made from the same scene. The number of a class is its place in KINDS; 0 is no paint.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.synth.road import strip

KINDS = (
    "none",
    "s_w_d",
    "b_w_g",
    "ds_w_dn",
    "db_w_g",
    "s_y_d",
    "b_y_g",
    "ds_y_dn",
    "sb_y_do",
    "s_w_s",
    "c_wy_z",
    "a_w_t",
    "a_w_l",
    "a_w_r",
    "a_w_tl",
    "a_w_tr",
    "a_w_lr",
    "a_w_u",
    "r_wy_np",
)
WHITE, YELLOW = (225, 226, 222), (219, 171, 58)


@dataclass(frozen=True)
class Marking:
    """Paint of one class: outlines [n, 2] in road coordinates, and how much of it is left (0..1)."""

    kind: str
    outlines: tuple[np.ndarray, ...]
    strength: float = 1.0

    @property
    def colour(self) -> tuple[int, int, int]:
        return YELLOW if "_y_" in self.kind else WHITE


@dataclass(frozen=True, kw_only=True)
class Line:
    """A lane boundary: its centre line is what CULane annotates, `marking` is what is painted."""

    kind: str
    offset: float
    start_m: float
    end_m: float
    width_m: float
    dash_m: float
    gap_m: float
    phase_m: float
    strength: float

    def marking(self) -> Marking:
        half = self.width_m / 2
        broken = self._dashes()
        solid = [(self.start_m, self.end_m)]
        if self.kind[:2] in ("ds", "db", "sb"):
            left, right = {"ds": (solid, solid), "db": (broken, broken), "sb": (solid, broken)}[self.kind[:2]]
            strips = [(-1.6 * half, left), (1.6 * half, right)]
            half *= 0.8
        else:
            strips = [(0.0, solid if self.kind[0] == "s" else broken)]
        outlines = [
            outline
            for shift, runs in strips
            for start, end in runs
            for outline in strip(self.offset + shift - half, self.offset + shift + half, start, end)
        ]
        return Marking(self.kind, tuple(outlines), self.strength)

    def _dashes(self) -> list[tuple[float, float]]:
        starts = np.arange(self.start_m - self.phase_m, self.end_m, self.dash_m + self.gap_m)
        dashes = [(max(a, self.start_m), min(a + self.dash_m, self.end_m)) for a in starts]
        return [(a, b) for a, b in dashes if b > a]


def stop_line(left: float, right: float, s: float, strength: float) -> Marking:
    return Marking("s_w_s", (np.array([[left, s], [left, s + 0.4], [right, s + 0.4], [right, s]]),), strength)


def zebra(left: float, right: float, s: float, length_m: float, strength: float) -> Marking:
    """Bars of 0.45 m with gaps of 0.6 m, along the direction of travel."""
    bars = np.arange(left + 0.3, right - 0.45, 1.05)
    return Marking(
        "c_wy_z", tuple(np.array([[o, s], [o, s + length_m], [o + 0.45, s + length_m], [o + 0.45, s]]) for o in bars), strength
    )


_SHAFT = [(-0.09, 0.0), (-0.09, 3.7), (0.09, 3.7), (0.09, 0.0)]
_HEAD = [(-0.28, 3.6), (0.0, 6.0), (0.28, 3.6)]
_LEFT = [(-0.09, 1.6), (-0.09, 2.4), (-0.42, 3.0), (-0.42, 2.5), (-0.95, 3.7), (-0.42, 4.9), (-0.42, 3.7), (0.09, 2.7)]
_TURN = [
    (-0.09, 3.6),
    (-0.09, 4.4),
    (-0.55, 4.4),
    (-0.55, 3.4),
    (-0.78, 3.4),
    (-0.45, 1.8),
    (-0.12, 3.4),
    (-0.32, 3.4),
    (-0.32, 4.0),
    (0.09, 4.0),
    (0.09, 3.6),
]


def arrow(kind: str, offset: float, s: float, strength: float) -> Marking:
    """A 6 m arrow; through, left, right, turn and their pairs."""
    right = [(-o, along) for o, along in _LEFT]
    parts = {
        "a_w_t": [_SHAFT, _HEAD],
        "a_w_l": [_SHAFT[:1] + [(-0.09, 2.6), (0.09, 2.6)] + _SHAFT[3:], _LEFT],
        "a_w_r": [_SHAFT[:1] + [(-0.09, 2.6), (0.09, 2.6)] + _SHAFT[3:], right],
        "a_w_tl": [_SHAFT, _HEAD, _LEFT],
        "a_w_tr": [_SHAFT, _HEAD, right],
        "a_w_lr": [_SHAFT, _LEFT, right],
        "a_w_u": [_SHAFT, _TURN],
    }[kind]
    return Marking(kind, tuple(np.array(part) * (1.3, 1.0) + (offset, s) for part in parts), strength)


def diamond(offset: float, s: float, strength: float) -> Marking:
    """The hollow diamond before a crossing, 1.5 m x 3 m."""
    outer = np.array([[0, -1.5], [0.75, 0], [0, 1.5], [-0.75, 0]])
    inner = outer * 0.62
    sides = [np.array([outer[i], outer[j], inner[j], inner[i]]) for i, j in ((0, 1), (1, 2), (2, 3), (3, 0))]
    return Marking("r_wy_np", tuple(side + (offset, s) for side in sides), strength)
