"""What a run's record says of code: every rule that decides a number counts, a comment does not."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import records

ROOT = Path(__file__).parents[2]
STUDENT = (
    "stages.train_student",
    "pipeline.models.erfnet",
    "pipeline.losses.affinity",
    "pipeline.losses.kd",
    "pipeline.targets.affinity",
    "pipeline.targets.logits",
)
TEACHER = ("stages.train_teacher", "pipeline.models.resnet101", "pipeline.weights")
RULES = [
    ("training.step", "(step - term.start + 1) / term.ramp", "(step - term.start + 2) / term.ramp"),
    ("training.step", "if step < term.start:", "if step < term.start + 5:"),
    ("training.optimisers", "(1 - part) ** training.power", "(1 - part)"),
    ("training.step", 'f"{seed}/{step}{own}"', 'f"{step}/{seed}{own}"'),
    ("training.optimisers", "= training.nesterov", "= False"),
    ("training.optimisers", "(training.momentum, *takes", "(0.5, *takes"),
    ("training.label_losses", 'reduction="sum"', 'reduction="mean"'),
    ("training.step", "1.02 + shares_K", "1.1 + shares_K"),
    ("training.step", "step / (step + 1)", "step / (step + 2)"),
    ("seeds", "blake2b", "blake2s"),
    ("training.distributed", "flat / count", "flat"),
    ("training.distributed", "convert_sync_batchnorm(model) if", "convert_sync_batchnorm(model) if not"),
    ("training.loading", ".permutation(count)", ".permutation(count)[::-1]"),
    ("training.loading", "order[: training.held_out]", "order[1 : training.held_out]"),
    ("training.loading", "epochs + 1", "epochs"),
    ("training.loading", "* 2 - 1", "* 2 - 2"),
    ("data.views", "FILL = (124, 116, 104)", "FILL = (0, 0, 0)"),
    ("data.views", "(epoch + int.from_bytes", "(2 * epoch + int.from_bytes"),
    ("data.views", "10_000", "1_000"),
    ("datasets.base", "IGNORE = 255", "IGNORE = 254"),
    ("models.base", "value.float() for value in (output.logits", "value.double() for value in (output.logits"),
    ("models.base", 'allow_tf32 = precision == "tf32"\n    torch.backends.cudnn', "allow_tf32 = True\n    torch.backends.cudnn"),
    ("models._network", "import math", "import cmath as math"),
    ("losses.base", "needs_scan: bool = False", "needs_scan: bool = True"),
    ("losses.base", "count * size, size", "count * size, 1"),
    ("losses.kd", "temperature", "warmth"),
    ("losses._logits", "return ", "return 2 * "),
    ("targets.base", "channels: Mapping[str, int]", "channels_of: Mapping[str, int]"),
    ("targets._grid", "return ", "return 2 * "),
    ("targets.affinity", "return ", "return 2 * "),
    ("training.run", "range(begin, training.steps)", "range(begin, training.steps + 1)"),
    ("stages.train_student", "reseed(seed, 0)", "reseed(seed, 1)"),
    ("training.loading", "content=config.prepare.size", "content=experiment.context.size"),
]
TEACHER_RULES = [
    ("weights", 'CLASSIFIERS = {"fc", "classifier"}', 'CLASSIFIERS = {"fc", "classifier", "layer4"}'),
    ("models._resnet", "return ", "return 2 * "),
    ("stages.train_teacher", "steps.reseed(0, 0)  ", "steps.reseed(0, 1)  "),
]


def edited(monkeypatch, module, change):
    """Lets a module read otherwise than it stands on disk."""
    name, whole = module if module.startswith("stages.") else f"pipeline.{module}", records.source
    monkeypatch.setattr(records, "source", lambda other: change(whole(other)) if other == name else whole(other))
    return whole(name)


def digest(names):
    return records._digest(records.modules_of(*names))


@pytest.mark.parametrize("module, old, new", RULES)
def test_every_rule_that_decides_a_students_numbers_counts(monkeypatch, module, old, new):
    before = digest(STUDENT)
    assert old in edited(monkeypatch, module, lambda text: text.replace(old, new))
    assert digest(STUDENT) != before


@pytest.mark.parametrize("module, old, new", TEACHER_RULES)
def test_every_rule_that_decides_a_teachers_numbers_counts(monkeypatch, module, old, new):
    before = digest(TEACHER)
    assert old in edited(monkeypatch, module, lambda text: text.replace(old, new))
    assert digest(TEACHER) != before


@pytest.mark.parametrize("module", sorted({module for module, _, _ in RULES}))
def test_a_comment_and_a_docstring_do_not_count(monkeypatch, module):
    before = digest(STUDENT)
    edited(
        monkeypatch,
        module,
        lambda text: text.replace('"""', '"""Other words. ', 1).replace("\nimport", "\n\n# a remark\nimport", 1) + "\n# the end\n",
    )
    assert digest(STUDENT) == before


@pytest.mark.parametrize("stage, names", [("train_student", STUDENT), ("train_teacher", TEACHER)])
def test_what_a_stage_loads_counts_or_is_named_with_a_reason(stage, names):
    code = (
        f"import importlib, json, sys\nfor name in {list(names)}: importlib.import_module(name)\n"
        "print(json.dumps([n for n in sys.modules if n.split('.')[0] in ('pipeline', 'stages')]))"
    )
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout)
    behind = {
        "pipeline.data.frames",
        "pipeline.datasets._images",
        "pipeline.datasets._lists",
        "pipeline.datasets._png",
        "pipeline.models._flipped",
    }  # loaded by modules that do not count, for the rows that those answer for
    packages = {"stages", "pipeline.datasets", "pipeline.losses", "pipeline.models", "pipeline.targets"}  # docstrings
    loaded = {name for name in loaded if not name.startswith(records.ROOMS_NOT_COUNTED)} - packages
    assert loaded <= set(records.modules_of(*names)) | records.NOT_COUNTED | behind
    for name in packages:
        assert records.canonical(records.source(name)) == "Module()", name
    for name in records.NOT_COUNTED:
        assert records._is_module(name), f"{name} is gone"


def test_a_run_with_the_teacher_in_the_loop_counts_the_teachers_code():
    assert not {"pipeline.teacher.online", "pipeline.teacher.cache"} & set(records.modules_of(*STUDENT))
    assert {"pipeline.teacher.online", "pipeline.teacher.cache"} <= set(
        records.modules_of(*STUDENT, "pipeline.teacher.online", "pipeline.teacher.cache")
    )


ODD = '''
"""A module."""
import os  # a remark
x = f"{a!r:>{width}} {{b}} {c=} 'q' {d:}" "tail" f"{e}"
y = f"" "" f"{1}" + u"text" + "\\ud800 \\u00fc"
async def g(a, /, b: int = 3, *c, d=4, **k) -> "x":
    """doc"""
    async with a as b: pass
    match b:
        case {"k": 1, **rest} | [1, *_]: ...
z = 1e-4 + 1j + 10**400 + (lambda *a, b: -b)(b=True)
with (open("a") as f, open("b")): pass
try: pass
except* ValueError: pass
class C(B, metaclass=M):
    w: int = 1
    "said of w"
'''


def test_the_sentence_of_a_key_does_not_count_and_its_range_does():
    key = "def f(a: Annotated[int, Field(ge={}, description={!r})]): pass"
    assert records.canonical(key.format(1, "One.")) == records.canonical(key.format(1, "Other words."))
    assert records.canonical(key.format(1, "One.")) != records.canonical(key.format(2, "One."))


def test_the_syntax_tree_is_written_the_same_by_every_version_of_python():
    """Seen with 3.11, 3.12 and 3.13, of which `ast.dump` gives three."""
    assert hashlib.sha256(records.canonical(ODD).encode()).hexdigest()[:16] == "5ad476198782cb41"
    assert records.canonical("x = 1  # one") == "Module(body=[Assign(targets=[Name(id='x')], value=1)])"
    assert records.canonical('def f():\n    "says"\n    return (1)') == records.canonical("def f(): return 1")
    assert records.canonical("x = 1") != records.canonical("x = 1.0") != records.canonical("x = True")
    assert records.canonical("def f(): return 'a'") != records.canonical("def f(): return 'b'")
    assert records.canonical("f(*a)") != records.canonical("f(a)")


def test_what_a_users_file_imports_from_its_own_folder_counts_too(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "nets_of_mine.py").write_text("import json\nfrom parts_of_mine import width\n")
    (tmp_path / "parts_of_mine.py").write_text("width = 3\n")
    before = records.file_code("nets_of_mine")
    (tmp_path / "parts_of_mine.py").write_text("width = 3   # channels\n")
    assert records.file_code("nets_of_mine") == before
    (tmp_path / "parts_of_mine.py").write_text("width = 4\n")
    assert records.file_code("nets_of_mine") != before
