"""The `pipeline` command: parses, loads the configuration, calls a stage, prints what it returns.

The only file that imports click or a stage. Heavy imports happen inside commands, so that `--help` answers at once.
"""

import contextlib
import errno
import os
import shlex
import sys
import time
from pathlib import Path

import click

from pipeline import __version__
from pipeline.errors import PipelineError


class _Commands(click.Group):
    """Commands in the order of the work."""

    def list_commands(self, ctx):
        return list(self.commands)


_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}     # the user's to mend, wherever raised


class _Group(_Commands):
    """And errors a user can mend as one line without a traceback."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except PipelineError as error:
            for line in str(error).splitlines():
                example = line.startswith("    ")                   # to be copied as it is printed
                click.echo(line if example else f"Error: {line}", err=True)
            ctx.exit(1)
        except OSError as error:
            if error.errno not in _MACHINE:
                raise
            click.echo(f"Error: {error.filename or 'disk'}: {error.strerror}; make room or give the right to write, and run "
                       f"the same command again: what is finished is safe", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("Stopped: nothing finished is lost; run the same command again", err=True)
            ctx.exit(130)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pipeline")
@click.option("-v", "--verbose", is_flag=True, help="Also say how: where data are read from.")
@click.option("-q", "--quiet", is_flag=True, help="Print the result alone, and errors.")
@click.pass_context
def main(ctx, verbose, quiet):
    """Distil a large segmentation teacher into a small student in two stages: run the teacher once, train from its cache.

    \b
    $ pipeline synth configs/demo.yaml && pipeline prepare configs/demo.yaml
    $ pipeline train-teacher configs/demo.yaml && pipeline cache-teacher configs/demo.yaml
    $ pipeline train-student configs/demo.yaml --student erfnet --method intra --seed 0
    """
    from pipeline import progress
    progress.verbosity = verbose - quiet
    ctx.obj = time.monotonic()


def _next(command, config, overrides=(), root=None, *arguments):
    """On stderr: how long it took, and what to run after this. `dvc repro` knows that by itself."""
    from pipeline.progress import duration, say
    if "DVC_STAGE" in os.environ:
        return
    words = ["pipeline", command, str(config), *map(str, arguments), *(word for text in overrides for word in ("--set", text))]
    if root is not None and root != _place(os.environ.get("PIPELINE_CACHE_ROOT", "cache")):
        words += ["--root", str(root)]
    say(f"took {duration(time.monotonic() - click.get_current_context().find_root().obj)}; next: {shlex.join(words)}")


_set = click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
                    help="Override a value of the file; recorded with the run. May be repeated.")


def _command(name):
    """A command over one YAML file, with `--set`."""
    def wrap(function):
        function = _set(function)
        function = click.argument("config", type=click.Path(path_type=Path))(function)
        return main.command(name)(function)
    return wrap


def _place(text: str):
    """A path, or a URL of object storage, which pathlib would spoil."""
    if "://" not in str(text):
        return Path(text)
    from pipeline.storefiles import place
    return place(text)


_root = click.option("--root", type=_place, metavar="FOLDER|URL", envvar="PIPELINE_CACHE_ROOT", default="cache", show_default=True,
                     show_envvar=True, help="Folder of the prepared stores and caches; may lie outside the checkout.")
_device = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")
_deterministic = click.option("--deterministic", is_flag=True,
                              help="Resume to the same bits on a GPU too, at some cost in speed; a CPU always does.")
_workers = click.option("--workers", type=click.IntRange(min=1), default=os.cpu_count(), show_default="cores",
                        help="Threads or processes for decoding, drawing and checking.")


def _entries(section):
    """Completion of a shell: the section's entries in the configuration that stands on the line already."""
    def complete(ctx, param, incomplete):
        import yaml
        config = ctx.params.get("config") or next(iter(ctx.args), "")       # click parses nothing after an open option
        try:
            entries = list(yaml.safe_load(Path(config).read_text())[section])
        except (OSError, KeyError, TypeError, yaml.YAMLError):
            return []
        return [name for name in entries if name.startswith(incomplete)]

    return complete


_student = click.option("--student", required=True, shell_complete=_entries("students"), help="An entry of the file's `students`.")
_method = click.option("--method", required=True, shell_complete=_entries("methods"),
                       help="An entry of the file's `methods`; `plain` is no distillation.")
_seed = click.option("--seed", type=int, required=True, help="Seed of initial weights, order and dropout.")


def _load(config, overrides):
    from pipeline.config import load
    return load(config, overrides)


def _pick(device: str, deterministic: bool = False) -> str:
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


def _teacher_weights(cfg) -> Path:
    return Path("teachers") / f"{cfg.name}.safetensors"


@contextlib.contextmanager
def _stoppable():
    """SIGTERM and Ctrl-C end the command with one line, and exit code 75 or 130."""
    from pipeline.executors import Stopped, stoppable
    try:
        with stoppable():
            yield
    except Stopped as stopped:
        click.echo(f"Stopped: {stopped.said}; run the same command again, and it goes on from there", err=True)
        sys.exit(stopped.exit_code)


def _share(ctx, param, value) -> tuple[int, int]:
    """Of "I/N". Arrays count from 0 or from 1: N is the same share as 0."""
    index, _, count = (value or "0/1").partition("/")
    if not (index.isdecimal() and count.isdecimal() and 0 <= int(index) <= int(count) != 0):
        raise click.BadParameter(f"{value!r} is not a share such as 3/8")
    return int(index), int(count)


def _run_name(student, method, seed) -> str:
    return f"{student}-{method}-{seed}"


@main.command("init")
@click.argument("folder", type=click.Path(path_type=Path), default=".")
def init(folder):
    """Copy the example configurations to FOLDER/configs; a file that is there already stays as it is.

    \b
    $ pipeline init
    """
    from stages import init as stage
    click.echo(stage.run(folder=folder))


@_command("synth")
@_workers
def synth(config, overrides, workers):
    """Draw the embedded road set to disk, in CULane's layout, or with every paint a class.

    Reads the file's `dataset` section (name: roads or markings), writes images, labels and lists under its root. Frames that
    are complete are kept. About 0.1 s an image at 1640x590 on one core.

    \b
    $ pipeline synth configs/demo.yaml
    """
    from stages import synth as stage
    cfg = _load(config, overrides)
    click.echo(stage.run(dataset=cfg.dataset, workers=workers))
    _next("prepare", config, overrides)


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
    _next("prepare", config, overrides)


@_command("prepare")
@_root
@_workers
@click.option("--skip-bad/--no-skip-bad", default=None,
              help="Leave out images that can't be read, here and in all later stages, and put them on record in the "
                   "store's skipped.tsv; or clear that record. Without either it stands, and other bad images are errors.")
def prepare(config, overrides, root, workers, skip_bad):
    """Decode, crop and resize the training images once, into a Zarr store.

    Reads the dataset, writes ROOT/<dataset>/prepared-<identity> and reports/prepare/<config>.json. Run again after an
    interruption, it goes on where it stopped. Images that can't be read are listed at the end, with exit code 1.

    \b
    $ pipeline prepare configs/demo.yaml
    """
    with _stoppable():
        from stages import prepare as stage
        cfg = _load(config, overrides)
        click.echo(stage.run(dataset=cfg.dataset, prepare=cfg.prepare, root=root, workers=workers, skip_bad=skip_bad,
                             report=Path("reports/prepare") / f"{cfg.name}.json"))
        _next("train-teacher", config, overrides, root)


@_command("train-teacher")
@_root
@_device
@_deterministic
def train_teacher(config, overrides, root, device, deterministic):
    """Train the teacher, or copy the checkpoint that the file names.

    Reads the prepared store, writes teachers/<config>.safetensors. Resumes from its last checkpoint.

    \b
    $ pipeline train-teacher configs/demo.yaml
    """
    with _stoppable():
        from stages import train_teacher as stage
        cfg = _load(config, overrides)
        click.echo(stage.run(dataset=cfg.dataset, prepare=cfg.prepare, views=cfg.views, teacher=cfg.teacher,
                             teacher_training=cfg.teacher_training, root=root, folder=Path("runs") / cfg.name / "teacher",
                             weights_file=_teacher_weights(cfg), report=Path("reports/teacher") / f"{cfg.name}.json",
                             settings=cfg.text, device=_pick(device, deterministic)))
        _next("cache-teacher", config, overrides, root)


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
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True,
              help="Processes, each with a teacher; one a GPU where there are several.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of each teacher; if not given, they share the cores.")
@click.option("--scheduler", metavar="ADDRESS", help="Let the workers of this Dask scheduler fill; they see the same files.")
@click.option("--blocks", "share", metavar="I/N", callback=_share, help="Fill only the I-th of N shares: for array jobs.")
def cache_teacher(config, overrides, root, device, batch, workers, threads, scheduler, share):
    """Stage one: run the teacher once over every view and store its targets.

    Reads the prepared store and the teacher's weights, writes ROOT/<dataset>/targets-<identity> and
    reports/cache/<config>.json. Killed at any moment, it goes on where it stopped and ends in the same bytes.

    \b
    $ pipeline cache-teacher configs/demo.yaml
    $ pipeline cache-teacher configs/demo.yaml --workers 2
    """
    if scheduler is not None and workers > 1:
        raise click.UsageError("--workers is for this machine; a Dask scheduler has its own")
    with _stoppable():
        from stages import cache_teacher as stage
        cfg = _load(config, overrides)
        click.echo(stage.run(dataset=cfg.dataset, prepare=cfg.prepare, views=cfg.views, teacher=cfg.teacher, targets=cfg.targets,
                             weights_file=_teacher_weights(cfg), root=root, report=Path("reports/cache") / f"{cfg.name}.json",
                             device=_pick(device) if scheduler is None else device, batch=batch, workers=workers,
                             threads=threads, scheduler=scheduler, share=share))
        if share[1] == 1:
            method = next((name for name, terms in cfg.methods.items() if any(term.reads for term in terms)), "plain")
            _next("train-student", config, overrides, root, "--student", next(iter(cfg.students)), "--method", method, "--seed", 0)


@_command("train-student")
@_student
@_method
@_seed
@_root
@_device
@_deterministic
def train_student(config, overrides, student, method, seed, root, device, deterministic):
    """Stage two: train a student with a method against the cached targets, without the teacher.

    Reads the prepared store and the cache, writes runs/<config>/<student>-<method>-<seed>/. Refuses a cache that was made from
    anything else than the file says. Resumes from its last checkpoint to the same weights as an unbroken run.

    \b
    $ pipeline train-student configs/demo.yaml --student erfnet --method intra --seed 0
    """
    with _stoppable():
        from stages import train_student as stage
        cfg = _load(config, overrides)
        click.echo(stage.run(dataset=cfg.dataset, prepare=cfg.prepare, views=cfg.views, teacher=cfg.teacher, targets=cfg.targets,
                             training=cfg.training, student=cfg.student(student), method=cfg.method(method), seed=seed, root=root,
                             folder=Path("runs") / cfg.name / _run_name(student, method, seed),
                             weights_file=_teacher_weights(cfg), config=config, settings=cfg.text,
                             device=_pick(device, deterministic)))
        _next("evaluate", config, overrides, None, "--student", student, "--method", method, "--seed", seed)


def _one_network(function):
    """A run's student, or the teacher."""
    for option in (click.option("--teacher", is_flag=True, help="The teacher instead of a student."),
                   click.option("--seed", type=int, help="The run's seed."),
                   click.option("--method", shell_complete=_entries("methods"), help="An entry of the file's `methods`."),
                   click.option("--student", shell_complete=_entries("students"), help="An entry of the file's `students`.")):
        function = option(function)
    return function


_weights = click.option("--weights", type=click.Path(path_type=Path), metavar="FILE",
                        help="Other weights for --student or --teacher than the run's: .safetensors, .pt, a run's checkpoint.pt.")


def _network(cfg, student, method, seed, teacher, weights=None):
    """Its run's name, and what the stages that use a trained network are told of it."""
    if teacher == (student is not None) or weights is None and not teacher and (method is None or seed is None):
        raise click.UsageError("give either --teacher, or all of --student, --method and --seed")
    if teacher:
        return "teacher", dict(model=cfg.teacher.model, training=None, weights_file=weights or _teacher_weights(cfg),
                               flip_average=cfg.teacher.flip_average)
    name = _run_name(student, method, seed)
    return name, dict(model=cfg.student(student), training=cfg.training,
                      weights_file=weights or Path("runs") / cfg.name / name / "weights.safetensors")


@_command("evaluate")
@_one_network
@_device
@_workers
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Frames a pass of the network takes.")
def evaluate(config, overrides, student, method, seed, teacher, device, workers, batch):
    """Score a trained student, or the teacher, on full frames: mean IoU, and as the dataset's own evaluator does.

    Reads the dataset and the run's weights, writes reports/scores/<config>/<run>.json and a picture beside it, and below
    runs/<config>/<run>/predictions/<split> the files that the dataset's evaluator or server takes, if it has one.

    \b
    $ pipeline evaluate configs/demo.yaml --student erfnet --method intra --seed 0
    $ pipeline evaluate configs/demo.yaml --teacher
    """
    from stages import evaluate as stage
    cfg = _load(config, overrides)
    name, network = _network(cfg, student, method, seed, teacher)
    out = Path("reports/scores") / cfg.name
    click.echo(stage.run(dataset=cfg.dataset, prepare=cfg.prepare, evaluate=cfg.evaluate, **network,
                         report=out / f"{name}.json", picture=out / f"{name}.png",
                         predictions=Path("runs") / cfg.name / name / "predictions", device=_pick(device), batch=batch,
                         workers=workers))
    _next("cache-teacher" if teacher else "report", config, overrides)


@_command("predict")
@click.argument("place", metavar="INPUT", type=click.Path(path_type=Path))
@_one_network
@_weights
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the results, of this network and input alone.")
@click.option("--as", "kinds", multiple=True, type=click.Choice(["overlay", "ids", "colours", "lanes", "submission"]),
              default=["overlay"], show_default=True, help="What to write, each in a folder of that name. May be repeated.")
@click.option("--crop-top", type=click.IntRange(min=0), help="Rows to cut at the top of each frame; if not given, the dataset's.")
@_device
@_workers
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Frames a pass of the network takes.")
def predict(config, overrides, place, student, method, seed, teacher, weights, out, kinds, crop_top, device, workers, batch):
    """Show a trained network pictures or a video, and write what it sees at their full resolution.

    INPUT is a picture, a video, or a folder whose pictures are all taken, sub-folders too. Frames are cropped, resized and
    put back as `evaluate` does. Overlays of a video are a video. Pictures that can't be read are listed at the end, with exit
    code 1. A folder --out of another network or input is refused.

    \b
    $ pipeline predict configs/demo.yaml data/demo --student erfnet --method intra --seed 0 --out seen
    """
    from stages import predict as stage
    cfg = _load(config, overrides)
    _, network = _network(cfg, student, method, seed, teacher, weights)
    click.echo(stage.run(dataset=cfg.dataset, prepare=cfg.prepare, **network, place=place, out=out,
                         kinds=tuple(dict.fromkeys(kinds)), crop_top=crop_top, device=_pick(device), batch=batch,
                         workers=workers))


_input = click.option("--input", "takes", type=click.Choice(["uint8", "float32"]), default="uint8", show_default=True,
                      help="uint8 [batch, height, width, 3], or float32 [batch, 3, height, width]; both RGB in 0..255.")


@_command("export")
@_one_network
@_weights
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The .onnx file.")
@_input
@click.option("--images", type=click.IntRange(min=1), default=16, show_default=True, help="How many of the dataset's to compare on.")
@click.option("--split", help="Of which split; without it the file's `evaluate.split`.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
def export(config, overrides, student, method, seed, teacher, weights, out, takes, images, split, force):
    """Write a trained network as ONNX, after comparing ONNX Runtime with torch on the dataset's images.

    Normalisation, padding and upsampling are inside, crop and resize in the file's metadata; the batch is free, the size
    fixed. Prints the largest difference and how many pixels get the same class; where they disagree nothing is written.
    Needs the extra `export`. About half a minute.

    \b
    $ pipeline export configs/demo.yaml --student erfnet --method intra --seed 0 --out erfnet.onnx
    """
    from stages import export as stage
    cfg = _load(config, overrides)
    _, network = _network(cfg, student, method, seed, teacher, weights)
    click.echo(stage.run(dataset=cfg.dataset, prepare=cfg.prepare, **network, out=out, takes=takes,
                         split=split or cfg.evaluate.split, images=images, force=force))
    _next("latency", config, overrides, None, *(["--teacher"] if teacher else ["--student", student]))


@_command("latency")
@click.option("--student", shell_complete=_entries("students"), help="An entry of the file's `students`.")
@click.option("--teacher", is_flag=True, help="The teacher instead of a student.")
@_input
@click.option("--batch", "batches", type=click.IntRange(min=1), multiple=True, default=[1, 8], show_default=True,
              help="Images at a time. May be repeated.")
@click.option("--runs", type=click.IntRange(min=1), default=100, show_default=True, help="Of each batch and runtime.")
@click.option("--threads", type=click.IntRange(min=1), default=os.cpu_count(), show_default="cores", help="CPU threads of each runtime.")
@_device
def latency(config, overrides, student, teacher, takes, batches, runs, threads, device):
    """Time a network in torch and in ONNX Runtime: median and 99th percentile for a batch, the machine stated.

    Needs no trained weights, since the time does not depend on them, but the extra `export`. The runtimes take turns.

    \b
    $ pipeline latency configs/demo.yaml --student erfnet --threads 1
    """
    from stages import latency as stage
    cfg = _load(config, overrides)
    if teacher == (student is not None):
        raise click.UsageError("give either --student or --teacher")
    model, training = (cfg.teacher.model, None) if teacher else (cfg.student(student), cfg.training)
    click.echo(stage.run(dataset=cfg.dataset, prepare=cfg.prepare, training=training, model=model, takes=takes, batches=batches,
                         runs=runs, threads=threads, device=_pick(device)))


@main.command("study")
@click.argument("study", type=click.Path(path_type=Path))
@_root
@_device
@click.option("--jobs", type=click.IntRange(min=1), default=os.cpu_count(), show_default="cores", help="Runs at a time.")
def study(study, root, device, jobs):
    """Train and score one student in several arms over many seeds, and answer the question the file names beforehand.

    Reads configs/studies/<study>.yaml, the experiment's prepared store, teacher and cache; writes runs/<study>/<arm>-<seed>,
    reports/studies/<study>/<arm>-<seed>.json and the table reports/studies/<study>.md. Run again, it goes on.

    \b
    $ pipeline study configs/studies/camvid-120.yaml --jobs 2
    """
    from pipeline.study import read
    from stages import evaluate, study as stage, train_student
    found = read(study)
    click.echo(stage.run(study=found, root=root, weights_file=_teacher_weights(found.config), runs=Path("runs"),
                         report=Path("reports/studies") / f"{found.name}.md", jobs=jobs, device=_pick(device),
                         train=train_student.run, evaluate=evaluate.run))


@main.group("score")
def score():
    """Score files of predictions, of whatever origin, as CULane's, LLAMAS's, ApolloScape's and Cityscapes' evaluators do."""


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def _size_option(*default):
    return click.option("--size", type=int, nargs=2, default=default, show_default=True, metavar="H W", help="Of the frames.")


@score.command("culane")
@click.argument("predictions", metavar="PRED", type=click.Path(path_type=Path))
@click.argument("truth", metavar="TRUTH", type=click.Path(path_type=Path))
@click.option("--list", "lists", multiple=True, required=True, type=click.Path(path_type=Path),
              help="A list of frames, or a folder of lists, one a category. May be repeated.")
@click.option("--iou", "ious", multiple=True, type=click.FloatRange(0, 1), default=[0.5], show_default=True,
              help="A lane is found above it. May be repeated, at the cost of one.")
@click.option("--width", type=click.IntRange(min=1), default=30, show_default=True, help="Of the drawn lanes, in pixels.")
@_size_option(590, 1640)
@_workers
@_json
def score_culane(predictions, truth, lists, ious, width, size, workers, as_json):
    """F1 of the .lines.txt below PRED against those below TRUTH, with the counts of the official program.

    F1 = 2PR / (P + R), from TP, FP and FN summed over the frames. Crossroads have no lanes: their FP counts.

    \b
    $ pipeline score culane runs/culane/erfnet-intra-0/predictions/test data/culane --list data/culane/list/test_split
    """
    from stages import score as stage
    click.echo(stage.culane(predictions=predictions, truth=truth, lists=lists, ious=ious, width=width, size=size, workers=workers,
                            as_json=as_json))


@score.command("llamas")
@click.argument("predictions", metavar="PRED", type=click.Path(path_type=Path))
@click.argument("labels", metavar="LABELS", type=click.Path(path_type=Path))
@click.option("--recording", "recordings", multiple=True, help="Score only this folder of LABELS. May be repeated.")
@_size_option(717, 1276)
@_workers
@_json
def score_llamas(predictions, labels, recordings, size, workers, as_json):
    """AP of the probability maps below PRED, and their mean over l1, l0, r0, r1, as officially.

    LABELS holds recordings of JSON files, as labels/valid does. Of each frame PRED has <recording>/<stamp>.json_0.png to _4.png.

    \b
    $ pipeline score llamas runs/llamas/erfnet-intra-0/predictions/test data/llamas/labels/valid \\
        --recording images-2014-12-22-14-19-07_mapping_280S_3rd_lane
    """
    from stages import score as stage
    click.echo(stage.llamas(predictions=predictions, labels=labels, recordings=recordings, size=size, workers=workers,
                            as_json=as_json))


@score.command("segmentation")
@click.argument("predictions", metavar="PRED", type=click.Path(path_type=Path))
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--split", help="Of the dataset; without it the file's `evaluate.split`.")
@_workers
@_json
def score_segmentation(predictions, config, split, workers, as_json):
    """Mean IoU of PNGs of official ids below PRED, for the ApolloScape or Cityscapes dataset that CONFIG describes.

    PRED is laid out as for the server: test/<road>/<stem>.png, or <city>_<sequence>_<frame>.png.

    \b
    $ pipeline score segmentation runs/cityscapes/erfnet-intra-0/predictions/val configs/cityscapes.yaml
    """
    from stages import score as stage
    cfg = _load(config, ())
    click.echo(stage.segmentation(predictions=predictions, dataset=cfg.dataset, split=split or cfg.evaluate.split,
                                  workers=workers, as_json=as_json))


@main.command("verify")
@click.argument("what", metavar="CONFIG|FOLDER")
@_set
@_root
@_device
@click.option("--recompute", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Let the teacher answer N random views again and compare.")
@click.option("--repair", is_flag=True, help="First mend what is damaged: with a config, its bad blocks are filled again.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Images a teacher pass takes at a time.")
@_workers
def verify(what, overrides, root, device, recompute, repair, batch, workers):
    """Check the stores on disk: whole, undamaged, and made from what the file says. Offline equals online?

    Given the folder or URL of a store, checks it by itself, without its teacher, and prints the range of its values. Given a
    config, reads both its stores; with --recompute also runs the teacher, and prints the error of every target against what it
    declares, and what it changes in each loss and its gradient. Exit code 1 if anything is wrong.

    \b
    $ pipeline verify configs/demo.yaml --recompute 32
    $ pipeline verify cache/roads/targets-0123456789ab
    """
    from pipeline.errors import StoreError
    from stages import verify as stage
    folder = _place(what)
    if "://" in what or folder.is_dir():
        if recompute:
            raise click.UsageError("--recompute needs the config: a store by itself knows no teacher")
        text, faults = stage.check_folder(folder=folder, mend=repair, workers=workers)
        click.echo(text)
        if faults:
            raise StoreError("\n".join(faults))
        return
    cfg = _load(folder, overrides)
    sections = dict(dataset=cfg.dataset, prepare=cfg.prepare, views=cfg.views, teacher=cfg.teacher, targets=cfg.targets,
                    weights_file=_teacher_weights(cfg), root=root)
    if repair:
        done, unfilled = stage.mend(**sections, workers=workers)
        for line in done:
            click.echo(line, err=True)
        with _stoppable():
            if "prepared" in unfilled:
                from stages import prepare as fill
                fill.run(dataset=cfg.dataset, prepare=cfg.prepare, root=root, workers=workers,
                         report=Path("reports/prepare") / f"{cfg.name}.json")
            if "targets" in unfilled:
                from stages import cache_teacher as fill
                click.echo(fill.run(**sections, report=Path("reports/cache") / f"{cfg.name}.json", device=_pick(device),
                                    batch=batch), err=True)
    click.echo(stage.run(**sections, training=cfg.training, students=cfg.students, methods=cfg.methods, recompute=recompute,
                         device=_pick(device), batch=batch, workers=workers))


@main.group("cache", cls=_Commands)
def cache():
    """Stores under the root: list them, bring one from elsewhere, remove one.

    \b
    $ pipeline cache list
    """


@cache.command("list")
@_root
def cache_list(root):
    """Every store under the root: what it is, holds, lacks, and weighs.

    \b
    $ pipeline cache list
    """
    from stages import cache as stage
    click.echo(stage.run(root=root))


@cache.command("pull")
@click.argument("source", metavar="URL")
@click.argument("root", metavar="DEST")
@click.option("--views", type=click.IntRange(min=1), help="Only the first so many views.")
def cache_pull(source, root, views):
    """Copy a store, or all stores below a root, into the root DEST. Either may be a folder or a URL.

    Every file is compared with its checksum on the way. Broken off, it goes on where it stopped; what has come can be used.

    \b
    $ pipeline cache pull s3://bucket/cache/roads/targets-0123456789ab cache
    """
    from stages import cache as stage
    with _stoppable():
        click.echo(stage.pull(source=_place(source), root=_place(root), num_views=views))
        _next("cache", "list", (), _place(root))


@cache.command("rm")
@click.argument("folder")
@click.option("--yes", is_flag=True, help="Do not ask.")
def cache_rm(folder, yes):
    """Remove a store. Asks first.

    \b
    $ pipeline cache rm cache/roads/targets-0123456789ab
    """
    from stages import cache as stage
    folder = _place(folder)
    found = stage.check_is_store(folder)
    if not yes:
        click.confirm(f"Remove {folder} ({stage.words(found.num_bytes)})?", abort=True)
    click.echo(stage.remove(folder=folder))


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
@_root
@click.option("--pictures", is_flag=True, help="Also run the networks, for the same frames by each, affinity graphs and features.")
@_device
def report(config, overrides, root, pictures, device):
    """Compare all scored runs: a page to look at, and a table of means over seeds beside plain training, with intervals.

    Reads reports/scores/<config>/ and runs/<config>/; writes reports/<config>.html (one file, opens anywhere), .md and .json
    (for `dvc metrics`), and prints the table. With --pictures, which reads dataset and weights and takes a minute, the page is
    reports/<config>-pictures.html.

    \b
    $ pipeline report configs/demo.yaml
    """
    from stages import report as stage
    cfg = _load(config, overrides)
    click.echo(stage.run(dataset=cfg.dataset, prepare=cfg.prepare, teacher=cfg.teacher, targets=cfg.targets, students=cfg.students,
                         methods=cfg.methods, training=cfg.training, evaluate=cfg.evaluate, name=cfg.name, settings=cfg.text,
                         scores=Path("reports/scores") / cfg.name, runs=Path("runs") / cfg.name,
                         cache_report=Path("reports/cache") / f"{cfg.name}.json", root=root, weights_file=_teacher_weights(cfg),
                         out=Path("reports"), device=_pick(device) if pictures else None))


if __name__ == "__main__":
    sys.exit(main())
