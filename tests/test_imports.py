"""Imports go one way, room by room."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stages").glob("*.py")])

# An arrow may leave out places, never turn back; rooms in one place do not know one another. What only checks types counts, too.
LINE = """bench -> cli -> stages -> reporting -> deployment -> api -> scoring -> training -> teacher -> data
-> losses, metrics, store -> targets, config, datasets -> models
-> lookup, records, stopping, weights -> files, paths -> errors, identity, later, progress, seeds, threads"""
PLACES = {room: place for place, rooms in enumerate(LINE.split("->")) for room in map(str.strip, rooms.split(","))}
PART_OF = {"synth": "datasets"}  # the drawn datasets' pictures; it writes other datasets' layouts with their tables of classes


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def importers(module, files=FILES):
    return {
        str(path.relative_to(ROOT))
        for path in files
        if any(name == module or name.startswith(module + ".") for name in imports(path))
    }


def room(name):
    """Of a file's path or an imported module, as parts. The package itself hands on the API."""
    if name[0] != "pipeline":
        return name[0]
    inside = PART_OF.get(name[1], name[1]) if len(name) > 1 else ""
    return inside if inside in PLACES else "api"


def arrows(path):
    """The rooms that a file imports from, with the imported module; imports in functions, and for types alone, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "pipeline" else [node.module]
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        else:
            continue
        yield from ((room(name.split(".")), name) for name in found if name.split(".")[0] in ("pipeline", "stages", "bench"))


def test_every_room_has_its_place_in_the_line():
    inside = {path.stem for path in (ROOT / "pipeline").iterdir() if path.suffix == ".py" or [*path.glob("*.py")]}
    assert inside - {"__init__", *PART_OF} | {"stages", "bench"} == set(PLACES)


def test_contributors_read_the_same_line():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    shown = next(block for block in page.split("\n\n") if block.startswith("    bench -> "))
    assert shown.split() == LINE.split()


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "bench").glob("*.py"))], ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    own = room(path.relative_to(ROOT).with_suffix("").parts)
    for other, name in arrows(path):
        assert other == own or PLACES[own] < PLACES[other], f"{own} imports {name}, against: {LINE}"


def test_only_the_command_line_knows_click_and_the_stages():
    assert all(path.startswith("pipeline/cli/") for path in importers("click") | importers("stages"))


def test_only_the_store_knows_zarr():
    assert importers("zarr") == {"pipeline/store/files.py"}


def test_plugins_know_no_file_of_the_machinery():
    for kind in ("models", "targets", "losses"):
        for path in (ROOT / "pipeline" / kind).glob("*.py"):
            known = {name for name in imports(path) if name.startswith("pipeline.")}
            allowed = (
                "pipeline.errors",
                "pipeline.lookup",  # of an ensemble, which is made of other networks
                "pipeline.models",
                "pipeline.targets",
                "pipeline.losses",
                "pipeline.later",
                "pipeline.records",
                "pipeline.lookup",
            )
            assert all(name.startswith(allowed) for name in known), (path, known)


def test_help_answers_without_loading_torch():
    code = "import sys; from pipeline.cli import main\ntry: main(['--help'])\nexcept SystemExit: print(sorted({'torch', 'zarr', 'dask', 'numpy'} & set(sys.modules)))"  # noqa: E501
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert output.strip().endswith("[]") and "train-student" in output


def test_bytes_are_stored_without_torch_or_dask():
    code = (
        "import sys; from pipeline.store import Reader, Store; import pipeline.store.verification, pipeline.store.plan\n"
        "print(sorted({'torch', 'dask', 'zarr'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert output.strip() == "[]"


def test_stores_are_listed_without_what_runs_networks_or_draws(tmp_path):
    """`plan` and `inspect` read a configuration, whose plug-ins are torch's modules; a list of stores needs none of them
    where no configuration could ask for one.

    `plan` takes 4 s of CPU and cannot take much less: 1.7 s is the import of torch, and more than a second the import of its
    compiler, which torch makes by itself at the first arithmetic on meta tensors.
    """
    shutil.copytree(ROOT / "tests" / "golden" / "store-v1" / "raw", tmp_path / "cache", symlinks=True)
    code = (
        "import sys; from pipeline.cli import main\n"
        "try: main(['cache', 'list', '--root', 'cache'])\n"
        "except SystemExit: print(sorted({'torch', 'dask', 'zarr', 'scipy', 'cv2', 'matplotlib', 'pydantic'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert output.strip().endswith("[]") and "| roads | targets |" in output
