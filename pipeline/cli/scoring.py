"""`pipeline score`: score files of predictions from any program."""

from pathlib import Path

import click

from pipeline.cli import options
from pipeline.cli.group import main


@main.group("score")
def score():
    """Score files of predictions from any program.

    Reads predictions and labels, and prints the metrics that the official evaluators of CULane, LLAMAS, ApolloScape and
    Cityscapes compute.

    \b
    $ pipeline score segmentation runs/cityscapes/erfnet-intra-0/predictions/val configs/cityscapes.yaml
    """


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def _size_option(*default):
    return click.option(
        "--size", type=int, nargs=2, default=default, show_default=True, metavar="H W", help="Size of the frames, in pixels."
    )


@score.command("culane")
@click.argument("predictions", metavar="PRED", type=click.Path(path_type=Path))
@click.argument("truth", metavar="TRUTH", type=click.Path(path_type=Path))
@click.option(
    "--list",
    "lists",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="List of frames, or a folder with one list per category. May be repeated.",
)
@click.option(
    "--iou",
    "ious",
    multiple=True,
    type=click.FloatRange(0, 1),
    default=[0.5],
    show_default=True,
    help="IoU above which a lane counts as found. May be repeated; several values take no more time than one.",
)
@click.option(
    "--width", type=click.IntRange(min=1), default=30, show_default=True, help="Width at which lanes are drawn, in pixels."
)
@_size_option(590, 1640)
@options.workers
@_json
def score_culane(predictions, truth, lists, ious, width, size, workers, as_json):
    """Compute the F1 score of CULane.

    Reads the .lines.txt files below PRED (predictions) and TRUTH (labels), and prints TP, FP, FN and F1 as counted by the
    official program. F1 = 2PR / (P + R), where precision P and recall R come from the sums of TP, FP and FN over all frames.
    Crossroad frames have no lanes; the table shows their FP.

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
@click.option("--recording", "recordings", multiple=True, help="Folder of LABELS to score. May be repeated. Default: all folders.")
@_size_option(717, 1276)
@options.workers
@_json
def score_llamas(predictions, labels, recordings, size, workers, as_json):
    """Compute the average precision (AP) of LLAMAS.

    Reads the probability maps below PRED, named <recording>/<stamp>.json_0.png to <stamp>.json_4.png for each frame, and the
    labels below LABELS, a folder of recordings with JSON files such as labels/valid. Prints the AP of each class and the mean
    over l1, l0, r0 and r1, as the official evaluator computes them.

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
@click.option("--split", help="Split of the dataset. Default: `evaluate.split` of CONFIG.")
@options.workers
@_json
def score_segmentation(predictions, config, split, workers, as_json):
    """Compute the mean IoU of PNG files of label ids.

    Reads the PNG files of official label ids below PRED, and the labels of the ApolloScape or Cityscapes dataset that CONFIG
    describes. The files are named as for submission to the evaluation server: test/<road>/<stem>.png for ApolloScape,
    <city>_<sequence>_<frame>.png for Cityscapes. Prints the IoU of each class and the mean.

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
