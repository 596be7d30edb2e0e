import itertools
import math

import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from pipeline.errors import ConfigError, DatasetError
from pipeline.metrics import culane
from pipeline.metrics._assignment import assign
from pipeline.metrics._drawing import draw
from pipeline.metrics._strokes import Canvas, curve

FRAME = (590, 1640)


def slow_curve(lane):
    """The spline one number at a time: x and y over chord length, 50 samples a segment, then the last point."""
    if len(lane) == 2:
        return lane
    n = len(lane)
    steps = [lane[i + 1] - lane[i] for i in range(n - 1)]  # float32
    h = [math.sqrt(float(x) ** 2 + float(y) ** 2) for x, y in steps]
    samples = np.zeros((50 * (n - 1) + 1, 2), np.float32)
    for axis in (0, 1):
        p = lane[:, axis]
        slope = [float(steps[i][axis]) / h[i] for i in range(n - 1)]
        upper, right, moment = [0.0] * (n - 2), [0.0] * (n - 2), [0.0] * n
        for i in range(n - 2):
            pivot, right[i] = 2 * (h[i] + h[i + 1]), 6 * (slope[i + 1] - slope[i])
            if i > 0:
                pivot, right[i] = pivot - h[i] * upper[i - 1], right[i] - h[i] * right[i - 1]
            upper[i], right[i] = h[i + 1] / pivot, right[i] / pivot
        for i in reversed(range(n - 2)):
            moment[i + 1] = right[i] - upper[i] * moment[i + 2]
        for i in range(n - 1):
            b = slope[i] - (2 * h[i] * moment[i] + h[i] * moment[i + 1]) / 6
            d = (moment[i + 1] - moment[i]) / (6 * h[i])
            for k in range(50):
                t = h[i] / 50 * k
                samples[50 * i + k, axis] = float(p[i]) + b * t + moment[i] / 2 * math.pow(t, 2) + d * math.pow(t, 3)
    samples[-1] = lane[-1]
    return samples


def slow_mask(lane, width=30, size=FRAME):
    """A fresh full frame, one line a segment, as OpenCV 4 draws it; Python's round takes halves to the even integer."""
    mask = np.zeros(size, np.uint8)
    points = np.array([(round(float(x)), round(float(y))) for x, y in slow_curve(lane)])
    draw(mask, points[:-1], points[1:], width)
    return mask


def slow_ious(truths, predictions, width=30, size=FRAME):
    ious = [[0.0] * len(predictions) for _ in truths]
    true, predicted = (
        [slow_mask(lane, width, size) if len(lane) >= 2 else None for lane in lanes] for lanes in (truths, predictions)
    )
    for (i, a), (j, b) in itertools.product(enumerate(true), enumerate(predicted)):
        if a is not None and b is not None:
            shared = int((a * b).sum())
            union = int(a.sum()) + int(b.sum()) - shared
            ious[i][j] = shared / union if union else math.nan
    return ious


def slow_lines(probabilities, existence, size=(208, 976)):
    """The table of the facts, with CULane's own numbers."""
    lanes = []
    for slot in range(4):
        levels = np.pad(np.trunc(probabilities[slot + 1] * np.float32(255)).astype(int), 4, mode="reflect")
        sums = sum(levels[dy : dy + size[0], dx : dx + size[1]] for dy in range(9) for dx in range(9))
        means = (2 * sums + 81) // 162  # sums / 81 to the nearest; 81 is odd: no ties
        lane = []
        for i in range(1, 19):
            row = means[int(math.floor(208 - (i - 1) * 20 / 350 * 208 + 0.5)) - 1].tolist()
            if max(row) / 255 > 0.3:
                lane.append([math.floor((row.index(max(row)) + 1) * 1640 / 976 + 0.5) - 1, 590 - (i - 1) * 20 - 1])
        if existence[slot] > 0.5 and len(lane) >= 2:
            lanes.append(lane)
    return lanes


def lane_of(rng, kind):
    """float32 points: annotations, predictions, straight pairs, scribbles and lanes outside the frame."""
    points = int(rng.integers(3, 33))
    if kind == "two":
        return rng.uniform((-300, -200), (1900, 800), (2, 2)).astype(np.float32)
    if kind == "scribble":
        return rng.uniform((-300, -200), (1900, 800), (min(points, 6), 2)).astype(np.float32)
    if kind == "outside":
        return np.stack([1700 + np.arange(points), 590 - 10 * np.arange(points)], 1).astype(np.float32)
    y = 590 - 10 * np.arange(points) if kind == "annotated" else 589 - 20 * np.arange(min(points, 18))
    up = (590 - y) / 350
    x = rng.uniform(100, 1500) + rng.normal(0, 400) * up + rng.normal(0, 80) * up**2
    return np.stack([np.round(x, 3) if kind == "annotated" else np.round(x), y], 1).astype(np.float32)


def frame_of(rng, kinds=("annotated", "annotated", "predicted", "two", "scribble", "outside")):
    """True lanes, and predictions that are some of them shifted, and some of their own."""
    truths = [lane_of(rng, rng.choice(kinds)) for _ in range(rng.integers(0, 5))]
    predictions = [lane + np.float32([rng.normal(0, 8), 0]) for lane in truths if rng.random() < 0.8]
    predictions += [lane_of(rng, rng.choice(kinds)) for _ in range(rng.integers(0, 3))]
    if rng.random() < 0.3:
        truths.append(np.zeros((int(rng.integers(0, 2)), 2), np.float32))  # a lane of no or one point
    return truths, predictions


def vertical(x):
    """A lane across all 590 rows, 31 columns wide when drawn 30 px thick."""
    return np.array([[x, -100], [x, 700]], np.float32)


def folder_of(root, frames):
    for name, lanes in frames.items():
        culane.write_lines(root / name, lanes)
    return root


def list_of(path, frames):
    path.write_text("".join(f"/{name.replace('.lines.txt', '.jpg')}\n" for name in frames))
    return path


# ---- files


def test_points_are_read_as_a_cpp_stream_reads_them(tmp_path):
    path = tmp_path / "a.lines.txt"
    path.write_bytes(b"1 2 3.5 -4 \n\n5 6 7\n1 2 nan 3\r\n1e2 -.5 1 2e 7\n12abc 3\n8 9")
    lanes = [lane.tolist() for lane in culane.read_lines(path)]
    assert lanes == [[[1, 2], [3.5, -4]], [], [[5, 6]], [[1, 2]], [[100, -0.5]], [], [[8, 9]]]


def test_an_empty_file_has_no_lane_and_a_blank_line_is_one(tmp_path):
    path = tmp_path / "a.lines.txt"
    path.write_text("")
    assert culane.read_lines(path) == []
    path.write_text("\n")
    assert [len(lane) for lane in culane.read_lines(path)] == [0]


def test_written_lanes_read_back_equal(tmp_path):
    path = tmp_path / "clip.MP4" / "00000.lines.txt"
    lanes = [np.array([[102, 589], [-7, 569]], np.int32), np.array([[0.1, 590], [1640.333, 580]], np.float32)]
    culane.write_lines(path, lanes)
    assert path.read_text() == "102 589 -7 569 \n0.1 590 1640.333 580 \n"
    assert all(np.array_equal(a, b) for a, b in zip(culane.read_lines(path), lanes, strict=True))
    culane.write_lines(path, [])
    assert path.read_text() == ""


# ---- maps to points


def test_maps_become_the_points_of_the_rules():
    rng = np.random.default_rng(0)
    for trial in range(4):
        maps = np.full((5, 208, 976), 0.01, np.float32)
        for slot in range(1, 5):
            for row in range(int(rng.integers(0, 120)), 208):
                left = int(np.clip(180 * slot + (208 - row) * rng.normal(0, 0.02) * slot, 12, 950))
                maps[slot, row, left - 9 : left + 9] = rng.uniform(0.1, 1)
        maps[4] *= 0.28 if trial == 3 else 1  # around the threshold of 0.3
        maps[1] = rng.random((208, 976))  # maxima anywhere, also at the border
        existence = [0.9, 0.51, 0.5, 0.7]
        fast = [lane.tolist() for lane in culane.probabilities_to_lines(maps, existence)]
        assert fast == slow_lines(maps, existence)
        assert len(fast) >= 2 and fast == [lane.tolist() for lane in culane.probabilities_to_lines(maps[1:], existence)]


def test_points_worked_by_hand():
    """A full-height band at columns 57..65 (from 1): its 9 x 9 mean peaks at column 61, and 61 * 1640 / 976 = 102.5."""
    maps = np.zeros((5, 208, 976), np.float32)
    maps[2, :, 56:65] = 1
    (lane,) = culane.probabilities_to_lines(maps, [1, 1, 1, 1])
    assert lane.tolist() == [[102, y] for y in range(589, 248, -20)]


@pytest.mark.parametrize(
    "maps",
    [np.full((5, 208, 976), 200, np.uint8), np.full((5, 208, 976), 200.0), np.full((5, 8, 8), np.nan), np.full((5, 8, 8), -1)],
)
def test_maps_that_are_no_probabilities_are_refused(maps):
    with pytest.raises(DatasetError, match="probabilities from 0 to 1"):
        culane.probabilities_to_lines(maps, [1, 1, 1, 1])


@pytest.mark.parametrize("value, kept", [(77, True), (76.999, False)])
def test_a_probability_is_cut_to_8_bits_and_must_exceed_three_tenths(value, kept):
    maps = np.full((5, 208, 976), value / 255, np.float64)
    assert bool(culane.probabilities_to_lines(maps, [1, 0, 0, 0])) is kept


def test_a_single_point_is_no_lane():
    maps = np.zeros((5, 208, 976), np.float32)
    maps[1, 196:, 300:330] = 1  # seen by the rows 208 and 196, of 1..208
    assert len(culane.probabilities_to_lines(maps, [1, 1, 1, 1])[0]) == 2
    maps[1, 196:] = 0
    maps[1, 203:, 300:330] = 1  # only by the lowest
    assert culane.probabilities_to_lines(maps, [1, 1, 1, 1]) == []


def test_other_frames_have_a_point_every_20_px_below_the_cut():
    maps = np.ones((4, 60, 160), np.float32)
    (lane,) = culane.probabilities_to_lines(maps, [0, 1, 0, 0], frame=(200, 320), crop_top=80)
    assert lane.tolist() == [[1, y] for y in (199, 179, 159, 139, 119, 99)]  # column 1 * 320 / 160 - 1
    (lane,) = culane.probabilities_to_lines(maps[:, :2], [0, 1, 0, 0], frame=(100, 160), crop_top=0)
    assert lane[:, 1].tolist() == [99, 79, 59, 39]  # map rows 2, 2, 1, 1; the next would be row 0


# ---- curves and strokes


def test_a_curve_equals_the_spline_computed_number_by_number():
    rng = np.random.default_rng(1)
    for kind in ["annotated", "predicted", "scribble", "two"] * 6:
        lane = lane_of(rng, kind)
        assert np.array_equal(curve(lane), slow_curve(lane))


def test_a_curve_is_the_natural_spline_over_chord_length():
    lane = lane_of(np.random.default_rng(2), "annotated").astype(np.float64)
    chords = np.r_[0, np.hypot(*np.diff(lane, axis=0).T).cumsum()]
    at = np.concatenate([np.linspace(a, b, 50, endpoint=False) for a, b in zip(chords, chords[1:])] + [chords[-1:]])
    assert np.allclose(curve(lane), CubicSpline(chords, lane, bc_type="natural")(at), atol=1e-3)


def test_strokes_equal_full_masks_and_leave_the_canvas_clean():
    rng = np.random.default_rng(3)
    for trial in range(40):
        size, width = ((120, 200), int(rng.integers(1, 40))) if trial % 2 else (FRAME, 30)
        canvas = Canvas(size, width)
        for kind in ("annotated", "two", "scribble", "outside"):
            lane = lane_of(rng, kind)
            stroke, full = canvas.stroke(curve(lane)), slow_mask(lane, width, size)
            assert not canvas.frame_HW.any()
            placed = np.zeros(size, bool)
            height, width_px = stroke.mask_hw.shape
            placed[stroke.top : stroke.top + height, stroke.left : stroke.left + width_px] = stroke.mask_hw
            assert np.array_equal(placed, full.astype(bool)) and stroke.area == full.sum()


def test_points_round_to_the_even_pixel():
    canvas = Canvas((60, 60), 1)
    stroke = canvas.stroke(np.array([[10.5, 20.5], [11.5, 20.5]], np.float32))
    assert stroke.area == 3  # columns 10, 11, 12 of row 20
    assert canvas.stroke(np.array([[10.5, 20.5], [10.5, 20.5]], np.float32)).area == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "lane",
    [
        [[5, 5], [5, 5], [700, 300]],
        [[5, 5], [5, 5], [5, 5], [700, 300]],
        [[5, 5], [5, 5]],
        [[5, 5], [5e9, 7], [9, 9]],
    ],
)
def test_a_lane_that_repeats_a_point_or_runs_far_away_is_drawn_without_complaint(lane):
    canvas = Canvas(FRAME, 30)
    canvas.stroke(curve(np.array(lane, np.float32)))
    assert not canvas.frame_HW.any()


def lane(text):
    return np.array(text.split(), np.float32).reshape(-1, 2)


def test_a_lane_that_repeats_a_point_covers_what_it_covers_officially():
    assert Canvas(FRAME, 30).stroke(curve(lane("604 590 614 570 614 570 638 530"))).area == 1768


def test_lanes_that_repeat_a_point_are_no_hit_where_the_official_program_has_none(tmp_path):
    for folder, text in (("truth", "300 590 310 570 310 570 330 500"), ("found", "315 605 325 585 325 585 345 515")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.lines.txt").write_text(text)
    lists = {"all": list_of(tmp_path / "list.txt", ["a.lines.txt"])}
    total = culane.score(tmp_path / "found", tmp_path / "truth", lists, workers=1)["total"]
    assert (total["tp"], total["fp"], total["fn"]) == (0, 1, 1)


def test_ious_and_counts_equal_full_masks_on_random_frames():
    rng = np.random.default_rng(4)
    canvas, hits = Canvas(FRAME, 30), 0
    for _ in range(16):
        truths, predictions = frame_of(rng)
        if truths and predictions:
            fast, slow = culane.lane_ious(truths, predictions, canvas), slow_ious(truths, predictions)
            assert np.array_equal(fast, slow, equal_nan=True)
            matched = [slow[i][j] for i, j in enumerate(assign(slow)) if j >= 0]
            assert np.array_equal(culane.matched_ious(truths, predictions, canvas), matched, equal_nan=True)
            hits += sum(iou > 0.5 for iou in matched)
    assert hits > 6


# ---- assignment


def test_an_assignment_is_the_best_up_to_the_tolerance():
    rng = np.random.default_rng(5)
    for _ in range(400):
        rows, columns = rng.integers(1, 6, 2)
        scores = rng.random((rows, columns))
        partner = assign(scores.tolist())
        chosen = [j for j in partner if j >= 0]
        assert len(chosen) == len(set(chosen)) == min(rows, columns)
        small, large = (scores, columns) if rows <= columns else (scores.T, rows)
        best = max(small[range(len(small)), order].sum() for order in itertools.permutations(range(large), len(small)))
        assert best - 0.01 * len(small) <= sum(scores[i, j] for i, j in enumerate(partner) if j >= 0) <= best + 1e-12


@pytest.mark.parametrize(
    "scores, partner",
    [
        ([[0.495, 0.504]], [0]),  # 0.009 below the best: as good, and it comes first
        ([[0.49, 0.504]], [1]),
        ([[0.0, 0.0], [0.0, 0.0]], [1, 0]),  # all tight: the second node takes 0, the first moves on
        ([[0.8, 0.6], [0.7, 0.1]], [1, 0]),  # 0.6 + 0.7 > 0.8 + 0.1
        ([[0.3], [0.304], [0.1]], [0, -1, -1]),  # columns are the smaller side
        ([[0.9, 0.1], [math.nan, math.nan]], [0, -1]),
        ([[math.nan, math.nan], [0.9, 0.1]], [-1, -1]),  # the search ends at the node that nothing fits
        ([[math.nan, 0.2], [0.9, 0.1]], [1, 0]),
    ],
)
def test_ties_fall_as_in_the_search_order(scores, partner):
    assert assign(scores) == partner


# ---- scores


def test_vertical_lanes_worked_by_hand(tmp_path):
    """31 columns each, x apart by d: IoU (31 - d) / (31 + d), 21 / 41 at 10 px and 20 / 42 at 11 px."""
    canvas = Canvas(FRAME, 30)
    assert culane.lane_ious([vertical(500)], [vertical(510), vertical(511)], canvas) == [[21 / 41, 20 / 42]]
    truth = folder_of(tmp_path / "truth", {"a/0.lines.txt": [vertical(500), vertical(900)]})
    predicted = folder_of(tmp_path / "predicted", {"a/0.lines.txt": [vertical(510), vertical(911), vertical(1300)]})
    lists = {"all": list_of(tmp_path / "list.txt", ["a/0.lines.txt"])}
    total = culane.score(predicted, truth, lists, workers=1)["total"]
    assert [total[key] for key in ("tp", "fp", "fn", "precision", "recall")] == [1, 2, 1, 1 / 3, 1 / 2]
    assert total["f1"] == pytest.approx(0.4, abs=1e-15)
    assert culane.score(predicted, truth, lists, iou=0.3, workers=1)["total"]["tp"] == 2
    exactly = culane.score(predicted, truth, lists, iou=21 / 41, workers=1)["total"]
    assert exactly["tp"] == 0 and exactly["f1"] == 0  # above the threshold, not at it


def test_categories_crossroads_missing_files_and_the_total(tmp_path):
    rng = np.random.default_rng(6)
    kinds = ("annotated",)
    frames = {f"drive/{k:05d}.lines.txt": frame_of(rng, kinds) for k in range(30)}
    for k in range(20, 30):  # crossroads: no true lane
        name = f"drive/{k:05d}.lines.txt"
        frames[name] = [], frames[name][1]
    truth = folder_of(tmp_path / "truth", {name: truths for name, (truths, _) in frames.items()})
    predicted = folder_of(tmp_path / "predicted", {name: lanes for name, (_, lanes) in frames.items()})
    gone = "drive/00003.lines.txt"
    (predicted / gone).unlink()
    names = list(frames)
    halves = {"normal": names[:20], "cross": names[20:]}
    lists = {category: list_of(tmp_path / f"{category}.txt", half) for category, half in halves.items()}

    expected = {0.5: np.zeros(3, int), 0.3: np.zeros(3, int)}
    for name in names[:20]:
        truths = culane.read_lines(truth / name)
        predictions = culane.read_lines(predicted / name) if name != gone else []
        ious = slow_ious(truths, predictions)
        partners = list(enumerate(assign(ious))) if truths and predictions else []
        for threshold, counts in expected.items():
            hits = sum(ious[i][j] > threshold for i, j in partners if j >= 0)
            counts += hits, len(predictions) - hits, len(truths) - hits
    expected = {threshold: tuple(counts.tolist()) for threshold, counts in expected.items()}
    false = sum(len(frames[name][1]) for name in names[20:])

    assert expected[0.5] != expected[0.3]
    together = culane.scores(predicted, truth, lists, list(expected), workers=1)
    for threshold, (tp, fp, fn) in expected.items():
        result = culane.score(predicted, truth, lists, threshold, workers=1)
        assert together[threshold] == result
        assert [result["categories"]["normal"][key] for key in ("tp", "fp", "fn")] == [tp, fp, fn]
        cross = result["categories"]["cross"]
        assert cross == {"tp": 0, "fp": false, "fn": 0, "precision": 0, "recall": -1, "f1": None}
        total, p, r = result["total"], tp / (tp + fp + false), tp / (tp + fn)
        assert [total["tp"], total["fp"], total["fn"]] == [tp, fp + false, fn]
        assert [total["precision"], total["recall"], total["f1"]] == [p, r, 2 * p * r / (p + r)]
        assert (result["frames"], result["missing"]) == (30, 1)


def test_processes_count_the_same(tmp_path):
    rng = np.random.default_rng(8)
    frames = {f"{k}.lines.txt": frame_of(rng, ("annotated",)) for k in range(150)}  # three tasks
    truth = folder_of(tmp_path / "truth", {name: truths for name, (truths, _) in frames.items()})
    predicted = folder_of(tmp_path / "predicted", {name: lanes for name, (_, lanes) in frames.items()})
    lists = {"a": list_of(tmp_path / "a.txt", list(frames)[:100]), "b": list_of(tmp_path / "b.txt", list(frames)[100:])}
    results = [culane.score(predicted, truth, lists, workers=workers) for workers in (1, 2)]
    assert results[0] == results[1] and results[0]["total"]["tp"] > 50


def test_truth_scored_against_itself_is_perfect(tmp_path):
    rng = np.random.default_rng(7)
    frames = {f"{k}.lines.txt": [lane_of(rng, "annotated") for _ in range(3)] for k in range(4)}
    truth = folder_of(tmp_path / "truth", frames)
    result = culane.score(truth, truth, {"all": list_of(tmp_path / "list.txt", frames)}, workers=1)
    assert result["total"]["f1"] == 1 and result["total"]["tp"] == 12 and result["missing"] == 0


@pytest.mark.parametrize(
    "counts, ratios",
    [
        ((3, 1, 2), (3 / 4, 3 / 5, 2 / 3)),
        ((0, 4, 5), (0, 0, 0)),
        ((0, 0, 5), (-1, 0, 0)),
        ((0, 0, 0), (-1, -1, None)),
    ],
)
def test_ratios_of_counts(counts, ratios):
    result = culane.ratios(*counts)
    assert (result["precision"], result["recall"], result["f1"]) == pytest.approx(ratios, abs=1e-15)


def test_lists_hold_paths_with_a_slash_flags_and_blank_lines(tmp_path):
    path = tmp_path / "val_gt.txt"
    path.write_text("/driver_23/5.MP4/0.jpg /laneseg_label_w16/driver_23/5.MP4/0.png 1 1 1 1\n\n/d/30.jpg\n")
    assert culane.read_list(path) == ["driver_23/5.MP4/0.lines.txt", "d/30.lines.txt"]


def test_what_is_not_there_is_an_error_that_names_it(tmp_path):
    truth = folder_of(tmp_path / "truth", {"a.lines.txt": [vertical(9)]})
    lists = {"all": list_of(tmp_path / "list.txt", ["a.lines.txt", "b.lines.txt"])}
    with pytest.raises(DatasetError, match="b.lines.txt: no such file"):
        culane.score(truth, truth, lists, workers=1)
    with pytest.raises(DatasetError, match="nowhere: no such folder"):
        culane.score(tmp_path / "nowhere", truth, lists)
    with pytest.raises(DatasetError, match="nothing.txt: no such list"):
        culane.score(truth, truth, {"all": tmp_path / "nothing.txt"})


@pytest.fixture
def one_frame(tmp_path):
    """A function that scores one frame: `truth` and `found` are the bytes of its files, `list` those of the list."""

    def run(truth=b"300 590 310 300\n", found=b"300 590 310 300\n", frames=b"a.jpg\n", **options):
        for folder, content in (("truth", truth), ("found", found)):
            (tmp_path / folder).mkdir(exist_ok=True)
            if content is None:
                (tmp_path / folder / "a.lines.txt").mkdir()
            else:
                (tmp_path / folder / "a.lines.txt").write_bytes(content)
        (tmp_path / "list.txt").write_bytes(frames)
        return culane.score(tmp_path / "found", tmp_path / "truth", {"all": tmp_path / "list.txt"}, workers=1, **options)

    return run


def test_lanes_in_order_are_scored_without_a_word(one_frame, capfd):
    assert one_frame()["total"]["f1"] == 1 and "Warning" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "found, word",
    [
        (b"300,590 310,300\n", "line 1 is not read from '300,590 310,300' on; as in the official program"),
        (b"300 590 310 300\n[[300, 590], [310, 300]]\n", "line 2 is not read from '[[300"),
        ("300 590 310 300\n".encode("utf-16"), "line 1 is not read from "),
        (b"300 590 310\n", "line 1 is not read from '310' on"),
        (b"300 590 x\n400 590 y\n500 590 z\n", "and so are 2 other lines; as in the official program"),
        (b"300 590 300 590 310 300\n", "line 1 repeats a point; the official program draws only pieces"),
    ],
)
def test_lines_that_are_not_read_or_drawn_as_meant_are_told(one_frame, capfd, found, word):
    one_frame(found=found)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("Warning: ") and word in said[0] and "found/a.lines.txt" in said[0]


@pytest.mark.parametrize(
    "truth, size, word",
    [
        (b"300 719 310 300\n", FRAME, "a true lane down to y = 719, below frames of 590 rows; give the size of your frames"),
        (b"300 235 310 100\n", FRAME, "no true lane reaches the lower half of frames of 590 rows, the lowest point is at y = 235"),
        (b"300 719 310 300\n", (720, 1280), None),
        (b"", FRAME, None),
    ],
)
def test_lanes_of_frames_of_another_size_are_told(one_frame, capfd, truth, size, word):
    one_frame(truth=truth, size=size)
    said = capfd.readouterr().err.splitlines()
    assert said == [] if word is None else len(said) == 1 and word in said[0] and "--size HEIGHT WIDTH" in said[0]


@pytest.mark.parametrize(
    "wrong, error, word",
    [
        (dict(iou=math.nan), ConfigError, "iou: expected thresholds from 0 to 1, got nan"),
        (dict(iou=1.5), ConfigError, "got 1.5"),
        (dict(width=0), ConfigError, "width: expected 1 to 32767"),
        (dict(width=32768), ConfigError, "width: expected 1 to 32767"),
        (dict(size=(-1, 5)), ConfigError, "size: expected a height and a width from 1 to 16384"),
        (dict(size=(500_000, 500_000)), ConfigError, "got 500000 and 500000"),
        (dict(frames=b"caf\xe9.jpg\n"), DatasetError, "is not UTF-8 text"),
        (dict(frames=b"a\0.jpg\n"), DatasetError, "has a NUL"),
        (dict(frames=b"a" * 5000), DatasetError, "cannot be read"),
        (dict(truth=None), DatasetError, "truth/a.lines.txt: cannot be read"),
        (dict(found=None), DatasetError, "found/a.lines.txt: cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(one_frame, wrong, error, word):
    with pytest.raises(error, match=word) as raised:
        one_frame(**wrong)
    assert "\n" not in str(raised.value)


def test_a_folder_instead_of_a_list_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read"):
        culane.read_list(tmp_path)
