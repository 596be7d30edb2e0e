"""Draws the road's cross-section: lanes, the surfaces beside them, the lines between them, and painted symbols.

Sizes follow the Chinese marking standard loosely (dash and gap of 2 + 4 m in town, 6 + 9 m on motorways; lines 0.15 m
wide; arrows 6 m long).
"""

import numpy as np

from pipeline.synth.markings import Line, arrow, diamond, stop_line, zebra
from pipeline.synth.scene import Surface, whole

NEAR_M, FAR_M = -25.0, 380.0  # extent of surfaces along the road
LINES_M = -15.0, 340.0  # and of lines
LANE_WIDTH = {"city": (2.9, 3.5), "highway": (3.4, 3.8), "rural": (2.9, 3.5)}
LANE_COUNT = {"city": (0.08, 0.32, 0.38, 0.22), "highway": (0.02, 0.3, 0.43, 0.25), "rural": (0.6, 0.4, 0.0, 0.0)}
DASHES = {"city": (2.0, 4.0, 0.15), "highway": (6.0, 9.0, 0.17), "rural": (4.0, 6.0, 0.15)}  # dash, gap, width
GRASS = ((104, 112, 82), (124, 122, 92), (92, 104, 76), (138, 128, 104))
PAVEMENT, KERB, CONCRETE, PLANTED = (142, 136, 128), (158, 155, 149), (168, 164, 156), (104, 112, 76)
ARROWS = {"a_w_t": 0.45, "a_w_l": 0.13, "a_w_r": 0.13, "a_w_tl": 0.11, "a_w_tr": 0.12, "a_w_lr": 0.03, "a_w_u": 0.03}


class CrossSection:
    """Offsets are from the middle of the camera's lane, metres to the right."""

    def __init__(self, rng, setting: str, on_crossing: bool, no_paint: bool, difficulty: float):
        self.rng, self.setting = rng, setting
        self.width = rng.uniform(*LANE_WIDTH[setting])
        count = int(rng.choice([1, 2, 3, 4], p=LANE_COUNT[setting]))
        own = int(rng.integers(count))
        self.left, self.right = (-own - 0.5) * self.width, (count - own - 0.5) * self.width
        self.centres = [self.left + (k + 0.5) * self.width for k in range(count)]
        self.divided = setting == "highway" or (setting == "city" and rng.random() < 0.3)
        self.median = rng.uniform(1.5, 4.0) if self.divided else 0.0
        self.oncoming = (
            [] if setting == "highway" else [self.left - self.median - (k + 0.5) * self.width for k in range(rng.integers(1, 3))]
        )
        self.has_crossing = on_crossing or (setting == "city" and rng.random() < 0.3)
        # Near enough to be seen as a crossing, or far enough to leave lines worth annotating before it.
        self.crossing_s = rng.uniform(3, 9) if on_crossing else rng.uniform(24, 70)
        self.crossing_length = rng.uniform(14, 26)
        self.lines: list = []
        self.symbols: list = []
        self._draw_surfaces()
        strength = rng.uniform(0.0, 0.12) if no_paint else rng.uniform(0.95 - 0.65 * difficulty, 1.0)
        if not on_crossing:
            self._draw_lines(strength)
        self._draw_symbols(strength, on_crossing)

    def clear_of_crossing(self, start_m: float, end_m: float, margin_m: float) -> bool:
        """Whether nothing of the cross-road lies between two places."""
        first, last = self.crossing_s - margin_m, self.crossing_s + self.crossing_length + 6 + margin_m
        return not self.has_crossing or end_m < first or start_m > last

    def _draw_surfaces(self):
        rng = self.rng
        self.asphalt = whole(rng.uniform(88, 142) + rng.uniform(-4, 5, 3))
        self.verge = (128, 122, 114) if self.setting == "city" else GRASS[rng.integers(len(GRASS))]
        margin = rng.uniform(1.0, 3.2) if self.setting == "highway" else rng.uniform(0.4, 0.9)
        inner = min(0.5, margin)
        left_edge = self.oncoming[-1] - self.width / 2 - margin if self.oncoming else self.left - inner
        self.edges = (left_edge, self.right + margin)
        strips = [(self.asphalt, *self.edges)]
        if self.setting == "city":
            left, right = self.edges
            strips += [
                (PAVEMENT, left - 4.5, left),
                (PAVEMENT, right, right + 4.5),
                (KERB, left - 0.18, left),
                (KERB, right, right + 0.18),
            ]
        if self.divided:
            strips.append(
                (CONCRETE if self.setting == "highway" else PLANTED, self.left - inner - self.median + 0.2, self.left - inner)
            )
        self.surfaces = [Surface(colour, left, right, NEAR_M, FAR_M) for colour, left, right in strips]
        if self.has_crossing:
            start = self.crossing_s + 4
            self.surfaces.append(Surface(self.asphalt, -120, 120, start, start + self.crossing_length))

    def _draw_lines(self, strength: float):
        rng = self.rng
        dash, gap, width = DASHES[self.setting]
        start, end = LINES_M[0], self.crossing_s if self.has_crossing else LINES_M[1]

        def add(kind, offset):
            self.lines.append(
                Line(
                    kind=str(kind),
                    offset=offset,
                    start_m=start,
                    end_m=end,
                    width_m=width,
                    dash_m=dash,
                    gap_m=gap,
                    phase_m=rng.uniform(0, dash + gap),
                    strength=float(np.clip(strength * rng.uniform(0.75, 1.1), 0, 1)),
                )
            )

        add(
            rng.choice(["s_w_d", "s_y_d"])
            if self.divided
            else rng.choice(["ds_y_dn", "s_y_d", "b_y_g", "sb_y_do"], p=[0.5, 0.25, 0.15, 0.1]),
            self.left,
        )
        solid = (self.has_crossing and rng.random() < 0.6) or rng.random() < 0.06
        inner = "s_w_d" if solid else "db_w_g" if rng.random() < 0.04 else "b_w_g"
        for centre in self.centres[:-1]:
            add(inner, centre + self.width / 2)
        if self.setting != "city" or rng.random() < 0.9:
            add("b_w_g" if rng.random() < 0.1 else "s_w_d", self.right)
        for centre in self.oncoming[:-1]:
            add("b_w_g", centre - self.width / 2)
        if self.oncoming and rng.random() < 0.7:
            add("s_w_d", self.oncoming[-1] - self.width / 2)

    def _draw_symbols(self, strength: float, on_crossing: bool):
        rng, s = self.rng, self.crossing_s
        if self.has_crossing:
            self.symbols.append(stop_line(self.left, self.right, s, strength))
            if rng.random() < 0.75:
                self.symbols += [
                    zebra(*self.edges, s + rng.uniform(1.2, 2.0), rng.uniform(3.5, 5.0), strength),
                    zebra(*self.edges, s + self.crossing_length + rng.uniform(0, 3), 4.0, strength),
                ]
        if on_crossing:
            return
        if rng.random() < (0.75 if self.has_crossing else 0.1):
            at = s - rng.uniform(10, 16) if self.has_crossing else rng.uniform(8, 22)
            at -= 25 if at > 33 else 0  # they are repeated along the approach
            self.symbols += [
                arrow(str(rng.choice(list(ARROWS), p=list(ARROWS.values()))), centre, at, strength) for centre in self.centres
            ]
        elif rng.random() < 0.06:
            self.symbols += [diamond(centre, rng.uniform(12, 25), strength) for centre in self.centres]
