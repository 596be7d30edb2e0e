"""The commands that look and change nothing: plan, inspect, doctor."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.progress import Progress
from pipeline.store import plan
from pipeline.store.plan import Cost as plan_cost
from pipeline.teacher import cache

CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_plan_says_what_the_fill_then_weighs(cached_experiment):
    cfg = cached_experiment.load()
    cfg.dataset.args["root"] = str(cached_experiment.folder / "data/toy")
    context = cache.context(cfg.teacher.model, cfg.dataset.build(), cfg.prepare.size)
    named = cache.target_passes(cfg.targets, context)
    sizes = plan.sizes(13, 3, {name: pass_ for name, (_, pass_) in named.items()}, cache.MATRIX, context)
    folder = cached_experiment.store("targets")
    chunks = [path for path in folder.rglob("c.*")]
    assert sizes.num_blocks == 2 and sizes.rows_of_block == 8
    written = sum(path.stat().st_size for path in chunks)
    assert sizes.total_bytes + 4 * len(chunks) == written  # each file ends in its own crc
    marks = list(folder.glob("done/*/*.json"))
    assert sizes.num_files == len(chunks) + len(marks) + len(list(folder.glob("images/*.tsv")))
    assert sizes.probability_bytes == 2 * 5 * 48 * 128


def test_the_plan_command_prints_sizes_and_measures(cached_experiment, monkeypatch):
    from stages import plan as stage

    monkeypatch.setattr(stage, "MEASURE_S", 0.1)
    out = cached_experiment.do("plan")
    assert "13 images x 3 views in 2 blocks of 8 rows" in out and "| graph_mid | 328 |" in out and "of features" in out
    out = cached_experiment.do("plan", "--measure", "--images", "88880")
    assert "time to fill" in out and "to verify" in out and "paid for itself after" in out and "88880 images" in out
    absent = "--set", "dataset.root=nowhere", "--set", "dataset.labelled_part=0.5"
    assert "time to fill" in cached_experiment.do("plan", "--measure", "--images", "8", *absent)
    assert not list((cached_experiment.folder / "cache").glob("plan-*"))


@pytest.mark.parametrize("name", ["few-labels", "roads-few", "cityscapes"])
def test_a_plan_for_a_number_of_images_needs_no_dataset(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["plan", str(CONFIGS / f"{name}.yaml"), "--images", "8"])
    assert result.exit_code == 0 and result.output.startswith("8 images x "), result.output


def test_a_deep_teacher_from_scratch_is_measured_too(cached_experiment, monkeypatch):
    from stages import plan as stage

    monkeypatch.setattr(stage, "MEASURE_S", 0.1)
    args = "--set", "teacher.name=resnet101", "--batch", "1"
    assert "time to fill" in cached_experiment.do("plan", "--measure", "--root", "nowhere/yet", *args)
    assert not (cached_experiment.folder / "nowhere").exists()  # a plan leaves nothing behind


def test_a_plan_counts_what_writing_takes_each_time(cached_experiment, monkeypatch):
    """A block that is whole is not written again, so a second write of the same one would take no time."""
    import time

    from pipeline.store import store
    from stages import plan as stage

    costs, write = [], store.write

    def slow(files):
        time.sleep(0.03)
        write(files)

    monkeypatch.setattr(stage, "MEASURE_S", 0.3)
    monkeypatch.setattr(store, "write", slow)
    monkeypatch.setattr(plan, "Cost", lambda **cost: costs.append(plan_cost(**cost)) or costs[0])
    cached_experiment.do("plan", "--measure")
    assert costs[0].write_s >= 5 * 0.03  # four targets and the matrices
    sizes = plan.Sizes(100, 4, 10, {"x": 1}, 0, 0, 0)
    cost = plan_cost(teacher_s=1.0, answer_s=2.0, read_s=8.0, write_s=5.0, verify_s=0.5, student_s=1.0)
    assert cost.view_s(sizes) == 2.0 + 0.5 + 0.2 and cost.fill_total_s(sizes) == 400 * 2.7
    assert cost.verify_total_s(sizes) == 40 * 0.5 and cost.break_even_epochs(sizes) == 4 * 2.7


def test_a_plan_says_when_the_disk_is_too_small(cached_experiment, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    result = cached_experiment.run("plan")
    *figures, error = result.stderr.splitlines()
    assert result.exit_code == 1 and "are needed, 0 bytes are free" in error
    assert "| graph_mid | 328 |" in figures  # once, and not as faults


@pytest.mark.parametrize(
    ("images", "row", "rows"),
    [
        (88_880, 6_344, 128),
        (100_000_000, 6_344, 1024),
        (100_000_000, 600_000, 128),
        (367, 6_344, 16),
        (20, 300, 8),
        (100_000, 2**22, 32),
    ],
)
def test_blocks_suit_the_data(images, row, rows):
    from pipeline.store import ArrayGroup
    from pipeline.targets.base import Field

    assert plan.block_rows(images, [ArrayGroup("x", {}, {"x": Field((row,), "uint8", ("x",))})]) == rows


def test_equal_targets_under_two_names_are_counted_once(cached_experiment):
    cfg = cached_experiment.load()
    cfg.dataset.args["root"] = str(cached_experiment.folder / "data/toy")
    context = cache.context(cfg.teacher.model, cfg.dataset.build(), cfg.prepare.size)
    named = cache.target_passes({"one": cfg.targets["graph_mid"], "two": cfg.targets["graph_mid"]}, context)
    sizes = plan.sizes(13, 3, {name: pass_ for name, (_, pass_) in named.items()}, cache.MATRIX, context)
    assert sizes.target_bytes["two"] == 0 and sizes.target_bytes["one"] == 328


def test_inspect_tells_what_a_cache_is(cached_experiment):
    out = cached_experiment.do("inspect")
    assert "13 images in 2 blocks of 8" in out and "teacher resnet18" in out and "2/2 2/2 2/2" in out


def test_inspect_says_which_views_there_are(cached_experiment):
    image_id = cached_experiment.store("targets").joinpath("images/000000.tsv").read_text().splitlines()[1].split("\t")[0]
    result = cached_experiment.run("inspect", "--id", image_id, "--view", "9")
    assert result.exit_code == 1 and "--view 9: there are 3 views, counted from 0; ask for one of 0..2" in result.stderr


def test_inspect_draws_a_record_beside_its_image(cached_experiment):
    import cv2

    image_id = cached_experiment.store("targets").joinpath("images/000000.tsv").read_text().splitlines()[1].split("\t")[0]
    cached_experiment.do("inspect", "--id", image_id, "--view", "1", "--out", "figure.png")
    figure = cv2.imread(str(cached_experiment.folder / "figure.png"))
    assert figure.shape[1] > 1000 and np.unique(figure.reshape(-1, 3), axis=0).shape[0] > 1000


def test_inspect_of_an_unknown_image_suggests_one(cached_experiment):
    result = cached_experiment.run("inspect", "--id", "driver/none")
    assert result.exit_code == 1 and "no image 'driver/none'" in result.stderr and "more" in result.stderr


def test_doctor_finds_nothing_wrong_with_the_road_set(cached_experiment):
    assert "nothing wrong (train: 13 images, 13 labelled" in cached_experiment.do("doctor", "--workers", "1")


def test_doctor_lists_every_fault(experiment):
    first, second = [
        experiment.folder / "data/toy" / line.lstrip("/")
        for line in (experiment.folder / "data/toy/list/train.txt").read_text().split()[:2]
    ]
    first.write_bytes(first.read_bytes()[:2000])
    second.unlink()
    result = experiment.run("doctor", "--workers", "1", "--split", "train")
    assert result.exit_code == 1 and first.name in result.stderr and second.name in result.stderr and "2 faults" in result.stderr


def test_synth_is_for_roads_alone(experiment, tmp_path):
    experiment.change(dataset={})
    import yaml

    raw = yaml.safe_load(experiment.config.read_text())
    raw["dataset"] = {"name": "camvid", "root": "data/toy"}
    experiment.config.write_text(yaml.safe_dump(raw))
    result = experiment.run("synth")
    assert result.exit_code == 1 and "is for roads" in result.stderr


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(Progress, "EVERY_S", 0.0)
    with Progress("counting", 4, "things") as progress:
        progress.advance(2, "half way")
        progress.reach(4, 4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("counting: 2/4 things") and "half way" in lines[0] and "4/4" in lines[1]


def test_progress_is_a_bar_on_a_terminal(capsys, monkeypatch):
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("counting", 4, "things") as progress:
        progress.reach(4, 4)
    assert "counting" in capsys.readouterr().err
