"""What the schema says, for people and for editors: docs/configuration.md and configs/schema.json.

    python -m pipeline.config.reference

writes both; a test fails when one of them is stale.
"""

import inspect
import json
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter

from pipeline import lookup
from pipeline.config.keys import Key, adapter, bare, keys_of, limits_of, marks_of, options_of, range_of, sentence_of, words
from pipeline.config.loading import INJECTED
from pipeline.config.schema import Evaluate, MadeFrom, Photometric, Prepare, Student, Teacher, Term, Titled, Training, Views
from pipeline.progress import table_lines

ROOT = Path(__file__).parents[2]
PAGE, SCHEMA = Path("docs/configuration.md"), Path("configs/schema.json")
NAME_KEYS = {"datasets": "name", "models": "model", "targets": "type", "losses": "loss"}

INTRODUCTION = """\
# Configuration

An experiment is one YAML file with the sections below, in any order. Each section must be there, but for `teachers`, or `teacher`
where there is `teachers`; `teacher_training` may be `null`.
A key without a default must be written. `--set section.key=value` replaces a value for one command.
All faults of a file are told at once, each with its place.

Numbers are finite. YAML reads `1e-4` as a text: write `1.0e-4`. A whole number may stand for a number.

Editors that know the YAML language server (VS Code, Neovim, ...) complete keys and mark faults in a file that begins with

```yaml
# yaml-language-server: $schema=schema.json
```

where the path leads to [configs/schema.json](../configs/schema.json); `pipeline init` copies it beside the examples.

This page and that file are made from the code: `python -m pipeline.config.reference` writes them.
"""
PLUGINS_MORE = (
    "In a file that has it, editors take unknown names for your plug-ins and do not check their keys. "
    "[Plug-ins of your own](extending.md) describes the folders."
)
PLUGINS_SAID = "A list of folders with plug-ins of your own. Paths count from where the command is run."
SECTIONS = {
    "dataset": "What is read. `name` is one of the [datasets](#datasets); its keys stand beside it and these.",
    "prepare": "How each image is made ready, once.",
    "views": "The geometric versions of each image that the teacher sees and the cache stores.",
    "teacher": "The network that is distilled. `name` is one of the [networks](#networks); its keys stand beside these.",
    "teachers": "Further teachers, or all of them: a mapping from names of your choice to entries with the keys of "
    "[teacher](#teacher). Each has a cache of its own ([several teachers](models.md#several-teachers)). Names have no dash.",
    "teacher_training": "How the teacher is trained: the keys of [training](#training). `null` where the teacher comes with weights.",  # noqa: E501
    "targets": "What stage one stores: a mapping from names of your choice to entries. `type` of an entry is one of the "
    "[targets](#targets-by-type); its keys stand beside these.",
    "students": "The networks that are trained: a mapping from names of your choice to entries. `model` of an entry is one of the "
    "[networks](#networks), by default the one of the entry's name; its keys stand beside these. Names have no dash.",
    "methods": "What students are trained with: a mapping from names of your choice to lists of losses; an empty list is training on "  # noqa: E501
    "labels alone. `loss` of an item is one of the [losses](#losses); its keys stand beside these. Names have no dash.",
    "training": "How students are trained. The learning rate falls as lr * (1 - step / steps) ** power, step by step.",
    "evaluate": "What is scored.",
}
OWN_KEYS: dict[str, tuple[type, frozenset[str]]] = {
    "dataset": (Titled, frozenset()),
    "prepare": (Prepare, frozenset()),
    "views": (Views, frozenset()),
    "teacher": (Teacher, frozenset({"model"})),
    "targets": (MadeFrom, frozenset()),
    "students": (Student, frozenset()),
    "methods": (Term, frozenset({"loss"})),
    "training": (Training, frozenset()),
    "evaluate": (Evaluate, frozenset()),
}
PLUGINS = {"datasets": "Datasets", "models": "Networks", "targets": "Targets by type", "losses": "Losses"}


def plugin_keys(kind: str, name: str) -> Mapping[str, Key]:
    return keys_of(lookup.find_class(kind, name), INJECTED[kind])


# --- the page -----------------------------------------------------------------------------------------------------------


def page() -> str:
    parts = [INTRODUCTION, f"## plugins\n\n{PLUGINS_SAID} The key may be left out. {PLUGINS_MORE}\n"]
    for section, sentence in SECTIONS.items():
        parts.append(f"## {section}\n\n{sentence}\n")
        if section in OWN_KEYS:
            parts.append(table(keys_of(*OWN_KEYS[section]).values()))
        if section == "training":
            parts.append(f"`photometric`: {inspect.getdoc(Photometric)}\n\n{table(keys_of(Photometric).values())}")
    for kind, title in PLUGINS.items():
        parts.append(f"## {title}\n")
        for name in lookup.names(kind):
            parts.append(f"### {name}\n\n{about(kind, name)}\n")
            if keys := plugin_keys(kind, name):
                parts.append(table(keys.values()))
    return "\n".join(parts)


def about(kind: str, name: str) -> str:
    """The first sentence of a plug-in's file; of a loss also what it reads."""
    text = " ".join((inspect.getdoc(lookup.find(kind, name)) or "").partition("\n\n")[0].split())
    first = re.split(r"[.:] (?=[A-Z])", text)[0].rstrip(".:") + "."
    if kind != "losses":
        return first
    reads = lookup.find_class(kind, name).reads_types
    return f"{first} Reads {' or '.join(f'`{target}`' for target in reads)}." if reads else f"{first} Reads no target."


def table(keys: Iterable[Key]) -> str:
    rows = [
        (f"`{key.name}`", typed(key.kind), "" if key.required else f"`{written(key.default)}`", sentence_of(key.kind))
        for key in keys
    ]
    return "\n".join([*table_lines(["key", "value", "default", "meaning"], rows), ""])


def typed(kind: Any) -> str:
    """Type and range in words."""
    options = options_of(kind)
    if len(options) > 1:
        parts = [typed(option) for option in options]
        return (", or " if any("," in part for part in parts) else " or ").join(parts)
    choices = next(
        (mark.json_schema_extra["enum"] for mark in marks_of(kind) if "enum" in (getattr(mark, "json_schema_extra", None) or {})),
        None,
    )
    if typing.get_origin(bare(kind)) is Literal or choices:
        return ", ".join(f"`{written(choice)}`" for choice in choices or typing.get_args(bare(kind)))
    inner = [part for part in typing.get_args(bare(kind)) if part is not Ellipsis]
    if typing.get_origin(bare(kind)) in (tuple, list):
        return ", ".join(filter(None, [items(kind, inner), *least(kind)]))
    return ", ".join(
        filter(None, [{"null": "`null`", "true or false": "`true`, `false`"}.get(words(kind), words(kind)), range_of(kind)])
    )


def items(kind: Any, inner: list[Any]) -> str:
    choices = typing.get_args(bare(inner[0])) if typing.get_origin(bare(inner[0])) is Literal else ()
    if choices:
        return f"a list of {', '.join(f'`{choice}`' for choice in choices)}"
    ranges = list(dict.fromkeys(map(range_of, inner)))
    ranged = f"each {ranges[0]}" if len(ranges) == 1 else " and ".join(ranges)
    return f"{words(kind)}, {ranged}" if any(ranges) else words(kind)


def least(kind: Any) -> Iterator[str]:
    if length := limits_of(kind).get("min_length"):
        yield f"{length} or more of them" if length > 1 else "not empty"


def written(value: Any) -> str:
    """As a YAML file has it."""
    return yaml.safe_dump(json.loads(json.dumps(value)), default_flow_style=True, width=1000).removesuffix("...\n").strip()


# --- the JSON Schema (draft 7, which editors know best) -------------------------------------------------------------------


def schema() -> dict[str, Any]:
    shared: dict[str, Any] = {}
    students = entries("models", shared, Student)
    sections: dict[str, Any] = {
        "dataset": {"anyOf": entries("datasets", shared, Titled, name_key="name")},
        "prepare": closed(Prepare, shared),
        "views": closed(Views, shared),
        "teacher": {"anyOf": entries("models", shared, Teacher, frozenset({"model"}), name_key="name")},
        "teachers": {"type": "object", "propertyNames": {"pattern": "^[^-]*$"}},
        "teacher_training": {"anyOf": [{"$ref": "#/definitions/Training"}, {"type": "null"}]},
        "targets": {"type": "object", "additionalProperties": {"anyOf": entries("targets", shared, MadeFrom)}},
        "students": {
            "type": "object",
            "propertyNames": {"pattern": "^[^-]*$"},
            "additionalProperties": {"anyOf": students},
            "properties": {
                name: {
                    "anyOf": [
                        default_model(shared[f"models:{name}"]),
                        *(other for other in students if other["$ref"] != f"#/definitions/models:{name}"),
                    ]
                }
                for name in lookup.names("models")
            },
        },
        "methods": {
            "type": "object",
            "propertyNames": {"pattern": "^[^-]*$"},
            "additionalProperties": {"type": "array", "items": {"anyOf": entries("losses", shared, Term, frozenset({"loss"}))}},
        },
        "training": {"$ref": "#/definitions/Training"},
        "evaluate": closed(Evaluate, shared),
    }
    shared["Training"] = closed(Training, shared)
    without_plugins = only_named(sections)
    sections["dataset"]["anyOf"].append(own_entry("datasets", "name"))
    sections["teacher"]["anyOf"].append(own_entry("models", "name"))
    sections["targets"]["additionalProperties"]["anyOf"].append(own_entry("targets", "type"))
    sections["students"]["additionalProperties"] = {"anyOf": [*students, own_student()]}
    for entry in sections["students"]["properties"].values():
        entry["anyOf"].append(own_entry("models", "model"))
    sections["methods"]["additionalProperties"]["items"]["anyOf"].append(own_entry("losses", "loss"))
    sections["teachers"]["additionalProperties"] = sections["teacher"]
    without_plugins["teachers"] = {"additionalProperties": without_plugins["teacher"]}
    for name, text in SECTIONS.items():
        sections[name] = (
            {"description": text, **sections[name]}
            if "$ref" not in sections[name]
            else {"description": text, "allOf": [sections[name]]}
        )
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "An experiment of offline distillation",
        "type": "object",
        "properties": {
            **sections,
            "plugins": {"description": PLUGINS_SAID, "type": "array", "items": {"type": "string", "minLength": 1}},
        },
        "required": [name for name in sections if name not in ("teacher", "teachers")],
        "anyOf": [{"required": ["teacher"]}, {"required": ["teachers"]}],
        "if": {"required": ["plugins"]},
        "else": {"properties": without_plugins},
        "additionalProperties": False,
        "definitions": shared,
    }


def entries(
    kind: str, shared: dict[str, Any], own: type | None = None, without: frozenset[str] = frozenset(), name_key: str | None = None
) -> list[dict[str, Any]]:
    """References to one closed object for each plug-in of a kind, with the keys of the section that it stands in."""
    key, found = name_key or NAME_KEYS[kind], []
    outer = closed(own, shared, without) if own else {"properties": {}, "required": []}
    for name in lookup.names(kind):
        made: Any = lookup.find_class(kind, name)
        inner = draft7(adapter(made, INJECTED[kind]).json_schema(ref_template="#/definitions/{model}"), shared)
        properties = {
            key: {"const": name, "description": about(kind, name)},
            **outer["properties"],
            **with_defaults(inner.get("properties", {}), plugin_keys(kind, name)),
        }
        entry = f"{'teacher' if own is Teacher else kind}:{name}"
        shared[entry] = {
            "title": name,
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
            "required": [key, *outer["required"], *inner.get("required", [])],
        }
        found.append({"$ref": f"#/definitions/{entry}"})
    return found


def own_entry(kind: str, key: str) -> dict[str, Any]:
    """An entry whose name is none of this package."""
    return {
        "title": "a plug-in of your own",
        "type": "object",
        "properties": {key: {"type": "string", "not": {"enum": lookup.names(kind)}}},
        "required": [key],
    }


def own_student() -> dict[str, Any]:
    return {**own_entry("models", "model"), "type": ["object", "null"], "required": []}


def only_named(sections: Mapping[str, Any]) -> dict[str, Any]:
    """What holds in a file that names no plug-ins: the names are those of this package, so that editors mark others."""

    def named(kind: str, key: str, **more: Any) -> dict[str, Any]:
        return {"properties": {key: {"enum": lookup.names(kind)}}, **more}

    return {
        "dataset": named("datasets", "name"),
        "teacher": named("models", "name"),
        "targets": {"additionalProperties": named("targets", "type")},
        "students": {
            "properties": {name: named("models", "model") for name in sections["students"]["properties"]},
            "additionalProperties": named("models", "model", type="object", required=["model"]),
        },
        "methods": {"additionalProperties": {"items": named("losses", "loss")}},
    }


def default_model(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry whose name says its model."""
    return {**entry, "type": ["object", "null"], "required": [key for key in entry["required"] if key != "model"]}


def closed(section: type, shared: dict[str, Any], without: frozenset[str] = frozenset()) -> dict[str, Any]:
    found = draft7(TypeAdapter(section).json_schema(ref_template="#/definitions/{model}"), shared)
    keys = keys_of(section, without)
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [key.name for key in keys.values() if key.required],
        "properties": with_defaults({name: found["properties"][name] for name in keys}, keys),
    }


def with_defaults(properties: Mapping[str, Any], keys: Mapping[str, Key]) -> dict[str, Any]:
    return {
        name: value if keys[name].required else {**value, "default": json.loads(json.dumps(keys[name].default))}
        for name, value in properties.items()
    }


def draft7(found: Any, shared: dict[str, Any]) -> Any:
    """pydantic's draft 2020-12 as draft 7: lists of a fixed length, and definitions, which go to `shared`."""
    if isinstance(found, list):
        return [draft7(part, shared) for part in found]
    if not isinstance(found, dict):
        return found
    for name, definition in found.get("$defs", {}).items():
        if name not in ("Plugin", "Keys"):  # an entry's fields, which no file has in this form
            shared[name] = draft7(definition, shared)
    changed = {
        key: draft7(value, shared)
        for key, value in found.items()
        if key != "$defs" and not (key == "title" and isinstance(value, str))
    }
    if "prefixItems" in changed:
        changed["items"] = changed.pop("prefixItems")
    if "$ref" in changed and len(changed) > 1:  # draft 7 looks at nothing beside a $ref
        changed["allOf"] = [{"$ref": changed.pop("$ref")}]
    return changed


def main() -> None:
    for path, text in texts().items():
        (ROOT / path).write_text(text, encoding="utf-8")
        print(path)


def texts() -> dict[Path, str]:
    """What each file must hold."""
    return {PAGE: page(), SCHEMA: json.dumps(schema(), indent=1) + "\n"}


if __name__ == "__main__":
    main()
