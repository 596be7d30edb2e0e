"""Faults that the tests would not see: small changes of the code, each of which some test should fail for.

    $ python -m bench.mutation losses/kd identity                     # every mutant of these modules
    $ python -m bench.mutation --sample 100 --page CONTRIBUTING.md    # at most 100 of each module; the table goes into the page

A mutant is a module with one change in its syntax tree: another comparison, operator, boolean or number, a condition turned
round, a statement or a result left out. It is killed if one of the module's tests fails, or takes ten times as long as it does
without the change; otherwise it survived, and its line is printed. Annotations, decorators, texts and the messages of errors are
left alone. A sample is drawn by a seed, evenly over the module's lines.

Tests are collected once for each module, and run once without a change, to see which lines each of them runs. Each mutant is a
process forked from there (Linux), in which the changed function has another code object. Only tests that run the changed statement
are tried: those that killed many mutants first, then the fast ones. A change outside functions imports the package anew and tries
all tests. No file of the package is written. Subprocesses of a test run the code on disk, so tests that train networks by commands
are left out, and so are those that take longer than `LONGEST`: what they alone would see counts as survived.

What was found is kept in `--results`: another call tries only what was not tried yet or has survived, so a call that was stopped
goes on, and new tests are tried on the survivors. A line that has changed since is new. Survivors that no test can see are in
`bench/equivalent.tsv` with the reason.
"""

import argparse
import ast
import contextlib
import copy
import functools
import gc
import importlib.abc
import importlib.util
import inspect
import itertools
import json
import mmap
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from bench.machine import described, measured_on
from bench.page import insert
from pipeline.progress import table_lines

ROOT = Path(__file__).parents[1]
LOSSES = {  # the paper's and KD
    f"losses/{name}": (f"losses/test_{name}_loss.py", "losses/test_loss_contract.py")
    for name in ("affinity", "attention", "kd", "skd_pairwise")
}
TESTS = {  # module below pipeline/ -> its tests below tests/pipeline/
    "identity": ("test_store.py", "test_cache_identity.py"),
    "store/store": ("test_store.py", "test_store_images.py", "test_store_golden.py", "test_store_robustness.py"),
    "store/files": ("test_store.py", "test_store_golden.py", "test_store_robustness.py", "test_files.py"),
    "store/reader": ("test_reader.py", "test_windowed.py"),
    "store/verification": ("test_verification.py", "test_store.py", "test_reader.py"),
    "data/views": ("test_views.py", "test_crops.py", "test_geometry.py"),
    **LOSSES,
}
LIBRARIES = (  # without zarr, which pytest loads as a plugin and warns of if it is there already
    "torch",
    "numpy",
    "numcodecs",
    "cv2",
    "scipy.stats",
    "pydantic",
    "yaml",
    "pytest",
    "click",
    "dask",
)
COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
}
OPERATED: dict[type[ast.operator], type[ast.operator]] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult},
    **{ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Pow: ast.Mult},
}
SLACK = 10  # times the CPU seconds that a test takes without a change
LONGEST = 4.0  # CPU seconds of a test that is tried
PATIENCE = 300.0  # seconds without any work


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What else could stand in the place of a node, in words and as a tree."""

    def with_(**fields) -> ast.AST:
        other = copy.copy(node)
        for name, value in fields.items():
            setattr(other, name, value)
        return other

    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
        yield "comparison", with_(ops=[COMPARED[type(node.ops[0])](), *node.ops[1:]])
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATED and not is_text(node.left) and not is_text(node.right):
        yield "operator", with_(op=OPERATED[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield "and/or", with_(op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not left out", node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "boolean", with_(value=not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield "number + 1", with_(value=node.value + 1)
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield "condition turned round", with_(test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.Raise) or isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "statement left out", ast.copy_location(ast.Pass(), node)
    elif isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield "returns None", with_(value=ast.Constant(None))
    elif isinstance(node, ast.Continue | ast.Break):
        yield "break/continue", ast.copy_location(ast.Break() if isinstance(node, ast.Continue) else ast.Continue(), node)


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or isinstance(node, ast.Constant) and isinstance(node.value, str)


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, Any]]:
    """Each node with where it hangs (parent, field, index), without annotations, decorators and texts."""
    for name, value in ast.iter_fields(tree):
        if (
            name in ("annotation", "returns", "decorator_list", "type_params")
            or isinstance(tree, ast.AnnAssign)
            and name == "target"
        ):
            continue
        if isinstance(tree, ast.Raise) and name in ("exc", "cause"):  # the message
            continue
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(node, ast.AST) and not is_text(node) and not is_guard(node):
                yield tree, name, index, node
                yield from places(node)


def is_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@dataclass(frozen=True)
class Mutant:
    line: int
    column: int
    words: str
    text: str  # the line without the change

    def __str__(self) -> str:
        return f"{self.line}:{self.column}: {self.words}: {self.text}"


def mutants(source: str) -> list[Mutant]:
    """Every mutant, in the order of the tree."""
    lines = source.splitlines()
    return [
        Mutant(node.lineno, node.col_offset + 1, words, lines[node.lineno - 1].strip())
        for *_, node in places(ast.parse(source))
        for words, _ in changes(node)
    ]


def keys(found: Sequence[Mutant]) -> list[str]:
    """A name of each that outlasts changes of other lines."""
    seen: dict[tuple[str, str], int] = {}
    named = []
    for one in found:
        seen[one.words, one.text] = seen.get((one.words, one.text), 0) + 1
        named.append(f"{one.words} {seen[one.words, one.text]}: {one.text}")
    return named


def mutant(source: str, number: int) -> ast.Module:
    """The syntax tree of the module with this change."""
    tree = ast.parse(source)
    made = ((parent, name, index, other) for parent, name, index, node in places(tree) for _, other in changes(node))
    parent, name, index, other = next(itertools.islice(made, number, None))
    if index is None:
        setattr(parent, name, other)
    else:
        getattr(parent, name)[index] = other
    return ast.fix_missing_locations(tree)


def statement(source: str, line: int) -> range:
    """The lines of the innermost statement that this line is a part of."""
    around = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    spans = [range(node.lineno, (node.end_lineno or node.lineno) + 1) for node in around]
    return min((span for span in spans if line in span), key=len)


# The changed code in the place of the other


def inner(code: CodeType) -> list[CodeType]:
    return [const for const in code.co_consts if isinstance(const, CodeType)]


def functions(code: CodeType) -> Iterator[CodeType]:
    """Those of a module and of its classes, without those inside of other functions."""
    for part in inner(code):
        if part.co_flags & inspect.CO_OPTIMIZED:
            yield part
        else:
            yield from functions(part)


def outside(code: CodeType) -> list[CodeType]:
    """The bodies of a module and of its classes, without what is inside."""
    bare = code.replace(co_consts=tuple(const for const in code.co_consts if not isinstance(const, CodeType)))
    return [bare, *(one for part in inner(code) if not part.co_flags & inspect.CO_OPTIMIZED for one in outside(part))]


def changed_function(here: CodeType, other: CodeType) -> tuple[CodeType, CodeType] | None:
    """The one function that differs, as it is and as it would be; None if anything outside of functions does."""
    if outside(here) != outside(other):
        return None
    pairs = [(one, two) for one, two in zip(functions(here), functions(other), strict=True) if one != two]
    return pairs[0] if len(pairs) == 1 and pairs[0][0].co_freevars == pairs[0][1].co_freevars else None


def live_functions(path: Path) -> dict[tuple[str, int], list[FunctionType]]:
    """The function objects of a file, by the name and line of their code."""
    found: dict[tuple[str, int], list[FunctionType]] = {}
    for one in gc.get_objects():
        if type(one) is FunctionType and one.__code__.co_filename == str(path):
            found.setdefault((one.__code__.co_qualname, one.__code__.co_firstlineno), []).append(one)
    return found


class Instead(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from this code."""

    def __init__(self, name: str, path: Path, code: CodeType):
        self.name, self.path, self.code = name, path, code

    def find_spec(self, fullname, path=None, target=None):
        if fullname == self.name:
            return importlib.util.spec_from_file_location(fullname, self.path, loader=self)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module) -> None:
        exec(self.code, module.__dict__)


# Running the tests


def cpu_seconds() -> float:
    return sum(os.times()[:4])


@dataclass
class Outcome:
    killed: bool
    seconds: float  # of the CPU
    begun: list[tuple[str, float]]  # tests in their order, and when they began


class Tests:
    """A plugin of pytest: in the place of running the tests it calls `work` with them, or runs them itself up to the first that
    fails."""

    def __init__(self, seconds: dict[str, float], kills: dict[str, int], work: Callable[["Tests"], None] | None = None):
        self.seconds, self.kills, self.work = seconds, kills, work
        self.items: list[Any] = []
        self.lines: dict[str, set[int]] = {}  # by test, those of the module that it runs

    def pytest_runtestloop(self, session) -> bool:
        self.items = [item for item in session.items if "cached_experiment" not in item.fixturenames]
        (self.work or Tests.run)(self)
        return True

    def run(self, part: range | None = None) -> None:
        """Ends the process: 1 after the first test that fails, whose name it writes to file descriptor 3; 0 if none does. Only
        tests that run one of the lines of `part`, where it is given."""
        items = [item for item in self.items if self.seconds.get(item.nodeid, 0) <= LONGEST]
        if part is not None:
            items = [item for item in items if not self.lines[item.nodeid].isdisjoint(part)]
        items.sort(key=lambda item: (-self.kills.get(item.nodeid, 0), self.seconds.get(item.nodeid, 0)))
        for item, following in zip(items, [*items[1:], None]):
            self.run_one(item, following)
        os.write(3, f"\t{cpu_seconds()}\n".encode())
        os._exit(0)

    def run_one(self, item, following=None) -> None:
        from _pytest.runner import runtestprotocol

        signal.setitimer(signal.ITIMER_PROF, 5 + SLACK * self.seconds.get(item.nodeid, 60))  # of the CPU; then it is killed
        os.write(3, f"{item.nodeid}\t{cpu_seconds()}\n".encode())
        if any(report.failed for report in runtestprotocol(item, nextitem=following, log=False)):
            os._exit(1)

    def measure(self, path: Path) -> Outcome:
        """Runs each test by itself without a change, and notes its time and which lines of the file it runs, in its threads and
        forked processes as well."""
        width = len(path.read_text().splitlines()) + 1
        ran, name, start = mmap.mmap(-1, width * len(self.items)), str(path), 0

        def trace(frame, event, _):
            if frame.f_code.co_filename != name:
                return None
            ran[start + (frame.f_lineno or 0)] = 1
            return trace

        def run_all() -> None:
            nonlocal start
            threading.settrace(trace)
            sys.settrace(trace)
            for start, item in zip(range(0, len(ran), width), self.items):  # noqa: B007  `trace` reads it
                self.run_one(item)
            os.write(3, f"\t{cpu_seconds()}\n".encode())
            os._exit(0)

        outcome = forked(run_all)
        for (test, at), (_, then) in itertools.pairwise(outcome.begun):
            self.seconds[test] = then - at
        for number, item in enumerate(self.items):
            self.lines[item.nodeid] = {line for line in range(width) if ran[number * width + line]}
        return outcome


def forked(work: Callable[[], None]) -> Outcome:
    """Runs the tests in another process by `work`, until it ends, or has waited for something for `PATIENCE` seconds."""
    told = os.memfd_create("tests")  # a pipe would fill up
    child = os.fork()
    if child == 0:
        os.setsid()
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1), os.dup2(quiet, 2), os.dup2(told, 3)
        try:
            work()
        finally:
            os._exit(99)  # where no test was reached
    used, since = -1, time.monotonic()
    while not (ended := os.wait4(child, os.WNOHANG))[0]:
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        if (now := sum(map(int, fields[11:15]))) != used:
            used, since = now, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):  # what it left behind
        os.killpg(child, signal.SIGKILL)
    os.lseek(told, 0, os.SEEK_SET)
    with open(told, "rb") as file:
        lines = [line.split("\t") for line in file.read().decode().splitlines()]
    return Outcome(ended[1] != 0, ended[2].ru_utime + ended[2].ru_stime, [(name, float(at)) for name, at in lines])


def collected(tests: Sequence[str], plugin: Tests) -> None:
    import pytest

    with tempfile.TemporaryDirectory() as folder:
        options = ["-qq", "-s", "-p", "no:cacheprovider", "--basetemp", f"{folder}/tests"]
        pytest.main([*options, *(str(ROOT / "tests/pipeline" / test) for test in tests)], plugins=[plugin])


def try_mutants(
    name: str, source: str, numbers: Sequence[int], tests: Sequence[str], found: Callable[[int, Outcome], None]
) -> None:
    """Calls `found` for each mutant of these numbers."""
    path = ROOT / "pipeline" / f"{name}.py"

    def compiled(tree) -> CodeType:
        return compile(tree, str(path), "exec", dont_inherit=True)

    unchanged = compiled(ast.parse(source))

    def try_all(plugin: Tests) -> None:
        live = live_functions(path)
        gc.freeze()  # or each process would soon have copies of all that was imported
        whole = plugin.measure(path)
        assert not whole.killed, f"{name}: its tests fail without a change, as of {whole.begun[-1:]}"
        every = mutants(source)
        for number in numbers:
            code = compiled(mutant(source, number))
            pair = changed_function(unchanged, code)
            functions = live.get((pair[0].co_qualname, pair[0].co_firstlineno), []) if pair else []

            part = statement(source, every[number].line)

            def changed(functions=functions, pair=pair, part=part) -> None:
                for function in functions:
                    function.__code__ = pair[1]
                plugin.run(part)

            def anew(code=code) -> None:
                for module in [module for module in sys.modules if module.split(".")[0] in ("pipeline", "stages")]:
                    del sys.modules[module]
                for module in [module for module, one in sys.modules.items() if "tests" in str(getattr(one, "__file__", ""))]:
                    del sys.modules[module]
                sys.meta_path.insert(0, Instead(f"pipeline.{name.replace('/', '.')}", path, code))
                collected(tests, Tests(plugin.seconds, plugin.kills))

            outcome = forked(changed if functions else anew)
            if outcome.killed and outcome.begun:
                plugin.kills[outcome.begun[-1][0]] = plugin.kills.get(outcome.begun[-1][0], 0) + 1
            found(number, outcome)

    collected(tests, Tests({}, {}, try_all))


def drawn(count: int, sample: int, seed: int) -> list[int]:
    """Numbers below `count`, evenly spread; in an order by chance, so that a call that ends early has a sample as well."""
    sample = min(sample or count, count)
    rng, width = random.Random(seed), count / sample
    numbers = [min(count - 1, int((number + rng.random()) * width)) for number in range(sample)]
    if sample == count:
        numbers = list(range(count))
    rng.shuffle(numbers)
    return numbers


def equivalent() -> dict[tuple[str, str, str], str]:
    """(module, change, line) -> why no test can see it."""
    lines = (ROOT / "bench/equivalent.tsv").read_text().splitlines()
    return {(module, words, text): reason for module, words, text, reason in (line.split("\t") for line in lines)}


def table(found: Mapping[str, Mapping[str, bool]], every: Mapping[str, Sequence[Mutant]]) -> str:
    """By module how many were tried and killed, with a 95 % interval (Wilson) where not all were tried."""
    from scipy.stats import binomtest

    known = equivalent()

    def row(name: str, parts: Sequence[str]) -> list[object]:
        tried = {(part, n): found[part][key] for part in parts for n, key in enumerate(keys(every[part])) if key in found[part]}
        killed = sum(tried.values())
        alike = sum(not fine and (part, every[part][n].words, every[part][n].text) in known for (part, n), fine in tried.items())
        total, seen = sum(len(every[part]) for part in parts), len(tried) - alike
        share = f"{killed / seen:.1%}" if seen else "-"
        if len(tried) < total and seen:
            interval = binomtest(killed, seen).proportion_ci(method="wilson")
            share += f" ({interval.low:.0%} to {interval.high:.0%})"
        return [name, total, len(tried), killed, alike, seen - killed, share]

    names = [name for name in TESTS if found.get(name)]
    rows = [*(row(f"`{name}`", [name]) for name in names), row("all", names)]
    return "\n".join(
        table_lines(["module", "mutants", "tried", "killed", "equivalent", "survived", "killed of what can be seen"], rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(TESTS)}; all by default")
    parser.add_argument("--sample", type=int, default=0, help="mutants of each module at most; 0: every one")
    parser.add_argument("--again", action="store_true", help="only mutants that have survived before")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=ROOT / "build/mutation.json")
    parser.add_argument("--page", type=Path, help="write the table of all results into this page")
    args = parser.parse_args()
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in LIBRARIES:
        importlib.import_module(name)
    sources = {name: (ROOT / "pipeline" / f"{name}.py").read_text() for name in TESTS}
    every = {name: mutants(source) for name, source in sources.items()}
    before = json.loads(args.results.read_text()) if args.results.exists() else {}
    named = {name: keys(one) for name, one in every.items()}
    found = {name: {key: killed for key, killed in before.get(name, {}).items() if key in named[name]} for name in TESTS}
    for name in args.modules or TESTS:
        numbers = [n for n in drawn(len(every[name]), args.sample, args.seed) if not found[name].get(named[name][n], args.again)]

        def note(number: int, outcome: Outcome, name=name) -> None:
            found[name][named[name][number]] = outcome.killed
            words = "killed  " if outcome.killed else "SURVIVED"
            by = f" by {outcome.begun[-1][0].rpartition('::')[2]}" if outcome.killed and outcome.begun else ""
            print(f"{words} pipeline/{name}.py:{every[name][number]}  [{outcome.seconds:.1f} s{by}]", flush=True)
            args.results.parent.mkdir(parents=True, exist_ok=True)
            args.results.write_text(json.dumps(found, indent=1))

        if numbers:
            in_process(functools.partial(try_mutants, name, sources[name], numbers, TESTS[name], note))
            found[name] = json.loads(args.results.read_text())[name]
    text = table(found, every)
    print(text)
    if args.page:
        insert(args.page, "bench/mutation.py", f"{text}\n\n{measured_on(described('cpu'))}")


def in_process(work: Callable[[], None]) -> None:
    """What it imports stays there."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
