"""Several teachers, with a cache each: what a method reads of them, means over teachers, and refusals of one alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import pipeline
from pipeline import config, weights
from pipeline.errors import ConfigError
from pipeline.lookup import find_class
from pipeline.store import Reader, Store
from pipeline.teacher import cache
from pipeline.teacher.experiment import Experiment
from pipeline.teacher.several import SeveralTargets, mean
from pipeline.training.loading import CachedTargets, Loader
from stages import cache as commands

ERFNET = {"name": "erfnet", "width": 4, "backbone": None, "precision": "fp32"}
WEIGHTS = {"teacher": 1.0, "b": 3.0}


@pytest.fixture(scope="module")
def several(cached_experiment, tmp_path_factory):
    """The cached experiment with two more teachers, `b` with the grids of the first, `c` with others; b's and c's caches filled."""
    folder = tmp_path_factory.mktemp("several") / "experiment"
    shutil.copytree(cached_experiment.folder, folder)
    experiment = type(cached_experiment)(folder)
    torch.manual_seed(0)
    weights.save_file(folder / "c.safetensors", find_class("models", "erfnet")(5, size=(48, 128), width=4).state_dict())
    raw = yaml.safe_load(experiment.config.read_text())
    bright = find_class("models", "resnet18")(5, size=(48, 128), width=8, head="pyramid")
    trained = weights.load_file(folder / "teachers/toy.safetensors")
    weights.load_into(bright, trained, "teacher")
    torch.nn.init.normal_([*bright.parameters()][0])
    weights.save_file(folder / "b.safetensors", bright.state_dict())
    raw["teachers"] = {"b": raw["teacher"] | {"checkpoint": "b.safetensors"}, "c": ERFNET | {"checkpoint": "c.safetensors"}}
    raw["targets"] |= {
        "of_b": {"type": "attention", "layer": "high", "teacher": "b"},
        "of_c": {"type": "logits", "teacher": "c"},
        "mean_logits": {"type": "logits", "teacher": WEIGHTS},
        "mean_graph": {"type": "affinity", "layer": "high", "teacher": WEIGHTS},
    }
    raw["methods"] = {
        "plain": [],
        "kd": raw["methods"]["kd"],
        "both": [
            {"loss": "attention", "reads": ["attention_high"], "weight": 0.1},
            {"loss": "attention", "reads": ["of_b"], "weight": 0.1},
            {"loss": "kd", "reads": ["mean_logits"], "weight": 1.0, "temperature": 1.0},
            {"loss": "affinity", "reads": ["mean_graph"], "weight": 0.1},
            {"loss": "kd", "reads": ["of_c"], "weight": 0.5, "temperature": 2.0},
        ],
    }
    raw["training"] |= {"steps": 4, "batch": 4, "checkpoint_every": 2}
    experiment.config.write_text(yaml.safe_dump(raw))
    for name in "bc":
        experiment.do("train-teacher", "--teacher-name", name)
    said = experiment.do("cache-teacher")
    assert said.count("blocks filled now") == 3 and said.count(" 0 blocks filled now") == 1  # the first cache is taken as it is
    return experiment


@pytest.fixture
def copied(several, tmp_path):
    shutil.copytree(several.folder, tmp_path / "experiment")
    return type(several)(tmp_path / "experiment")


def opened(several, monkeypatch) -> Experiment:
    monkeypatch.chdir(several.folder)
    return Experiment(several.load(), several.folder / "cache", several.folder / "teachers/toy.safetensors")


def stored(one: Experiment, names) -> CachedTargets:
    targets = one.some_targets(names)
    store, passes = one.open_cache(targets)
    return CachedTargets(Reader(store, passes, one.ids, one.config.views.count), cache.MATRIX, targets)


def test_the_cache_of_the_section_teacher_keeps_its_identity(several, cached_experiment):
    before = {path.name for path in (cached_experiment.folder / "cache/roads").glob("targets-*")}
    after = {path.name for path in (several.folder / "cache/roads").glob("targets-*")}
    assert len(after) == 3 and before < after


@pytest.fixture(scope="module")
def trained(several, tmp_path_factory):
    shutil.copytree(several.folder, folder := tmp_path_factory.mktemp("trained") / "experiment")
    experiment = type(several)(folder)
    assert experiment.train("both").exit_code == 0
    return experiment


RUN = "runs/toy/erfnet-both-0"


def curves(experiment):
    head, *rows = (line.split("\t") for line in (experiment.folder / RUN / "curves.tsv").read_text().splitlines())
    return head, np.array(rows, float)


def test_a_student_learns_the_same_from_caches_as_from_the_teachers(trained, copied):
    assert copied.train("both", "--live").exit_code == 0
    head, rows = curves(trained)
    assert {"kd(mean_logits)", "kd(of_c)", "attention(of_b)"} <= set(head)
    np.testing.assert_allclose(rows[0], curves(copied)[1][0], rtol=1e-3)  # before steps of 0.05 lead apart
    record = json.loads((trained.folder / RUN / "run.json").read_text())
    assert set(record["teachers"]) == {"teacher", "b", "c"} and record["made_from"]["mean_logits"] == WEIGHTS


def test_a_mean_over_teachers_is_the_weighted_mean_of_their_rows(several, monkeypatch):
    whole = opened(several, monkeypatch)
    positions, numbers = np.array([3, 11, 7]), np.array([0, 2, 1])
    names = ["mean_logits", "mean_graph"]
    parts = {teacher: stored(one, some) for teacher, (one, some) in whole.reading(names).items()}
    read = {teacher: part.rows(positions, numbers, torch.from_numpy) for teacher, part in parts.items()}
    found = SeveralTargets(parts, {name: whole.config.targets[name].teachers for name in names})
    rows = found.rows(positions, numbers, torch.from_numpy)
    for name, field in (("mean_logits", "logits"), ("mean_graph", "graph")):
        first, second = (read[teacher][name][field] for teacher in ("teacher", "b"))
        assert (first - second).abs().max() > 0.01
        torch.testing.assert_close(rows[name][field], (first + 3 * second) / 4)
    assert torch.equal(rows["mean_graph"]["cells"], read["b"]["mean_graph"]["cells"])
    assert np.array_equal(found.matrices(positions, numbers), parts["b"].matrices(positions, numbers))
    loader = Loader.of(whole, whole.samples(), whole.config.training, seed=0, device="cpu", cached=found)
    assert set(loader.batch(0).rows) == set(names)


def test_a_mean_of_equal_values_is_the_value_to_the_bit():
    values = torch.tensor([7.0, 3.0, 1e-30])
    assert torch.equal(mean([values] * 3, [0.1, 0.7, 0.3]), values)
    assert torch.equal(mean([values, values + 1], [1.0, 1.0]), values + 0.5)


def test_one_changed_teacher_is_refused_and_the_others_cache_still_taken(copied):
    state = weights.load_file(copied.folder / "teachers/toy/b.safetensors")
    name = next(key for key, value in state.items() if value.is_floating_point())
    weights.save_file(copied.folder / "b.safetensors", state | {name: state[name] + 1})
    copied.do("train-teacher", "--teacher-name", "b")
    refused = copied.run("verify")
    assert refused.exit_code == 1 and "Error: teacher b: " in refused.stderr and "teacher.weights" in refused.stderr
    assert refused.stdout.count("whole and undamaged") == 2 and "teacher c" not in refused.stderr
    assert copied.train("both").exit_code == 1 and not (copied.folder / RUN).exists()


def test_a_stopped_run_ends_as_an_unbroken_one(trained, copied, power_cut):
    with power_cut(3):
        assert copied.train("both").exit_code == 130
    assert copied.train("both").exit_code == 0
    assert (copied.folder / RUN / "weights.safetensors").read_bytes() == (trained.folder / RUN / "weights.safetensors").read_bytes()


def test_a_broken_off_fill_of_several_caches_is_continued(copied, monkeypatch):
    stores = {path: path.with_name(path.name + "-before") for path in (copied.folder / "cache/roads").glob("targets-*")}
    for path, aside in stores.items():
        path.rename(aside)
    left, write = [40], Store.write_block

    def until(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_block", until)
        assert copied.run("cache-teacher").exit_code == 130
    copied.do("cache-teacher")
    for path, aside in stores.items():
        chunks = [file for file in aside.glob("targets.zarr/v*/**/c.*")]
        assert chunks and all((path / file.relative_to(aside)).read_bytes() == file.read_bytes() for file in chunks)


def test_plan_sums_the_caches_and_inspect_and_list_tell_each(several, monkeypatch):
    plan = several.do("plan", "--images", "1000")
    assert [line for line in plan.splitlines() if line.startswith("Teacher")] == ["Teacher teacher:", "Teacher b:", "Teacher c:"]
    sizes = [line.split()[1] for line in plan.splitlines() if line.startswith("cache: ")]
    total = next(line.split()[2] for line in plan.splitlines() if line.startswith("all caches: "))
    assert float(total) == pytest.approx(sum(map(float, sizes)), abs=0.3)
    assert "Teacher c:" in several.do("inspect") and "Teacher" not in several.do("inspect", "--teacher-name", "c")
    (several.folder / "configs").mkdir()
    shutil.copy(several.config, several.folder / "configs")
    monkeypatch.chdir(several.folder)
    listed = commands.run(root=Path("cache"), configs=Path("configs"), runs=Path("runs"))
    assert listed.count(" toy ") == 4  # the prepared images and three caches


def test_all_teachers_are_scored_and_reported(copied):
    copied.do("evaluate", "--teacher", "--batch", "3")
    assert "teacher b" in copied.do("report") and "Teacher c: <b>" in (copied.folder / "reports/toy.html").read_text()
    wrong = copied.run("evaluate", "--teacher", "--teacher-name", "d")
    assert wrong.exit_code == 1 and "teachers: has no 'd', only teacher, b, c" in wrong.stderr


@pytest.mark.parametrize(
    "change, message",
    [
        ({"targets.of_b.teacher": "d"}, "targets.of_b.teacher: no teacher 'd'; there are: teacher, b, c"),
        (
            {"targets.of_b": {"type": "pairwise", "layer": "high", "teacher": {"b": 1, "c": 1}}},
            "pairwise has no mean over teachers",
        ),
        ({"targets.mean_graph.regions": "teacher"}, "targets.mean_graph.regions: graphs of regions that each teacher predicts"),
        ({"methods.both": [{"loss": "attention", "reads": ["attention_high", "of_b"], "weight": 1}]}, "write a loss for each"),
        ({"teachers.teacher": ERFNET | {"checkpoint": "c"}}, "teachers.teacher: is the name of the section"),
        ({"teachers.d-e": ERFNET | {"checkpoint": "c"}}, "a name with a dash"),
        ({"targets.mean_logits.teacher": {"b": 0}}, "mean_logits.teacher: expected one of teacher, b, c, or several"),
    ],
)
def test_what_cannot_be_is_refused_when_the_file_is_read(several, tmp_path, change, message):
    raw = yaml.safe_load(several.config.read_text())
    for key, value in change.items():
        *parents, last = key.split(".")
        section = raw
        for parent in parents:
            section = section[parent]
        section[last] = value
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=message) as error:
        config.load(tmp_path / "toy.yaml")
    assert all(line.startswith(f"{tmp_path}/toy.yaml: ") for line in str(error.value).splitlines())


def test_maps_of_other_grids_have_no_mean(several, monkeypatch):
    whole = opened(several, monkeypatch)
    whole.config.targets["mean_logits"].teachers["c"] = 1.0
    with pytest.raises(ConfigError, match="logits of b has 6 x 16 cells and of c 48 x 128 cells"):
        whole.teachers["b"]


def test_the_python_api_opens_the_cache_of_one(several, monkeypatch):
    monkeypatch.chdir(several.folder)
    assert set(pipeline.open_cache("toy.yaml", teacher="c").targets) == {"of_c"}
    with pytest.raises(ConfigError, match="several teachers, with a cache each; name one of teacher, b, c"):
        pipeline.open_cache("toy.yaml")


def test_the_section_teacher_may_be_left_out(several, tmp_path):
    raw = yaml.safe_load(several.config.read_text())
    del raw["teacher"]
    raw["targets"] = {"of_b": raw["targets"]["of_b"], "of_c": raw["targets"]["of_c"]}
    raw["methods"] = {"plain": []}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(raw))
    found = config.load(tmp_path / "toy.yaml")
    assert list(found.by_teacher) == ["b", "c"] and list(found.of_teacher("c").targets) == ["of_c"]
    del raw["targets"]["of_c"]["teacher"]
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match="no teacher 'teacher'; there are: b, c"):
        config.load(tmp_path / "toy.yaml")
    del raw["teachers"]
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match="teacher: this section is missing"):
        config.load(tmp_path / "toy.yaml")
