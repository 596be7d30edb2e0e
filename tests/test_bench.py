"""Benchmarks say what they lack in one line."""

import ast
import tomllib
from pathlib import Path

import pytest

from bench import metrics, mutation, needs, reading

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


def test_a_mutant_changes_one_place_and_leaves_annotations_and_messages_alone():
    source = "def f(a: int = 1) -> bool:\n    if a < 2:\n        raise ValueError('a' + f'{a + 1}')\n    return not a"
    found = mutation.mutants(source)
    assert sorted((one.line, one.words) for one in found) == [
        (1, "number + 1"),
        (2, "comparison"),
        (2, "condition turned round"),
        (2, "number + 1"),
        (3, "statement left out"),
        (4, "not left out"),
        (4, "returns None"),
    ]
    changed = [ast.unparse(mutation.mutant(source, number)) for number in range(len(found))]
    assert len({source, *changed}) == 1 + len(found)
    assert changed[[one.words for one in found].index("comparison")].splitlines()[1] == "    if a <= 2:"


def test_a_change_in_one_function_replaces_its_code_and_any_other_imports_anew():
    source = "class A:\n    x = 1\n    def f(self, a=2):\n        return (lambda: a + 1)()\n"
    here = compile(source, "a.py", "exec")

    def changed(old, new):
        return mutation.changed_function(here, compile(source.replace(old, new), "a.py", "exec"))

    assert [code.co_qualname for code in changed("a + 1", "a + 2")] == ["A.f", "A.f"]
    assert changed("x = 1", "x = 2") is None and changed("a=2", "a=3") is None


def test_every_equivalent_mutant_that_is_listed_exists():
    every = {name: mutation.mutants((ROOT / f"pipeline/{name}.py").read_text()) for name in mutation.TESTS}
    known = {(name, one.words, one.text) for name, found in every.items() for one in found}
    assert not mutation.equivalent().keys() - known
