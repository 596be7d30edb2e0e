"""Benchmarks say what they lack in one line."""

import ast
import tomllib
from pathlib import Path

import pytest

from bench import metrics, needs, reading

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("module", [reading, metrics], ids=lambda module: module.__name__)
def test_a_benchmark_without_its_extra_ends_in_one_line_that_names_the_extra(module, monkeypatch):
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", [module.__name__])
    with pytest.raises(SystemExit) as refused:
        module.main()
    said = str(refused.value)
    assert said.startswith("Error: this benchmark needs ") and "pip install -e '.[bench]'" in said and "\n" not in said


def test_the_extra_holds_what_benchmarks_ask_for():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["bench"]
    asked = {
        node.args[0].value
        for path in (ROOT / "bench").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "need"
    }
    assert asked == {line.split(">")[0] for line in extra}
