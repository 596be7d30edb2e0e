"""A study: cells run and scored once, its table and verdict true, its file checked."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from pipeline.cli import main
from pipeline.errors import ConfigError
from pipeline.reporting.study import asked, otherwise, read, remarks, table, verdict

STUDY = {
    "config": "toy.yaml",
    "student": "erfnet",
    "splits": ["test", "val"],
    "seeds": [0, 1],
    "gate": 3,
    "primary": {"arm": "intra", "against": ["plain", "fresh"]},
    "arms": {
        "plain": {"method": "plain"},
        "fresh": {"method": "plain", "set": ["training.fresh_views=true"]},
        "intra": {"method": "intra"},
    },
}


def run(folder, monkeypatch, study=STUDY, *more):
    monkeypatch.chdir(folder)
    Path("study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return CliRunner().invoke(main, ["study", "study.yaml", "--jobs", "1", *more])


def test_a_study_runs_its_cells_and_goes_on_where_it_stopped(experiment, monkeypatch):
    small = {
        **STUDY,
        "seeds": [0],
        "arms": {name: {**arm, "set": [*arm.get("set", []), "training.steps=4"]} for name, arm in STUDY["arms"].items()},
    }
    refused = run(experiment.folder, monkeypatch, small, "--log", "tensorbord")
    assert refused.exit_code == 1 and "did you mean 'tensorboard'" in refused.stderr and not Path("runs/study").exists()
    logged = ["--log", "tensorboard"] if importlib.util.find_spec("tensorboard") else []
    first = run(experiment.folder, monkeypatch, small, *logged)
    assert first.exit_code == 0, first.output
    assert all(list(Path(f"runs/study/{arm}-0/tensorboard").glob("events*")) for arm in STUDY["arms"] if logged)
    scores = {arm: json.loads(Path(f"reports/studies/study/{arm}-0.json").read_text()) for arm in STUDY["arms"]}
    assert all(score["cpu_seconds"] > 0 for score in scores.values())
    for arm, score in scores.items():
        for split in ("test", "val"):
            found = score["scores"][split]
            assert f"| {arm} | 1 | {100 * found[found['metric']]:.2f} |" in first.stdout
    assert [line.split("\t")[:2] for line in Path("reports/studies/study.tsv").read_text().splitlines()[1:]] == [
        ["teacher", ""],
        *([arm, "0"] for arm in STUDY["arms"]),
    ]
    trained = {arm: Path(f"runs/study/{arm}-0/weights.safetensors").stat().st_mtime_ns for arm in STUDY["arms"]}

    small["arms"]["intra"]["set"].append("training.lr=0.01")  # only this arm asks for something else now
    assert run(experiment.folder, monkeypatch, small).exit_code == 0
    again = {arm: Path(f"runs/study/{arm}-0/weights.safetensors").stat().st_mtime_ns for arm in STUDY["arms"]}
    assert [arm for arm in again if again[arm] != trained[arm]] == ["intra"]


def test_a_fault_of_the_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"config": "toy.yaml"}))
    with pytest.raises(ConfigError, match="expected the keys arms, config"):
        read(path)
    path.write_text("gate: 3\ngate: 0\n")
    with pytest.raises(ConfigError, match="study.yaml.*gate"):
        read(path)
    with pytest.raises(ConfigError, match="no such file"):
        read(tmp_path / "none.yaml")


def test_an_arm_that_is_not_there_is_named(experiment, monkeypatch):
    result = run(experiment.folder, monkeypatch, {**STUDY, "primary": {"arm": "magic", "against": []}})
    assert result.exit_code == 1 and "there is no arm 'magic', only plain, fresh, intra" in result.output


@pytest.mark.parametrize("gain, answer", [(0.05, "better"), (0.0, "no difference can be told"), (-0.05, "worse")])
def test_the_verdict_is_against_the_best_baseline(experiment, monkeypatch, gain, answer):
    run_file = experiment.folder / "study.yaml"
    run_file.write_text(yaml.safe_dump(STUDY))
    monkeypatch.chdir(experiment.folder)
    study = read(run_file)
    noise = np.array([-0.01, 0.0, 0.01])
    scores = {"plain": 0.30 + noise, "fresh": 0.32 + noise, "intra": 0.32 + gain + noise}
    gate, primary = verdict(study, 0.40, scores)
    assert "10.0 seed standard deviations" in gate and gate.endswith(": passed.")
    assert verdict(study, 0.0, {**scores, "plain": [0.0, 0.0]})[0].endswith(": NOT passed.")  # all equally bad
    assert "`fresh`, the best baseline" in primary and primary.endswith(answer + ".")
    stored = {"plain": 0, "fresh": 0, "intra": 328}
    lines = table(study, 0.40, {**scores, "fresh": []}, {arm: [1.0] for arm in STUDY["arms"]}, stored)
    assert "| fresh | 0 |" in "\n".join(lines)  # an empty cell keeps its line
    closed = [line for line in table(study, 0.40, scores, {arm: [1.0] for arm in scores}, stored) if line.startswith("| intra")]
    assert f"{gain / 0.08:.0%}" in closed[0] and closed[0].endswith("| 1 | 328 |")
    times = {"plain": [4.0, 4.0], "fresh": [9.0], "intra": [5.0, 5.0, 8.0]}
    _, time, with_pass = remarks(study, 0.40, times, 15.0)
    assert "`intra` takes 5 s a run; of these `plain` 0.80, `fresh` 1.80" in time
    assert "15 s once" in with_pass and "`intra` takes 20 s a run; of these `plain` 0.20, `fresh` 0.45" in with_pass
    for lines_ in (lines, table(study, None, {}, {}, stored)):
        assert len({line.count("|") for line in lines_}) == 1


def small(arms, **keys):
    """One seed, four steps a cell."""
    return {
        **STUDY,
        "splits": ["val"],
        "seeds": [0],
        "primary": None,
        "arms": {name: {**arm, "set": ["training.steps=4", *arm.get("set", [])]} for name, arm in arms.items()},
        **keys,
    }


def test_a_live_arm_learns_what_the_arm_with_a_cache_learns(experiment, monkeypatch):
    study = small(
        {
            "cached": {"method": "intra"},
            "online": {"method": "intra", "live": True},
            "plain": {"method": "plain"},
            "online_fresh": {"method": "intra", "live": True, "set": ["training.fresh_views=true"]},
        }
    )
    result = run(experiment.folder, monkeypatch, study)
    assert result.exit_code == 0, result.output
    first = {arm: json.loads(Path(f"runs/study/{arm}-0/curves.json").read_text())[0] for arm in study["arms"]}
    assert first["online"] == pytest.approx(first["cached"], rel=1e-3) and first["online"] != first["cached"]  # float16 rows
    assert first["online"]["ce"] == first["plain"]["ce"]  # the same images and views
    assert first["online_fresh"]["ce"] != first["plain"]["ce"]
    lines = {line.split("|")[1].strip(): line for line in result.stdout.splitlines() if line.startswith("| ")}
    assert int(lines["cached"].split("|")[-2]) > 0 and lines["online"].endswith("|  |")  # of an image's rows in the cache


def test_a_live_teacher_answers_in_its_own_precision_or_not_at_all(cached_experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(cached_experiment.folder)
    file = tmp_path / "study.yaml"
    for told, refused in (["training.precision=tf32"], True), (["training.precision=tf32", "teacher.precision=tf32"], False):
        arm = {"method": "intra", "live": True, "set": told}
        file.write_text(yaml.safe_dump({**STUDY, "primary": None, "arms": {"online": arm}}))
        if refused:
            with pytest.raises(ConfigError, match="tf32 for both or for none"):
                read(file)
        else:
            assert read(file).arms["online"].live


def test_an_arm_may_take_fewer_views_than_are_stored(experiment, monkeypatch):
    study = small({f"views{count}": {"method": "intra", "set": [f"views.count={count}"]} for count in (1, 2, 4)})
    result = run(experiment.folder, monkeypatch, study)
    assert result.exit_code == 1 and "cache-teacher" in result.output  # three are stored
    for count in (1, 2):
        assert json.loads(Path(f"reports/studies/study/views{count}-0.json").read_text())["asked"]["views"]["count"] == count


def test_an_arm_may_be_another_studys(experiment, monkeypatch):
    study = small({"plain": {"method": "plain"}})
    assert run(experiment.folder, monkeypatch, study).exit_code == 0
    trained = Path("runs/study/plain-0/weights.safetensors").stat().st_mtime_ns
    other = small({"plain": {"method": "plain", "study": "study"}, "kd": {"method": "kd"}})
    Path("other.yaml").write_text(yaml.safe_dump(other, sort_keys=False))
    result = CliRunner().invoke(main, ["study", "other.yaml", "--jobs", "1"])
    assert result.exit_code == 0, result.output
    assert "| plain | 1 |" in result.stdout and Path("runs/study/plain-0/weights.safetensors").stat().st_mtime_ns == trained
    other["arms"]["plain"]["set"] = ["training.steps=5"]
    Path("other.yaml").write_text(yaml.safe_dump(other, sort_keys=False))
    result = CliRunner().invoke(main, ["study", "other.yaml", "--jobs", "1"])
    assert result.exit_code == 1 and "was scored for something else" in result.output and "training.steps" in result.output


def test_a_study_has_one_teacher(experiment, monkeypatch):
    study = small({"plain": {"method": "plain"}, "half": {"method": "plain", "set": ["dataset.train=6"]}})
    result = run(experiment.folder, monkeypatch, study)
    assert result.exit_code == 1 and "arms.half: has another dataset than 'plain'" in result.output
    assert (
        "reads nothing of a teacher" in run(experiment.folder, monkeypatch, small({"a": {"method": "plain", "live": True}})).output
    )
    assert "arms.a: expected a method" in run(experiment.folder, monkeypatch, small({"a": {"method": "plain", "sed": []}})).output


def test_arms_may_have_fewer_labels_where_the_teacher_was_trained_elsewhere(experiment, monkeypatch):
    monkeypatch.chdir(experiment.folder)
    part = "dataset.labelled_part=0.5"
    for given, refused in (([], True), (["teacher.checkpoint=given.safetensors"], False)):
        arms = {"plain": {"method": "plain", "set": given}, "half": {"method": "plain", "set": [*given, part]}}
        Path("study.yaml").write_text(yaml.safe_dump(small(arms), sort_keys=False))
        if refused:
            with pytest.raises(ConfigError, match="arms.half: has another dataset than 'plain'"):
                read(Path("study.yaml"))
        else:
            study = read(Path("study.yaml"))
            assert asked(study, study.arms["half"], 0)["dataset"]["labelled_part"] == 0.5


def test_another_teacher_is_not_mixed_with_the_first(experiment, monkeypatch):
    study = small({"plain": {"method": "plain"}})
    assert run(experiment.folder, monkeypatch, study).exit_code == 0
    state = load_file("teachers/toy.safetensors")
    save_file({name: value + 1 for name, value in state.items()}, "teachers/toy.safetensors")
    result = run(experiment.folder, monkeypatch, study)
    assert result.exit_code == 1 and "scores a teacher other than teachers/toy.safetensors" in result.output


def test_cells_from_before_a_key_was_noted_still_answer(experiment, monkeypatch):
    """The record of a cell as it was first written; only what it says can make it run again."""
    path = experiment.folder / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    monkeypatch.chdir(experiment.folder)
    study = read(path)
    arm, raw = study.arms["intra"], yaml.safe_load(Path("toy.yaml").read_text())
    before = {
        "asked": json.loads(
            json.dumps(
                {
                    "method": raw["methods"]["intra"],
                    "training": raw["training"],
                    "seed": 0,
                    "views": raw["views"],
                    "prepare": raw["prepare"],
                    "teacher": raw["teacher"],
                    "teacher_training": raw["teacher_training"],
                    "splits": ["test", "val"],
                }
            )
        )
    }
    assert otherwise(before, asked(study, arm, 0)) == []
    assert otherwise(before, asked(study, arm, 1)) and otherwise(before, asked(study, study.arms["plain"], 0))
    assert otherwise(before, asked(study, dataclasses.replace(arm, live=True), 0)) == ["live: nothing here, True asked for"]
    now = {"asked": asked(study, arm, 0)}
    assert otherwise(now, asked(study, arm, 0)) == []
    now["asked"]["targets"]["graph_mid"] = {"type": "affinity", "layer": "mid", "reading": "literal"}
    assert otherwise(now, asked(study, arm, 0)) == ["targets.graph_mid.reading: 'literal' here, nothing asked for"]
    assert otherwise({"asked": {**asked(study, arm, 0), "live": True}}, asked(study, arm, 0))


def test_every_shipped_study_can_be_read(monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    for path in sorted(Path("configs/studies").glob("*.yaml")):
        assert path.read_text().startswith("# "), path  # its question
        assert read(path).arms
