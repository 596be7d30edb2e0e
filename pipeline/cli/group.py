"""The `pipeline` command itself: what holds for every command below it."""

import errno
import os
import sys
import time

import click

from pipeline import __version__
from pipeline.cli.sections import Sections
from pipeline.errors import PipelineError


class Commands(click.Group):
    """Commands in the order of the work."""

    def list_commands(self, ctx):
        return list(self.commands)


_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}  # the user's to mend, wherever raised


class Group(Sections):
    """And errors a user can mend as one line without a traceback."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except PipelineError as error:
            if int(os.environ.get("LOCAL_RANK", 0)) and not joined():
                ctx.exit(1)  # every process of torchrun read the same files; the first says it
            for line in str(error).splitlines():
                example = line.startswith("    ")  # to be copied as it is printed
                click.echo(line if example else f"Error: {line}", err=True)
            ctx.exit(1)
        except OSError as error:
            if error.errno not in _MACHINE:
                raise
            click.echo(
                f"Error: {error.filename or 'disk'}: {error.strerror}; make room or give the right to write, and run "
                f"the same command again: what is finished is safe",
                err=True,
            )
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("Stopped: nothing finished is lost; run the same command again", err=True)
            ctx.exit(130)


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

    later = int(os.environ.get("RANK", 0)) > 0  # of the processes that torchrun started, the first one speaks
    progress.verbosity = -1 if later else verbose - quiet
    ctx.obj = time.monotonic()
