"""What a user sees around a command's result: what comes next, or nothing where that was asked for."""

import errno
import re
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from conftest import EXPERIMENT

from pipeline import progress
from pipeline.cli import main
from pipeline.cli.sections import SECTIONS
from pipeline.progress import Progress, byte_size, duration


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Three tiny frames, with nothing drawn yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "verbosity", 0)
    dataset = {**EXPERIMENT["dataset"], "root": "data", "train": 2, "val": 0, "test": 1}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump({**EXPERIMENT, "dataset": dataset}))
    return "toy.yaml"


def run(*arguments, **environment):
    return CliRunner().invoke(main, arguments, env=environment)


def test_help_lists_every_command_once_in_the_order_of_use():
    named = [name for names in SECTIONS.values() for name in names]
    assert sorted(named) == sorted(main.commands)
    lines = run("--help").stdout.splitlines()
    shown = [line.split()[0].rstrip(":") for line in lines[lines.index("Prepare the data:") :] if line.startswith("  ")]
    assert shown == named and "Other commands:" not in lines


def test_a_command_ends_with_its_result_and_the_next_command(config):
    result = run("synth", config, "--workers", "1", "--set", "dataset.difficulty=0.1")
    assert result.stdout == "data: 3 images in CULane's layout\n"
    assert result.stderr.splitlines()[-1].endswith("; next: pipeline prepare toy.yaml --set dataset.difficulty=0.1")
    result = run("prepare", config, "--workers", "1", "--set", "dataset.difficulty=0.1", "--root", "my stores")
    assert "; next: pipeline train-teacher toy.yaml --set dataset.difficulty=0.1 --root 'my stores'" in result.stderr
    result = run("prepare", config, "--workers", "1", "--set", "dataset.difficulty=0.1", PIPELINE_CACHE_ROOT="my stores")
    assert result.exit_code == 0 and "--root" not in result.stderr.splitlines()[-1]


def test_the_next_command_can_be_run_as_it_is_said(config):
    import shlex

    said = run("synth", config, "--workers", "1").stderr
    words = shlex.split(said.split("next: ")[1])
    assert words[0] == "pipeline" and run(*words[1:], "--workers", "1").exit_code == 0


def test_quiet_leaves_the_result_and_the_errors(config):
    result = run("-q", "synth", config, "--workers", "1")
    assert result.stdout.count("\n") == 1 and result.stderr == ""
    result = run("-q", "train-teacher", config)
    assert result.exit_code == 1 and result.stdout == "" and result.stderr.startswith("Error: ")
    assert "next:" in run("synth", config, "--workers", "1").stderr  # not quiet for ever


def test_dvc_is_not_told_what_is_next(config):
    assert "next:" not in run("synth", config, "--workers", "1", DVC_STAGE="synth@toy").stderr


def test_options_complete_to_the_entries_of_the_configuration(config):
    def completed(*words):
        line = " ".join(["pipeline", *words])
        found = CliRunner().invoke(
            main,
            [],
            prog_name="pipeline",
            env={"_PIPELINE_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words))},
        )
        return {entry.split(",")[1] for entry in found.stdout.split()}

    assert completed("train-student", config, "--method", "") == {"plain", "intra", "kd"}
    assert completed("evaluate", config, "--student", "er") == {"erfnet"}
    assert "cache-teacher" in completed("ca")
    assert completed("train-student", "missing.yaml", "--method", "") == set()


@pytest.mark.parametrize(
    "environment, coloured, bar",
    [({"TERM": "xterm"}, True, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False, True), ({"TERM": "dumb"}, False, False)],
)
def test_a_terminal_has_a_bar_with_colours_unless_told_otherwise(environment, coloured, bar, capsys, monkeypatch):
    for name in ("NO_COLOR", "TERM", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("counting", 4, "things") as shown:
        shown.advance(4)
    said = capsys.readouterr().err
    assert ("counting" in said) == bar and ("\x1b[3" in said or "\x1b[9" in said) == coloured


def test_a_narrow_terminal_shows_a_name_a_count_and_the_time_left(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "42")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("erfnet-affinity-0", 40, "steps") as shown:
        shown.advance(10, "cross-entropy 1.217, val mean IoU 0.095")
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err).splitlines()
    assert all(len(line) <= 42 for line in last) and any("erfnet-affi... 10/40" in line for line in last), last


def test_plain_lines_come_ever_more_rarely_and_end_with_the_whole(capsys, monkeypatch):
    clock = iter(range(0, 100_000, 5))  # five seconds a view
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    now = [next(clock)]
    with Progress("teacher", 2000, "views") as shown:
        for _ in range(2000):
            now[0] = next(clock)
            shown.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "teacher: 2/2000 views, 0.2 views/s, 2 h 46 min left"
    assert lines[-1] == "teacher: 2000/2000 views in 2 h 46 min, 0.2 views/s"
    assert 50 < len(lines) < 150


def test_sizes_are_powers_of_1000():
    sizes = [byte_size(n) for n in (0, 999, 20_000, 62e6, 20.5e9, 7e12, 3e18)]
    assert sizes == ["0 bytes", "999 bytes", "20.0 kB", "62.0 MB", "20.5 GB", "7.0 TB", "3000.0 PB"]


def test_durations_have_their_two_greatest_units():
    assert [duration(s) for s in (0.4, 59.4, 60, 200, 7500, 273_600)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "3 min 20 s",
        "2 h 5 min",
        "3 d 4 h",
    ]
    assert duration(59.6) == "1 min 0 s"


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 1, "Error: runs/x: No space left on device; make room"),
        (PermissionError(errno.EACCES, "Permission denied", "reports"), 1, "Error: reports: Permission denied; make room"),
        (KeyboardInterrupt(), 130, "Stopped: nothing finished is lost; run the same command again"),
    ],
)
def test_a_full_disk_and_ctrl_c_end_any_command_with_one_line(config, monkeypatch, raised, code, said):
    from stages import plan

    def stopped(*_, **__):
        raise raised

    monkeypatch.setattr(plan, "run", stopped)
    result = run("plan", config)
    assert result.exit_code == code and result.stderr.startswith(said) and len(result.stderr.splitlines()) == 1


def test_an_example_in_a_message_can_be_copied_as_it_is_printed(config):
    Path("empty").mkdir()
    text = yaml.safe_load(Path(config).read_text()) | {"dataset": {"name": "folder", "root": "empty"}}
    Path("own.yaml").write_text(yaml.safe_dump(text))
    first, *others = run("doctor", "own.yaml").stderr.splitlines()
    example = [line for line in others if line.startswith("    ")]
    assert all(line.startswith("Error: ") for line in others[len(example) :])
    assert first.startswith("Error: empty/classes.yaml: no such file")
    assert set(yaml.safe_load("\n".join(example))) == {"classes", "ignore", "background", "mirror", "crop_top"}


def test_a_sheet_of_another_format_is_refused_before_anything_is_read(config):
    result = run("doctor", config, "--sheet", "labels.jpg")
    assert result.exit_code == 2 and "labels.jpg is written as PNG" in result.stderr
