"""The way from a dataset to a report, in order: what `dvc repro` runs, and what helps on the way."""

import os
from pathlib import Path

import click

from pipeline.cli import options
from pipeline.cli.group import main


@main.command("init")
@click.argument("folder", type=click.Path(path_type=Path), default=".")
def init(folder):
    """Copy the example configurations to FOLDER/configs; a file that is there already stays as it is.

    \b
    $ pipeline init
    """
    from stages import init as stage

    click.echo(stage.run(folder=folder))


@options.command("synth")
@options.workers
def synth(config, overrides, workers):
    """Draw the embedded road set to disk, in CULane's layout, or with every paint a class.

    Reads the file's `dataset` section (name: roads or markings), writes images, labels and lists under its root. Frames that
    are complete are kept. About 0.1 s an image at 1640x590 on one core.

    \b
    $ pipeline synth configs/demo.yaml
    """
    from stages import synth as stage

    cfg = options.load(config, overrides)
    click.echo(stage.run(dataset=cfg.dataset, workers=workers))
    options.say_next("prepare", config, overrides)


@options.command("doctor")
@options.workers
@click.option("--split", "splits", multiple=True, help="Only these splits; all of the dataset's without it. May be repeated.")
@click.option(
    "--sheet",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Also draw twelve labelled images, with the classes' colours, names and shares.",
)
def doctor(config, overrides, splits, sheet, workers):
    """Check a dataset on disk before a long run: every image and label is read, everything wrong is listed.

    Unreadable or truncated files, label values, sizes, lists that point nowhere, repeated frames, counts against the official
    ones, splits without the labels that the file's teacher, methods or scores need. Exit code 1 if anything is wrong. About 30
    images a second and core at full size.

    \b
    $ pipeline doctor configs/demo.yaml
    $ pipeline doctor configs/demo.yaml --sheet labels.png
    """
    from pipeline.teacher.cache import needs_labels
    from stages import doctor as stage

    if sheet is not None and sheet.suffix.lower() != ".png":  # before minutes of reading
        raise click.BadParameter(f"{sheet} is written as PNG; give it the ending .png", param_hint="--sheet")

    cfg = options.load(config, overrides)
    click.echo(
        stage.run(
            dataset=cfg.dataset,
            splits=splits,
            workers=workers,
            prepare=cfg.prepare,
            needs_labels=needs_labels(cfg),
            scored=cfg.evaluate.split,
            sheet=sheet,
        )
    )
    options.say_next("prepare", config, overrides)


@options.command("prepare")
@options.root
@options.workers
@click.option(
    "--skip-bad/--no-skip-bad",
    default=None,
    help="Leave out images that can't be read, here and in all later stages, and put them on record in the "
    "store's skipped.tsv; or clear that record. Without either it stands, and other bad images are errors.",
)
def prepare(config, overrides, root, workers, skip_bad):
    """Decode, crop and resize the training images once, into a Zarr store.

    Reads the dataset, writes ROOT/<dataset>/prepared-<identity> and reports/prepare/<config>.json. Run again after an
    interruption, it goes on where it stopped. Images that can't be read are listed at the end, with exit code 1.

    \b
    $ pipeline prepare configs/demo.yaml
    """
    with options.stoppable():
        from pipeline.teacher.cache import needs_labels
        from stages import prepare as stage

        cfg = options.load(config, overrides)
        click.echo(
            stage.run(
                dataset=cfg.dataset,
                prepare=cfg.prepare,
                root=root,
                workers=workers,
                skip_bad=skip_bad,
                needs_labels=needs_labels(cfg),
                report=Path("reports/prepare") / f"{cfg.name}.json",
            )
        )
        options.say_next("train-teacher", config, overrides, root)


@options.command("train-teacher")
@options.root
@options.device
@options.deterministic
@options.log
def train_teacher(config, overrides, root, device, deterministic, log):
    """Train the teacher, or copy the checkpoint that the file names.

    Reads the prepared store, writes teachers/<config>.safetensors. Resumes from its last checkpoint.

    \b
    $ pipeline train-teacher configs/demo.yaml
    """
    with options.stoppable():
        from stages import train_teacher as stage

        cfg = options.load(config, overrides)
        click.echo(
            stage.run(
                options.experiment(cfg, root),
                folder=Path("runs") / cfg.name / "teacher",
                report=Path("reports/teacher") / f"{cfg.name}.json",
                device=options.pick(device, deterministic),
                log=log,
            )
        )
        options.say_next("cache-teacher", config, overrides, root)


@options.command("plan")
@options.root
@options.device
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

    cfg = options.load(config, overrides)
    click.echo(
        stage.run(
            options.experiment(cfg, root),
            images=images,
            measure=measure,
            device=options.pick(device) if measure else "cpu",
            batch=batch,
        )
    )


def _share(ctx, param, value) -> tuple[int, int]:
    """Of "I/N". Arrays count from 0 or from 1: N is the same share as 0."""
    index, _, count = (value or "0/1").partition("/")
    if not (index.isdecimal() and count.isdecimal() and 0 <= int(index) <= int(count) != 0):
        raise click.BadParameter(f"{value!r} is not a share such as 3/8")
    return int(index), int(count)


@options.command("cache-teacher")
@options.root
@options.device
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Images a teacher pass takes at a time.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes, each with a teacher; one a GPU where there are several.",
)
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
    with options.stoppable():
        from stages import cache_teacher as stage

        cfg = options.load(config, overrides)
        click.echo(
            stage.run(
                options.experiment(cfg, root),
                report=Path("reports/cache") / f"{cfg.name}.json",
                device=options.pick(device) if scheduler is None else device,
                batch=batch,
                workers=workers,
                threads=threads,
                scheduler=scheduler,
                share=share,
            )
        )
        if share[1] == 1:
            method = next((name for name, terms in cfg.methods.items() if any(term.reads for term in terms)), "plain")
            options.say_next(
                "train-student", config, overrides, root, "--student", next(iter(cfg.students)), "--method", method, "--seed", 0
            )


@options.command("train-student")
@options.student
@options.method
@options.seed
@options.root
@options.device
@options.deterministic
@options.log
def train_student(config, overrides, student, method, seed, root, device, deterministic, log):
    """Stage two: train a student with a method against the cached targets, without the teacher.

    Reads the prepared store and the cache, writes runs/<config>/<student>-<method>-<seed>/. Refuses a cache that was made from
    anything else than the file says. Resumes from its last checkpoint to the same weights as an unbroken run.

    \b
    $ pipeline train-student configs/demo.yaml --student erfnet --method intra --seed 0
    """
    with options.stoppable():
        from stages import train_student as stage

        cfg = options.load(config, overrides)
        click.echo(
            stage.run(
                options.experiment(cfg, root),
                student=student,
                method=method,
                seed=seed,
                folder=Path("runs") / cfg.name / options.run_name(student, method, seed),
                device=options.pick(device, deterministic),
                log=log,
            )
        )
        options.say_next("evaluate", config, overrides, None, "--student", student, "--method", method, "--seed", seed)


@options.command("evaluate")
@options.one_network
@options.weights
@options.device
@options.workers
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Frames a pass of the network takes.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("reports/evaluate"),
    show_default=True,
    help="Folder of the scores of --weights, and of a network that comes with its weights.",
)
def evaluate(config, overrides, student, method, seed, teacher, weights, device, workers, batch, out):
    """Score a trained student, or the teacher, on full frames: mean IoU, and as the dataset's own evaluator does.

    Reads the dataset and the run's weights, writes reports/scores/<config>/<run>.json and a picture beside it, and below
    runs/<config>/<run>/predictions/<split> the files that the dataset's evaluator or server takes, if it has one.

    With --weights, or for a student whose factory brings its weights, no run is scored: all of this is written below OUT/<config>,
    and no report counts it as a seed of a method.

    \b
    $ pipeline evaluate configs/demo.yaml --student erfnet --method intra --seed 0
    $ pipeline evaluate configs/demo.yaml --teacher
    $ pipeline evaluate configs/demo.yaml --student erfnet --weights best.safetensors
    """
    from pipeline.errors import PipelineError
    from pipeline.records import not_left_by_a_run
    from stages import evaluate as stage

    cfg = options.load(config, overrides)
    name, network = options.network(cfg, student, method, seed, teacher, weights)
    file = network["weights_file"]
    if weights is not None or file is None:
        name = options.file_name("teacher" if teacher else student, weights)
        scores = out / cfg.name
        predictions = scores / f"{name}-predictions"
    else:
        scores, predictions = Path("reports/scores") / cfg.name, Path("runs") / cfg.name / name / "predictions"
        if not teacher and file.exists() and (fault := not_left_by_a_run(file)):
            raise PipelineError(f"{file}: {fault}; score it with --student {student} --weights {file}, which counts for no method")
    click.echo(
        stage.run(
            dataset=cfg.dataset,
            prepare=cfg.prepare,
            evaluate=cfg.evaluate,
            **network,
            report=scores / f"{name}.json",
            picture=scores / f"{name}.png",
            predictions=predictions,
            device=options.pick(device),
            batch=batch,
            workers=workers,
        )
    )
    if weights is None and file is not None:
        options.say_next("cache-teacher" if teacher else "report", config, overrides)


@options.command("report")
@options.root
@click.option("--pictures", is_flag=True, help="Also run the networks, for the same frames by each, affinity graphs and features.")
@options.device
def report(config, overrides, root, pictures, device):
    """Compare all scored runs: a page to look at, and a table of means over seeds beside plain training, with intervals.

    Reads reports/scores/<config>/ and runs/<config>/; writes reports/<config>.html (one file, opens anywhere), .md and .json
    (for `dvc metrics`), and prints the table. With --pictures, which reads dataset and weights and takes a minute, the page is
    reports/<config>-pictures.html.

    \b
    $ pipeline report configs/demo.yaml
    """
    from stages import report as stage

    cfg = options.load(config, overrides)
    click.echo(
        stage.run(
            cfg,
            scores=Path("reports/scores") / cfg.name,
            runs=Path("runs") / cfg.name,
            cache_report=Path("reports/cache") / f"{cfg.name}.json",
            root=root,
            weights_file=options.teacher_weights(cfg),
            out=Path("reports"),
            device=options.pick(device) if pictures else None,
        )
    )


@main.command("study")
@click.argument("study", type=click.Path(path_type=Path))
@options.root
@options.device
@click.option("--jobs", type=click.IntRange(min=1), default=os.cpu_count(), show_default="cores", help="Runs at a time.")
def study(study, root, device, jobs):
    """Train and score one student in several arms over many seeds, and answer the question the file names beforehand.

    Reads configs/studies/<study>.yaml, the experiment's prepared store, teacher and cache; writes runs/<study>/<arm>-<seed>,
    reports/studies/<study>/<arm>-<seed>.json, the table reports/studies/<study>.md and every score in
    <study>.tsv. Run again, it goes on.

    \b
    $ pipeline study configs/studies/camvid-120.yaml --jobs 2
    """
    with options.stoppable():
        from pipeline.reporting.study import read
        from stages import evaluate, train_student
        from stages import study as stage

        found = read(study)
        click.echo(
            stage.run(
                study=found,
                root=root,
                weights_file=options.teacher_weights(found.config),
                runs=Path("runs"),
                report=Path("reports/studies") / f"{found.name}.md",
                jobs=jobs,
                device=options.pick(device),
                train=train_student.run,
                evaluate=evaluate.run,
            )
        )
