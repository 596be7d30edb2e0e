"""The way from a dataset to a report, in order: what `dvc repro` runs, and what helps on the way."""

import os
from pathlib import Path

import click

from pipeline.cli import options
from pipeline.cli.group import main


@main.command("init")
@click.argument("folder", type=click.Path(path_type=Path), default=".")
def init(folder):
    """Copy the example configurations to FOLDER/configs.

    Existing files are kept unchanged. FOLDER is the current folder by default.

    \b
    $ pipeline init
    """
    from stages import init as stage

    click.echo(stage.run(folder=folder))


@options.command("synth")
@options.workers
def synth(config, overrides, workers):
    """Generate the synthetic road dataset.

    Reads the section `dataset` of CONFIG, and writes images, labels and lists to `dataset.root`. The dataset `roads` has the
    layout of CULane; in `markings`, each kind of road marking is a class. Complete frames are kept. Takes about 0.1 s per image
    at 1640x590 on one core.

    \b
    $ pipeline synth configs/demo.yaml
    """
    from stages import synth as stage

    cfg = options.load(config, overrides)
    click.echo(stage.run(dataset=cfg.dataset, workers=workers))
    options.say_next("prepare", config, overrides)


@options.command("doctor")
@options.workers
@click.option("--split", "splits", multiple=True, help="Split to check. May be repeated. Default: all splits of the dataset.")
@click.option(
    "--sheet",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Also draw twelve labelled images, with the colour, name and share of each class.",
)
@click.option(
    "--deep",
    is_flag=True,
    help="Also compare the content of the training images with the prepared store, which finds edits that kept size and time.",
)
@options.root
def doctor(config, overrides, splits, sheet, deep, root, workers):
    """Check a dataset on disk before a long run.

    Reads every image and label, and lists all problems: unreadable or truncated files, wrong label values or sizes, lists with
    missing files, repeated frames, counts that differ from the official ones, and splits without labels that the teacher, the
    methods or the scores need. Writes nothing without --sheet. The exit code is 1 if anything is wrong. Reads about 30 images
    per second and core at full size.

    \b
    $ pipeline doctor configs/demo.yaml
    $ pipeline doctor configs/demo.yaml --sheet labels.png
    $ pipeline doctor configs/demo.yaml --deep
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
            root=root if deep else None,
        )
    )
    options.say_next("prepare", config, overrides)


@options.command("prepare")
@options.root
@options.workers
@click.option(
    "--skip-bad/--no-skip-bad",
    default=None,
    help="Leave out unreadable images, here and in all later stages, and list them in skipped.tsv in the store; or clear that "
    "list. Without either option, the list is kept, and other unreadable images are errors.",
)
def prepare(config, overrides, root, workers, skip_bad):
    """Decode, crop and resize images into a Zarr store.

    Reads the training images of the dataset, and writes ROOT/<dataset>/prepared-<identity> and reports/prepare/<config>.json.
    Run the command again after an interruption to resume. Images that can't be read are listed at the end, and the exit code
    is 1.

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
@options.teacher_name
@options.root
@options.device
@options.deterministic
@options.log
def train_teacher(config, overrides, teacher_name, root, device, deterministic, log):
    """Train the teacher, or copy a given checkpoint.

    Reads the prepared store, or the checkpoint named in CONFIG, and writes teachers/<config>.safetensors and
    reports/teacher/<config>.json. Training also writes runs/<config>/teacher/. Of an entry NAME of `teachers`, these are
    teachers/<config>/NAME.safetensors, reports/teacher/<config>/NAME.json and runs/<config>/teacher-NAME/. Run the command again
    after an interruption to resume from the last checkpoint.

    \b
    $ pipeline train-teacher configs/demo.yaml
    """
    with options.stoppable():
        from stages import train_teacher as stage

        cfg = options.load(config, overrides)
        every = options.experiment(cfg, root).teachers
        if teacher_name is not None:
            cfg.of_teacher(teacher_name)
        for name in every if teacher_name is None else [teacher_name]:
            options.echo_once(
                stage.run(
                    every[name],
                    folder=Path("runs") / cfg.name / options.run_of_teacher(name),
                    report=Path("reports/teacher") / f"{options.of_teacher(cfg, name)}.json",
                    device=options.pick(device, deterministic),
                    log=log,
                )
            )
        options.say_next("cache-teacher", config, overrides, root)


@options.command("plan")
@options.root
@options.device
@click.option("--images", type=click.IntRange(min=1), help="Number of images to plan for. No images on disk are needed then.")
@click.option(
    "--measure", is_flag=True, help="Also time the teacher, the disk and the student on this machine. Takes about a minute."
)
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Images per forward pass of the teacher.")
def plan(config, overrides, root, device, images, measure, batch):
    """Estimate the size of the target cache.

    Reads the configuration and, without --images, the lists of the dataset, and prints the size, of several teachers that of each
    cache and of all. With --measure, also prints how
    long filling the cache takes and after how many epochs of student training the cache has saved that time. The exit code is 1
    if the disk is too small.

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


@options.command("layers")
@click.option(
    "--student",
    shell_complete=options.entries("students"),
    help="Student to list, an entry of `students` in CONFIG. Default: the teacher.",
)
@options.teacher_name
@click.option("--depth", type=click.IntRange(min=1), default=3, show_default=True, help="Levels of submodules to list.")
def layers(config, overrides, student, teacher_name, depth):
    """List the submodules of a network.

    Builds the teacher, or a student, and prints the output shape, stride, channels and parameters of each submodule, and which of
    them are `mid` and `high`. Use it to write `layers` of an adapter. Reads no weights and no images.

    \b
    $ pipeline layers configs/demo.yaml
    $ pipeline layers configs/demo.yaml --student erfnet --depth 2
    """
    from stages import layers as stage

    cfg = options.load(config, overrides)
    chosen = cfg.by_teacher if teacher_name is None and student is None else [teacher_name or next(iter(cfg.by_teacher))]
    for name in chosen:
        click.echo(options.headed(name, stage.run(cfg.of_teacher(name), student=student, depth=depth), chosen))


def _share(ctx, param, value) -> tuple[int, int]:
    """Of "I/N". Arrays count from 0 or from 1: N is the same share as 0."""
    index, _, count = (value or "0/1").partition("/")
    if not (index.isdecimal() and count.isdecimal() and 0 <= int(index) <= int(count) != 0):
        raise click.BadParameter(f"{value!r} is not a share such as 3/8")
    return int(index), int(count)


@options.command("cache-teacher")
@options.teacher_name
@options.root
@options.device
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Images per forward pass of the teacher.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of processes, each with its own teacher. With several GPUs, each process uses one.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads per process. Default: the cores are shared equally.")
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Address of a Dask scheduler whose workers fill the cache. The workers must see the same files.",
)
@click.option("--blocks", "share", metavar="I/N", callback=_share, help="Fill only share I of N, for array jobs.")
def cache_teacher(config, overrides, teacher_name, root, device, batch, workers, threads, scheduler, share):
    """Run the teacher once and cache its targets (stage one).

    Reads the prepared store and the teacher's weights, runs the teacher on every view, and writes
    ROOT/<dataset>/targets-<identity> and reports/cache/<config>.json. Of an entry NAME of `teachers`, the report is
    reports/cache/<config>/NAME.json. Run the command again after an interruption to resume; the finished cache has the same bytes
    as without the interruption. `pipeline plan --measure` estimates the size and the time.

    \b
    $ pipeline cache-teacher configs/demo.yaml
    $ pipeline cache-teacher configs/demo.yaml --workers 2
    """
    if scheduler is not None and workers > 1:
        raise click.UsageError("--workers is for this machine; a Dask scheduler has its own")
    with options.stoppable():
        from stages import cache_teacher as stage

        cfg = options.load(config, overrides)
        for name, experiment in options.experiments(cfg, root, teacher_name).items():
            click.echo(
                stage.run(
                    experiment,
                    report=Path("reports/cache") / f"{options.of_teacher(cfg, name)}.json",
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
@click.option("--live", is_flag=True, help="Run the teacher at each step instead of reading a cache.")
@click.option("--fill", is_flag=True, help="Compute what the cache lacks when a step asks for it, and store it.")
def train_student(config, overrides, student, method, seed, root, device, deterministic, log, live, fill):
    """Train a student from the cached targets (stage two).

    Reads the prepared store and the target cache, and writes runs/<config>/<student>-<method>-<seed>/. The teacher is not run. A
    cache that was not made from this configuration is an error. Run the command again after an interruption to resume from the
    last checkpoint; the weights are the same as those of an uninterrupted run (on a GPU, with --deterministic).

    Two options keep the teacher in memory. With --fill, a block that the cache lacks is computed and stored when a step asks for
    it: the same bytes as those of `pipeline cache-teacher`, while the student already trains. With --live, nothing is stored, and
    every view is computed again in each epoch.

    \b
    $ pipeline train-student configs/demo.yaml --student erfnet --method intra --seed 0
    $ pipeline train-student configs/demo.yaml --student erfnet --method intra --seed 0 --fill
    """
    if live and fill:
        raise click.UsageError("give either --live, which stores nothing, or --fill, which does")
    with options.stoppable():
        from pipeline.progress import say
        from stages import train_student as stage

        cfg = options.load(config, overrides)
        folder = Path("runs") / cfg.name / options.run_name(student, method, seed)
        if not live and not fill and any(term.reads for term in cfg.method(method)) and began_with_fill(folder):
            say(f"{folder}: began with --fill, and goes on with it")
            fill = True
        options.echo_once(
            stage.run(
                options.experiment(cfg, root),
                student=student,
                method=method,
                seed=seed,
                folder=folder,
                device=options.pick(device, deterministic),
                online_targets=live,
                fill=fill,
                log=log,
            )
        )
        options.say_next("evaluate", config, overrides, None, "--student", student, "--method", method, "--seed", seed)


def began_with_fill(folder: Path) -> bool:
    """Whether a run is there whose cache was filled on the way. Its record says so, and a run without --fill would set it aside."""
    from pipeline import records

    path = folder / "run.json"
    parts = [record := records.read(path), *record.get("teachers", {}).values()] if path.exists() else []
    return any("filled" in part.get("cache", {}) for part in parts)


@options.command("evaluate")
@options.one_network
@options.weights
@options.device
@options.workers
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Frames per forward pass.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("reports/evaluate"),
    show_default=True,
    help="Output folder for the scores of --weights, and of a student whose factory provides the weights.",
)
def evaluate(config, overrides, student, method, seed, teacher, teacher_name, weights, device, workers, batch, out):
    """Score a trained student, or the teacher, on full frames.

    Reads the dataset and the weights of the run. Computes the mean IoU and the metrics of the dataset's official evaluator, if it
    has one. Writes reports/scores/<config>/<run>.json, a picture of some predictions beside it and, for the evaluator or its
    server, prediction files below runs/<config>/<run>/predictions/<split>.

    With --teacher and no --teacher-name, all teachers are scored; the files of an entry NAME of `teachers` are called
    teacher-NAME.

    With --weights, or for a student whose factory provides the weights, all files are written below OUT/<config>, and the scores
    don't count as a seed of a method in reports.

    \b
    $ pipeline evaluate configs/demo.yaml --student erfnet --method intra --seed 0
    $ pipeline evaluate configs/demo.yaml --teacher
    $ pipeline evaluate configs/demo.yaml --student erfnet --weights best.safetensors
    """
    from pipeline.errors import PipelineError
    from pipeline.records import not_left_by_a_run
    from stages import evaluate as stage

    cfg = options.load(config, overrides)
    all_teachers = teacher and teacher_name is None and weights is None
    for one in cfg.by_teacher if all_teachers else [teacher_name]:
        name, network = options.network(cfg, student, method, seed, teacher, weights, one)
        file = network["weights_file"]
        if weights is not None or file is None:
            name = options.file_name(name if teacher else student, weights)
            scores = out / cfg.name
            predictions = scores / f"{name}-predictions"
        else:
            scores, predictions = Path("reports/scores") / cfg.name, Path("runs") / cfg.name / name / "predictions"
            if not teacher and file.exists() and (fault := not_left_by_a_run(file)):
                raise PipelineError(
                    f"{file}: {fault}; score it with --student {student} --weights {file}, which counts for no method"
                )
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
@click.option(
    "--pictures",
    is_flag=True,
    help="Also run the networks and show their predictions on the same frames, affinity graphs and features.",
)
@click.option(
    "--features",
    "projection",
    type=click.Choice(["pca", "tsne"]),
    default="pca",
    show_default=True,
    help="With --pictures, how features are placed: by principal components, or by t-SNE (the extra `tsne`).",
)
@options.device
def report(config, overrides, root, pictures, projection, device):
    """Compare all scored runs in a page and a table.

    Reads reports/scores/<config>/ and runs/<config>/. Writes reports/<config>.html (a single file), reports/<config>.md and
    reports/<config>.json (for `dvc metrics`), and prints the table: means over seeds, and differences from plain training with
    confidence intervals.

    With --pictures, also reads the dataset and the weights, and the page is reports/<config>-pictures.html. This takes about a
    minute.

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
            cache_reports=[Path("reports/cache") / f"{options.of_teacher(cfg, name)}.json" for name in cfg.by_teacher],
            latency=Path("reports/latency") / cfg.name,
            root=root,
            weights_files={
                options.run_of_teacher(name): Path("teachers") / f"{options.of_teacher(cfg, name)}.safetensors"
                for name in cfg.by_teacher
            },
            out=Path("reports"),
            device=options.pick(device) if pictures else None,
            projection=projection,
        )
    )


@main.command("study")
@click.argument("study", type=click.Path(path_type=Path))
@options.root
@options.device
@click.option(
    "--jobs", type=click.IntRange(min=1), default=os.cpu_count(), show_default="cores", help="Number of runs in parallel."
)
@options.log
def study(study, root, device, jobs, log):
    """Train and score a student in several arms and seeds.

    Answers the question that the study file states in advance. Reads configs/studies/<study>.yaml, and the prepared store, the
    teacher and the target cache of the experiment. Writes runs/<study>/<arm>-<seed>, reports/studies/<study>/<arm>-<seed>.json,
    the table reports/studies/<study>.md and all scores in reports/studies/<study>.tsv. Run the command again after an
    interruption to resume.

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
                log=log,
            )
        )


@options.command("tune")
@options.student
@click.option("--method", shell_complete=options.entries("methods"), help="Method to tune. Default: the first with a loss.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of each run. Default: a tenth of training.steps.")
@click.option(
    "--lr",
    "rates",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    help="Learning rate to try. May be repeated. Default: training.lr times 0.3, 1 and 3.",
)
@click.option(
    "--share",
    "shares",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    default=[0.1, 0.3, 1.0],
    show_default=True,
    help="Gradient of each loss, as a share of that of the loss on labels. May be repeated.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Seeds of each run.")
@options.root
@options.device
def tune(config, overrides, student, method, steps, rates, shares, seeds, root, device):
    """Propose weights of a method and a learning rate.

    Trains short runs from the cached targets: plain training at each --lr, then the method at the best rate with each --share.
    Scores them on the split val, never on test. Prints a table and the lines to put into CONFIG. Writes
    runs/tune-<config>/<run>. Run the command again after an interruption to resume.

    \b
    $ pipeline tune configs/demo.yaml --student erfnet --method intra
    """
    with options.stoppable():
        from pipeline.errors import ConfigError
        from stages import train_student
        from stages import tune as stage

        cfg = options.load(config, overrides)
        first = next((name for name, terms in cfg.methods.items() if terms), None)
        if method is None:
            method = first
        if method is None:
            raise ConfigError(f"{cfg.path}: methods: none has a loss; there is no weight to tune")
        lr = cfg.training.lr
        click.echo(
            stage.run(
                options.experiment(cfg, root),
                student=student,
                method=method,
                steps=steps or max(1, cfg.training.steps // 10),
                rates=rates or [float(f"{lr * factor:.3g}") for factor in (0.3, 1, 3)],
                shares=shares,
                seeds=seeds,
                folder=Path("runs") / f"tune-{cfg.name}",
                device=options.pick(device),
                train=train_student.run,
            )
        )
