"""What several commands share: their options, and what they do before and after a stage."""

import contextlib
import os
import shlex
import sys
import time
from pathlib import Path

import click

from pipeline.cli.group import main
from pipeline.errors import ConfigError, PipelineError
from pipeline.paths import default_root

overriding = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Override a value of the configuration. Recorded with the run. May be repeated.",
)


def command(name):
    """A command over one YAML file, with `--set`."""

    def wrap(function):
        function = overriding(function)
        function = click.argument("config", type=click.Path(path_type=Path))(function)
        return main.command(name)(function)

    return wrap


def as_path(text: str):
    """A path, or a URL of object storage, which pathlib would spoil."""
    if "://" not in str(text):
        return Path(text)
    from pipeline.store.files import as_path

    return as_path(text)


root = click.option(
    "--root",
    type=as_path,
    metavar="FOLDER|URL",
    default=default_root,
    show_default="PIPELINE_CACHE_ROOT, or cache",
    help="Folder or URL of the prepared stores and target caches.",
)
device = click.option(
    "--device", default="auto", show_default=True, help="Device: cpu, cuda, cuda:1, ...; auto uses a GPU if one is available."
)
deterministic = click.option(
    "--deterministic",
    is_flag=True,
    help="Make resumed runs bit-identical on a GPU, at some cost in speed. Runs on a CPU always are.",
)
log = click.option(
    "--log",
    multiple=True,
    metavar="NAME",
    envvar="PIPELINE_LOG",
    show_envvar=True,
    help="Also log the training curves to dvclive, tensorboard, wandb or mlflow. May be repeated.",
)
workers = click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=os.cpu_count(),
    show_default="cores",
    help="Number of threads or processes for decoding, drawing and checking.",
)


def entries(section):
    """Completion of a shell: the section's entries in the configuration that stands on the line already."""

    def complete(ctx, param, incomplete):
        import yaml

        config = ctx.params.get("config") or next(iter(ctx.args), "")  # click parses nothing after an open option
        try:
            entries = list(yaml.safe_load(Path(config).read_text(encoding="utf-8"))[section])
        except (OSError, KeyError, TypeError, yaml.YAMLError):
            return []
        return [name for name in entries if name.startswith(incomplete)]

    return complete


student = click.option(
    "--student", required=True, shell_complete=entries("students"), help="Student, an entry of `students` in CONFIG."
)
method = click.option(
    "--method",
    required=True,
    shell_complete=entries("methods"),
    help="Method, an entry of `methods` in CONFIG. `plain` trains without distillation.",
)
seed = click.option("--seed", type=int, required=True, help="Random seed for initial weights, image order and dropout.")
weights = click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Weights for --student or --teacher instead of the run's: a .safetensors or .pt file, or a run's checkpoint.pt.",
)


teacher_name = click.option(
    "--teacher-name",
    metavar="NAME",
    shell_complete=entries("teachers"),
    help="One of several teachers, an entry of `teachers` in CONFIG. Default: all of them, one after the other.",
)


which_teacher = click.option(
    "--teacher-name", metavar="NAME", shell_complete=entries("teachers"), help="With --teacher: which of several teachers."
)


def one_network(function):
    """A run's student, or the teacher."""
    for option in (
        which_teacher,
        click.option("--teacher", is_flag=True, help="Use the teacher instead of a student."),
        click.option("--seed", type=int, help="Seed of the run."),
        click.option("--method", shell_complete=entries("methods"), help="Method, an entry of `methods` in CONFIG."),
        click.option("--student", shell_complete=entries("students"), help="Student, an entry of `students` in CONFIG."),
    ):
        function = option(function)
    return function


def load(config, overrides):
    from pipeline.config import load

    return load(config, overrides)


def pick(device: str, deterministic: bool = False) -> str:
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.use_deterministic_algorithms(deterministic)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise PipelineError(f"--device {device}: not usable here ({str(error).splitlines()[0]}); try --device cpu") from None
    return device


@contextlib.contextmanager
def stoppable():
    """SIGTERM and Ctrl-C end the command with one line, and exit code 75 or 130."""
    from pipeline.stopping import Stopped, stoppable

    try:
        with stoppable():
            yield
    except Stopped as stopped:
        click.echo(f"Stopped: {stopped.said}; run the same command again, and it goes on from there", err=True)
        sys.exit(stopped.exit_code)


def teacher_weights(cfg) -> Path:
    return Path("teachers") / f"{cfg.name}.safetensors"


def experiment(cfg, root):
    from pipeline.teacher.experiment import Experiment

    return Experiment(cfg, root, teacher_weights(cfg))


def experiments(cfg, root, teacher_name):
    """By name of a teacher: of the named one, or of all that have a target."""
    whole, named = experiment(cfg, root), cfg.by_teacher if teacher_name is None else {teacher_name: cfg.of_teacher(teacher_name)}
    return {name: whole.teachers[name] for name, one in named.items() if one.targets or len(named) == 1}


def one_teacher(cfg, teacher_name) -> str:
    """Its name, where a command is about one of them."""
    if teacher_name is None and len(cfg.by_teacher) > 1:
        raise click.UsageError(f"{cfg.path} has several teachers; give --teacher-name, one of {', '.join(cfg.by_teacher)}")
    name = teacher_name or next(iter(cfg.by_teacher))
    cfg.of_teacher(name)
    return name


def of_teacher(cfg, name) -> str:
    """What comes after a folder of reports or weights, without the ending."""
    from pipeline.config import MAIN

    return cfg.name if name == MAIN else f"{cfg.name}/{name}"


def run_of_teacher(name) -> str:
    from pipeline.config import MAIN

    return name if name == MAIN else f"{MAIN}-{name}"


def headed(name, text, several) -> str:
    """What is said of one of several teachers, below its name."""
    return f"Teacher {name}:\n{text}\n" if len(several) > 1 else text


def run_name(student, method, seed) -> str:
    from pipeline.paths import name_fault

    for name in filter(None, (student, method)):  # without a method where other weights are named
        if fault := name_fault(name):
            raise ConfigError(f"{name!r} {fault}; the configuration's students and methods are called so")
    return f"{student}-{method}-{seed}"


def network(cfg, student, method, seed, teacher, weights=None, teacher_name=None):
    """Its run's name, and what the stages that use a trained network are told of it."""
    if weights is not None and not weights.exists():
        raise PipelineError(f"--weights {weights}: no such file, seen from {Path.cwd()}; correct the path")
    if teacher == (student is not None):
        raise click.UsageError("give either --teacher, or --student")
    if teacher:
        name = one_teacher(cfg, teacher_name)
        one = cfg.of_teacher(name).teacher
        return run_of_teacher(name), dict(
            model=one.model,
            training=None,
            weights_file=weights or Path("teachers") / f"{of_teacher(cfg, name)}.safetensors",
            flip_average=one.flip_average,
        )
    model = cfg.student(student)
    if weights is None and method is None and seed is None and brings_weights(model):
        return student, dict(model=model, training=cfg.training, weights_file=None)
    if weights is None and (method is None or seed is None):
        raise click.UsageError("give either --teacher, or all of --student, --method and --seed, or --student and --weights")
    name = run_name(student, method, seed)
    return name, dict(
        model=model,
        training=cfg.training,
        weights_file=weights or Path("runs") / cfg.name / name / "weights.safetensors",
    )


def brings_weights(model) -> bool:
    """Whether a factory of one's own makes the network, which may come with trained weights."""
    from pipeline.lookup import find_class

    return find_class("models", model.name).own_weights


def file_name(name, weights: Path | None) -> str:
    """How the score of a network is called that no run of this file left."""
    from pipeline.paths import name_fault

    if weights is None:
        return name
    stem = weights.absolute().parent.name if weights.stem in ("weights", "checkpoint") else weights.stem
    return f"{name}-{stem}" if name_fault(f"{name}-{stem}") is None else name


def echo_once(result: str) -> None:
    """The result of a command that torchrun may have started several times, from the first process."""
    if int(os.environ.get("RANK", 0)) == 0:
        click.echo(result)


def say_next(command, config, overrides=(), root=None, *arguments):
    """On stderr: how long it took, and what to run after this. `dvc repro` knows that by itself."""
    from pipeline.progress import duration, say

    if "DVC_STAGE" in os.environ:
        return
    words = ["pipeline", command, str(config), *map(str, arguments), *(word for text in overrides for word in ("--set", text))]
    if root is not None and root != as_path(default_root()):
        words += ["--root", str(root)]
    say(f"took {duration(time.monotonic() - click.get_current_context().find_root().obj)}; next: {shlex.join(words)}")
