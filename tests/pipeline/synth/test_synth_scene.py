"""Scenes come from their key alone, and have what their category says."""

import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np

from pipeline.synth.labels import annotate
from pipeline.synth.sampling import draw_scene
from pipeline.synth.scene import CATEGORIES
from pipeline.synth.settings import VERSION
from pipeline.synth.streams import stream

# Of draw_scene(0, "train", 0, 0.5) at 590x1640: category, and slot with lowest and highest point of each line.
GOLDEN_CATEGORY = "normal"
GOLDEN_LINES = [
    (1, [[-47.26, 520.0], [718.432, 320.0]]),
    (2, [[361.825, 590.0], [749.693, 330.0]]),
    (3, [[1012.199, 590.0], [817.768, 330.0]]),
]


def lines_digest(index: int) -> str:
    lanes = annotate(draw_scene(0, "train", index, 0.5), (590, 1640))
    return hashlib.sha256(b"".join(lane.points.tobytes() for lane in lanes)).hexdigest()


def test_a_stream_depends_on_its_key_alone():
    first = stream(0, "train", 7, "road").random(4)
    stream(0, "train", 8, "road").random(100)
    assert np.array_equal(first, stream(0, "train", 7, "road").random(4))
    keys = (1, "train", 7, "road"), (0, "val", 7, "road"), (0, "train", 70, "road"), (0, "train", 7, "section")
    others = [stream(*key).random(4) for key in keys]
    assert all(not np.array_equal(first, other) for other in others)


def test_another_process_draws_the_same_scene():
    code = (
        "import hashlib;"
        "from pipeline.synth.labels import annotate;"
        "from pipeline.synth.sampling import draw_scene;"
        "draw_scene(0, 'train', 5, 0.5);"
        "lanes = annotate(draw_scene(0, 'train', 3, 0.5), (590, 1640));"
        "print(hashlib.sha256(b''.join(lane.points.tobytes() for lane in lanes)).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert out == lines_digest(3)


def test_seed_split_index_and_difficulty_change_the_scene():
    key = draw_scene(0, "train", 0, 0.5)
    for other in (draw_scene(1, "train", 0, 0.5), draw_scene(0, "val", 0, 0.5), draw_scene(0, "train", 1, 0.5)):
        assert other.camera != key.camera and other.road != key.road
    assert draw_scene(0, "train", 0, 0.9).wear != key.wear


def test_scenes_of_this_version_are_what_they_were():
    scene = draw_scene(0, "train", 0, 0.5)
    lanes = annotate(scene, (590, 1640))
    assert VERSION == 1, "new scenes: take their numbers below"
    assert scene.category == GOLDEN_CATEGORY
    assert [lane.slot for lane in lanes] == [slot for slot, _ in GOLDEN_LINES]
    for lane, (_, ends) in zip(lanes, GOLDEN_LINES):
        np.testing.assert_allclose(lane.points[[0, -1]], ends, atol=1e-3)


def test_every_category_occurs_and_night_is_night():
    scenes = [draw_scene(0, "test", index, 0.5) for index in range(400)]
    counts = Counter(scene.category for scene in scenes)
    assert set(counts) == set(CATEGORIES)
    for scene in scenes:
        assert (scene.category == "cross") == (len(scene.lines) == 0)
        if scene.lines:
            assert (scene.category == "night") == scene.weather.night


def test_difficulty_wears_paint_and_hides_it():
    easy, hard = ([draw_scene(0, "train", index, difficulty) for index in range(200)] for difficulty in (0.0, 1.0))
    assert np.mean([s.wear for s in hard]) > 2 * np.mean([s.wear for s in easy])
    assert np.mean([s.weather.night for s in hard]) > 2 * np.mean([s.weather.night for s in easy])
    assert np.mean([len(s.vehicles) for s in hard]) > np.mean([len(s.vehicles) for s in easy])
