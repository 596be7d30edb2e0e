"""`pipeline score`: files of predictions, of whatever origin."""

from pathlib import Path

import click

from pipeline.cli import options
from pipeline.cli.group import main


@main.group("score")
def score():
    """Score files of predictions, of whatever origin, as CULane's, LLAMAS's, ApolloScape's and Cityscapes' evaluators do."""


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def _size_option(*default):
    return click.option("--size", type=int, nargs=2, default=default, show_default=True, metavar="H W", help="Of the frames.")


@score.command("culane")
@click.argument("predictions", metavar="PRED", type=click.Path(path_type=Path))
@click.argument("truth", metavar="TRUTH", type=click.Path(path_type=Path))
@click.option(
    "--list",
    "lists",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="A list of frames, or a folder of lists, one a category. May be repeated.",
)
@click.option(
    "--iou",
    "ious",
    multiple=True,
    type=click.FloatRange(0, 1),
    default=[0.5],
    show_default=True,
    help="A lane is found above it. May be repeated, at the cost of one.",
)
@click.option("--width", type=click.IntRange(min=1), default=30, show_default=True, help="Of the drawn lanes, in pixels.")
@_size_option(590, 1640)
@options.workers
@_json
def score_culane(predictions, truth, lists, ious, width, size, workers, as_json):
    """F1 of the .lines.txt below PRED against those below TRUTH, with the counts of the official program.

    F1 = 2PR / (P + R), from TP, FP and FN summed over the frames. Crossroads have no lanes: their FP counts.

    \b
    $ pipeline score culane runs/culane/erfnet-intra-0/predictions/test data/culane --list data/culane/list/test_split
    """
    from stages import score as stage

    click.echo(
        stage.culane(
            predictions=predictions, truth=truth, lists=lists, ious=ious, width=width, size=size, workers=workers, as_json=as_json
        )
    )


@score.command("llamas")
@click.argument("predictions", metavar="PRED", type=click.Path(path_type=Path))
@click.argument("labels", metavar="LABELS", type=click.Path(path_type=Path))
@click.option("--recording", "recordings", multiple=True, help="Score only this folder of LABELS. May be repeated.")
@_size_option(717, 1276)
@options.workers
@_json
def score_llamas(predictions, labels, recordings, size, workers, as_json):
    """AP of the probability maps below PRED, and their mean over l1, l0, r0, r1, as officially.

    LABELS holds recordings of JSON files, as labels/valid does. Of each frame PRED has <recording>/<stamp>.json_0.png to _4.png.

    \b
    $ pipeline score llamas runs/llamas/erfnet-intra-0/predictions/test data/llamas/labels/valid \\
        --recording images-2014-12-22-14-19-07_mapping_280S_3rd_lane
    """
    from stages import score as stage

    click.echo(
        stage.llamas(predictions=predictions, labels=labels, recordings=recordings, size=size, workers=workers, as_json=as_json)
    )


@score.command("segmentation")
@click.argument("predictions", metavar="PRED", type=click.Path(path_type=Path))
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--split", help="Of the dataset; without it the file's `evaluate.split`.")
@options.workers
@_json
def score_segmentation(predictions, config, split, workers, as_json):
    """Mean IoU of PNGs of official ids below PRED, for the ApolloScape or Cityscapes dataset that CONFIG describes.

    PRED is laid out as for the server: test/<road>/<stem>.png, or <city>_<sequence>_<frame>.png.

    \b
    $ pipeline score segmentation runs/cityscapes/erfnet-intra-0/predictions/val configs/cityscapes.yaml
    """
    from stages import score as stage

    cfg = options.load(config, ())
    click.echo(
        stage.segmentation(
            predictions=predictions, dataset=cfg.dataset, split=split or cfg.evaluate.split, workers=workers, as_json=as_json
        )
    )
