"""Pictures: the same from any thread, of every kind of scene, with all of the paint's classes."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from pipeline.synth.facets import marking_map
from pipeline.synth.markings import KINDS, Line, Marking, arrow
from pipeline.synth.render import picture, render
from pipeline.synth.sampling import draw_scene
from pipeline.synth.scene import CATEGORIES

SIZE = (118, 328)


@pytest.fixture
def threads():
    before = cv2.getNumThreads()
    yield cv2.setNumThreads
    cv2.setNumThreads(before)


def test_a_picture_depends_on_neither_threads_nor_order(threads):
    threads(1)
    alone = [picture(draw_scene(0, "train", index, 0.5), (295, 820)) for index in (4, 5)]
    threads(2)
    again = [picture(draw_scene(0, "train", index, 0.5), (295, 820)) for index in (5, 4)]
    assert np.array_equal(alone[0], again[1]) and np.array_equal(alone[1], again[0])


def test_pictures_of_every_category_are_pictures():
    seen = {}
    for index in range(300):
        scene = draw_scene(0, "test", index, 0.5)
        if scene.category not in seen:
            frame = render(scene, SIZE)
            assert frame.image.shape == (*SIZE, 3) and frame.image.dtype == np.uint8
            assert 6 < frame.image.std() and 3 < frame.image.mean() < 250
            seen[scene.category] = frame.image.mean()
    assert set(seen) == set(CATEGORIES)
    assert seen["night"] < 0.5 * seen["normal"]


def test_vehicles_hide_paint_in_the_picture_but_not_in_the_label():
    hidden = 0
    for index in range(20):
        scene = draw_scene(0, "train", index, 0.5)
        bare = replace(scene, vehicles=())
        frame, empty = render(scene, SIZE), render(bare, SIZE)
        assert np.array_equal(frame.label, empty.label)
        changed = np.abs(frame.image.astype(int) - empty.image).max(axis=2) > 60
        hidden += (changed & (frame.label > 0)).sum()
    assert hidden > 300


def test_the_marking_map_knows_the_class_of_each_paint():
    scene = draw_scene(0, "train", 2, 0.0)
    block = np.array([[-2.0, 20], [-2, 24], [2, 24], [2, 20]])
    scene = replace(
        scene,
        road=replace(scene.road, curvature=0.0, heading=0.0, lateral_m=0.0),
        camera=replace(scene.camera, roll=0.0),
        terrain=replace(scene.terrain, grade=0.0),
        markings=(arrow("a_w_t", 0.0, 8.0, 1.0), Marking("c_wy_z", (block,))),
    )
    classes = marking_map(scene, (295, 820))
    assert set(np.unique(classes)) == {0, KINDS.index("a_w_t"), KINDS.index("c_wy_z")}
    arrow_rows, zebra_rows = (np.flatnonzero((classes == KINDS.index(k)).any(axis=1)) for k in ("a_w_t", "c_wy_z"))
    assert zebra_rows.max() < arrow_rows.min()


@pytest.mark.parametrize(
    "kind, area",
    [
        ("s_w_d", 40 * 0.2),
        ("b_w_g", 16 * 0.2),
        ("ds_w_dn", 2 * 40 * 0.16),
        ("db_w_g", 2 * 16 * 0.16),
        ("sb_y_do", (40 + 16) * 0.16),
    ],
)
def test_a_line_paints_its_area(kind, area):
    line = Line(kind=kind, offset=1.0, start_m=0.0, end_m=40.0, width_m=0.2, dash_m=2.0, gap_m=3.0, phase_m=0.0, strength=1.0)
    painted = 0.0
    for outline in line.marking().outlines:
        x, y = outline.T
        painted += abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert painted == pytest.approx(area)
    assert line.marking().colour == ((219, 171, 58) if "_y_" in kind else (225, 226, 222))
