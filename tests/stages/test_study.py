"""A study: cells run and scored once, its table and verdict true, its file checked."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from pipeline.errors import ConfigError
from pipeline.study import read, table, verdict

STUDY = {"config": "toy.yaml", "student": "erfnet", "splits": ["test", "val"], "seeds": [0, 1], "gate": 3,
         "primary": {"arm": "intra", "against": ["plain", "fresh"]},
         "arms": {"plain": {"method": "plain"}, "fresh": {"method": "plain", "set": ["training.fresh_views=true"]},
                  "intra": {"method": "intra"}}}


def run(folder, monkeypatch, study=STUDY):
    from pipeline.cli import main
    monkeypatch.chdir(folder)
    Path("study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return CliRunner().invoke(main, ["study", "study.yaml", "--jobs", "1"])


def test_a_study_runs_its_cells_and_goes_on_where_it_stopped(experiment, monkeypatch):
    small = {**STUDY, "seeds": [0], "arms": {name: {**arm, "set": [*arm.get("set", []), "training.steps=4"]}
                                            for name, arm in STUDY["arms"].items()}}
    first = run(experiment.folder, monkeypatch, small)
    assert first.exit_code == 0, first.output
    scores = {arm: json.loads(Path(f"reports/studies/study/{arm}-0.json").read_text()) for arm in STUDY["arms"]}
    assert all(score["cpu_seconds"] > 0 for score in scores.values())
    for arm, score in scores.items():
        for split in ("test", "val"):
            found = score["scores"][split]
            assert f"| {arm} | 1 | {100 * found[found['metric']]:.2f} |" in first.stdout
    trained = {arm: Path(f"runs/study/{arm}-0/weights.safetensors").stat().st_mtime_ns for arm in STUDY["arms"]}

    small["arms"]["intra"]["set"].append("training.lr=0.01")              # only this arm asks for something else now
    assert run(experiment.folder, monkeypatch, small).exit_code == 0
    again = {arm: Path(f"runs/study/{arm}-0/weights.safetensors").stat().st_mtime_ns for arm in STUDY["arms"]}
    assert [arm for arm in again if again[arm] != trained[arm]] == ["intra"]


def test_a_fault_of_the_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"config": "toy.yaml"}))
    with pytest.raises(ConfigError, match="expected the keys arms, config"):
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
    assert "10.0 seed standard deviations" in gate and "passed" in gate
    assert "`fresh`, the best baseline" in primary and primary.endswith(answer + ".")
    lines = table(study, 0.40, {**scores, "fresh": []}, {arm: [1.0] for arm in STUDY["arms"]})
    assert "| fresh | 0 |" in "\n".join(lines)                             # an empty cell keeps its line
    closed = [line for line in table(study, 0.40, scores, {arm: [1.0] for arm in scores}) if line.startswith("| intra")]
    assert f"{gain / 0.08:.0%}" in closed[0]
