import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import config
from pipeline.errors import ConfigError
from pipeline.files import plain
from pipeline.training.step import ramp_at

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
    assert loaded.teacher.model.name == "resnet101" and "checkpoint" not in loaded.teacher.model.args
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda raw: raw["methods"]["intra"][0].update(reads=["graph_middle"]),
            "no target 'graph_middle'; did you mean 'graph_mid'?",
        ),
        (lambda raw: raw["methods"]["intra"][0].update(reads=["logits"]), "affinity cannot read 'logits' (type logits)"),
        (lambda raw: raw["methods"]["intra"][0].update(reads=[]), "affinity reads targets of type affinity; name some"),
        (lambda raw: raw["methods"]["kd"][0].update(temprature=2.0), "no such key; did you mean 'temperature'?"),
        (lambda raw: raw["methods"]["kd"].append(copy.deepcopy(raw["methods"]["kd"][0])), "stands there twice"),
        (lambda raw: raw["methods"].update(kd={"loss": "kd"}), "expected a list of losses"),
        (lambda raw: raw["teacher"].update(name="resnet102"), "did you mean 'resnet101'?"),
        (lambda raw: raw["teacher"].update(precision="fp61"), "expected one of fp32, tf32, bf16; got the text 'fp61'"),
        (
            lambda raw: (raw.update(teacher_training=None), raw["teacher"].update(checkpoint=None)),
            "has no checkpoint and there is no teacher_training",
        ),
        (lambda raw: raw.pop("views"), "views: this section is missing"),
        (lambda raw: raw["views"].update(scale=[1.1, 0.9]), "expected two rising positive numbers"),
        (lambda raw: raw["views"].update(mirror="yes please"), "expected true or false"),
        (lambda raw: raw["prepare"].update(size=[96]), "expected 2 values, got 1"),
        (lambda raw: raw["dataset"].pop("name"), "dataset.name: this key is missing"),
        (lambda raw: raw["training"].update(batch=0), "must be positive"),
        (lambda raw: raw["training"].update(norm_every=0), "training.norm_every: must be positive"),
        (lambda raw: raw["students"].update({"erfnet-half": {"model": "erfnet"}}), "a name with a dash; write 'erfnet_half'"),
    ],
)
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


def test_a_weight_may_be_a_share_of_a_gradient(tmp_path):
    loaded = config.load(write(tmp_path, lambda raw: raw["methods"]["kd"][0].update(weight={"gradient": 0.3})))
    assert plain(loaded.methods["kd"][0])["weight"] == {"gradient": 0.3, "every": 20, "decay": 0.9}
    for weight, said in (
        ({"gradient": 0}, "gradient: "),
        ({"gradients": 0.3}, "did you mean 'gradient'"),
        ({}, "gradient: "),
        ("heavy", "expected a number or a mapping, got the text 'heavy'"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)) as caught:
            config.load(write(tmp_path, lambda raw, weight=weight: raw["methods"]["kd"][0].update(weight=weight)))
        assert "methods.kd[0].weight" in str(caught.value) and "\n" not in str(caught.value)


def test_a_weight_starts_and_rises_as_told(tmp_path):
    loaded = config.load(write(tmp_path, lambda raw: raw["methods"]["kd"][0].update(weight=2.0, start=10, ramp=4)))
    term = loaded.methods["kd"][0]
    assert [term.weight * ramp_at(term, step) for step in (0, 9, 10, 11, 13, 100)] == [0, 0, 0.5, 1.0, 2.0, 2.0]


@pytest.mark.parametrize(
    "key, value",
    [("training.lr", 0), ("training.lr", float("nan")), ("training.momentum", 1.0), ("teacher_training.weight_decay", -0.1)],
)
def test_what_an_optimiser_cannot_do_is_a_fault_of_the_file(tmp_path, key, value):
    section, name = key.split(".")
    with pytest.raises(ConfigError, match=f"{key}: (must be|expected)"):
        config.load(write(tmp_path, lambda raw: raw[section].update({name: value})))


@pytest.mark.parametrize("key, value", [("temperature", 0.0), ("weight", -1.0), ("start", -5), ("ramp", -3)])
def test_a_term_that_would_divide_by_zero_or_teach_the_contrary_is_a_fault_of_the_file(tmp_path, key, value):
    with pytest.raises(ConfigError, match=rf"methods\.kd\[0\]\.{key}: (must be|expected)"):
        config.load(write(tmp_path, lambda raw: raw["methods"]["kd"][0].update({key: value})))


def test_a_students_own_key_stands_beside_its_models(tmp_path):
    path = write(tmp_path, lambda raw: raw["students"]["erfnet"].pop("input_scale"))
    loaded = config.load(path)
    assert "input_scale" not in plain(loaded.students["erfnet"])["args"]
    for scale in (1, 1.0):
        assert config.load(path, [f"students.erfnet.input_scale={scale}"]).students == loaded.students
    smaller = config.load(path, ["students.erfnet.input_scale=0.5"]).students["erfnet"]
    assert plain(smaller)["args"] == {**plain(loaded.students["erfnet"])["args"], "input_scale": 0.5}
    message = fault(tmp_path, lambda raw: raw["students"]["erfnet"].update(input_scale=0.3))
    assert "students.erfnet.input_scale: expected one of 1, 0.5, 0.25; got 0.3" in message


# Values that no one can mean

NO_ONE_MEANS = [
    ("training.background_weight", -1),
    ("training.existence_weight", float("nan")),
    ("training.existence_weight", -0.1),
    ("training.power", -1),
    ("training.photometric.noise", -1),
    ("training.photometric.brightness", -3),
    ("training.photometric.contrast", float("inf")),
    ("training.weight_decay", float("inf")),
    ("training.lr", float("inf")),
    ("training.ema", 1.0),
    ("training.held_out", -1),
    ("training.head_lr", 0),
    ("training.class_weights", []),
    ("training.warmup_steps", 1001),
    ("training.accumulate", 3),
    ("training.shuffle_window", 0),
    ("training.batch", True),
    ("views.count", 0),
    ("views.shift", float("inf")),
    ("views.shift", 5),
    ("views.rotate_deg", float("nan")),
    ("views.rotate_deg", -1),
    ("views.scale", [1.0, float("inf")]),
    ("views.scale", [0.0, 1.0]),
    ("prepare.size", [0, 0]),
    ("prepare.size", [-4, 8]),
    ("prepare.size", [48, 216, 3]),
    ("evaluate.split", "tset"),
    ("teacher.name", 5),
    ("teacher.checkpoint", 5),
    ("teacher.width", 0),
    ("students.erfnet.dropout", [2.0, 0.0]),
    ("students.erfnet.width", 3),
    ("students.erfnet.width", 0),
    ("students.erfnet.dropout", [0.1, 1.0]),
    ("dataset.difficulty", 1.5),
    ("dataset.root", ""),
    ("dataset.size", [63, 656]),
    ("dataset.train", -1),
    ("targets.graph_mid.eps", float("inf")),
    ("targets.graph_mid.eps", 0),
    ("targets.graph_mid.aoi_kernel", 4),
    ("targets.logits.pool", 1000),
    ("targets.logits.pool", 0),
    ("targets.logits.dtype", "int3"),
]


@pytest.mark.parametrize("key, value", NO_ONE_MEANS, ids=[f"{key}={value}" for key, value in NO_ONE_MEANS])
def test_a_value_that_no_one_can_mean_is_refused_where_it_stands(tmp_path, key, value):
    def change(raw):
        *parents, last = key.split(".")
        for parent in parents:
            raw = raw[parent]
        raw[last] = value

    for line in fault(tmp_path, change).splitlines():
        assert line.removeprefix(f"{tmp_path / 'experiment.yaml'}: ").startswith((key, key.rpartition(".")[0] + ": "))


@pytest.mark.parametrize(
    "loss, words",
    [
        (dict(loss="kd", reads=["logits"], temperature=float("inf")), r"temperature: expected a finite number, got inf"),
        (dict(loss="affinity", reads=["graph_mid"], moments=[]), r"moments: expected 1 or more values, got 0"),
        (dict(loss="affinity", reads=["graph_mid"], moments=[4]), r"moments\[0\]: expected one of 1, 2, 3; got 4"),
        (dict(loss="affinity", reads=["graph_mid"], min_cells=[-1, 2, 8]), r"min_cells\[0\]: must be positive, got -1"),
        (dict(loss="affinity", reads=["graph_mid", "graph_mid"]), r"reads: names a target twice"),
        (dict(loss="cirkd", reads=["some", "others"]), r"cirkd: reads some, others; name one target"),
        (dict(loss="cirkd", reads=["some"], contrast_pixels=-3), r"contrast_pixels: must be positive, got -3"),
        (dict(loss="dkd", reads=["logits"], temperature=4.0, beta=-8.0), r"beta: expected 0 or more, got -8"),
        (dict(loss="skd_holistic", reads=["logits"], width=0), r"width: must be positive, got 0"),
    ],
)
def test_a_loss_that_no_one_can_mean_is_refused_before_anything_is_cached(tmp_path, loss, words):
    def change(raw):
        raw["targets"] |= {name: dict(type="anchors", layer="high", seed=seed) for name, seed in (("some", 0), ("others", 1))}
        raw["methods"]["odd"] = [dict(loss, weight=1.0)]

    (line,) = fault(tmp_path, change).splitlines()
    assert re.search(rf"experiment\.yaml: methods\.odd\[0\](\.|: ){words}", line), line


@pytest.mark.parametrize(
    "value, words",
    [
        (5, "expected a list of numbers or 'enet' or null, got 5"),
        ([1.0, -1.0], "training.class_weights[1]: expected 0 or more, got -1.0"),
        ([1.0, "2e-1"], "training.class_weights[1]: expected a number, got the text '2e-1' (YAML reads it as text"),
        ([0.0, 0.0], "training.class_weights: all weights are 0"),
    ],
)
def test_a_fault_in_a_list_names_the_item(tmp_path, value, words):
    assert words in fault(tmp_path, lambda raw: raw["training"].update(class_weights=value, background_weight=1.0))


@pytest.mark.parametrize("value", [1, "yes", None, [True]])
def test_a_union_is_told_as_a_whole(tmp_path, value):
    message = fault(tmp_path, lambda raw: raw["training"].update(compile=value))
    assert f"training.compile: expected true or false or 'graphs', got {'the text ' if value == 'yes' else ''}{value!r}" in message


@pytest.mark.parametrize(
    "name, split, near", [("camvid", "test/0016E5", "tset/0016E5"), ("llamas", "val", "vall"), ("apolloscape", "val", "va")]
)
def test_the_splits_are_those_that_the_datasets_keys_give(name, split, near):
    path = DEMO.with_name(f"{name}.yaml")
    assert config.load(path, [f"evaluate.split={split}"]).evaluate.split == split
    with pytest.raises(
        ConfigError, match=f"evaluate.split: {name} has no split '{near}'; did you mean '{split.partition('/')[0]}'"
    ):
        config.load(path, [f"evaluate.split={near}"])
    if name == "llamas":
        with pytest.raises(ConfigError, match="did you mean 'valid'"):
            config.load(path, ["dataset.protocol=official", "evaluate.split=val"])


# Files that a parser must not follow


def refused(tmp_path, text):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    (line,) = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize(
    "text, words",
    [
        ("a: " + "[" * 5000 + "]" * 5000, "nested more than 50 deep"),
        ("\n".join(" " * i + "a:" for i in range(200)), "nested more than 50 deep"),
        (
            "a0: &a0 [x, x]\n" + "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)),
            "more than 100,000 values",
        ),
        ("a0: &a0 {x: 1}\n" + "\n".join(f"a{i}: &a{i} {{b: *a{i - 1}}}" for i in range(1, 100)), "nested more than 50 deep"),
        ("a: &a [1, *a]", r"line 1: \*a stands within itself"),
        ("a: *nothing", "undefined alias"),
        (f"a: {'9' * 5000}", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: {[1]: 2}", "not valid YAML"),
    ],
)
def test_a_file_that_no_parser_should_follow_ends_in_one_line(tmp_path, text, words):
    assert re.search(words, refused(tmp_path, text))


def test_a_bomb_in_an_override_is_refused_too(tmp_path):
    with pytest.raises(ConfigError, match="--set views.count=.*is not a YAML value"):
        config.load(write(tmp_path), [f"views.count={'[' * 5000}"])


def test_an_override_changes_one_place_where_a_file_uses_an_alias(tmp_path):
    raw = yaml.safe_load(DEMO.read_text())
    raw["teacher_training"] = raw["training"]
    path = tmp_path / "aliased.yaml"
    path.write_text(yaml.dump(raw))
    assert "*id001" in path.read_text()
    loaded = config.load(path, ["training.steps=700"])
    assert (loaded.training.steps, loaded.teacher_training.steps) == (700, 600)


def test_a_date_is_a_text(tmp_path):
    path = tmp_path / "dated.yaml"
    path.write_text(DEMO.read_text().replace("root: data/demo", "root: 2024-01-01"))
    assert config.load(path).dataset.args["root"] == "2024-01-01"


def test_reading_a_configuration_needs_no_torch():
    code = "import sys; import pipeline.config; print(sorted({'torch', 'zarr', 'cv2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "[]"
