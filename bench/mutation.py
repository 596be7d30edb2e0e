"""Faults that the tests would not see: small changes of the code, each of which some test should fail for.

    $ python -m bench.mutation --sample 60                       # drawn from all modules
    $ python -m bench.mutation identity losses/kd --sample 0          # every mutant of these modules

A mutant is a module with one change in its syntax tree: another comparison, operator, boolean or number, a condition turned
round, a statement or a result left out. It is killed if one of the module's tests fails, or takes ten times as long as all of
them do without the change; otherwise it survived, and its line is printed. Annotations, decorators, texts and the
messages of errors are left alone. Mutants are drawn by a seed, evenly over the modules' lines.

Libraries are imported once, and each mutant runs in a process forked from there (Linux), with the changed module in the place of
the one on disk; no file is written. Run it with `nice`: it takes as long as the tests of a module, times its mutants.
"""

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.util
import itertools
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.progress import table_lines

ROOT = Path(__file__).parents[1]
LOSSES = {  # the paper's and KD
    f"losses/{name}": (f"losses/test_{name}_loss.py", "losses/test_loss_contract.py")
    for name in ("affinity", "attention", "kd", "skd_pairwise")
}
TESTS = {  # module below pipeline/ -> its tests below tests/pipeline/
    "identity": ("test_records.py", "test_store.py", "test_cache_identity.py"),
    "store/store": ("test_store.py", "test_store_golden.py", "test_store_robustness.py"),
    "store/files": ("test_store.py", "test_store_golden.py", "test_store_robustness.py", "test_files.py"),
    "store/reader": ("test_reader.py",),
    "store/verification": ("test_verification.py",),
    "data/views": ("test_views.py", "test_geometry.py"),
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
SLACK = 10


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What else could stand in the place of a node, in words and as a tree."""

    def with_(**fields) -> ast.AST:
        other = copy.deepcopy(node)
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


def mutants(source: str) -> list[tuple[int, str, str]]:
    """(line, change, the line's text) of every mutant, in the order of the tree."""
    lines = source.splitlines()
    return [
        (node.lineno, words, lines[node.lineno - 1].strip()) for *_, node in places(ast.parse(source)) for words, _ in changes(node)
    ]


def mutant(source: str, number: int) -> str:
    """The source of the module with this change."""
    tree = ast.parse(source)
    made = ((parent, name, index, other) for parent, name, index, node in places(tree) for _, other in changes(node))
    parent, name, index, other = next(itertools.islice(made, number, None))
    if index is None:
        setattr(parent, name, other)
    else:
        getattr(parent, name)[index] = other
    return ast.unparse(ast.fix_missing_locations(tree))


class Instead(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a text."""

    def __init__(self, name: str, path: Path, source: str):
        self.name, self.path, self.source = name, path, source

    def find_spec(self, fullname, path=None, target=None):
        if fullname == self.name:
            return importlib.util.spec_from_file_location(fullname, self.path, loader=self)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module) -> None:
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)


def failed(module: str, source: str, tests: tuple[str, ...], limit: float) -> tuple[bool, float]:
    """Whether a test fails with this text in the module's place, or the tests take longer than `limit`; and the CPU seconds."""
    child = os.fork()
    if child == 0:
        os.setsid()
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1), os.dup2(quiet, 2)
        for name in [name for name in sys.modules if name.split(".")[0] in ("pipeline", "stages")]:
            del sys.modules[name]
        sys.meta_path.insert(0, Instead(f"pipeline.{module.replace('/', '.')}", ROOT / "pipeline" / f"{module}.py", source))
        import pytest

        files = [str(ROOT / "tests/pipeline" / test) for test in tests]
        code = 99
        try:
            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    began = cpu = 0.0
    began = time.monotonic()
    while True:
        pid, status, used = os.wait4(child, os.WNOHANG)
        if pid:
            return status != 0, used.ru_utime + used.ru_stime
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            cpu = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        if cpu > limit or time.monotonic() - began > 60 * max(limit, 10):
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True, cpu
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(TESTS)}; all by default")
    parser.add_argument("--sample", type=int, default=60, help="mutants of all modules together; 0: every one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no mutant is begun later")
    args = parser.parse_args()
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in LIBRARIES:
        importlib.import_module(name)
    chosen = {name: TESTS[name] for name in args.modules or TESTS}
    sources = {name: (ROOT / "pipeline" / f"{name}.py").read_text() for name in chosen}
    every = {name: mutants(source) for name, source in sources.items()}
    pool = [(name, number, *one) for name, found in every.items() for number, one in enumerate(found)]
    count = min(args.sample or len(pool), len(pool))
    rng, width = random.Random(args.seed), len(pool) / count
    drawn = [pool[min(len(pool) - 1, int((number + rng.random()) * width))] for number in range(count)]
    rng.shuffle(drawn)  # so that a run that ends early is a sample, too
    began, limits = time.monotonic(), {}
    tried = dict.fromkeys(chosen, 0)
    survived: list[tuple[str, int, str, str]] = []
    for name, number, line, words, text in drawn:
        if time.monotonic() - began > args.seconds:
            break
        if name not in limits:
            unchanged, seconds = failed(name, sources[name], chosen[name], float("inf"))
            assert not unchanged, f"{name}: its tests fail without a change"
            limits[name] = SLACK * seconds
        killed, seconds = failed(name, mutant(sources[name], number), chosen[name], limits[name])
        tried[name] += 1
        print(f"{'killed  ' if killed else 'SURVIVED'} pipeline/{name}.py:{line}: {words}: {text}  [{seconds:.1f} s]", flush=True)
        if not killed:
            survived.append((name, line, words, text))
    rows = [
        [f"`{name}`", len(every[name]), tried[name], tried[name] - sum(one[0] == name for one in survived)]
        for name in chosen
        if tried[name]
    ]
    total = sum(tried.values())
    rows.append(["all", sum(map(len, every.values())), total, total - len(survived)])
    print("\n".join(table_lines(["module", "mutants", "tried", "killed"], rows)))


if __name__ == "__main__":
    main()
