"""Every `pipeline ...` command in the README and in docs/ parses, names a configuration that loads, and links lead somewhere."""

import re
import shlex
from pathlib import Path

import click
import pytest

from pipeline import config
from pipeline.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^(?:\$ )?(pipeline [a-z].*?)(?:\s+#.*)?$", re.MULTILINE)


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
        for path in [argument for argument in arguments if argument.startswith("configs/")]:
            overrides = [arguments[i + 1] for i, argument in enumerate(arguments) if argument == "--set"]
            loaded = config.load(ROOT / path, overrides)
            for flag, entries in (("--student", loaded.students), ("--method", loaded.methods)):
                if flag in arguments:
                    assert arguments[arguments.index(flag) + 1] in entries, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_names_every_command():
    text = (ROOT / "README.md").read_text()
    for name in main.commands:
        assert f"pipeline {name}" in text or f"`{name}`" in text, name
