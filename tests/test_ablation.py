"""configs/ablation.yaml: Fig. 10's terms as one matrix of dvc, now or in its queue, and each cell is what its name says."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import config

ROOT = Path(__file__).parents[1]
PATH = ROOT / "configs" / "ablation.yaml"
TERMS = ["plain", "moment1", "moment2", "moment3", "mid", "high", "affinity", "attention", "all"]


def commands():
    """The `dvc exp run` lines of the page, as lists of words."""
    page = (ROOT / "docs" / "methods.md").read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^dvc exp run .*ablation.*$", page, re.MULTILINE)]


def overrides(words):
    return [words[i + 1] for i, word in enumerate(words) if word == "-S"]


def test_the_files_comment_and_its_methods_name_the_same_cells():
    assert list(config.load(PATH).methods) == TERMS
    assert f"methods=[{','.join(TERMS)}]" in PATH.read_text()


def test_the_pages_queue_and_its_matrix_are_one_experiment_with_all_terms():
    from dvc.utils.hydra import get_hydra_sweeps

    found = {}
    for words in commands():
        sweeps = get_hydra_sweeps({"params.yaml": overrides(words)})
        found["--queue" in words] = [
            yaml.safe_load(next(value for value in sweep["params.yaml"] if "methods=" in value).split("=", 1)[1])
            for sweep in sweeps
        ]
    assert found == {False: [TERMS], True: [TERMS]}


def test_dvc_makes_a_stage_of_each_cell(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params |= {"datasets": ["ablation"], "roads": ["ablation"], "methods": TERMS}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    listed = subprocess.run([*dvc, "stage", "list", "--name-only"], cwd=tmp_path, check=True, capture_output=True)
    assert {f"train-student@ablation-erfnet-{term}-0" for term in TERMS} <= set(listed.stdout.decode().split())


@pytest.mark.parametrize("method", ["moment3", "all"])
def test_a_cell_trains_on_the_tiny_experiment(experiment, method):
    raw, cells = yaml.safe_load(experiment.config.read_text()), yaml.safe_load(PATH.read_text())
    known = set(raw["targets"])
    terms = [term | {"reads": [read for read in term["reads"] if read in known]} for term in cells["methods"][method]]
    experiment.change(methods={method: terms}, training={"steps": 4})
    assert experiment.train(method).exit_code == 0
    run = experiment.folder / "runs" / "toy" / f"erfnet-{method}-0"
    logged = (run / "curves.tsv").read_text().splitlines()
    assert logged[0].split("\t") == ["step", "ce", *(term["loss"] for term in terms)]
    assert logged[-1].split("\t")[0] == "4" and (run / "weights.safetensors").exists()
