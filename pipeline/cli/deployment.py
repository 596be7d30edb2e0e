"""`pipeline predict`, `export` and `latency`: use a trained network outside the pipeline."""

import os
from pathlib import Path

import click

from pipeline.cli import options


@options.command("predict")
@click.argument("place", metavar="INPUT", type=click.Path(path_type=Path))
@options.one_network
@options.weights
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Output folder, for one network and one input.")
@click.option(
    "--as",
    "kinds",
    multiple=True,
    type=click.Choice(["overlay", "ids", "colours", "lanes", "submission"]),
    default=["overlay"],
    show_default=True,
    help="Kind of output, written to a subfolder of that name. May be repeated.",
)
@click.option(
    "--crop-top", type=click.IntRange(min=0), help="Rows to cut from the top of each frame. Default: the dataset's value."
)
@options.device
@options.workers
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Frames per forward pass.")
def predict(
    config, overrides, place, student, method, seed, teacher, teacher_name, weights, out, kinds, crop_top, device, workers, batch
):
    """Run a trained network on images or a video.

    Reads INPUT and the network's weights. INPUT is an image, a video, or a folder, which is searched recursively for images.
    Writes the predictions at the full resolution of the frames to the folder --out; the overlays of a video are written as a
    video. Frames are cropped and resized as in `pipeline evaluate`.

    Images that can't be read are listed at the end, and the exit code is 1. A folder --out that holds the results of another
    network or input is an error.

    \b
    $ pipeline predict configs/demo.yaml data/demo --student erfnet --method intra --seed 0 --out seen
    """
    from stages import predict as stage

    cfg = options.load(config, overrides)
    _, network = options.network(cfg, student, method, seed, teacher, weights, teacher_name)
    click.echo(
        stage.run(
            dataset=cfg.dataset,
            prepare=cfg.prepare,
            evaluate=cfg.evaluate,
            **network,
            place=place,
            out=out,
            kinds=tuple(dict.fromkeys(kinds)),
            crop_top=crop_top,
            device=options.pick(device),
            batch=batch,
            workers=workers,
        )
    )


_input = click.option(
    "--input",
    "takes",
    type=click.Choice(["uint8", "float32"]),
    default="uint8",
    show_default=True,
    help="Type of the network's input: uint8 [batch, height, width, 3] or float32 [batch, 3, height, width], both RGB in 0..255.",
)


@options.command("export")
@options.one_network
@options.weights
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Path of the .onnx file.")
@_input
@click.option(
    "--images", type=click.IntRange(min=1), default=16, show_default=True, help="Number of the dataset's images to compare on."
)
@click.option("--split", help="Split of the dataset to compare on. Default: `evaluate.split` of the configuration.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def export(config, overrides, student, method, seed, teacher, teacher_name, weights, out, takes, images, split, force):
    """Export a trained network to ONNX and check the result.

    Reads the network's weights and some images of the dataset, and writes the .onnx file. The graph includes normalisation,
    padding and upsampling; the file's metadata describes the crop and resize. The batch size is dynamic, the image size fixed.

    Prints the largest difference between ONNX Runtime and PyTorch and the share of pixels with the same class. If the two
    disagree, no file is written. Requires the extra `export`. Takes about half a minute.

    \b
    $ pipeline export configs/demo.yaml --student erfnet --method intra --seed 0 --out erfnet.onnx
    """
    from stages import export as stage

    cfg = options.load(config, overrides)
    _, network = options.network(cfg, student, method, seed, teacher, weights, teacher_name)
    click.echo(
        stage.run(
            dataset=cfg.dataset,
            prepare=cfg.prepare,
            evaluate=cfg.evaluate,
            **network,
            out=out,
            takes=takes,
            split=split or cfg.evaluate.split,
            images=images,
            force=force,
        )
    )
    options.say_next("latency", config, overrides, None, *(["--teacher"] if teacher else ["--student", student]))


@options.command("latency")
@click.option("--student", shell_complete=options.entries("students"), help="Student, an entry of `students` in CONFIG.")
@click.option("--teacher", is_flag=True, help="Use the teacher instead of a student.")
@options.which_teacher
@_input
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    default=[1, 8],
    show_default=True,
    help="Batch size. May be repeated.",
)
@click.option(
    "--runs", type=click.IntRange(min=1), default=100, show_default=True, help="Timed runs for each batch size and runtime."
)
@click.option(
    "--threads", type=click.IntRange(min=1), default=os.cpu_count(), show_default="cores", help="CPU threads for each runtime."
)
@options.device
def latency(config, overrides, student, teacher, teacher_name, takes, batches, runs, threads, device):
    """Measure latency in PyTorch and ONNX Runtime.

    Reads only the configuration: the network is timed untrained, because its weights don't affect the time. Prints the
    machine and, for each batch size, the median and the 99th percentile of the latency. The runs of the two runtimes alternate.
    Requires the extra `export`.

    \b
    $ pipeline latency configs/demo.yaml --student erfnet --threads 1
    """
    from stages import latency as stage

    cfg = options.load(config, overrides)
    if teacher == (student is not None):
        raise click.UsageError("give either --student or --teacher")
    name, model, training = student, None, None
    if teacher:
        name = options.one_teacher(cfg, teacher_name)
        name, model = options.run_of_teacher(name), cfg.of_teacher(name).teacher.model
    else:
        model, training = cfg.student(student), cfg.training
    click.echo(
        stage.run(
            dataset=cfg.dataset,
            size=cfg.evaluate.window or cfg.prepare.size,
            training=training,
            model=model,
            takes=takes,
            batches=batches,
            runs=runs,
            threads=threads,
            device=options.pick(device),
            report=Path("reports/latency") / cfg.name / f"{name}.json",
        )
    )
