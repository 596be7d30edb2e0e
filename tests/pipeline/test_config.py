import copy
from pathlib import Path

import pytest
import yaml

from pipeline import config
from pipeline.errors import ConfigError
from pipeline.training import weight_at

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


def write(tmp_path, change=None):
    raw = yaml.safe_load(DEMO.read_text())
    if change:
        change(raw)
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def fault(tmp_path, change):
    with pytest.raises(ConfigError) as caught:
        config.load(write(tmp_path, change))
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(DEMO.parent.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_loads(path):
    loaded = config.load(path)
    assert loaded.methods["plain"] == ()


def test_values_come_out_typed(tmp_path):
    loaded = config.load(write(tmp_path, lambda raw: raw["training"].update(lr=1)))
    assert loaded.training.lr == 1.0 and isinstance(loaded.training.lr, float)
    assert loaded.views.scale == (0.9, 1.1)
    assert loaded.teacher.model.name == "erfnet" and "checkpoint" not in loaded.teacher.model.args
    assert loaded.methods["intra"][0].reads == ("graph_mid", "graph_high")


def test_a_misspelt_key_is_refused_with_a_suggestion(tmp_path):
    message = fault(tmp_path, lambda raw: raw["training"].update(stesp=raw["training"].pop("steps")))
    assert "training.stesp: no such key; did you mean 'steps'?" in message
    assert "training.steps: this key is missing (a whole number)" in message


def test_all_faults_are_reported_at_once(tmp_path):
    def change(raw):
        raw["training"]["lr"] = "1e-4"
        raw["views"]["count"] = 2.5
        raw["targets"]["graph_mid"]["type"] = "afinity"
        raw["colour"] = {}
    lines = fault(tmp_path, change).splitlines()
    assert len(lines) == 4
    assert any("training.lr" in line and "write a number with a point" in line for line in lines)
    assert any("views.count: expected a whole number, got 2.5" in line for line in lines)
    assert any("did you mean 'affinity'?" in line for line in lines)
    assert any("colour: no such section" in line for line in lines)


@pytest.mark.parametrize(("change", "words"), [
    (lambda raw: raw["methods"]["intra"][0].update(reads=["graph_middle"]), "no target 'graph_middle'; did you mean 'graph_mid'?"),
    (lambda raw: raw["methods"]["intra"][0].update(reads=["logits"]), "affinity cannot read 'logits' (type logits)"),
    (lambda raw: raw["methods"]["intra"][0].update(reads=[]), "affinity reads targets of type affinity; name some"),
    (lambda raw: raw["methods"]["kd"][0].update(temprature=2.0), "no such key; did you mean 'temperature'?"),
    (lambda raw: raw["methods"]["kd"].append(copy.deepcopy(raw["methods"]["kd"][0])), "stands there twice"),
    (lambda raw: raw["methods"].update(kd={"loss": "kd"}), "expected a list of losses"),
    (lambda raw: raw["teacher"].update(name="resnet102"), "did you mean 'resnet101'?"),
    (lambda raw: raw["teacher"].update(precision="fp61"), "expected one of fp32, tf32, bf16; got the text 'fp61'"),
    (lambda raw: raw.update(teacher_training=None), "has no checkpoint and there is no teacher_training"),
    (lambda raw: raw.pop("views"), "views: this section is missing"),
    (lambda raw: raw["views"].update(scale=[1.1, 0.9]), "expected two rising positive numbers"),
    (lambda raw: raw["views"].update(mirror="yes please"), "expected true or false"),
    (lambda raw: raw["prepare"].update(size=[96]), "expected 2 values, got 1"),
    (lambda raw: raw["dataset"].pop("name"), "dataset.name: this key is missing"),
    (lambda raw: raw["training"].update(batch=0), "must be positive"),
    (lambda raw: raw["training"].update(norm_every=0), "training.norm_every: must be positive"),
    (lambda raw: raw["students"].update({"erfnet-half": {"model": "erfnet"}}), "a name with a dash; write 'erfnet_half'"),
])
def test_each_fault_says_where_and_what(tmp_path, change, words):
    message = fault(tmp_path, change)
    assert words in message and "experiment.yaml" in message


def test_overrides_replace_values_and_are_recorded(tmp_path):
    loaded = config.load(write(tmp_path), ["training.lr=0.5", "evaluate.split=val", "students.erfnet.width=4"])
    assert loaded.training.lr == 0.5 and loaded.evaluate.split == "val" and loaded.students["erfnet"].args["width"] == 4
    assert loaded.overrides[0] == "training.lr=0.5"


@pytest.mark.parametrize("text", ["training.lr", "nowhere.lr=1", "lr=1", "training.lr=["])
def test_an_override_that_fits_nowhere_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match="--set"):
        config.load(write(tmp_path), [text])


def test_an_unknown_student_or_method_lists_those_there_are(tmp_path):
    loaded = config.load(write(tmp_path))
    with pytest.raises(ConfigError, match="only erfnet; did you mean 'erfnet'"):
        loaded.student("erfnt")
    with pytest.raises(ConfigError, match="only plain, intra, kd"):
        loaded.method("xyz")


def test_a_key_that_comes_twice_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("training: {steps: 6, batch: 4, steps: 20000}")
    with pytest.raises(ConfigError, match=r"twice\.yaml: not valid YAML: the key 'steps' comes twice .*line 1"):
        config.load(path)


def test_files_that_are_no_config_are_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\); name a YAML file"):
        config.load(tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        config.load(tmp_path / "none.yaml")
    path = tmp_path / "bad.yaml"
    path.write_text("a: [1\nb: 2")
    with pytest.raises(ConfigError, match="not valid YAML") as caught:
        config.load(path)
    assert "\n" not in str(caught.value)
    path.write_text("- 1")
    with pytest.raises(ConfigError, match="expected sections"):
        config.load(path)


def test_a_weight_starts_and_rises_as_told(tmp_path):
    loaded = config.load(write(tmp_path, lambda raw: raw["methods"]["kd"][0].update(weight=2.0, start=10, ramp=4)))
    term = loaded.methods["kd"][0]
    assert [weight_at(term, step) for step in (0, 9, 10, 11, 13, 100)] == [0, 0, 0.5, 1.0, 2.0, 2.0]


@pytest.mark.parametrize("key, value", [("training.lr", 0), ("training.lr", float("nan")), ("training.momentum", 1.0),
                                        ("teacher_training.weight_decay", -0.1)])
def test_what_an_optimiser_cannot_do_is_a_fault_of_the_file(tmp_path, key, value):
    section, name = key.split(".")
    with pytest.raises(ConfigError, match=f"{key}: (must be|expected)"):
        config.load(write(tmp_path, lambda raw: raw[section].update({name: value})))


@pytest.mark.parametrize("key, value", [("temperature", 0.0), ("weight", -1.0), ("start", -5), ("ramp", -3)])
def test_a_term_that_would_divide_by_zero_or_teach_the_contrary_is_a_fault_of_the_file(tmp_path, key, value):
    with pytest.raises(ConfigError, match=rf"methods\.kd\[0\]\.{key}: (must be|expected)"):
        config.load(write(tmp_path, lambda raw: raw["methods"]["kd"][0].update({key: value})))
