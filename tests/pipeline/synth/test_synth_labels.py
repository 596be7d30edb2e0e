"""Labels lie on the paint, and follow CULane's rules for slots, points and flags."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from pipeline.synth.facets import marking_map
from pipeline.synth.labels import Lane, annotate, assign_slots, draw_label, existence, slope
from pipeline.synth.markings import KINDS
from pipeline.synth.render import picture
from pipeline.synth.road import Terrain
from pipeline.synth.sampling import draw_scene

FULL = (590, 1640)


def straight(bottom_x: float, top_x: float, rows=range(590, 290, -10)) -> np.ndarray:
    """A line from bottom_x at row 590 to top_x at row 300."""
    return np.array([[bottom_x + (top_x - bottom_x) * (590 - y) / 290, y] for y in rows])


def with_plain_lines(scene, kind="s_w_d"):
    """The same road with fresh single lines of one kind, no other paint, and nothing that stands before it."""
    lines = tuple(replace(line, kind=kind, strength=1.0) for line in scene.lines)
    markings = tuple(line.marking() for line in lines)
    return replace(scene, lines=lines, markings=markings, wear=0.0, vehicles=(), roadside=(), shades=(), distractors=0)


@pytest.mark.parametrize("size", [FULL, (236, 656)])
def test_annotated_points_lie_on_the_middle_of_the_paint(size):
    errors, missed = [], 0
    for index in range(24):
        scene = with_plain_lines(draw_scene(1, "train", index, 0.5))
        paint = marking_map(scene, size) == KINDS.index("s_w_d")
        for lane in annotate(scene, size):
            for (x, y), (lower_x, _) in zip(lane.points[1:], lane.points):
                if not 20 <= x < size[1] - 20 or abs(x - lower_x) > 15:
                    continue  # a row's run is no cross-section of a flat line
                row, column = paint[int(y)], int(round(x))
                if not row[column]:
                    missed += 1
                    continue
                left, right = column - np.argmin(row[column::-1]), column + np.argmin(row[column:])
                errors.append((left + right) / 2 - x)
    assert len(errors) > 200
    assert missed <= 0.005 * len(errors)
    assert abs(np.mean(errors)) < 0.1 and np.percentile(np.abs(errors), 99) < 1.5  # whole pixels: 1 is rounding


def test_the_picture_is_bright_where_the_label_says():
    contrasts = []
    for index in range(30):
        scene = draw_scene(2, "train", index, 0.0)
        if scene.weather.night or scene.weather.glare or scene.weather.tree_shade or not scene.lines:
            continue
        scene = with_plain_lines(scene)
        grey = cv2.cvtColor(picture(scene, FULL), cv2.COLOR_RGB2GRAY).astype(int)
        for lane in annotate(scene, FULL):
            for x, y in lane.points[1:10]:
                if 60 < x < 1580 and y < 590:
                    gap = int(0.35 * (y - 230))  # beside the paint, on the asphalt
                    beside = (grey[int(y), max(0, int(x) - gap)] + grey[int(y), min(1639, int(x) + gap)]) / 2
                    contrasts.append(grey[int(y), int(round(x))] - beside)
    assert len(contrasts) > 200
    assert np.mean(np.array(contrasts) > 15) > 0.95


@pytest.mark.parametrize("size", [FULL, (295, 820), (118, 328)])
def test_flags_label_and_lines_agree(size):
    for index in range(30):
        scene = draw_scene(0, "val", index, 0.5)
        lanes = annotate(scene, size)
        label = draw_label(lanes, size)
        assert [int((label == slot).any()) for slot in (1, 2, 3, 4)] == existence(lanes)
        assert label.max() <= 4 and label.shape == size
        assert [lane.slot for lane in lanes] == sorted({lane.slot for lane in lanes})
        for lane in lanes:
            assert np.array_equal(np.diff(lane.points[:, 1]), np.full(len(lane.points) - 1, -10))
            assert lane.points[0, 1] % 10 == size[0] % 10


def test_slots_are_those_the_written_lines_have_by_themselves():
    for index in range(150):
        lanes = annotate(draw_scene(0, "train", index, 0.5), FULL)
        assert assign_slots([lane.points for lane in lanes], FULL) == [lane.slot for lane in lanes]


def test_a_line_is_16_pixels_wide_and_scales_with_the_height():
    for size, width in ((FULL, 16), ((295, 820), 8), ((236, 656), 6)):
        points = np.stack([np.full(size[0] - 20, 100.0), np.arange(size[0] - 10, 10, -1)], -1)
        label = draw_label([Lane(points, points, 3)], size)
        assert abs((label[size[0] // 2] == 3).sum() - width) <= 1


def test_a_later_slot_overwrites_an_earlier_one():
    points = straight(400, 700)
    label = draw_label([Lane(points, points, 3), Lane(points, points, 2)], FULL)
    assert set(np.unique(label)) == {0, 3}


FOUR = [straight(-200, 760), straight(400, 800), straight(1200, 840), straight(1900, 880)]


@pytest.mark.parametrize(
    "lines, slots",
    [
        (FOUR, [1, 2, 3, 4]),
        (FOUR[1:], [2, 3, 4]),
        (FOUR[:3], [1, 2, 3]),
        (FOUR[1:2], [2]),  # alone: by its slope
        (FOUR[2:3], [3]),
        (FOUR[:2], [2, 3]),  # two are always 2 and 3
        ([straight(-700, 700)] + FOUR, [0, 1, 2, 3, 4]),  # no fifth slot
        ([straight(320, 730)] + FOUR[1:], [0, 2, 3, 4]),  # too near: the outer one goes
        ([straight(100, 500), straight(600, 700), straight(750, 860)], [0, 1, 2]),  # all lean one way: split at the middle
        ([straight(400, 800), straight(900, 1010), straight(1300, 1400)], [2, 3, 4]),
        ([], []),
    ],
)
def test_slots_by_hand(lines, slots):
    assert assign_slots(lines, FULL) == slots


def test_a_left_line_has_a_negative_slope():
    assert slope(straight(400, 800)) < 0 < slope(straight(1200, 840))


def test_lines_end_at_the_crest():
    scene = replace(draw_scene(1, "train", 0, 0.0), annotated_m=85.0)
    flat = replace(scene, terrain=Terrain(grade=0.0, start_m=10.0, length_m=20.0))
    crest = replace(scene, terrain=Terrain(grade=-0.12, start_m=10.0, length_m=20.0))
    flat_top = min(lane.points[-1, 1] for lane in annotate(flat, FULL))
    crest_lanes = annotate(crest, FULL)
    assert min(lane.points[-1, 1] for lane in crest_lanes) > flat_top
    assert all((np.diff(lane.curve[:, 1]) < 0).all() for lane in crest_lanes)


def test_lines_scale_with_the_size():
    compared = 0
    for index in range(20):
        scene = draw_scene(0, "train", index, 0.5)
        large = {lane.slot: lane.curve for lane in annotate(scene, FULL)}
        small = {lane.slot: lane.points for lane in annotate(scene, (295, 820))}
        for slot in large.keys() & small.keys() if len(large) == len(small) else ():
            # Pixel centres are whole numbers: (u + 0.5) scales, the horizon's row does not carry the half.
            points = small[slot][2 * small[slot][:, 1] <= large[slot][0, 1]]
            x = np.interp(-2 * points[:, 1], -large[slot][:, 1], large[slot][:, 0])
            np.testing.assert_allclose(2 * points[:, 0] + 0.5, x, atol=0.01)
            compared += len(points)
    assert compared > 300
