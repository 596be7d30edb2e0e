"""`pipeline cache adopt`: a cache is taken over where the teacher's code changed and its answers did not, and nowhere else."""

import json
import shutil

import pytest
import yaml
from safetensors.torch import load_file, save_file
from test_cache_commands import content, invoke
from test_other_teachers import ADAPTER

from pipeline.models import resnet18
from pipeline.models.adapter import Model as Adapter
from pipeline.store import Store
from pipeline.store.verification import verify


def adopt(experiment, *arguments):
    return invoke("cache", "adopt", "toy.yaml", "--recompute", "8", *arguments, folder=experiment.folder)


def caches(experiment):
    return sorted((experiment.folder / "cache/roads").glob("targets-*"))


def data(folder):
    """The bytes of every array's files, whatever store they are in."""
    return {name: bytes_ for name, bytes_ in content(folder).items() if name.startswith("targets.zarr")}


@pytest.fixture
def other_version(monkeypatch):
    monkeypatch.setattr(resnet18.Model, "version_of", classmethod(lambda cls, args: 2))


def test_a_cache_whose_teachers_code_alone_changed_is_taken_over_and_trained_from(experiment, other_version):
    (old,) = caches(experiment)
    before = content(old)
    refused = experiment.train()
    assert refused.exit_code == 1 and "teacher.version: 1 here, 2 asked for" in refused.stderr
    assert "pipeline cache adopt toy.yaml --recompute 32" in refused.stderr and "cache-teacher" in refused.stderr
    result = adopt(experiment)
    assert result.exit_code == 0 and "30 blocks taken over" in result.stdout, result.output
    (new,) = set(caches(experiment)) - {old}
    assert content(old) == before and data(new) == data(old) and verify(Store.open(new)) == []
    assert all(path.stat().st_ino == (old / path.relative_to(new)).stat().st_ino for path in new.rglob("c.*"))
    *_, line = [json.loads(line) for line in (new / "history.jsonl").read_text().splitlines() if '"adopt"' in line]
    assert line["identity"] == Store.open(old).identity["digest"] and line["rows"] == 8 and "graph_mid" in line["errors"]
    assert experiment.train().exit_code == 0
    assert "nothing to adopt" in adopt(experiment, "--from", new).stdout
    before = content(new)
    assert "nothing to adopt" in adopt(experiment).stdout and content(new) == before  # once is enough


def test_a_cache_that_fits_is_not_said_to_be_missing(experiment):
    (own,) = caches(experiment)
    result = adopt(experiment)
    fits = f"{own.name}: has the identity that toy.yaml asks for; nothing to adopt"
    assert result.exit_code == 0 and fits in result.stdout
    experiment.do("cache-teacher", "--set", "views.rotate_deg=1.0", "--set", "views.count=1")  # another one beside it
    assert fits in adopt(experiment).stdout
    next((own / "done").rglob("*.json")).unlink()  # not whole, but no other has its rows
    result = adopt(experiment)
    assert result.exit_code == 0 and fits in result.stdout


def test_rows_that_are_others_are_refused_by_name_and_number_and_nothing_changes(experiment, other_version, monkeypatch):
    forward = resnet18.Model.forward

    def shifted(self, images_B3HW, labels_BHW=None):
        output = forward(self, images_B3HW, labels_BHW)
        return output._replace(logits=output.logits * 1.05)

    monkeypatch.setattr(resnet18.Model, "forward", shifted)
    (old,) = caches(experiment)
    before = content(experiment.folder / "cache")
    result = adopt(experiment)
    assert result.exit_code == 1 and result.stderr.count("\n") <= 2
    assert "logits: not what this teacher answers: of 8 rows of logits the largest error is" in result.stderr
    assert caches(experiment) == [old] and content(experiment.folder / "cache") == before


def test_more_than_code_is_not_adopted(experiment, other_version):
    experiment.change(views=dict(rotate_deg=1.0))
    result = adopt(experiment)
    assert result.exit_code == 1 and "views.rotate_deg" in result.stderr and "cache-teacher" in result.stderr
    assert "cache adopt" not in experiment.train().stderr
    experiment.change(views=dict(rotate_deg=3.0))
    path = experiment.folder / "teachers/toy.safetensors"
    state = load_file(path)
    state["conv1.weight"] *= 1 + 1e-7
    state["conv1.weight"][0, 0, 0, 0] += 1e-3
    save_file(state, path)
    assert "teacher.weights" in adopt(experiment).stderr and len(caches(experiment)) == 1


def test_a_comment_in_an_adapters_file_is_adopted_and_code_says_what_counts(experiment, tmp_path, monkeypatch):
    folder = tmp_path / "own"
    folder.mkdir()
    toy = __import__("toy_networks").__file__
    text = open(toy).read()
    (folder / "nets_to_adopt.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    raw = yaml.safe_load(experiment.config.read_text())
    raw["teacher"] = ADAPTER | {"factory": "nets_to_adopt:plain"}
    raw["teacher_training"] |= {"steps": 2}
    raw["targets"] = {"attention_high": raw["targets"]["attention_high"]}
    raw["methods"] = {"plain": [], "at": raw["methods"]["intra"][1:]}
    raw["views"]["count"] = 1
    experiment.config.write_text(yaml.safe_dump(raw))
    for path in caches(experiment):
        shutil.rmtree(path)
    for command in ("train-teacher", "cache-teacher"):
        experiment.do(command)
    (folder / "nets_to_adopt.py").write_text(f"# a comment\n{text}")
    refused = experiment.train("at")
    assert refused.exit_code == 1 and "teacher.packages.nets_to_adopt" in refused.stderr and "cache adopt" in refused.stderr
    said = experiment.run("plan", "--images", "4")
    assert said.exit_code == 0
    assert adopt(experiment).exit_code == 0 and experiment.train("at").exit_code == 0
    # from now on by the code alone
    raw["teacher"]["code"] = ["nets_to_adopt"]
    experiment.config.write_text(yaml.safe_dump(raw))
    assert adopt(experiment).exit_code == 0
    assert experiment.train("at").exit_code == 0
    (folder / "nets_to_adopt.py").write_text(f'"""Another docstring."""\n# another comment\n{text}')
    assert experiment.train("at").exit_code == 0
    raw["teacher"]["code"] = ["nowhere_at_all"]
    experiment.config.write_text(yaml.safe_dump(raw))
    assert "adapter: code: 'nowhere_at_all'" in experiment.train("at").stderr


def test_code_replaces_the_packages_in_identity_and_record():
    args = {"factory": "toy_networks:plain", "arguments": {}, "layers": {"mid": "early"}, "code": []}
    assert Adapter.made_from(args) == {"layers": {"mid": "early"}, "modules": {}} and Adapter.code_outside(args) == {}
    assert set(Adapter.made_from(args | {"code": ["toy_networks"]})["modules"]) == {"toy_networks"}
    assert set(Adapter.made_from(args | {"code": None})) == {"layers", "packages"}
