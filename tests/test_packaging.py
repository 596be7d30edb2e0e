"""The wheel holds the packages, the example configurations and the mark of types; installed alone, it runs the demo's stages."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = """
import sys
from pathlib import Path
import pipeline, stages
from pipeline.cli import main
assert all(Path(module.__file__).is_relative_to(sys.prefix) for module in (pipeline, stages)), pipeline.__file__
sets = ["dataset.train=6", "dataset.val=1", "dataset.test=2", "teacher_training.steps=8", "teacher_training.warmup_steps=0",
        "training.steps=2", "training.warmup_steps=0"]
sets = [word for change in sets for word in ("--set", change)]
run = ["--student", "erfnet", "--method", "intra", "--seed", "0"]
for command in (["synth", "--workers", "1"], ["prepare", "--workers", "1"], ["train-teacher"], ["cache-teacher"],
                ["train-student", *run], ["evaluate", "--workers", "1", *run], ["report"]):
    assert not main([command[0], "configs/demo.yaml", *command[1:], *sets], standalone_mode=False), command
cache = pipeline.open_cache("configs/demo.yaml", overrides=sets[1::2])
print(len(cache), cache[cache.ids[0], 1].targets["graph_high"]["graph"].shape)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("build", reason="builds the wheel; pip install '.[test]'")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pipeline", "stages", "configs"):  # a copy: a build leaves folders behind
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copyfile(ROOT / name, source / name)
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source], source)
    (found,) = out.glob("*.whl")
    return found


def run(command, folder, **environment):
    without = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PIPELINE_CACHE_ROOT")}
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, env={**without, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_the_code_the_examples_and_the_mark_of_types_and_nothing_else(wheel):
    files = [path for name in ("pipeline", "stages") for path in (ROOT / name).rglob("*") if path.is_file()]
    files = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    examples = {f"pipeline/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.*")}
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert found == files | examples and "pipeline/py.typed" in found
        for name in files:
            assert archive.read(name) == (ROOT / name).read_bytes(), name
        (scripts,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert b"pipeline = pipeline.cli:main" in archive.read(scripts)


def test_the_wheel_alone_runs_the_demos_stages_in_an_empty_folder(wheel, tmp_path):
    environment, work = tmp_path / "environment", tmp_path / "work"
    work.mkdir()
    run([sys.executable, "-m", "venv", "--without-pip", environment], tmp_path)
    run(
        [sys.executable, "-m", "pip", "--python", environment / "bin/python", "install", "-q", "--no-deps", "--no-index", wheel],
        tmp_path,
    )
    # what it depends on is taken from here; a .pth in a folder that a .pth names is not followed, so no editable install is
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    assert "examples copied, 0 were there" in run([environment / "bin/pipeline", "init"], work)
    said = run([environment / "bin/python", "-c", STAGES], work, OMP_NUM_THREADS="1")
    assert said.splitlines()[-1] == "6 torch.Size([3, 5, 5])"
    assert (work / "reports/demo.md").exists() and (work / "runs/demo/erfnet-intra-0/weights.safetensors").exists()


def test_init_copies_every_example_and_overwrites_none(tmp_path):
    from click.testing import CliRunner

    from pipeline.cli import main

    for _ in range(2):
        result = CliRunner().invoke(main, ["init", str(tmp_path)])
        assert result.exit_code == 0
        (tmp_path / "configs/demo.yaml").write_text("mine")
    assert "0 examples copied" in result.output
    names = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.*")}
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")} == names
    assert (tmp_path / "configs/culane.yaml").read_text() == (ROOT / "configs/culane.yaml").read_text()
    assert (tmp_path / "configs/demo.yaml").read_text() == "mine"
