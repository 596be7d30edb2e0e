"""The `pipeline` command itself: what holds for every command below it."""

import errno
import io
import os
import sys
import time
import traceback
from pathlib import Path

import click

from pipeline import __version__
from pipeline.cli.sections import Sections
from pipeline.errors import PipelineError


class Commands(click.Group):
    """Commands in the order of the work."""

    def list_commands(self, ctx):
        return list(self.commands)


TRACEBACK = "PIPELINE_TRACEBACK"  # in the environment: the traceback of every error is printed, too
_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}  # the user's to mend, wherever raised


class Group(Sections):
    """And errors a user can mend as one line without a traceback."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Stopped: nothing finished is lost; run the same command again", err=True)
            ctx.exit(130)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            said = in_words(error)
            if said is None:
                raise
            if int(os.environ.get("LOCAL_RANK", 0)) and not joined():
                ctx.exit(1)  # every process of torchrun read the same files; the first says it
            if os.environ.get(TRACEBACK):
                traceback.print_exc()
            for line in said.splitlines():
                example = line.startswith("    ")  # to be copied as it is printed
                click.echo(line if example else f"Error: {line}", err=True)
            ctx.exit(1)


def in_words(error: Exception) -> str | None:
    """An error that a user can mend, a line each; None for a bug of this package."""
    from pipeline.lookup import failed_at, where_raised
    from pipeline.paths import to_open, unreadable

    if isinstance(error, PipelineError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _MACHINE:
        if isinstance(error.filename, (str, bytes)) and (closed := unreadable(Path(os.fsdecode(error.filename)))):
            return f"{closed}: {error.strerror}; {to_open(closed)}"
        return (
            f"{error.filename or 'disk'}: {error.strerror}; make room or give the right to write, and run the same command "
            f"again: what is finished is safe"
        )
    whole = f"({TRACEBACK}=1 prints the whole traceback)"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return None
    if where_raised(error) is not None:
        return f"{failed_at(error)}; correct that line {whole}"
    called = [Path(frame.filename).parts[-2:] for frame in traceback.extract_tb(error.__traceback__) if frame.name == "maps"]
    if ("models", "adapter.py") in called:  # a network of an installed package
        return f"adapter: the network fails: {failed_at(error)}; correct 'call', 'arguments' or 'multiple' {whole}"
    return None


def joined() -> bool:
    """Whether this process trains together with others; torch is not imported for the question."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pipeline")
@click.option("-v", "--verbose", is_flag=True, help="Also log details, such as where data are read from.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the result and errors.")
@click.pass_context
def main(ctx, verbose, quiet):
    """Distil a large segmentation network (the teacher) into a small one (the student).

    The work has two stages: the teacher runs once and its targets are cached, then students are trained from the cache. Most
    commands read CONFIG, a YAML file such as configs/demo.yaml. `pipeline COMMAND --help` describes a command.

    \b
    $ pipeline synth configs/demo.yaml && pipeline prepare configs/demo.yaml
    $ pipeline train-teacher configs/demo.yaml && pipeline cache-teacher configs/demo.yaml
    $ pipeline train-student configs/demo.yaml --student erfnet --method intra --seed 0
    """
    from pipeline import progress

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a locale that lacks a character of a name gets it escaped
            stream.reconfigure(errors="backslashreplace")
    later = int(os.environ.get("RANK", 0)) > 0  # of the processes that torchrun started, the first one speaks
    progress.verbosity = -1 if later else verbose - quiet
    ctx.obj = time.monotonic()
