"""`pipeline report` on scores and runs written by hand: what it compares, what it refuses to, and the page."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from conftest import EXPERIMENT
from scipy import stats

from pipeline.reporting import charts, results
from pipeline.reporting.page import with_code

PLAIN, INTRA = (0.50, 0.53, 0.515), (0.55, 0.56, 0.57)
RECIPE = {
    "student": {"name": "erfnet"},
    "training": {"lr": 0.1, "steps": 8, "checkpoint_every": 4, "norm_every": 2},
    "views": {"count": 2},
    "dataset": {"classes": ["road"]},
    "prepared": {"digest": "a"},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    (tmp_path / "reports/scores/toy").mkdir(parents=True)
    return tmp_path


def scored(folder, name, value, iou=None, recipe=RECIPE, seconds=2.0, curve=(3.0, 2.0, 1.0, 0.5), **more):
    score = {
        "metric": "culane_f1",
        "images": 7,
        "mean_iou": value / 2,
        "culane_f1": value,
        "iou": iou or {"background": value, "lane 1": None},
        **more,
    }
    (folder / f"reports/scores/toy/{name}.json").write_text(json.dumps(score))
    run = folder / "runs/toy" / name
    run.mkdir(parents=True)
    if name != "teacher":
        (run / "run.json").write_text(json.dumps(recipe))
    rows = "".join(f"{2 * step + 2}\t{value:g}\n" for step, value in enumerate(curve))
    (run / "curves.tsv").write_text("step\tlabels\n" + rows)
    line = {"first": 0, "last": 8, "seconds": seconds, "threads": 1, "device": "cpu", "torch": "2"}
    (run / "history.jsonl").write_text(json.dumps(line) + "\n")


def report(folder, *arguments):
    from pipeline.cli import main

    result = CliRunner().invoke(main, ["report", "toy.yaml", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def row(text, method):
    return next(re.split(r"\s*\|\s*", line.strip("| ")) for line in text.splitlines() if line.startswith(f"| erfnet | {method} "))


def test_equal_seeds_are_not_paired_and_the_gap_is_a_share_of_the_teachers_lead(folder):
    for seed, (plain, intra) in enumerate(zip(PLAIN, INTRA)):
        scored(folder, f"erfnet-plain-{seed}", plain)
        scored(folder, f"erfnet-intra-{seed}", intra)
    scored(folder, "teacher", 0.615)
    out = report(folder).stdout
    low, high = stats.ttest_ind(INTRA, PLAIN, equal_var=False).confidence_interval(0.95)
    assert row(out, "intra") == [
        "erfnet",
        "intra",
        "3",
        "56.00",
        "1.00",
        "+4.50",
        f"{100 * low:+.2f} to {100 * high:+.2f}",
        "45%",
        "28.00",
        "7",
    ]
    assert out.index("| plain |") < out.index("| intra |")
    assert "baseline" in row(out, "plain") and "Intervals: Welch's t" in out
    assert (folder / "reports/toy.md").read_text() in out
    assert json.loads((folder / "reports/toy.json").read_text()) == {
        "toy": {
            "teacher": {"culane_f1": 61.5, "mean_iou": 30.75},
            "erfnet": {
                "plain": {"culane_f1": 51.5, "mean_iou": 25.75, "sd": 1.5},
                "intra": {"culane_f1": 56.0, "mean_iou": 28.0, "sd": 1.0, "gain": 4.5},
            },
        }
    }


def test_other_seeds_are_compared_by_welch(folder):
    for seed, value in enumerate(PLAIN):
        scored(folder, f"erfnet-plain-{seed}", value)
    for seed, value in enumerate((*INTRA, 0.58), start=2):
        scored(folder, f"erfnet-intra-{seed}", value)
    out = report(folder).stdout
    low, high = stats.ttest_ind((*INTRA, 0.58), PLAIN, equal_var=False).confidence_interval(0.95)
    assert f"{100 * low:+.2f} to {100 * high:+.2f}" in out
    assert "The teacher has no score here" in out


def test_one_seed_has_a_difference_but_no_interval(folder):
    scored(folder, "erfnet-plain-0", 0.5)
    scored(folder, "erfnet-kd-0", 0.52)
    out = report(folder).stdout
    assert row(out, "kd")[:7] == ["erfnet", "kd", "1", "52.00", "", "+2.00", "none"] and "No interval: one seed on a side" in out


def test_a_share_that_rounds_to_nothing_has_no_sign(folder):
    scored(folder, "erfnet-plain-0", 0.5)
    scored(folder, "erfnet-kd-0", 0.4999)
    scored(folder, "teacher", 0.8)
    assert row(report(folder).stdout, "kd")[7] == "0%"


@pytest.mark.parametrize("teacher", [0.5, 0.3, 0.0])
def test_a_teacher_that_is_not_better_leaves_no_gap_to_close(folder, teacher):
    scored(folder, "erfnet-plain-0", 0.5)
    scored(folder, "erfnet-kd-0", 0.52)
    scored(folder, "teacher", teacher)
    out = report(folder).stdout
    assert row(out, "kd")[7] == "-" and "The teacher is not a point better than erfnet plain" in out


@pytest.mark.parametrize(
    "change, named",
    [
        ({"training": {**RECIPE["training"], "lr": 0.2}}, "training.lr"),
        ({"views": {"count": 3}}, "views.count"),
        ({"prepared": {"digest": "b"}}, "prepared.digest"),
    ],
)
def test_runs_of_other_settings_are_not_compared(folder, change, named):
    for seed in (0, 1):
        scored(folder, f"erfnet-plain-{seed}", 0.5 + 0.01 * seed)
        scored(folder, f"erfnet-intra-{seed}", 0.6 + 0.02 * seed, recipe={**RECIPE, **change} if seed else RECIPE)
    out = report(folder).stdout
    assert "other settings" in row(out, "intra") and f"different settings: {named}." in out


def test_how_often_a_run_logs_is_no_difference(folder):
    scored(folder, "erfnet-plain-0", 0.5)
    scored(folder, "erfnet-intra-0", 0.6, recipe={**RECIPE, "training": {**RECIPE["training"], "checkpoint_every": 2}})
    assert row(report(folder).stdout, "intra")[5] == "+10.00"


def test_a_method_without_a_plain_run_says_so_and_strays_are_named(folder):
    scored(folder, "erfnet-kd-0", 0.5)
    scored(folder, "enet-kd-0", 0.5)
    out = report(folder).stdout
    assert "no plain run" in row(out, "kd") and "enet-kd-0: scored, but the file has no such" in out


def test_without_scores_or_with_strange_ones_it_says_what_to_do(folder):
    result = report(folder)
    assert result.exit_code == 1 and "run `pipeline evaluate`" in result.stderr
    scored(folder, "enet-kd-0", 0.5)
    result = report(folder)
    assert result.exit_code == 1 and "enet-kd-0" in result.stderr and "no student and method of this file" in result.stderr
    (folder / "reports/scores/toy/erfnet-kd-0.json").write_text('{"mean_iou": 0.2}')
    result = report(folder)
    assert result.exit_code == 1 and "older version" in result.stderr


def test_a_metric_without_truth_has_no_number(folder):
    scored(folder, "erfnet-plain-0", 0.5)
    scored(folder, "erfnet-kd-0", 0.5)
    path = folder / "reports/scores/toy/erfnet-kd-0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"culane_f1": None}))
    assert "no score" in row(report(folder).stdout, "kd")


def test_a_score_that_is_older_than_its_weights_is_named(folder):
    scored(folder, "erfnet-plain-0", 0.5)
    weights = folder / "runs/toy/erfnet-plain-0/weights.safetensors"
    weights.write_bytes(b"new")
    path = folder / "reports/scores/toy/erfnet-plain-0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": "0123456789abcdef"}))
    assert "erfnet-plain-0: its weights are not those that were scored" in report(folder).stdout


def test_a_student_that_predicts_one_class_is_named(folder):
    scored(folder, "erfnet-plain-0", 0.0, one_class="background")
    scored(folder, "erfnet-intra-0", 0.5, one_class=None)
    notes = [line for line in report(folder).stdout.splitlines() if "collapsed" in line]
    assert notes == [
        "- erfnet-plain-0 predicts 'background' everywhere: this training collapsed. Lower the learning rate or raise "
        "training.warmup_steps."
    ]


def test_a_teacher_that_is_shown_the_labels_sets_no_gap(folder):
    scored(folder, "erfnet-plain-0", 0.5)
    scored(folder, "erfnet-kd-0", 0.52)
    scored(folder, "teacher", 0.9)
    path = folder / "reports/scores/toy/teacher.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"reconstruction": True}))
    out = report(folder).stdout
    assert row(out, "kd")[7] == "-" and "score is of a reconstruction" in out


class Tags(HTMLParser):
    VOID = {"meta", "br", "img", "link"}

    def __init__(self):
        super().__init__()
        self.open, self.places, self.all = [], [], []

    def handle_starttag(self, tag, attributes):
        self.all.append(tag)
        self.places += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.places += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def page(folder):
    for seed, (plain, intra) in enumerate(zip(PLAIN, INTRA)):
        scored(folder, f"erfnet-plain-{seed}", plain, seconds=2.0)
        scored(folder, f"erfnet-intra-{seed}", intra, seconds=2.5)
    scored(folder, "teacher", 0.615)
    assert report(folder).exit_code == 0
    return (folder / "reports/toy.html").read_text()


def test_the_page_needs_no_network_and_no_script(page):
    tags = Tags()
    tags.feed(page)
    assert tags.open == [] and "script" not in tags.all and "link" not in tags.all
    assert all(place.startswith(("#", "data:")) for place in tags.places)
    assert "@import" not in page and "url(" not in page.replace("url(#", "")


def test_the_page_shows_scores_curves_classes_and_cost(page):
    assert "<b>56.00</b>" in page and "+4.50" in page and 'class="forest"' in page
    assert "<td>lane 1</td>" in page and "--part:56.0%" in page
    assert page.count("<figure>") == 1 and "<b>cross-entropy</b>" in page
    assert "2 s" in page and "1.25 x" in page and "312.5 ms" in page and "cpu, 1 thread" in page
    assert "The cache is not on this machine" in page


def test_notes_show_commands_as_code_and_nothing_else_as_html():
    assert str(with_code("run `pipeline evaluate CONFIG --teacher`, <b>")) == (
        "run <code>pipeline evaluate CONFIG --teacher</code>, &lt;b&gt;"
    )


def measured(folder, name, args, ms, size=None):
    from pipeline import config
    from pipeline.files import plain

    cfg = config.load(folder / "toy.yaml")
    model = plain(cfg.teacher.model if name == "teacher" else cfg.student(name)) | args
    path = folder / f"reports/latency/toy/{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    times = [
        {"runtime": runtime, "batch": 1, "median_ms": ms / (1 + i), "p99_ms": ms}
        for i, runtime in enumerate(("torch", "ONNX Runtime"))
    ]
    path.write_text(json.dumps({"model": model, "size": list(size or cfg.prepare.size), "machine": "a machine", "times": times}))


def test_the_page_shows_cost_beside_scores_and_what_students_learn_from(folder):
    cost = {"network": {"parameters": 2_060_000, "gmacs": 1.25}, "confusion": [[9, 1], [0, 0]]}
    for seed, value in enumerate(PLAIN):
        scored(folder, f"erfnet-plain-{seed}", value, **cost)
        scored(folder, f"erfnet-intra-{seed}", value + 0.01, **cost)
    scored(folder, "teacher", 0.7, **cost | {"network": {"parameters": 60_000_000, "gmacs": 200}})
    report(folder)
    page = (folder / "reports/toy.html").read_text()
    assert '<td data-head="GMACs">1.25</td>' in page and '<td data-head="M parameters">60.00</td>' in page
    assert "GMACs an image" in page and "For latencies, run" in page and "ms an image</th>" not in page
    assert page.count("<b>erfnet intra</b></figcaption>") == 1 and ">90</text>" in page.replace("\n", "")  # 9 of 10 pixels
    head = page[: page.index("<h2>Scores")]
    assert "Teacher: <b>resnet18</b>" in head and "culane" not in head and "F1 70.00" in head and "Written on 20" in head
    assert "<b>intra</b>: 0.1 affinity (graph_mid, graph_high) + 0.1 attention (attention_high)" in head
    measured(folder, "erfnet", {}, 8.0)
    measured(folder, "teacher", {}, 64.0)
    report(folder)
    page = (folder / "reports/toy.html").read_text()
    assert '<td data-head="ms an image">4.0</td>' in page and "ms an image, ONNX Runtime" in page and "a machine" in page
    measured(folder, "erfnet", {"args": {"width": 1}}, 8.0)  # of another network
    report(folder)
    assert '<td data-head="ms an image"></td>' in (folder / "reports/toy.html").read_text()
    windows = {**EXPERIMENT, "evaluate": {**EXPERIMENT["evaluate"], "window": [24, 64]}}  # at which a network runs then
    (folder / "toy.yaml").write_text(yaml.safe_dump(windows))
    measured(folder, "erfnet", {}, 8.0)  # at the prepared size
    report(folder)
    assert "ms an image</th>" not in (folder / "reports/toy.html").read_text()
    measured(folder, "erfnet", {}, 2.0, size=[24, 64])
    report(folder)
    assert '<td data-head="ms an image">1.0</td>' in (folder / "reports/toy.html").read_text()


@pytest.mark.parametrize(
    "count, most, columns", [(1, 4, 1), (4, 4, 4), (5, 4, 3), (7, 6, 4), (9, 4, 3), (7, 3, 4), (13, 6, 5), (6, 4, 3)]
)
def test_no_tile_is_alone_in_its_row(count, most, columns):
    assert charts.tiles(count, most) == columns
    assert count <= most or count % columns != 1


def test_the_same_runs_give_the_same_bytes(folder, page):
    report(folder)
    assert (folder / "reports/toy.html").read_text() == page


def test_a_drawing_follows_the_pages_ink(page):
    drawing = page[page.index('<svg viewBox="0 0 3') :]
    assert "currentColor" in drawing and charts.INK not in page and "#000000" not in drawing


def test_names_are_shown_as_text_not_as_markup(folder):
    scored(folder, "erfnet-plain-0", 0.5, iou={"<script>": 0.5})
    report(folder)
    assert "&lt;script&gt;" in (folder / "reports/toy.html").read_text()


def test_time_counts_kept_steps_once(tmp_path):
    lines = [(0, 4, 1.0), (4, 8, 2.0), (0, 4, 10.0), (4, 6, 20.0), (6, 8, 40.0)]  # the run was begun afresh once
    (tmp_path / "history.jsonl").write_text(
        "".join(json.dumps(dict(first=first, last=last, seconds=s, threads=2, device="cpu")) + "\n" for first, last, s in lines)
    )
    assert results.time_of(tmp_path) == results.Time(steps=8, seconds=70.0, machine="cpu, 2 threads")
    assert results.time_of(tmp_path / "nowhere") is None


def test_a_curve_is_the_mean_over_each_hundredth_of_the_steps():
    rng = np.random.default_rng(0)
    rows = [{"step": step, "ce": rng.random()} for step in range(2, 602, 2)]
    slow = [np.mean([row["ce"] for row in rows if i * 6 < row["step"] <= (i + 1) * 6]) for i in range(100)]
    np.testing.assert_allclose(charts._binned(rows, "ce", 600), slow)


def test_curves_of_earlier_versions_are_read_under_todays_name(tmp_path):
    (tmp_path / "curves.tsv").write_text("step\tlabels\tkd\n2\t0.5\t\n4\t0.25\t3\n")
    assert results._curves(tmp_path / "curves.tsv") == [{"step": 2, "ce": 0.5}, {"step": 4, "ce": 0.25, "kd": 3}]


def test_a_term_that_begins_late_has_no_values_before():
    found = charts._binned([{"step": 1, "ce": 1.0}, {"step": 100, "ce": 1.0, "kd": 3.0}], "kd", 100)
    assert np.isnan(found[:99]).all() and found[99] == 3.0
