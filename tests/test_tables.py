"""The tables in the pages are those that the commands wrote: page and JSON agree."""

import json
from pathlib import Path

import pytest

from bench import choosing, demo, tables, teacher

ROOT = Path(__file__).parents[1]
REAL = ("idd-lite", "apolloscape-100", "culane-120")
WRITTEN = [
    ("README.md", "demo-table", "demo.json", tables.text),
    ("docs/tutorial.md", "demo-table", "demo.json", tables.text),
    *(("docs/real-roads.md", f"{name}-table", f"{name}.json", tables.text) for name in REAL),
    ("docs/demo.md", "demo-arithmetic", "demo-arithmetic.json", demo.table),
    ("docs/methods.md", "choosing", "choosing.json", choosing.table),
    ("docs/roads-teacher.md", "teacher", "teacher.json", teacher.table),
]


@pytest.mark.parametrize("page, name, result, table", WRITTEN, ids=lambda value: value if isinstance(value, str) else "")
def test_a_page_shows_what_the_json_says(page, name, result, table):
    found = json.loads((ROOT / "docs/results" / result).read_text())
    shown = (ROOT / page).read_text().partition(f"<!-- begin: {name} -->\n")[2].partition("\n<!-- end -->")[0]
    assert shown == table(found)
