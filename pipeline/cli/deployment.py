"""What a trained network is taken away with."""

import os
from pathlib import Path

import click

from pipeline.cli import options


@options.command("predict")
@click.argument("place", metavar="INPUT", type=click.Path(path_type=Path))
@options.one_network
@options.weights
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the results, of this network and input alone."
)
@click.option(
    "--as",
    "kinds",
    multiple=True,
    type=click.Choice(["overlay", "ids", "colours", "lanes", "submission"]),
    default=["overlay"],
    show_default=True,
    help="What to write, each in a folder of that name. May be repeated.",
)
@click.option("--crop-top", type=click.IntRange(min=0), help="Rows to cut at the top of each frame; if not given, the dataset's.")
@options.device
@options.workers
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

    cfg = options.load(config, overrides)
    _, network = options.network(cfg, student, method, seed, teacher, weights)
    click.echo(
        stage.run(
            dataset=cfg.dataset,
            prepare=cfg.prepare,
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
    help="uint8 [batch, height, width, 3], or float32 [batch, 3, height, width]; both RGB in 0..255.",
)


@options.command("export")
@options.one_network
@options.weights
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The .onnx file.")
@_input
@click.option(
    "--images", type=click.IntRange(min=1), default=16, show_default=True, help="How many of the dataset's to compare on."
)
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

    cfg = options.load(config, overrides)
    _, network = options.network(cfg, student, method, seed, teacher, weights)
    click.echo(
        stage.run(
            dataset=cfg.dataset,
            prepare=cfg.prepare,
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
@click.option("--student", shell_complete=options.entries("students"), help="An entry of the file's `students`.")
@click.option("--teacher", is_flag=True, help="The teacher instead of a student.")
@_input
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    default=[1, 8],
    show_default=True,
    help="Images at a time. May be repeated.",
)
@click.option("--runs", type=click.IntRange(min=1), default=100, show_default=True, help="Of each batch and runtime.")
@click.option(
    "--threads", type=click.IntRange(min=1), default=os.cpu_count(), show_default="cores", help="CPU threads of each runtime."
)
@options.device
def latency(config, overrides, student, teacher, takes, batches, runs, threads, device):
    """Time a network in torch and in ONNX Runtime: median and 99th percentile for a batch, the machine stated.

    Needs no trained weights, since the time does not depend on them, but the extra `export`. The runtimes take turns.

    \b
    $ pipeline latency configs/demo.yaml --student erfnet --threads 1
    """
    from stages import latency as stage

    cfg = options.load(config, overrides)
    if teacher == (student is not None):
        raise click.UsageError("give either --student or --teacher")
    model, training = (cfg.teacher.model, None) if teacher else (cfg.student(student), cfg.training)
    click.echo(
        stage.run(
            dataset=cfg.dataset,
            prepare=cfg.prepare,
            training=training,
            model=model,
            takes=takes,
            batches=batches,
            runs=runs,
            threads=threads,
            device=options.pick(device),
        )
    )
