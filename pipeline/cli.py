"""The `pipeline` command: parses, loads the configuration, calls a stage, prints what it returns.

The only file that imports click or a stage. Heavy imports happen inside commands, so that `--help` answers at once.
"""

import os
import sys
from pathlib import Path

import click

from pipeline import __version__
from pipeline.errors import PipelineError


class _Group(click.Group):
    """Commands in the order of the work, and errors a user can mend as one line without a traceback."""

    def list_commands(self, ctx):
        return list(self.commands)

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except PipelineError as error:
            for line in str(error).splitlines():
                click.echo(f"Error: {line}", err=True)
            ctx.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pipeline")
def main():
    """Distil a large segmentation teacher into a small student in two stages: run the teacher once, train from its cache.

    \b
    $ pipeline synth configs/demo.yaml && pipeline prepare configs/demo.yaml
    $ pipeline train-teacher configs/demo.yaml && pipeline cache-teacher configs/demo.yaml
    $ pipeline train-student configs/demo.yaml --student erfnet --method intra --seed 0
    """


def _command(name):
    """A command over one YAML file, with `--set`."""
    def wrap(function):
        function = click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
                                help="Override a value of the file; recorded with the run. May be repeated.")(function)
        function = click.argument("config", type=click.Path(path_type=Path))(function)
        return main.command(name)(function)
    return wrap


_root = click.option("--root", type=click.Path(path_type=Path), envvar="PIPELINE_CACHE_ROOT", default="cache", show_default=True,
                     show_envvar=True, help="Folder of the prepared stores and caches; may lie outside the checkout.")
_device = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")
_workers = click.option("--workers", type=click.IntRange(min=1), default=os.cpu_count(), show_default="cores",
                        help="Threads or processes for decoding and drawing.")
_student = click.option("--student", required=True, help="An entry of the file's `students`.")
_method = click.option("--method", required=True, help="An entry of the file's `methods`; `plain` is no distillation.")
_seed = click.option("--seed", type=int, required=True, help="Seed of initial weights, order and dropout.")


def _load(config, overrides):
    from pipeline.config import load
    return load(config, overrides)


def _pick(device: str) -> str:
    import torch
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise PipelineError(f"--device {device}: not usable here ({str(error).splitlines()[0]}); try --device cpu") from None
    return device


def _teacher_weights(cfg) -> Path:
    return Path("teachers") / f"{cfg.name}.safetensors"


def _run_name(student, method, seed) -> str:
    return f"{student}-{method}-{seed}"


@_command("synth")
@_workers
def synth(config, overrides, workers):
    """Draw the embedded road set to disk, in CULane's layout.

    Reads the file's `dataset` section (name: roads), writes images, labels and lists under its root. Frames that are complete
    are kept. About 0.1 s an image at 1640x590 on one core.

    \b
    $ pipeline synth configs/demo.yaml
    """
    from stages import synth as stage
    cfg = _load(config, overrides)
    click.echo(stage.run(dataset=cfg.dataset, workers=workers))


@_command("doctor")
@_workers
@click.option("--split", "splits", multiple=True, help="Only these splits; all of the dataset's without it. May be repeated.")
def doctor(config, overrides, splits, workers):
    """Check a dataset on disk before a long run: every image and label is read, everything wrong is listed.

    Unreadable or truncated files, label values, sizes, lists that point nowhere, repeated frames, counts against the official
    ones. Exit code 1 if anything is wrong. About 30 images a second and core at full size.

    \b
    $ pipeline doctor configs/demo.yaml
    """
    from stages import doctor as stage
    cfg = _load(config, overrides)
    click.echo(stage.run(dataset=cfg.dataset, splits=splits, workers=workers))


@_command("prepare")
@_root
@_workers
def prepare(config, overrides, root, workers):
    """Decode, crop and resize the training images once, into a Zarr store.

    Reads the dataset, writes ROOT/<dataset>/prepared-<identity> and reports/prepare/<config>.json. Run again after an
    interruption, it goes on where it stopped.

    \b
    $ pipeline prepare configs/demo.yaml
    """
    from stages import prepare as stage
    cfg = _load(config, overrides)
    click.echo(stage.run(dataset=cfg.dataset, prepare=cfg.prepare, root=root, workers=workers,
                         report=Path("reports/prepare") / f"{cfg.name}.json"))


@_command("train-teacher")
@_root
@_device
def train_teacher(config, overrides, root, device):
    """Train the teacher, or copy the checkpoint that the file names.

    Reads the prepared store, writes teachers/<config>.safetensors. Resumes from its last checkpoint.

    \b
    $ pipeline train-teacher configs/demo.yaml
    """
    from stages import train_teacher as stage
    cfg = _load(config, overrides)
    click.echo(stage.run(dataset=cfg.dataset, prepare=cfg.prepare, views=cfg.views, teacher=cfg.teacher,
                         teacher_training=cfg.teacher_training, root=root, folder=Path("runs") / cfg.name / "teacher",
                         weights_file=_teacher_weights(cfg), report=Path("reports/teacher") / f"{cfg.name}.json",
                         device=_pick(device)))


@_command("plan")
@_root
@_device
@click.option("--images", type=click.IntRange(min=1), help="Plan for this many images, without a dataset on disk.")
@click.option("--measure", is_flag=True, help="Also time teacher, disk and student here, for about a minute.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Images a teacher pass takes at a time.")
def plan(config, overrides, root, device, images, measure, batch):
    """How big the cache will be; with --measure, how long the fill takes and when it has paid for itself.

    Exit code 1 if the disk is too small.

    \b
    $ pipeline plan configs/demo.yaml --images 200
    """
    from stages import plan as stage
    cfg = _load(config, overrides)
    click.echo(stage.run(dataset=cfg.dataset, prepare=cfg.prepare, views=cfg.views, teacher=cfg.teacher, targets=cfg.targets,
                         training=cfg.training, students=cfg.students, root=root, images=images, measure=measure,
                         device=_pick(device) if measure else "cpu", batch=batch))


@_command("cache-teacher")
@_root
@_device
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Images a teacher pass takes at a time.")
def cache_teacher(config, overrides, root, device, batch):
    """Stage one: run the teacher once over every view and store its targets.

    Reads the prepared store and the teacher's weights, writes ROOT/<dataset>/targets-<identity> and
    reports/cache/<config>.json. Killed at any moment, it goes on where it stopped and ends in the same bytes.

    \b
    $ pipeline cache-teacher configs/demo.yaml
    """
    from stages import cache_teacher as stage
    cfg = _load(config, overrides)
    click.echo(stage.run(dataset=cfg.dataset, prepare=cfg.prepare, views=cfg.views, teacher=cfg.teacher, targets=cfg.targets,
                         weights_file=_teacher_weights(cfg), root=root, report=Path("reports/cache") / f"{cfg.name}.json",
                         device=_pick(device), batch=batch))


@_command("train-student")
@_student
@_method
@_seed
@_root
@_device
def train_student(config, overrides, student, method, seed, root, device):
    """Stage two: train a student with a method against the cached targets, without the teacher.

    Reads the prepared store and the cache, writes runs/<config>/<student>-<method>-<seed>/. Refuses a cache that was made from
    anything else than the file says. Resumes from its last checkpoint to the same weights as an unbroken run.

    \b
    $ pipeline train-student configs/demo.yaml --student erfnet --method intra --seed 0
    """
    from stages import train_student as stage
    cfg = _load(config, overrides)
    click.echo(stage.run(dataset=cfg.dataset, prepare=cfg.prepare, views=cfg.views, teacher=cfg.teacher, targets=cfg.targets,
                         training=cfg.training, student=cfg.student(student), method=cfg.method(method), seed=seed, root=root,
                         folder=Path("runs") / cfg.name / _run_name(student, method, seed), weights_file=_teacher_weights(cfg),
                         config=config, device=_pick(device)))


@_command("evaluate")
@click.option("--student", help="An entry of the file's `students`.")
@click.option("--method", help="An entry of the file's `methods`.")
@click.option("--seed", type=int, help="The run's seed.")
@click.option("--teacher", is_flag=True, help="Score the teacher instead of a student.")
@_device
def evaluate(config, overrides, student, method, seed, teacher, device):
    """Score a trained student, or the teacher, on full frames.

    Reads the dataset and the run's weights, writes reports/scores/<config>/<run>.json and a picture beside it.

    \b
    $ pipeline evaluate configs/demo.yaml --student erfnet --method intra --seed 0
    $ pipeline evaluate configs/demo.yaml --teacher
    """
    from stages import evaluate as stage
    cfg = _load(config, overrides)
    if teacher == (student is not None) or not teacher and (method is None or seed is None):
        raise click.UsageError("give either --teacher, or all of --student, --method and --seed")
    name = "teacher" if teacher else _run_name(student, method, seed)
    if teacher:
        model, training, weights_file = cfg.teacher.model, None, _teacher_weights(cfg)
    else:
        model, training = cfg.student(student), cfg.training
        weights_file = Path("runs") / cfg.name / name / "weights.safetensors"
    out = Path("reports/scores") / cfg.name
    click.echo(stage.run(dataset=cfg.dataset, prepare=cfg.prepare, training=training, evaluate=cfg.evaluate, model=model,
                         weights_file=weights_file, report=out / f"{name}.json", picture=out / f"{name}.png",
                         device=_pick(device)))


@_command("verify")
@_root
@_device
@click.option("--recompute", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Let the teacher answer N random views again and compare.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Images a teacher pass takes at a time.")
def verify(config, overrides, root, device, recompute, batch):
    """Check the stores on disk: whole, undamaged, and made from what the file says. Offline equals online?

    Reads both stores; with --recompute also runs the teacher, and prints the error of every target against what it declares,
    and what it changes in each loss and its gradient. Exit code 1 if anything is wrong.

    \b
    $ pipeline verify configs/demo.yaml --recompute 32
    """
    from stages import verify as stage
    cfg = _load(config, overrides)
    click.echo(stage.run(dataset=cfg.dataset, prepare=cfg.prepare, views=cfg.views, teacher=cfg.teacher, targets=cfg.targets,
                         training=cfg.training, students=cfg.students, methods=cfg.methods, weights_file=_teacher_weights(cfg),
                         root=root, recompute=recompute, device=_pick(device), batch=batch))


@_command("inspect")
@_root
@click.option("--id", "image_id", metavar="IMAGE", help="Draw this image's record.")
@click.option("--view", type=click.IntRange(min=0), default=0, show_default=True, help="Which of its views.")
@click.option("--out", type=click.Path(path_type=Path), default="record.png", show_default=True, help="Where the figure goes.")
def inspect(config, overrides, root, image_id, view, out):
    """Look at a cache: what it was made from and holds, or one record drawn beside its image.

    \b
    $ pipeline inspect configs/demo.yaml
    """
    from stages import inspect as stage
    cfg = _load(config, overrides)
    click.echo(stage.run(dataset=cfg.dataset, prepare=cfg.prepare, views=cfg.views, teacher=cfg.teacher, targets=cfg.targets,
                         weights_file=_teacher_weights(cfg), root=root, image_id=image_id, view=view, out=out))


@_command("report")
def report(config, overrides):
    """Print one table of all scored runs, with the difference to plain training.

    Reads reports/scores/<config>/, writes reports/<config>.md.

    \b
    $ pipeline report configs/demo.yaml
    """
    from stages import report as stage
    name = config.stem
    click.echo(stage.run(scores=Path("reports/scores") / name, out=Path("reports") / f"{name}.md"))


if __name__ == "__main__":
    sys.exit(main())
