"""Every bench runs in small, every command line of a bench parses, and benches say what they lack in one line."""

import argparse
import ast
import importlib
import itertools
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import choosing, demo, metrics, models, mutation, needs, reading, scaling, tables, teacher, verifying
from pipeline import config
from pipeline.cli import main as pipeline_command
from stages import evaluate

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


# Each bench in small, in this process, in the folder of the tiny experiment

RUNS = [  # those of a group follow one another
    ["choosing"],
    ["demo --seeds 2 --jobs 1 --page page.md"],
    ["files --blocks 1 1 --runs 1 --latency-ms 0 --page page.md"],
    [
        "step toy.yaml --steps 1 --share 0.3 --set training.norm_every=99 --set training.steps=99 --page page.md "
        "--out reports/bench/gpu-step-fp32.json",
        "fill toy.yaml --blocks 1 --rows 4 --batch 4 --runs 1 --page page.md --out reports/bench/gpu-fill-fp32.json",
        "moments --runs 1 --regions 5 --shapes 1x128x6x6 --out reports/bench/gpu-moments.json",
        "recipe --cache {cache} --out reports/bench/gpu-recipe-fill.json",
        "recipe --run runs/toy/erfnet-plain-0 --out reports/bench/gpu-recipe-bf16.json",
        "summary reports/bench",
    ],
    ["many toy.yaml --drawn 13 --set dataset.train=15"],
    ["metrics --frames 1 --workers 1"],
    ["models"],
    ["mutation identity --sample 2 --results {here}/mutation.json --page {here}/page.md"],
    ["object_storage toy.yaml --rows 8 --epochs 1 --latency-ms 1 --set training.batch=4 --page page.md"],
    ["precision toy.yaml --run erfnet-plain-0 --batches 1 --page page.md"],
    ["reading --records 128 --batches 2 --runs 1 --page page.md"],
    [
        "scaling --images 128 --classes 3 --views 1 --workers 1 --filled 9 --pictures 1 --runs 1 --set dataset.val=1 "
        "--set dataset.test=1 --set dataset.size=[74,205] --set dataset.difficulty=0 --set prepare.size=[24,108] --page page.md"
    ],
    ["studies roads-enet --answers"],
    ["tables toy"],
    ["teacher --page page.md"],
    ["texture toy.yaml --page page.md"],
    ["validation toy.yaml --steps 1 --every 10"],
    [
        "verifying --rows 130 --tiny --opened --keep store --page page.md",
        "verifying --rows 20 --runs 1 --workers 1 2 --folder .",
    ],
]
ELSEWHERE = {"methods"}  # tests/stages/test_every_loss.py
NEEDS = {"object_storage": ("moto", "s3fs", "obstore"), "reading": ("lmdb",)}
TABLES = [
    *("bench/step toy", "bench/fill toy", "bench/files.py", "bench/mutation.py", "bench/object_storage.py", "bench/precision.py"),
    *(
        "bench/reading.py",
        *(f"bench/scaling {part}" for part in scaling.PARTS),
        "bench/texture.py",
        "bench/verifying.py",
        "choosing",
        "demo-arithmetic",
        "models",
        "teacher",
        "toy-table",
    ),
]
PAGE = "".join(f"<!-- begin: {name} -->\n<!-- end -->\n" for name in TABLES)


@pytest.fixture(scope="module")
def finished(cached_experiment, tmp_path_factory):
    """The tiny experiment with one more target, a run, its scores and tables."""
    folder = tmp_path_factory.mktemp("benches") / "experiment"
    shutil.copytree(cached_experiment.folder, folder)
    experiment = type(cached_experiment)(folder)
    experiment.change(
        targets={"features_mid": dict(type="features", layer="mid")},
        methods={"features": [dict(loss="fitnet", reads=["features_mid"], weight=1.0)]},
        training={"steps": 8},
    )
    experiment.do("cache-teacher")
    which = ("--student", "erfnet", "--method", "plain", "--seed", "0")
    for command in ("train-student", "evaluate"):
        experiment.do(command, *which)
    experiment.do("report")
    (folder / "reports/scores/toy/teacher.json").write_text('{"culane_f1": 0.9}')
    for kind in ("tsv", "md"):
        (folder / "reports/studies").mkdir(exist_ok=True)
        shutil.copy(ROOT / f"docs/studies/roads-enet.{kind}", folder / "reports/studies")
    shutil.copytree(ROOT / "docs/studies", folder / "docs/studies")
    for page in ("study.md", "study-results.md"):
        shutil.copy(ROOT / "docs" / page, folder / "docs")
    with open(folder / "docs/study-results.md", "a") as file:
        file.write("<!-- begin: roads-enet-table -->\n<!-- end -->\n")
    return experiment


@pytest.fixture
def here(finished, monkeypatch):
    """That folder. What benches would do in other processes, and to other files and networks, is done in this process and there."""
    folder = finished.folder
    monkeypatch.chdir(folder)
    (folder / "page.md").write_text(PAGE)
    toy, page = folder / "toy.yaml", folder / "page.md"

    def run(command, **_):
        _, _, module, *arguments = command
        if module == "pipeline.cli":
            assert not pipeline_command.main(arguments, standalone_mode=False)
        else:
            call(module, arguments)

    def threads(workers, _, initializer=None):
        return ThreadPoolExecutor(workers, initializer=initializer)

    def killed(name, source, numbers, tests, found):
        for number in numbers:
            found(number, mutation.Outcome(True, 0.1, []))

    for module, name, value in [
        *((module, "subprocess", SimpleNamespace(run=run)) for module in (demo, teacher)),
        *((module, "ProcessPoolExecutor", threads) for module in (scaling, verifying)),
        *((module, "CONFIG", toy.relative_to(folder)) for module in (choosing, demo, teacher)),
        *((module, "PAGE", page) for module in (choosing, models)),
        (choosing, "RESULT", folder / "choosing.json"),
        (demo, "SETTINGS", {"one thread": demo.SETTINGS["one thread"]}),
        (demo, "ARMS", {arm: (arm, ["training.steps=2"]) for arm in ("plain", "intra")}),
        (models, "NETWORKS", models.NETWORKS[:1]),
        (mutation, "in_process", lambda work: work()),
        (mutation, "try_mutants", killed),
        (scaling, "CONFIG", ROOT / scaling.CONFIG),
        (scaling, "resource", SimpleNamespace(setrlimit=lambda *_: None, getrlimit=lambda _: (1, 1), RLIMIT_NOFILE=0)),
        (tables, "PAGES", {"toy": [page]}),
        (teacher, "os", SimpleNamespace(cpu_count=lambda: 1)),  # of scorers
        (evaluate.prediction, "write_sheet", lambda *_: None),
        (teacher, "DEMO", toy.relative_to(folder)),
        (teacher, "PACKED", Path("packed.safetensors")),
    ]:
        monkeypatch.setattr(module, name, value)
    yield folder
    torch.set_num_threads(1)


def call(module, arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [module, *map(str, arguments)])
        importlib.import_module(module).main()


@pytest.mark.parametrize("lines", RUNS, ids=lambda lines: lines[0].split()[0])
def test_a_bench_runs_in_small_and_writes_its_table(lines, here, finished, capsys):
    for line in lines:
        name, *arguments = line.format(here=here, cache=finished.store("targets")).split()
        for module in NEEDS.get(name, ()):
            pytest.importorskip(module)
        before = (here / "page.md").read_text()
        try:
            call(f"bench.{name}", arguments)
        except SystemExit as end:  # a verdict
            assert name == "demo" and end.code in (0, 1), end
        assert ((here / "page.md").read_text() != before) == ("--page" in line or name in ("choosing", "models", "tables"))
        said = capsys.readouterr().out
        assert said or name in ("studies", "tables")
    if name == "summary":
        assert said.count("not measured") == 5, said


def test_every_bench_is_run():
    with_main = {path.stem for path in (ROOT / "bench").glob("*.py") if "\ndef main(" in path.read_text()}
    assert with_main == {line.split()[0] for lines in RUNS for line in lines} | ELSEWHERE


# Command lines, without running them: `main` up to its parser, and what the arguments name

SHOWN = [  # pages, scripts and files whose comments show commands, and the docstrings of the benches
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile")),
    *(path for pattern in ("docs/*.md", "bench/*.yaml", "configs/**/*.yaml") for path in sorted(ROOT.glob(pattern))),
    *sorted((ROOT / "bench").glob("*.py")),
]
COMMAND = re.compile(r"python -m bench\.(\w+)((?: [^\s`#]+)*)")
FEW = {  # without a gate, the graphs of each part of the labels
    "STUDY_CONFIG": "configs/roads-few.yaml",
    "STUDY": "configs/studies/roads-few-labels.yaml",
    "STUDY_GATE": "",
    "STUDY_PARTS": "0.03 0.1 1.0",
}
SCRIPTS = [("gpu.sh", {}), ("camvid_gpu.sh", {}), ("study_gpu.sh", {}), ("study_gpu.sh", FEW)]
NOTE = '#!/bin/sh\n{ printf "%s\\t" "${0##*/}" "$@"; echo; } >> "$NOTES"\n'


class Parsed(Exception):
    pass


def parsed(module, arguments):
    """What a bench's parser makes of a command line."""
    parse = argparse.ArgumentParser.parse_args

    def stop(parser, *_):
        raise Parsed(parse(parser))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed) as found:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        call(f"bench.{module}", arguments)
    return found.value.args[0]


def check(module, arguments):
    """A command line of a bench parses, and its files, student, methods and targets exist."""
    args = parsed(module, arguments)
    named = vars(args)
    if page := named.get("page"):
        assert (ROOT / page).exists(), page
    for name in named.get("studies", ()):
        assert (ROOT / f"configs/studies/{name}.yaml").exists(), name
    path = named.get("config")
    if isinstance(path, Path) and path.suffix:
        cfg = config.load(ROOT / path, named.get("overrides", ()))
        known = {
            "student": cfg.students,
            "method": cfg.methods,
            "methods": cfg.methods,
            "only": cfg.methods,
            "targets": cfg.targets,
        }
        for key, entries in known.items():
            asked = named.get(key) or []
            assert {asked} if isinstance(asked, str) else set(asked) <= set(entries), (key, asked)


def check_pipeline(arguments):
    """A command line of `pipeline` parses, and its configuration loads."""
    command, *arguments = arguments
    pipeline_command.commands[command].make_context(command, list(arguments))
    overrides = [value for flag, value in itertools.pairwise(arguments) if flag == "--set"]
    if command != "study":
        config.load(ROOT / arguments[0], overrides)


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_a_bench_that_is_shown_parses_and_names_what_exists(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = path.read_text()
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    for module, arguments in COMMAND.findall(re.sub(r"\\\n[\s#]*", "", text)):
        assert (ROOT / f"bench/{module}.py").exists(), module
        if arguments and "..." not in arguments:
            check(module, shlex.split(arguments))


@pytest.mark.parametrize("script, settings", SCRIPTS, ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_every_command_of_a_script_parses_and_names_what_exists(script, settings, tmp_path, monkeypatch):
    """The script runs in an empty folder, with a program that notes its arguments in the place of `python` and `pipeline`."""
    for name in ("python", "pipeline"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(NOTE)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "cache/roads/targets-0").mkdir(parents=True)
    (tmp_path / "reports/studies").mkdir(parents=True)
    (tmp_path / "reports/studies/camvid-360-gate.md").write_text("Gate: passed.")
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "NOTES": f"{tmp_path}/notes"} | settings
    said = subprocess.run(
        ["bash", ROOT / "bench" / script], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert "failed" not in said and "passed over" not in said
    monkeypatch.chdir(ROOT)
    lines = [line.rstrip("\t").split("\t") for line in (tmp_path / "notes").read_text().splitlines()]
    assert lines
    for program, *arguments in lines:
        if program == "python":
            assert arguments.pop(0) == "-m"
            program = arguments.pop(0)
        if program.startswith("bench."):
            check(program.removeprefix("bench."), arguments)
        else:
            assert program in ("pipeline", "pipeline.cli")
            check_pipeline(arguments)
    parts = [line[-1] for line in lines if line[1] == "cache-teacher" and "--set" in line]
    assert parts == [f"dataset.labelled_part={part}" for part in settings.get("STUDY_PARTS", "").split()]


@pytest.mark.parametrize("module", sorted({line.split()[0] for lines in RUNS for line in lines} | ELSEWHERE))
def test_a_bench_says_how_it_is_called(module, capsys):
    with pytest.raises(SystemExit) as ended:
        call(f"bench.{module}", ["--help"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("usage: ")
