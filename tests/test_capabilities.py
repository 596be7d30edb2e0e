"""The page of capabilities names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_test_that_the_page_names_is_there():
    named = re.findall(r"`(tests/[\w/.]+)::(\w+)`", (ROOT / "docs/capabilities.md").read_text())
    assert len(named) >= 17
    missing = [f"{path}::{name}" for path, name in named if f"\ndef {name}(" not in (ROOT / path).read_text()]
    assert missing == []


def test_every_capability_is_shown_by_a_test():
    rows = [line for line in (ROOT / "docs/capabilities.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 17 and [row for row in rows if "tests/" not in row and "python -m bench." not in row] == []
