"""A colleague's clone trains from a pulled cache, and no teacher is run; `cache list` and `gc` know who asks for what."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import Experiment
from killing import die_at, ended, forked
from test_cache_commands import content, invoke

from pipeline.store import Store
from pipeline.store.verification import verify
from pipeline.teacher import cache
from stages import cache as stage


@pytest.fixture
def clone(cached_experiment, tmp_path):
    """Another checkout with the configuration, the teacher's weights and the reports, as `dvc pull` brings them, and a copy of
    the images whose files have other times. It has no store."""
    here = Experiment(tmp_path / "clone")
    here.folder.mkdir()
    for name in ("teachers", "reports", "data"):
        shutil.copytree(cached_experiment.folder / name, here.folder / name, copy_function=shutil.copy)
    shutil.copy(cached_experiment.config, here.config)
    return here


def pull(cached_experiment, clone):
    result = invoke("cache", "pull", cached_experiment.folder / "cache", clone.folder / "cache")
    assert result.exit_code == 0, result.output


def test_a_second_clone_trains_from_a_pulled_cache_and_no_teacher_is_run(cached_experiment, clone, monkeypatch):
    clone.change(training=dict(lr=3.0e-2))
    first = clone.train()
    assert first.exit_code == 1 and "pipeline cache pull" in first.stderr and first.stderr.count("Error: ") == 1
    assert first.stderr.index("pipeline cache pull") < first.stderr.index("pipeline prepare")
    pull(cached_experiment, clone)

    def answers(*_):
        raise AssertionError("the teacher was run")

    monkeypatch.setattr(cache, "load_teacher", answers)
    monkeypatch.setattr(cache.TeacherRunner, "__init__", answers)
    second = clone.train()
    assert second.exit_code == 0, second.output
    assert "comparing the content of 13 images with the digests of this store, which was pulled" in second.stderr
    third = clone.train("kd")
    assert third.exit_code == 0 and "comparing" not in third.stderr
    for kind in ("prepared", "targets"):
        assert verify(Store.open(clone.store(kind))) == []
    assert "comparing" not in clone.run("prepare").stderr


def test_pulled_without_the_cache_the_first_message_names_pull(cached_experiment, clone):
    invoke("cache", "pull", cached_experiment.store("prepared"), clone.folder / "cache")
    result = clone.train()
    assert result.exit_code == 1 and "pipeline cache pull" in result.stderr and "pipeline cache-teacher" in result.stderr


def test_other_images_than_the_pulled_stores_are_refused_by_name(cached_experiment, clone):
    pull(cached_experiment, clone)
    listed = (clone.folder / "data/toy/list/train.txt").read_text().split()
    one, other = (clone.folder / "data/toy" / name.lstrip("/") for name in listed[:2])
    shutil.copy(other, one)
    result = clone.train()
    assert result.exit_code == 1 and "1 of 13 images have other content" in result.stderr and listed[0][1:-4] in result.stderr
    assert not (clone.folder / "runs").exists()


def test_a_pulled_store_that_cannot_be_written_serves_too(cached_experiment, clone, monkeypatch):
    pull(cached_experiment, clone)
    from pipeline.data import prepared
    from pipeline.errors import StoreError

    def refuse(*_):
        raise StoreError("read-only")

    monkeypatch.setattr(prepared, "append", refuse)
    assert all(clone.train(method).exit_code == 0 for method in ("plain", "kd"))


def test_pulling_again_keeps_what_was_compared_here(cached_experiment, clone):
    pull(cached_experiment, clone)
    assert clone.train("plain").exit_code == 0
    notes = (clone.store("prepared") / "sources.tsv").read_bytes()
    pull(cached_experiment, clone)
    assert sorted((clone.store("prepared") / "sources.tsv").read_bytes().splitlines()) == sorted(set(notes.splitlines()[-13:]))
    assert "comparing" not in clone.train("kd").stderr


# cache list and gc


@pytest.fixture
def asked(experiment):
    """The experiment with its file in configs/, and a cache beside its own that no file asks for."""
    (experiment.folder / "configs").mkdir()
    shutil.copy(experiment.config, experiment.folder / "configs/toy.yaml")
    experiment.do("cache-teacher", "--set", "views.rotate_deg=1.0", "--set", "views.count=1")
    return experiment


def names(experiment):
    return sorted(path.parent.name for path in experiment.folder.glob("cache/*/*/store.json"))


def own(experiment):
    import pipeline.config
    from pipeline.teacher.experiment import Experiment as Opened

    before = os.getcwd()
    os.chdir(experiment.folder)
    try:
        opened = Opened(pipeline.config.load(Path("toy.yaml")), Path("cache"), Path("teachers/toy.safetensors"))
        return sorted(store.folder.name for store in (opened.find_prepared(), opened.find_cache()))
    finally:
        os.chdir(before)


def test_list_names_who_asks_and_gc_removes_what_none_asks_for(asked):
    kept, here = own(asked), dict(folder=asked.folder)
    (other,) = set(names(asked)) - set(kept)
    listed = {line.split("|")[3].strip(): line for line in invoke("cache", "list", **here).stdout.splitlines() if "| roads" in line}
    assert "| none here | resnet18 " in listed[other[8:]]
    assert all("| toy |" in listed[name.rpartition("-")[2]] for name in kept)
    shown = invoke("cache", "gc", "--dry-run", **here)
    assert shown.exit_code == 0 and other[8:] in shown.stdout and not any(name[8:] in shown.stdout for name in kept)
    before = content(asked.folder / "cache")
    assert invoke("cache", "gc", input="n\n", **here).exit_code == 1
    assert names(asked) == sorted([*kept, other]) and content(asked.folder / "cache") == before
    assert invoke("cache", "gc", input="y\n", **here).exit_code == 0
    assert names(asked) == kept and all(name.split("/")[1] in kept for name in content(asked.folder / "cache"))
    assert "nothing to remove" in invoke("cache", "gc", "--yes", **here).stdout


def test_gc_keeps_what_an_unfinished_run_or_a_study_asks_for(asked, power_cut):
    with power_cut(3):
        assert asked.train("intra", "--set", "views.rotate_deg=1.0", "--set", "views.count=1").exit_code != 0
    run = asked.folder / "runs/toy/erfnet-intra-0"
    assert (run / "run.json").exists() and "nothing to remove" in invoke("cache", "gc", "--yes", folder=asked.folder).stdout
    assert "runs/toy/erfnet-intra-0" in invoke("cache", "list", folder=asked.folder).stdout
    shutil.rmtree(run)
    study = dict(
        config="configs/toy.yaml",
        student="erfnet",
        splits=["test"],
        seeds=[0],
        primary=None,
        gate=0.0,
        arms={"turned": dict(method="intra", set=["views.rotate_deg=1.0", "views.count=1"])},
    )
    (asked.folder / "configs/studies").mkdir()
    (asked.folder / "configs/studies/turns.yaml").write_text(yaml.safe_dump(study))
    assert "nothing to remove" in invoke("cache", "gc", "--yes", folder=asked.folder).stdout
    assert "studies/turns" in invoke("cache", "list", folder=asked.folder).stdout


def test_gc_keeps_what_cannot_be_told_and_says_why(asked):
    before = names(asked)
    text = (asked.folder / "configs/toy.yaml").read_text().replace("rotate_deg: ", "rotate_deg: 3")
    (asked.folder / "configs/others.yaml").write_text(text)
    weights = asked.folder / "teachers/toy.safetensors"
    weights.rename(weights.with_suffix(".away"))
    kept = invoke(
        "cache", "gc", "--yes", folder=asked.folder
    )  # of its own cache the weights are not known; the other's views differ
    assert "no teacher weights" in kept.stderr and len(left := names(asked)) == 2 and set(left) < set(before)
    assert (
        f"{left[0]} stays, perhaps asked for by toy (" in kept.stderr
        or f"{left[1]} stays, perhaps asked for by toy (" in kept.stderr
    )
    assert kept.stderr.count("no teacher weights") == 1  # of other configurations without weights nothing is said
    assert "perhaps toy" in invoke("cache", "list", folder=asked.folder).stdout
    shutil.move(asked.folder / "configs/toy.yaml", asked.folder / "configs/other.yaml")
    (asked.folder / "configs/other.yaml").write_text((asked.folder / "configs/other.yaml").read_text() + "no_such_key: 1\n")
    result = invoke("cache", "gc", "--yes", folder=asked.folder)
    assert result.exit_code == 0 and "no_such_key" in result.stderr and names(asked) == left


def test_gc_without_a_configuration_or_on_object_storage_is_refused(asked):
    shutil.rmtree(asked.folder / "configs")
    result = invoke("cache", "gc", "--yes", folder=asked.folder)
    assert result.exit_code == 1 and "no configuration" in result.stderr and len(names(asked)) == 3
    assert "no locks" in invoke("cache", "gc", "--yes", "--root", "memory://bucket", folder=asked.folder).stderr


def test_gc_and_rm_leave_a_store_that_is_being_filled(asked):
    (other,) = set(names(asked)) - set(own(asked))
    store = asked.folder / "cache/roads" / other
    holding = "import sys; from pathlib import Path; from pipeline.store.files import InUse\n"
    holding += "held = InUse(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", holding, store], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        for command in (("gc", "--yes"), ("rm", "--yes", str(store))):
            result = invoke("cache", *command, folder=asked.folder)
            assert "is being filled" in result.output + result.stderr and other in names(asked)
        process.kill()  # the hold ends with the process
    assert invoke("cache", "gc", "--yes", folder=asked.folder).exit_code == 0 and other not in names(asked)


def test_a_fill_and_a_preparation_hold_their_stores(experiment, monkeypatch):
    from pipeline.store.store import Store as Opened

    seen, write_block = [], Opened.write_block

    def watched(self, *given):
        with open(self.folder / ".in-use", "rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        seen.append(self.kind)
        return write_block(self, *given)

    monkeypatch.setattr(Opened, "write_block", watched)
    shutil.rmtree(experiment.folder / "cache")
    experiment.do("prepare")
    experiment.do("cache-teacher")
    assert set(seen) == {"prepared", "targets"}


def test_a_removal_killed_at_any_step_leaves_a_whole_store_or_none(tmp_path):
    golden = Path(__file__).parents[1] / "golden/store-v1/raw"
    (name,) = [path.name for path in (golden / "roads").glob("targets-*")]
    step = 0
    while True:
        root = shutil.copytree(golden, tmp_path / str(step))
        folder = root / "roads" / name
        before = content(folder)
        code = ended(forked(lambda: (die_at(step, "rename", "unlink", "rmdir"), stage.remove(folder=folder))))
        assert code in (0, -signal.SIGKILL)
        assert not folder.exists() or content(folder) == before
        if code == 0:
            break
        step += 9
    assert step > 20 and [*(tmp_path / f"{step - 9}/roads").iterdir()][0].name.startswith(".removed-")
