"""The pages are true: commands parse, links lead somewhere, the tutorial and the Python page run as they stand, and every
message that is explained is one that the code can say."""

import ast
import importlib.util
import os
import re
import shlex
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from pipeline import config
from pipeline.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^(?:\$ )?(pipeline [a-z].*?)(?:\s+#.*)?$", re.MULTILINE)
BLOCK = re.compile(r"^(?:<!-- needs (\w+) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = {"dataset": {"train": 12, "val": 2, "test": 4}, "training": {"steps": 10, "lr": 1.0e-2, "warmup_steps": 0}}


def commands(page):
    fenced = "\n".join(re.findall(r"```\w*\n(.*?)```", page.read_text(), re.DOTALL)).replace("\\\n", " ")
    inline = re.findall(r"`(pipeline [^`]*configs/[^`]*)`", page.read_text())
    return [line for line in COMMAND.findall(fenced) + inline if "..." not in line and "$" not in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_parses_and_its_config_loads(page):
    for line in commands(page):
        name, *arguments = shlex.split(line)[1:]
        command = main.commands[name]
        while isinstance(command, click.Group):
            command = command.commands[arguments.pop(0)]
        command.make_context(name, list(arguments), resilient_parsing=False)
        for path in [argument for argument in arguments if argument.startswith("configs/") and name != "study"]:
            overrides = [arguments[i + 1] for i, argument in enumerate(arguments) if argument == "--set"]
            loaded = config.load(ROOT / path, overrides)
            for flag, entries in (("--student", loaded.students), ("--method", loaded.methods)):
                if flag in arguments:
                    assert arguments[arguments.index(flag) + 1] in entries, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target, _, anchor in re.findall(r"\]\(([^)#:]*)(#([^)]+))?\)", page.read_text()):
        other = page.parent / target if target else page
        assert other.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(other), f"{page.name} links to {target}#{anchor}"


def anchors(page):
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_names_every_command_and_every_page():
    text = (ROOT / "README.md").read_text()
    for name in main.commands:
        assert f"pipeline {name}" in text or f"`{name}`" in text, name
    for page in PAGES[1:]:
        assert f"(docs/{page.name})" in text, page.name


# The tutorial, with a smaller road set and shorter trainings; then the Python page in the same folder


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """The folder it leaves behind, and of each block of commands what it printed and what the page shows of that."""
    folder, before, transcript = tmp_path_factory.mktemp("tutorial"), os.getcwd(), []
    os.chdir(folder)
    try:
        for _, language, text in BLOCK.findall((ROOT / "docs/tutorial.md").read_text()):
            if language == "text":
                transcript[-1][2].append(text)
                continue
            said, codes = "", []
            for line in COMMAND.findall(text):
                result = CliRunner().invoke(main, shlex.split(line)[1:])
                assert result.exception is None or isinstance(result.exception, SystemExit), (line, result.exc_info)
                said, codes = said + result.output, [*codes, result.exit_code]
                if line == "pipeline init":
                    shrink(folder / "configs/demo.yaml")
            transcript.append((text, said, [], codes))
    finally:
        os.chdir(before)
    return folder, transcript


def shrink(path):
    raw = yaml.safe_load(path.read_text())
    for section, values in SMALL.items():
        raw[section].update(values)
    path.write_text(yaml.safe_dump(raw))


def shape(line):
    """A line without its numbers, digests and units, and without its spacing."""
    line = re.sub(r"\b[0-9a-f]{8,12}\b", "N", line)
    line = re.sub(r"[+-]?\d+(\.\d+)?(e[+-]\d+)?%?", "N", line)
    return " ".join(re.sub(r"N (B|[kKMGT]B)\b", "N bytes", line).split())


def test_the_tutorials_commands_print_what_it_shows(tutorial):
    folder, transcript = tutorial
    assert sum(len(codes) for *_, codes in transcript) >= 15
    for text, said, shown, codes in transcript:
        refused = any(part.startswith("Error: ") for part in shown)
        assert all(code == refused for code in codes), (text, said)
        printed = {shape(line) for line in said.splitlines()}
        for line in "".join(shown).splitlines():
            assert shape(line) in printed, f"{line!r} is not among what these commands print:\n{text}\n{said}"
    assert (folder / "record.png").exists() and (folder / "runs/demo/erfnet-intra-0/weights.safetensors").exists()


def test_the_python_pages_blocks_run_as_they_stand(tutorial, monkeypatch, capsys):
    folder, _ = tutorial
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MPLBACKEND", "agg")
    blocks = [
        (needs, text) for needs, language, text in BLOCK.findall((ROOT / "docs/python.md").read_text()) if language == "python"
    ]
    names = {"__name__": "__main__"}
    for number, (needs, text) in enumerate(blocks):
        if not needs or importlib.util.find_spec(needs):
            exec(compile(text, f"docs/python.md, block {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "12 images x 2 views" in said and "views.rotate_deg: 2.0 here, 3.0 asked for" in said
    assert names["epoch"] == 1 and names["loss"].isfinite() and (folder / "record-by-hand.png").exists()


# Messages


def templates():
    """Every text in the code, with a hole where a value goes."""
    for path in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_message_that_is_explained_is_one_the_code_can_say():
    page = (ROOT / "docs/troubleshooting.md").read_text()
    quoted = re.findall(r"^### (`+) ?(.*?) ?\1$", page, re.MULTILINE)
    assert len(quoted) == len(re.findall(r"^### ", page, re.MULTILINE)) > 40
    known = list(templates())
    for _, message in quoted:
        parts = [part.strip(" :;,") for part in message.split("...")]
        parts = [re.escape(part) for part in parts if len(part) > 1]
        pattern = re.compile(".*".join(parts), re.DOTALL)
        assert any(pattern.search(template) for template in known), f"no code says {message!r}"
