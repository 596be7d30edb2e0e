"""Road, camera and facets against slow trigonometry."""

import cv2
import numpy as np
import pytest

from pipeline.synth.camera import NEAR_M, Camera, outline, project
from pipeline.synth.facets import BORDER, facets
from pipeline.synth.ground import paint_ground
from pipeline.synth.road import Road
from pipeline.synth.sampling import draw_scene

SIZE = (236, 656)


def test_the_camera_stands_at_its_lateral_place():
    road = Road(lateral_m=0.7, heading=0.05, curvature=1 / 200, onset_m=-10, transition_m=20, s_curve=False)
    np.testing.assert_allclose(road.plan(0.7, 0.0), [0, 0], atol=1e-9)


def test_a_bend_is_an_arc_of_its_radius_and_offsets_are_parallels():
    road = Road(lateral_m=0.0, heading=0.0, curvature=1 / 150, onset_m=-30, transition_m=1e-6, s_curve=False)
    s = np.linspace(-20, 80, 50)
    middle, right = road.plan(0.0, s), road.plan(3.5, s)
    # Circle through the points by linear least squares: x^2 + z^2 = 2 a x + 2 b z + c.
    for points, radius in ((middle, 150), (right, 146.5)):
        system = np.column_stack([2 * points, np.ones(len(s))])
        a, b, c = np.linalg.lstsq(system, (points**2).sum(axis=1), rcond=None)[0]
        assert np.sqrt(c + a * a + b * b) == pytest.approx(radius, abs=0.05)
    dense = road.plan(0.0, np.linspace(-29, 100, 20_000))
    gaps = [np.linalg.norm(dense - point, axis=1).min() for point in right]
    np.testing.assert_allclose(gaps, 3.5, atol=2e-3)


def test_projection_agrees_with_angles():
    camera = Camera(height_m=1.4, focal=0.6, horizon=0.45, pitch=0.03, roll=-0.02)
    x, y, z = 2.0, 0.3, 15.0
    down, ahead = 1.4 - y, z
    lowered, depth = (down * np.cos(0.03) - ahead * np.sin(0.03)), (down * np.sin(0.03) + ahead * np.cos(0.03))
    turned = np.cos(-0.02) * x - np.sin(-0.02) * lowered, np.sin(-0.02) * x + np.cos(-0.02) * lowered
    f = 0.6 * 656
    expected = (656 - 1) / 2 + f * turned[0] / depth, 0.45 * 236 + f * np.tan(0.03) + f * turned[1] / depth
    pixel, got_depth = project(camera.matrix(SIZE), np.array([x, y, z]))
    np.testing.assert_allclose(pixel, expected)
    assert got_depth == pytest.approx(depth)


def test_the_level_horizon_lies_where_the_camera_says():
    camera = Camera(height_m=1.4, focal=0.6, horizon=0.45, pitch=0.04, roll=0.0)
    pixel, _ = project(camera.matrix(SIZE), np.array([0.0, 0.0, 1e7]))
    assert pixel[1] == pytest.approx(0.45 * 236, abs=1e-3)


def test_an_outline_is_cut_where_the_camera_cannot_see():
    matrix = Camera(height_m=1.4, focal=0.6, horizon=0.5, pitch=0.0, roll=0.0).matrix(SIZE)
    square = np.array([[1.0, 0, -5], [2.0, 0, -5], [2.0, 0, 10], [1.0, 0, 10]])
    corners = outline(matrix, square)
    near, _ = project(matrix, np.array([[1.0, 0, NEAR_M], [2.0, 0, NEAR_M], [2.0, 0, 10], [1.0, 0, 10]]))
    assert {tuple(np.round(p, 6)) for p in corners} == {tuple(np.round(p, 6)) for p in near}
    assert outline(matrix, square - (0, 0, 20)) is None


@pytest.mark.parametrize("index", range(6))
def test_a_facet_projects_its_raster_as_the_camera_projects_the_ground(index):
    scene = draw_scene(3, "train", index, 0.5)
    matrix, rng = scene.camera.matrix(SIZE), np.random.default_rng(0)
    found = facets(scene, SIZE)
    assert len(found) > 5
    for facet in found:
        rows, columns = facet.shape
        i, j = rng.uniform(BORDER, rows - BORDER, 20), rng.uniform(0, columns, 20)
        ground = np.stack([facet.x0 + j * facet.dx, facet.z0 + i * facet.dz], -1)
        expected, _ = project(matrix, scene.terrain.lift(ground))
        got = cv2.perspectiveTransform(np.stack([j, i], -1)[None], facet.to_image)[0]
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("size", [(96, 320), (236, 656), (180, 240)])
def test_the_ground_has_no_holes(size):
    for index in range(12):
        canvas = np.full((*size, 3), (1, 2, 3), np.uint8)
        scene = draw_scene(0, "test", index, 0.5)
        paint_ground(scene, canvas, lambda colour, distance: colour + 0 * np.asarray(distance))
        unpainted = (canvas == (1, 2, 3)).all(axis=2)
        horizon = np.argmax(~unpainted, axis=0)
        assert not (unpainted & (np.arange(size[0])[:, None] > horizon)).any()
        assert horizon.max() < 0.7 * size[0]
