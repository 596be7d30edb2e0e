"""Imports go one way: cli -> stages -> what they are built of -> plug-ins -> names and errors."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stages").glob("*.py")])


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def importers(module, files=FILES):
    return {str(path.relative_to(ROOT)) for path in files
            if any(name == module or name.startswith(module + ".") for name in imports(path))}


def test_only_the_command_line_knows_click_and_the_stages():
    assert all(path.startswith("pipeline/cli/") for path in importers("click") | importers("stages"))


def test_only_the_store_knows_zarr():
    assert importers("zarr") == {"pipeline/store/files.py"}


def test_plugins_know_no_file_of_the_machinery():
    for kind in ("models", "targets", "losses"):
        for path in (ROOT / "pipeline" / kind).glob("*.py"):
            known = {name for name in imports(path) if name.startswith("pipeline.")}
            allowed = ("pipeline.errors", "pipeline.models", "pipeline.targets", "pipeline.losses", "pipeline.later")
            assert all(name.startswith(allowed) for name in known), (path, known)


def test_targets_and_models_know_no_loss():
    assert all(not file.startswith(("pipeline/targets", "pipeline/models")) for file in importers("pipeline.losses"))


def test_help_answers_without_loading_torch():
    code = "import sys; from pipeline.cli import main\ntry: main(['--help'])\nexcept SystemExit: print(sorted({'torch', 'zarr', 'dask', 'numpy'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert output.strip().endswith("[]") and "train-student" in output
