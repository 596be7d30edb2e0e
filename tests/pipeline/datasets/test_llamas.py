import json

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.llamas import Dataset, renamed
from pipeline.errors import ConfigError, DatasetError

FOCAL, CX, CY, HEIGHT_M = 1000.0, 640.0, 300.0, 1.5
RAMPS, LANE_3 = "images-2014-12-22-12-35-10_mapping_280S_ramps", "images-2014-12-22-14-19-07_mapping_280S_3rd_lane"
# The official colours of the drawing, BGR, and its classes.
COLOURS = {
    "l3": (48, 130, 245),
    "l2": (180, 30, 145),
    "l1": (0, 0, 255),
    "l0": (24, 140, 34),
    "r0": (255, 0, 0),
    "r1": (0, 255, 255),
    "r2": (40, 110, 170),
}
ORDER = ["l1", "l0", "r0", "r1"]


def marker(x, z_start, z_end, drift=0.0):
    """One dash on the road, in the official syntax: numbers are text, pixels whole numbers."""
    ends = {}
    for name, z, side in (("start", z_start, 0.0), ("end", z_end, drift)):
        ends[f"world_{name}"] = {"x": str(x + side), "y": str(HEIGHT_M), "z": str(z)}
        u, v = FOCAL * (x + side) / z + CX, FOCAL * HEIGHT_M / z + CY
        ends[f"pixel_{name}"] = {"x": str(int(u)), "y": str(int(v))}
    return {"lane_marker_id": "0", **ends}


def lane(name, x, distances, drift=0.0):
    return {"lane_id": name, "markers": [marker(x, z, z + 2.5, drift) for z in distances]}


def write_label(root, lanes, place=f"train/{RAMPS}/1", size=(717, 1276), image=True):
    path = root / "labels" / f"{place}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    projection = [[FOCAL, 0, CX], [0, FOCAL, CY], [0, 0, 1]]
    path.write_text(json.dumps({"image_name": "x", "projection_matrix": projection, "lanes": lanes}))
    if image:
        picture = root / "color_images" / f"{place}_color_rect.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size[::-1]).save(picture, compress_level=1)
    return path


def slow_label(path):
    """The official derivation in single steps: one marker at a time, one class at a time over the whole image."""
    content = json.loads(path.read_text())
    projection = np.array(content["projection_matrix"], dtype=np.float64)
    lanes = []
    for entry in content["lanes"]:
        rows = [int(one["pixel_start"]["y"]) for one in entry["markers"]]
        if max(rows) - min(rows) < 20:
            continue
        if len(entry["markers"]) < 2:
            continue
        lanes.append(entry)
    names, left, right = {}, 0, 0
    for key in sorted(entry["lane_id"] for entry in lanes):
        if key.startswith("l"):
            names[key], left = f"l{left}", left + 1
        else:
            names[key], right = f"r{right}", right + 1
    canvas = np.zeros((717, 1276, 3), np.uint8)
    for entry in lanes:
        for one in entry["markers"]:
            corners = []
            for end, sides in (("world_start", (-1, 1)), ("world_end", (1, -1))):
                point = np.array([float(one[end]["x"]), float(one[end]["y"]), float(one[end]["z"])])
                u, v, w = projection.dot(point)
                half_width = projection[0, 0] * 0.1 / point[2] / 2.0
                corners += [(u / w + side * half_width, v / w) for side in sides]
            corners = np.round(np.array(corners, dtype=np.float32)).astype(np.int32)
            if corners[0, 1] != corners[3, 1]:
                cv2.fillConvexPoly(canvas, corners, COLOURS[names[entry["lane_id"]]], cv2.LINE_AA, 0)
                cv2.fillConvexPoly(canvas, corners, COLOURS[names[entry["lane_id"]]], cv2.LINE_AA, 0)
    masks = [(canvas == COLOURS[name]).all(axis=2) for name in ORDER]
    channels = np.stack([~np.any(masks, axis=0), *masks])
    return channels.argmax(axis=0), canvas, sorted(names.values())


def random_lanes(seed):
    rng = np.random.default_rng(seed)
    names = [name for name in ("l3", "l1", "l0", "r0", "r1", "r4") if rng.random() < 0.8]
    rng.shuffle(names)
    places = {"l3": -9.0, "l1": -5.5, "l0": -1.8, "r0": 1.8, "r1": 5.4, "r4": 9.0}
    return [
        lane(name, places[name] + rng.normal(0, 0.3), np.sort(rng.uniform(4, 90, rng.integers(1, 30))), drift)
        for name, drift in zip(names, rng.normal(0, 0.4, len(names)))
    ]


@pytest.mark.parametrize("seed", range(8))
def test_the_label_is_the_official_one_to_the_pixel(tmp_path, seed):
    path = write_label(tmp_path, random_lanes(seed))
    dataset = Dataset(root=tmp_path, protocol="official")
    (image_id,) = dataset.ids("train")
    slow, _, names = slow_label(path)
    label = dataset.label(image_id)
    assert label.dtype == np.uint8 and (label == slow).all() and len(np.unique(label)) > 2
    assert dataset.existence(image_id).tolist() == [int(name in names) for name in ORDER]


def test_blurred_edges_are_background(tmp_path):
    path = write_label(tmp_path, [lane("l0", -1.8, [5, 10, 15, 20])])
    label = Dataset(root=tmp_path, protocol="official").label(f"train/{RAMPS}/1")
    _, canvas, _ = slow_label(path)
    drawn, exact = canvas.any(axis=2), label == 2
    assert (exact <= drawn).all() and 0 < exact.sum() < drawn.sum()


def test_a_straight_marker_covers_the_pixels_worked_by_hand(tmp_path):
    """On the axis at z 5 and 10: half widths 10 and 5 px, rows 600 and 450; the far marker only makes the lane tall."""
    write_label(tmp_path, [{"lane_id": "r0", "markers": [marker(0, 5, 10), marker(0, 40, 50)]}])
    label = Dataset(root=tmp_path, protocol="official").label(f"train/{RAMPS}/1")
    assert label[525, 640] == 3 and label[525, 634] == 3 and label[525, 650] == 0  # half width 7.5 in the middle
    assert (label[600, 632:649] == 3).all() and not label[602:].any() and not label[525, :630].any()


def test_lanes_are_dropped_before_they_are_renamed(tmp_path):
    write_label(
        tmp_path,
        [
            lane("l0", -1.8, [60.0, 62.0, 64.0]),  # spans fewer than 20 rows
            lane("l1", -5.5, [5, 10, 20]),
            lane("r0", 1.8, [5]),  # a single marker
            lane("r2", 8.0, [8, 16, 30]),
        ],
    )
    dataset = Dataset(root=tmp_path, protocol="official")
    (image_id,) = dataset.ids("train")
    assert dataset.existence(image_id).tolist() == [0, 1, 1, 0]
    assert np.unique(dataset.label(image_id)).tolist() == [0, 2, 3]


def test_a_span_of_exactly_20_rows_stays(tmp_path):
    for rows, stays in ((20, 1), (19, 0)):
        entry = lane("l0", -1.8, [5, 10])
        for one, y in zip(entry["markers"], (500, 500 - rows)):
            one["pixel_start"]["y"] = str(y)
        write_label(tmp_path, [entry], f"train/{RAMPS}/{rows}")
        dataset = Dataset(root=tmp_path, protocol="official")
        assert dataset.existence(f"train/{RAMPS}/{rows}").tolist() == [0, stays, 0, 0]


def test_names_close_up_outward_from_the_car():
    assert renamed(["l3", "r2", "l1", "r0"]) == ["l1", "r1", "l0", "r0"]
    assert renamed(["r1", "l0"]) == ["r0", "l0"]


def test_an_outer_lane_hides_what_it_is_drawn_over(tmp_path):
    here = [lane("l0", -1.8, [5, 10, 15]), lane("l1", -4, [5, 10, 15]), lane("l2", -1.8, [5, 10, 15])]
    write_label(tmp_path, here)
    assert np.unique(Dataset(root=tmp_path, protocol="official").label(f"train/{RAMPS}/1")).tolist() == [0, 1]


def test_lanes_beyond_the_official_colours_are_background(tmp_path):
    """Eight on the left: the outermost is l7, for which the official scripts have no colour."""
    lanes = [lane(f"l{number}", -2.0 - 3 * number, (8, 12, 16)) for number in range(8)]
    write_label(tmp_path, lanes)
    write_label(tmp_path, lanes[:7], f"train/{RAMPS}/2")
    labels = [Dataset(root=str(tmp_path), protocol="official").label(f"train/{RAMPS}/{number}") for number in (1, 2)]
    assert (labels[0] == labels[1]).all() and set(np.unique(labels[0])) == {0, 1, 2}


def test_numbers_may_be_numbers_and_a_file_without_lanes_is_background(tmp_path):
    path = write_label(tmp_path, [lane("l0", -1.8, [5, 10, 15])])
    dataset = Dataset(root=tmp_path, protocol="official")
    as_text = dataset.label(f"train/{RAMPS}/1")
    numbers = json.loads(
        path.read_text(),
        object_hook=lambda item: {
            key: float(value) if isinstance(value, str) and key in "xyz" else value for key, value in item.items()
        },
    )
    path.write_text(json.dumps(numbers))
    assert (dataset.label(f"train/{RAMPS}/1") == as_text).all() and as_text.any()
    write_label(tmp_path, [])
    assert not dataset.label(f"train/{RAMPS}/1").any() and not dataset.existence(f"train/{RAMPS}/1").any()


def test_a_mirrored_label_swaps_left_and_right():
    mirror, lanes = Dataset.mirror, Dataset.mirror_lanes
    assert [Dataset.classes[c] for c in mirror] == ["background", "r1", "r0", "l0", "l1"]
    assert [Dataset.lane_classes[slot] for slot in lanes] == [mirror[c] for c in Dataset.lane_classes]
    assert Dataset.colours == ((0, 0, 0), *(COLOURS[name][::-1] for name in ORDER))
    assert Dataset.background == 0 and Dataset(root=".", protocol="paper").crop_top == 333


@pytest.fixture
def small(tmp_path):
    for place in (f"train/{LANE_3}/2", f"valid/{RAMPS}/5", f"valid/{LANE_3}/3", f"valid/{LANE_3}/4"):
        write_label(tmp_path, [lane("l0", -1.8, [5, 10, 15])], place, size=(40, 64))
    test = tmp_path / "color_images/test/images-2014-12-22-13-22-35_mapping_280S_2nd_lane"
    test.mkdir(parents=True)
    Image.new("RGB", (64, 40)).save(test / "7_color_rect.png")
    return tmp_path


def test_official_splits_and_the_halves_of_the_paper(small):
    official = Dataset(root=small, protocol="official", size=(40, 64), crop_top=8)
    assert official.ids("train") == [f"train/{LANE_3}/2"]
    assert official.ids("valid") == [f"valid/{RAMPS}/5", f"valid/{LANE_3}/3", f"valid/{LANE_3}/4"]
    (image_id,) = official.ids("test")
    assert image_id == "test/images-2014-12-22-13-22-35_mapping_280S_2nd_lane/7"
    assert official.image(image_id).shape == (40, 64, 3)
    assert official.label(image_id) is None and official.existence(image_id) is None
    paper = Dataset(root=small, protocol="paper", size=(40, 64))
    assert paper.splits == ("train", "val", "test")
    assert paper.ids("val") == [f"valid/{RAMPS}/5"] and paper.ids("test") == [f"valid/{LANE_3}/3", f"valid/{LANE_3}/4"]
    assert paper.label(paper.ids("test")[0]).shape == (40, 64)
    assert paper.official_counts["val"] + paper.official_counts["test"] == official.official_counts["valid"]
    with pytest.raises(DatasetError, match="no split 'val'"):
        official.ids("val")


def test_the_paper_needs_both_recordings(small):
    write_label(small, [], "valid/images-third/1", size=(40, 64))
    with pytest.raises(DatasetError, match="holds 3 recordings"):
        Dataset(root=small, protocol="paper").ids("val")


def test_predictions_are_named_as_the_evaluator_wants():
    path = Dataset(root=".", protocol="official").prediction_path(f"valid/{RAMPS}/1419_07", 3)
    assert path.as_posix() == f"{RAMPS}/1419_07.json_3.png"


@pytest.mark.parametrize(
    "damage, what",
    [
        (lambda text: text[: len(text) // 2], "JSONDecodeError"),
        (lambda text: text.replace("markers", "marker"), "KeyError: 'markers'"),
        (lambda text: text.replace('"15"', '"far"'), "ValueError.*far"),
        (lambda text: text.replace('"15"', '"0"'), "plane of the camera"),
        (lambda text: text.replace('"l0"', '"x0"'), "KeyError: 'x0'"),
        (lambda text: "[]", "TypeError"),
    ],
)
def test_a_malformed_label_is_named(small, damage, what):
    path = small / f"labels/train/{LANE_3}/2.json"
    path.write_text(damage(path.read_text()))
    dataset = Dataset(root=small, protocol="official", size=(40, 64))
    for read in (dataset.label, dataset.existence):
        with pytest.raises(DatasetError, match=rf"2\.json: is not a LLAMAS label \(.*{what}"):
            read(f"train/{LANE_3}/2")


def test_missing_and_resized_files_are_named(small):
    resized = Dataset(root=small, protocol="official")
    for read in (resized.image, resized.label):
        with pytest.raises(DatasetError, match=r"2_color_rect\.png: is 64 x 40 pixels, but LLAMAS 1276 x 717"):
            read(f"train/{LANE_3}/2")
    dataset = Dataset(root=small, protocol="official", size=(40, 64))
    write_label(small, [], f"train/{LANE_3}/9", image=False)
    assert f"train/{LANE_3}/9" in dataset.ids("train")
    with pytest.raises(DatasetError, match=r"9_color_rect\.png: no such file"):
        dataset.image(f"train/{LANE_3}/9")
    (small / f"labels/train/{LANE_3}/2.json").unlink()
    with pytest.raises(DatasetError, match=r"2\.json: cannot be read"):
        dataset.label(f"train/{LANE_3}/2")
    picture = dataset.files(f"train/{LANE_3}/2")[0]
    picture.write_bytes(picture.read_bytes()[:-30])
    with pytest.raises(DatasetError, match=r"2_color_rect\.png: cannot be read .*truncated"):
        dataset.image(f"train/{LANE_3}/2")
    with pytest.raises(DatasetError, match="holds no"):
        Dataset(root=small / "elsewhere", protocol="official").ids("train")
    with pytest.raises(ConfigError, match="protocol"):
        Dataset(root=small, protocol="mine")
