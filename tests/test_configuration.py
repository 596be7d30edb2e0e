"""What is made from the schema is up to date: the page of keys, and the JSON Schema that editors complete from."""

import json
from pathlib import Path

import pytest
import yaml

from pipeline import config, lookup
from pipeline.config import keys, reference

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", [reference.PAGE, reference.SCHEMA], ids=str)
def test_the_page_and_the_schema_are_what_the_code_says(path):
    assert (ROOT / path).read_text() == reference.texts()[path], "stale: run `make reference`"


def test_every_key_has_a_sentence_of_its_own():
    classes = [(lookup.find_class(kind, name), config.INJECTED[kind]) for kind in lookup.KINDS for name in lookup.names(kind)]
    for made, without in [*classes, *reference.OWN_KEYS.values(), (config.Photometric, frozenset())]:
        for key in keys.keys_of(made, without).values():
            sentence = keys.sentence_of(key.kind)
            assert sentence.endswith(".") and sentence[0] != " ", (made, key.name)


def test_the_page_has_every_key_of_a_section_and_of_a_plug_in():
    page = (ROOT / reference.PAGE).read_text()
    for section in config.SECTIONS:
        assert f"\n## {section}\n" in page
    for kind in lookup.KINDS:
        for name in lookup.names(kind):
            part = page[page.index(f"\n### {name}\n", page.index(f"\n## {reference.PLUGINS[kind]}\n")) :]
            for key in reference.plugin_keys(kind, name).values():
                assert f"\n| `{key.name}` | " in part.split("\n##")[1], (name, key.name)
    assert "| `warmup_steps` | a whole number, 0 or more | `0` |" in page
    assert "| `width` | a whole number, 4 or more | `16` |" in page


@pytest.fixture(scope="module")
def fits():
    return pytest.importorskip("fastjsonschema", reason="pip install '.[test]'").compile(
        json.loads((ROOT / reference.SCHEMA).read_text()), use_default=False
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_editors_find_no_fault_in_a_shipped_configuration(path, fits):
    assert path.read_text().splitlines()[0] == "# yaml-language-server: $schema=schema.json"
    fits(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["training"].update(stesp=3),
        lambda raw: raw["training"].update(power=-1),
        lambda raw: raw["training"]["photometric"].update(noise="much"),
        lambda raw: raw["dataset"].pop("size"),
        lambda raw: raw["dataset"].update(name="rods"),
        lambda raw: raw["prepare"].update(size=[0, 0]),
        lambda raw: raw["targets"]["graph_mid"].update(type="afinity"),
        lambda raw: raw["targets"]["graph_mid"].update(eps=0),
        lambda raw: raw["methods"]["kd"][0].pop("temperature"),
        lambda raw: raw["methods"]["intra"][0].update(moments=[4]),
        lambda raw: raw["students"].update(mine={"width": 4}),
        lambda raw: raw["students"]["erfnet"].update(width=3),
        lambda raw: raw["students"]["erfnet"].update(input_scale=0.3),
        lambda raw: raw["teacher"].pop("checkpoint"),
        lambda raw: raw.pop("views"),
    ],
)
def test_editors_find_the_faults_of_a_configuration(change, fits):
    import fastjsonschema

    raw = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    fits(raw)
    change(raw)
    with pytest.raises(fastjsonschema.JsonSchemaException):
        fits(raw)


def test_editors_take_plug_ins_of_ones_own_in_a_file_that_names_their_folders_alone(fits):
    import fastjsonschema

    raw = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    raw["dataset"] = {"name": "dashcam", "root": "data", "anything": 3}
    raw["targets"]["edges"] = {"type": "edges"}
    raw["students"] |= {"bisenet": None, "small": {"model": "bisenet", "width": 3}}
    raw["methods"]["mine"] = [{"loss": "reverse_kl", "reads": ["edges"], "weight": 1.0}]
    raw["teacher"]["name"] = "mine"
    fits(raw | {"plugins": ["my_plugins"]})
    for wrong in (raw, raw | {"plugins": "my_plugins"}):
        with pytest.raises(fastjsonschema.JsonSchemaException):
            fits(wrong)
    raw = yaml.safe_load((ROOT / "configs/demo.yaml").read_text()) | {"plugins": ["my_plugins"]}
    raw["targets"]["graph_mid"]["eps"] = 0  # a plug-in of the package keeps its keys
    with pytest.raises(fastjsonschema.JsonSchemaException):
        fits(raw)
