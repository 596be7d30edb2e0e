"""The `pipeline` command: parses, loads the configuration, calls a stage, prints what it returns.

The only folder that imports click or a stage. Heavy imports happen inside commands, so that `--help` answers at once.
"""

from pipeline.cli import deployment, scoring, steps, stores  # noqa: F401 (each adds its commands to `main`)
from pipeline.cli.group import main

__all__ = ["main"]
