"""docs/methods-maps.md and docs/methods-contrast.md name targets and losses that exist, and the bytes that they take."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.lookup import find_class
from pipeline.targets.base import Context

PAGES = [(Path(__file__).parents[3] / "docs" / f"methods-{name}.md").read_text() for name in ("maps", "contrast")]
ENTRIES = [yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.S)[1]) for page in PAGES]
ROWS = sum((re.findall(r"\| `(\{type.*?\})` \| (.*) \|", page) for page in PAGES), [])
TERMS = [(entries["targets"], term) for entries in ENTRIES for terms in entries["methods"].values() for term in terms]


def teacher(size, num_classes):
    grid = (size[0] // 8, size[1] // 8)
    return Context(
        num_classes=num_classes,
        regions=tuple(range(num_classes)),
        size=size,
        grids={"mid": grid, "high": grid, "logits": grid},
        channels={"mid": 512, "high": 2048, "logits": num_classes},
    )


CONTEXTS = [teacher((208, 976), 5), teacher((512, 1024), 19), teacher((360, 480), 11)]


def target_of(entry):
    keys = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items() if key != "type"}
    return find_class("targets", entry["type"])(**keys)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_pages_bytes_are_those_of_the_fields(row):
    target, found = target_of(yaml.safe_load(row[0])), []
    for context in CONTEXTS:
        fields = target.fields(context).values()
        found.append(sum(np.dtype(field.dtype).itemsize * int(np.prod(field.shape)) for field in fields))
    assert found == [int(cell.replace(",", "")) for cell in row[1].split(" | ")]


@pytest.mark.parametrize("targets, term", TERMS, ids=[term["loss"] for _, term in TERMS])
def test_the_pages_methods_can_be_built(targets, term):
    reads = {name: target_of(targets[name]) for name in term["reads"]}
    keys = {key: value for key, value in term.items() if key not in ("loss", "reads", "weight")}
    cls = find_class("losses", term["loss"])
    assert {targets[name]["type"] for name in reads} <= set(cls.reads_types)
    narrow = dataclasses.replace(CONTEXTS[2], channels={"mid": 64, "high": 128, "logits": 11})  # or some have 75 million parameters
    assert cls(reads=reads, context=narrow, student=narrow, **keys).reads == reads
