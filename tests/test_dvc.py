"""dvc.yaml is the table of contents: each stage's deps cover the rooms it runs, its params are what its module takes."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import config

ROOT = Path(__file__).parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
MODULES = {name: name.replace("-", "_").replace("evaluate_teacher", "evaluate") for name in STAGES}
# words, errors, records (what they leave out, what they refuse), and the reading of the YAML (its values are the params) change
# no result
ROOMS = {
    "pipeline/config",
    "pipeline/data",
    "pipeline/deployment",
    "pipeline/reporting",
    "pipeline/scoring",
    "pipeline/store",
    "pipeline/teacher",
    "pipeline/training",
}
NO_RESULT = {
    "pipeline/__init__.py",
    "pipeline/errors.py",
    "pipeline/progress.py",
    "pipeline/stopping.py",
    "pipeline/threads.py",
    "pipeline/files.py",
    "pipeline/lookup.py",
    "pipeline/later.py",
    "pipeline/paths.py",
    "pipeline/records.py",
    "stages/__init__.py",
    "pipeline/targets/__init__.py",
    "pipeline/models/__init__.py",
    "pipeline/synth/__init__.py",
    "pipeline/config",
}


def body(name):
    return STAGES[name].get("do", STAGES[name])


def paths(entries):
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def unit(file):
    """The room of a file; in a plug-in's folder the file itself, since a stage needs one plug-in of many, or only their base."""
    room = "/".join(file.split("/")[:2])
    return room if room in ROOMS else file


def loaded_files(module, plugins=()):
    """Project files that importing a stage, and finding its plug-ins, loads."""
    code = (
        f"import json, sys; import stages.{module}; from pipeline.lookup import find\n"
        f"for kind, name in {list(plugins)!r}: find(kind, name)\n"
        "print(json.dumps([m.__file__ for m in list(sys.modules.values()) if getattr(m, '__file__', None)]))"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    files = {Path(file).resolve() for file in json.loads(output)}
    return {
        str(file.relative_to(ROOT))
        for file in files
        if file.is_relative_to(ROOT / "pipeline") or file.is_relative_to(ROOT / "stages")
    }


PLUGINS = {
    "synth": [("datasets", "roads")],
    "prepare": [("datasets", "roads")],
    "train-teacher": [("models", "resnet101")],
    "evaluate-teacher": [("models", "resnet101")],
    "cache-teacher": [("models", "resnet101"), ("targets", "affinity"), ("targets", "attention"), ("targets", "logits")],
    "train-student": [("models", "erfnet"), ("losses", "affinity"), ("losses", "attention"), ("losses", "kd")],
    "evaluate": [("models", "erfnet")],
    "report": [],
}
# a dataset's reading is behind the prepared store's report, which later stages depend on; the stores' code checks itself
BEHIND_A_REPORT = {
    "train-teacher": [
        "pipeline/datasets",
        "pipeline/store",
        "pipeline/identity.py",
        "pipeline/teacher",
        "pipeline/targets/base.py",
        "pipeline/losses/base.py",
        "pipeline/targets/__init__.py",
        "pipeline/losses/__init__.py",
    ],
    "cache-teacher": ["pipeline/datasets", "pipeline/weights.py"],
    "train-student": ["pipeline/datasets", "pipeline/store", "pipeline/identity.py", "pipeline/weights.py"],
    "evaluate": ["pipeline/datasets", "pipeline/identity.py", "pipeline/seeds.py", "pipeline/weights.py"],
    "evaluate-teacher": ["pipeline/datasets", "pipeline/identity.py", "pipeline/seeds.py", "pipeline/weights.py"],
}


@pytest.mark.parametrize("stage", STAGES)
def test_deps_cover_every_room_a_stage_loads(stage):
    covered = [*paths(body(stage)["deps"]), *BEHIND_A_REPORT.get(stage, [])]
    for loaded in set(map(unit, loaded_files(MODULES[stage], PLUGINS[stage]))) - NO_RESULT:
        assert any(loaded == dep or loaded.startswith(dep + "/") for dep in covered), f"{stage} loads {loaded}, not in its deps"


@pytest.mark.parametrize("stage", STAGES)
def test_deps_that_are_code_exist(stage):
    for dep in paths(body(stage)["deps"]):
        if dep.startswith(("pipeline/", "stages/")) and "$" not in dep:
            assert (ROOT / dep).exists(), dep


@pytest.mark.parametrize("stage", STAGES)
def test_deps_name_rooms_and_not_their_files(stage):
    for dep in [*paths(body(stage)["deps"]), *BEHIND_A_REPORT.get(stage, [])]:
        assert dep == unit(dep), f"{stage}: {dep} is a file of a room"


def test_stage_one_loads_no_loss_and_no_training():
    files = loaded_files("cache_teacher", PLUGINS["cache-teacher"])
    assert not [file for file in files if file.startswith(("pipeline/losses", "pipeline/training", "pipeline/cli"))]


def attributes_of(tree, *names):
    """What is asked of these variables, or of an attribute that is called so: `config.views` is `views` of "config"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            if (node.value.id if isinstance(node.value, ast.Name) else node.value.attr) in names:
                yield node.attr


def read_by_an_experiment():
    """The sections that each part of `Experiment` reads, by itself or through other parts."""
    tree = ast.parse((ROOT / "pipeline/teacher/experiment.py").read_text())
    (made,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    parts = {node.name: node for node in made.body if isinstance(node, ast.FunctionDef)}

    def sections(name):
        node = parts[name]
        direct = set(attributes_of(node, "config")) & set(config.SECTIONS)
        return direct.union(*(sections(part) for part in attributes_of(node, "self") if part in parts))

    return {name: sections(name) for name in parts}


def sections_of(module):
    """The sections that a stage takes: as arguments, of a configuration, or of an experiment."""
    names = {"student": "students", "method": "methods", "by_teacher": "teacher"}
    tree, parts = ast.parse((ROOT / "stages" / f"{module}.py").read_text()), read_by_an_experiment()
    (run,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run"]
    taken = {names.get(name.arg, name.arg) for name in (*run.args.args, *run.args.kwonlyargs)}
    taken |= {names.get(name, name) for name in attributes_of(tree, "config")}
    taken = taken.union(*(parts.get(name, set()) for name in attributes_of(tree, "experiment")))
    taken -= {"teachers"}  # no file of the matrix needs them, and DVC wants each key there (docs/models.md)
    return taken & set(config.SECTIONS), "model" in {name.arg for name in run.args.kwonlyargs}


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_the_sections_the_stage_takes(stage):
    taken, takes_a_model = sections_of(MODULES[stage])
    if takes_a_model:
        taken |= {"teacher" if stage == "evaluate-teacher" else "students"}
    if stage == "evaluate-teacher":
        taken -= {"training"}  # the teacher has no existence head to ask about
    if stage == "train-teacher":
        taken -= {"targets"}  # tried once on an empty image, for their errors
    if stage == "train-student":
        taken -= {"teacher"}  # behind the cache's report
    if stage == "report":
        pictures = ast.parse((ROOT / "pipeline/reporting/feature_pictures.py").read_text())
        taken |= set(attributes_of(pictures, "config")) & set(config.SECTIONS)
    listed = [name.split(".")[0] for entry in body(stage).get("params", []) for name in next(iter(entry.values()))]
    assert taken == set(listed)


def test_every_shipped_plugin_is_exercised_by_some_config():
    from pipeline import lookup

    used = {kind: set() for kind in lookup.KINDS}
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        cfg = config.load(path)
        used["datasets"].add(cfg.dataset.name)
        used["models"] |= {cfg.teacher.model.name, *(student.name for student in cfg.students.values())}
        used["targets"] |= {target.name for target in cfg.targets.values()}
        used["losses"] |= {term.loss.name for method in cfg.methods.values() for term in method}
    for kind, names in used.items():
        assert set(lookup.names(kind)) <= names, f"{kind} that no config uses: {set(lookup.names(kind)) - names}"
