"""What a run was made from: the values of its record, and a digest of the code that decides its numbers.

Code counts by its syntax tree, without comments and docstrings: a run is not trained again because of a comment, and an edit
that forgets a version number is still noticed. The digest covers a stage, its plug-ins, and every module of this package
that they import, directly or not, apart from those in NOT_COUNTED. So a new module counts unless somebody says that it
does not.
"""

import ast
import functools
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.errors import PipelineError
from pipeline.files import plain

NOT_COUNTED = {
    # messages, files, names: none changes a number of a run that ends
    "pipeline",
    "pipeline.errors",
    "pipeline.files",
    "pipeline.lookup",
    "pipeline.progress",
    "pipeline.stopping",
    "pipeline.threads",
    "pipeline.training.loggers",
    # values, which the record holds, and records
    "pipeline.config",
    "pipeline.identity",
    "pipeline.later",
    "pipeline.paths",
    "pipeline.records",
    # rows, whose digests the record holds
    "pipeline.teacher.cache",
    "pipeline.teacher.experiment",
    "pipeline.teacher.fill",
    "pipeline.data.prepared",
    "pipeline.store",
    # weights to start from and the teacher in the loop: the stage names these modules where a run uses them
    "pipeline.teacher.online",
    "pipeline.weights",
    # scores while training: the stage names this module where they decide what a run leaves
    "pipeline.training.validation",
}
ROOMS_NOT_COUNTED = ("pipeline.config.", "pipeline.store.")  # with all of their modules
NO_MEANING = {"ctx", "kind", "type_comment"}  # of a syntax tree's fields: they repeat what stands elsewhere


def recorded(value: Any) -> Any:
    """A record, or a part of one, as run.json holds it. Every record of a run and every value compared with one goes through
    here."""
    return plain(value)


def read(path: Path) -> dict[str, Any]:
    """A run's record. Raises PipelineError if the file is empty or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PipelineError(
            f"{path}: cannot be read ({error}); bring back a copy, or delete the file: the run's folder is then "
            f"set aside and the run starts afresh"
        ) from None
    if not isinstance(found, dict):
        raise PipelineError(
            f"{path}: is no run's record; bring back a copy, or delete the file: the run's folder is then set "
            f"aside and the run starts afresh"
        )
    return found


def not_left_by_a_run(weights: Path) -> str:
    """Why this file is not what the run of its folder left; empty if it is. Runs of versions before result.json have a run.json
    alone."""
    result, record = weights.with_name("result.json"), weights.with_name("run.json")
    if result.exists():
        known = read(result).get("weights")
        if known != hashlib.sha256(weights.read_bytes()).hexdigest():
            return f"this is not the file that the run left: {result.name} has another digest"
    elif not record.exists():
        return f"no run left this file: there is neither {result.name} nor {record.name} beside it"
    return ""


# Code


def code_digest(*modules: ModuleType) -> str:
    """16 hex digits over the syntax trees of these modules and of what they import of this package. Modules named here count
    even if they are in NOT_COUNTED."""
    return _digest(modules_of(*(module.__name__ for module in modules)))


def modules_of(*names: str) -> list[str]:
    """The modules that `code_digest` covers."""
    return _reached(names, lambda name: name.startswith(("pipeline.", "stages.")) and not _left_out(name))


def _left_out(name: str) -> bool:
    return name in NOT_COUNTED or name.startswith(ROOMS_NOT_COUNTED)


def target_code(name: str) -> str:
    """The same of one target: its module and the helpers beside it. The contract in base.py computes no row."""
    return _digest(
        _reached(
            [f"pipeline.targets.{name}"], lambda name: name.startswith("pipeline.targets.") and name != "pipeline.targets.base"
        )
    )


@functools.cache
def code_among(name: str, counts: Callable[[str], bool]) -> str:
    """The same of a module and of what it imports among those that count."""
    return _digest(_reached([name], counts))


def code_outside(model: Any, args: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The part of a record about what makes a network and is no part of this package: versions, and digests of files."""
    modules = model.code_outside(args)
    return {"code_outside": {name: version or file_code(name) for name, version in modules.items()}} if modules else {}


def module_code(name: str) -> str:
    """The same of one module alone."""
    return _digest([name])


def file_code(name: str) -> str:
    """The same of a module outside this package that no package index knows: it and what it imports from its own folder."""
    folder = _file(name).parent

    def beside(other: str) -> bool:
        return _is_module(other) and _file(other).is_relative_to(folder) and "site-packages" not in _file(other).parts

    return _digest(_reached([name], beside))


def _digest(names: list[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0{canonical(source(name))}\0".encode())
    return digest.hexdigest()[:16]


def _reached(names, counts: Callable[[str], bool]) -> list[str]:
    """These modules and what they import, directly or not, sorted."""
    found, left = set(), list(names)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += [other for other in _imports(name) if counts(other) and _is_module(other)]
    return sorted(found)


def _imports(name: str) -> Iterator[str]:
    """Every module that this one's import statements may name, wherever they stand."""
    package = name if _spec(name).submodule_search_locations else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source(name))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (origin, *(f"{origin}.{alias.name}" for alias in node.names))


def _is_module(name: str) -> bool:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, AttributeError, ValueError):  # a name within a module; `__main__` has no spec
        return False
    return spec is not None and spec.origin is not None and spec.origin.endswith(".py")


def _spec(name: str) -> Any:
    """Of a module that is there, with a loader of sources."""
    return importlib.util.find_spec(name)


def _file(name: str) -> Path:
    return Path(_spec(name).origin)


def source(name: str) -> str:
    """The text of a module that can be imported."""
    text: str = _spec(name).loader.get_source(name)
    return text


@functools.lru_cache(256)
def canonical(text: str) -> str:
    """The syntax tree of Python source without comments, docstrings and positions.

    `ast.dump` gives another text in another version of Python (3.12 added `type_params`, 3.13 leaves out empty lists), and
    3.12 cuts f-strings into other pieces. Here a field that is empty or None is left out, and pieces of text that follow one
    another are joined.
    """
    return _shown(ast.parse(text))


def _shown(node: Any) -> str:
    if isinstance(node, list):
        return f"[{', '.join(_shown(part) for part in node if not _is_text(part))}]"
    if isinstance(node, ast.Constant):
        return ascii(node.value)  # what repr shows as it is depends on the version's table of characters
    if not isinstance(node, ast.AST):
        return ascii(node)
    fields = {name: value for name, value in ast.iter_fields(node) if name not in NO_MEANING and value is not None}
    if isinstance(node, ast.JoinedStr):
        fields["values"] = _joined(node.values)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Field":  # a key's sentence
        fields["keywords"] = [keyword for keyword in node.keywords if keyword.arg != "description"]
    shown = {name: _shown(value) for name, value in fields.items()}
    return f"{type(node).__name__}({', '.join(f'{name}={text}' for name, text in shown.items() if text != '[]')})"


def _is_text(node: Any) -> bool:
    """A docstring, or another text that stands there as a statement."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _joined(values: list[ast.expr]) -> list[ast.expr]:
    found: list[ast.expr] = []
    for value in values:
        if isinstance(value, ast.Constant) and found and isinstance(found[-1], ast.Constant):
            before: Any = found[-1].value
            found[-1] = ast.Constant(before + value.value)
        elif not (isinstance(value, ast.Constant) and value.value == ""):
            found.append(value)
    return found
