"""A run is continued only by the code, the order of images and the values that it was begun with; and nothing that is refused
moves a finished run away."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_killed import content

from pipeline import records
from pipeline.datasets.roads import Dataset as Roads
from pipeline.errors import PipelineError
from pipeline.training import run as runs
from pipeline.training.loading import ahead
from pipeline.training.step import Step
from stages import cache as commands

ROOT = Path(__file__).parents[2]
RUN = "runs/toy/erfnet-intra-0"


def begun(monkeypatch) -> list[int]:
    """Where each training that follows begins."""
    steps_begun: list[int] = []
    monkeypatch.setattr(runs, "ahead", lambda loader, steps: (steps_begun.append(steps.start), ahead(loader, steps))[1])
    return steps_begun


def edited(monkeypatch, module, change):
    whole = records.source
    assert change(whole(module)) != whole(module)
    monkeypatch.setattr(records, "source", lambda name: change(whole(name)) if name == module else whole(name))


@pytest.fixture(scope="module")
def trained(cached_experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "experiment"
    shutil.copytree(cached_experiment.folder, folder)
    experiment = type(cached_experiment)(folder)
    assert experiment.train().exit_code == 0
    return experiment


@pytest.fixture
def finished(trained, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "experiment")
    return type(trained)(tmp_path / "experiment")


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("held_out", "100", "100 of 13 images leave none to train on"),
        ("accumulate", "3", "write a divisor of"),
        ("class_weights", "[1.0, 2.0]", "2 weights for 5 classes"),
        ("head_lr", "10.0", "has no backbone apart from its head"),
    ],
)
def test_a_refused_value_leaves_a_finished_run_where_it_is(finished, monkeypatch, key, value, words):
    before = content(finished.folder / RUN)
    extra = ["--set", "training.background_weight=1.0"] if key == "class_weights" else []
    result = finished.train("intra", "--set", f"training.{key}={value}", *extra)
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 1 and words in line
    assert content(finished.folder / RUN) == before and not list(finished.folder.glob("runs/toy/*.before-*"))
    steps_begun = begun(monkeypatch)
    assert finished.train().exit_code == 0 and steps_begun == [12]


@pytest.mark.parametrize("failure", [PipelineError("no"), MemoryError()])
def test_a_first_step_that_fails_leaves_a_finished_run_where_it_is(finished, monkeypatch, failure):
    before = content(finished.folder / RUN)

    def broken(self, batch):
        raise failure

    monkeypatch.setattr(Step, "__call__", broken)
    try:
        result = finished.train("intra", "--set", "training.lr=0.02")
        assert result.exit_code == 1
    except MemoryError:
        pass
    assert content(finished.folder / RUN) == before and not list(finished.folder.glob("runs/toy/*.before-*"))


def test_another_order_of_the_images_is_another_run(finished, monkeypatch):
    ids = Roads.ids
    monkeypatch.setattr(Roads, "ids", lambda self, split: ids(self, split)[::-1])
    steps_begun = begun(monkeypatch)
    result = finished.train()
    assert result.exit_code == 0 and "prepared.order" in result.stderr and steps_begun == [0]


@pytest.mark.parametrize(
    "module, old, new",
    [
        ("pipeline.training.step", "if step < term.start:", "if step < term.start + 5:"),
        ("pipeline.seeds", "blake2b", "blake2s"),
        ("pipeline.training.distributed", "flat / count", "flat"),
        ("pipeline.losses.base", "count * size, size", "count * size, 1"),
        ("stages.train_student", "reseed(seed, 0)", "reseed(seed, 1)"),
    ],
)
def test_a_run_made_by_other_code_is_set_aside(finished, monkeypatch, module, old, new):
    edited(monkeypatch, module, lambda text: text.replace(old, new))
    steps_begun = begun(monkeypatch)
    result = finished.train()
    assert result.exit_code == 0 and "was made from something else (code: " in result.stderr and steps_begun == [0]


@pytest.mark.parametrize(
    "stage, arguments", [("train-student", ["--student", "erfnet", "--method", "intra", "--seed", "0"]), ("train-teacher", [])]
)
def test_a_comment_trains_nothing_again_and_another_schedule_does(finished, tmp_path, stage, arguments):
    """In a copy of the package, edited as people do."""
    for name in ("pipeline", "stages", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    where, *schedule = {
        "train-student": ("step.py", "if step < term.start:", "if step < term.start + 5:"),
        "train-teacher": ("optimisers.py", "(1 - part) ** training.power", "(1 - part) ** (training.power + 1)"),
    }[stage]
    file = tmp_path / "pipeline/training" / where
    text = file.read_text()

    def run():
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", stage, "toy.yaml", *arguments],
            cwd=finished.folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    file.write_text(text.replace('"""', '"""Said otherwise. ', 1) + "\n# a remark\n")
    assert "set aside" not in run()
    assert schedule[0] in text
    file.write_text(text.replace(*schedule))
    assert "was made from something else (code: " in run()


def test_an_empty_record_and_a_checkpoint_without_one_are_not_taken_for_this_run(finished, monkeypatch):
    record = finished.folder / RUN / "run.json"
    record.write_text("")
    result = finished.train()
    assert result.exit_code == 1 and f"{RUN}/run.json: cannot be read" in result.stderr and len(result.stderr.splitlines()) == 1
    assert "run.json: cannot be read" in finished.run("evaluate", "--student", "erfnet", "--method", "intra", "--seed", "0").stderr
    record.unlink()
    steps_begun = begun(monkeypatch)
    result = finished.train()
    assert result.exit_code == 0 and "run.json: nothing here" in result.stderr and steps_begun == [0]


# The code that stored a target


def change_affinity(monkeypatch, new="2 * "):
    edited(monkeypatch, "pipeline.targets.affinity", lambda text: text.replace("return ", f"return {new}"))


def test_a_targets_code_edited_without_a_new_version_is_refused(experiment, monkeypatch):
    assert (experiment.store("targets") / "code.json").exists()
    change_affinity(monkeypatch)
    for result in (experiment.train(), experiment.run("verify"), experiment.run("cache-teacher")):
        (line,) = result.stderr.splitlines()
        assert result.exit_code == 1
        assert (
            "the code of the target affinity has changed since affinity-" in line
            and "raise `version` in pipeline/targets/affinity.py" in line
        )
    assert experiment.train("kd").exit_code == 0  # which reads none of it
    assert not (experiment.folder / RUN).exists()


def test_rows_that_agree_make_the_new_code_theirs(experiment, monkeypatch):
    change_affinity(monkeypatch, "1 * ")
    out = experiment.do("verify", "--recompute", "4")
    assert "has changed since, and 4 rows agree: taken as theirs" in out
    assert "whole and undamaged" in experiment.do("verify") and experiment.train().exit_code == 0


def test_rows_that_differ_do_not(experiment, monkeypatch):
    from pipeline.targets import affinity

    before = (experiment.store("targets") / "code.json").read_bytes()
    compute = affinity.Target.compute
    monkeypatch.setattr(
        affinity.Target,
        "compute",
        lambda *given: {name: 2 * value if value.is_floating_point() else value for name, value in compute(*given).items()},
    )
    change_affinity(monkeypatch)
    result = experiment.run("verify", "--recompute", "4")
    assert result.exit_code == 1 and "are not this teacher's" in result.stderr
    assert (experiment.store("targets") / "code.json").read_bytes() == before


def test_a_comment_in_a_target_and_a_store_that_knows_no_code_stay_valid(experiment, monkeypatch):
    edited(monkeypatch, "pipeline.targets.affinity", lambda text: text + "\n# a remark\n")
    assert experiment.run("verify").exit_code == 0
    monkeypatch.undo()
    (experiment.store("targets") / "code.json").unlink()
    change_affinity(monkeypatch)
    assert experiment.run("verify").exit_code == 0 and experiment.train().exit_code == 0


def test_a_pulled_copy_knows_the_code_and_what_was_found_here_stays(experiment, monkeypatch, tmp_path):
    theirs, root = experiment.store("targets"), tmp_path / "copy"
    commands.pull(source=experiment.folder / "cache", root=root, num_views=None)
    ours = root / "roads" / theirs.name / "code.json"
    assert ours.read_bytes() == (theirs / "code.json").read_bytes()
    change_affinity(monkeypatch, "1 * ")
    experiment.do("verify", "--root", str(root), "--recompute", "2")
    found = ours.read_bytes()
    commands.pull(source=experiment.folder / "cache", root=root, num_views=None)
    assert ours.read_bytes() == found != (theirs / "code.json").read_bytes()


def test_a_damaged_note_of_the_code_is_found_and_can_be_dropped(experiment):
    note = experiment.store("targets") / "code.json"
    note.write_bytes(note.read_bytes().replace(b"affinity", b"affinitz", 1))
    result = experiment.run("verify")
    assert result.exit_code == 1 and "code.json: damaged" in result.stderr
    assert "code.json: removed" in experiment.run("verify", "--repair").output
    assert not note.exists() and experiment.run("verify").exit_code == 0
