"""Score files of predictions, of whatever origin, as the official evaluators do; dvc.yaml has `evaluate` for that."""

import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pipeline.config import Plugin
from pipeline.datasets._images import image_size, read_index_png, require_size
from pipeline.datasets._lists import found_files
from pipeline.datasets.llamas import drawn, read_lanes
from pipeline.errors import ConfigError, DatasetError
from pipeline.metrics import base as metrics
from pipeline.metrics import culane as culane_metric
from pipeline.metrics import llamas as llamas_metric
from pipeline.metrics._classes import ClassMetric, class_scores
from pipeline.metrics.segmentation import Confusion
from pipeline.paths import below
from pipeline.progress import Progress, say
from pipeline.threads import map_in_order

FOREIGN = 254  # an official id without a train id, as a prediction: wrong wherever it stands


def culane(
    *,
    predictions: Path,
    truth: Path,
    lists: Sequence[Path],
    ious: Sequence[float],
    width: int,
    size: tuple[int, int],
    workers: int,
    as_json: bool,
) -> str:
    """The official counts as a table or as JSON, one for each threshold if there are several. A frame without a file
    counts as without lanes; a warning says so."""
    by_name = named_lists(lists)
    at = culane_metric.scores(predictions, truth, by_name, list(dict.fromkeys(ious)), width, size, workers)
    warn_of_frame_size(truth, by_name, size)
    missing, frames = (next(iter(at.values()))[count] for count in ("missing", "frames"))
    if not frames:
        raise DatasetError(f"{', '.join(map(str, lists))}: the list names no frame; write one a line, or name another with --list")
    if missing == frames:
        raise DatasetError(
            f"{predictions}: holds a .lines.txt for none of the {frames} frames of the lists; "
            f"it should have them at the same paths as {truth}"
        )
    if missing:
        say(f"Warning: {predictions}: {missing} of {frames} frames have no .lines.txt; they count as frames without lanes")
    if as_json:
        return json.dumps(at if len(at) > 1 else at.popitem()[1], indent=1)
    head = ("tp", "fp", "fn", "precision", "recall", "f1")
    texts = []
    for iou, found in at.items():
        rows = {**(found["categories"] if len(found["categories"]) > 1 else {}), "total": found["total"]}
        title = f"IoU {iou:g}" if len(at) > 1 else ""
        texts.append(table((title, *head), [(name, *(ratios[key] for key in head)) for name, ratios in rows.items()]))
    return "\n\n".join(texts)


def warn_of_frame_size(truth: Path, lists: Mapping[str, Path], size: tuple[int, int]) -> None:
    """Says so where the first frame lies beside its lanes and is of another size."""
    frame = next((frame for path in lists.values() for frame in culane_metric.read_list(path)), "")
    for suffix in (".jpg", ".png"):
        path = truth / (frame.removesuffix(".lines.txt") + suffix)
        if path.is_file():
            height, width = image_size(path)
            if (height, width) != tuple(size):
                say(
                    f"Warning: {path}: is {width} x {height} pixels, but lanes are drawn in frames of {size[1]} x {size[0]}; "
                    f"give the size of your frames: --size {height} {width}"
                )
            return


def named_lists(paths: Sequence[Path]) -> dict[str, Path]:
    """Category -> list; a folder gives all its .txt. `test0_normal.txt` is the category normal; others stay."""
    files = [file for path in paths for file in (found_files(path, "*.txt") if path.is_dir() else [path])]
    lists: dict[str, Path] = {}
    for file in files:
        name = file.stem.split("_", 1)[1] if file.stem.startswith("test") and "_" in file.stem else file.stem
        if name in lists:
            raise DatasetError(f"{file}: is a second list {name!r}, beside {lists[name]}; give each of them once")
        lists[name] = file
    return lists


def llamas(
    *, predictions: Path, labels: Path, recordings: Sequence[str], size: tuple[int, int], workers: int, as_json: bool
) -> str:
    """AP of each class and their mean, as a table or as JSON. A missing map is an error, as officially."""
    culane_metric.require_frame_size(size)
    paths = [path for path in found_files(labels, "*/*.json") if not recordings or path.parent.name in recordings]
    if lacking := sorted(set(recordings) - {path.parent.name for path in paths}):
        raise DatasetError(f"{labels / lacking[0]}: no such recording; correct --recording")
    frames = {f"{path.parent.name}/{path.stem}": path for path in paths}
    maps = [llamas_metric.map_path(predictions, name, k) for name in frames for k in range(len(llamas_metric.CLASSES))]
    require_all(maps, "write it, or score only some recordings with --recording")
    found = llamas_metric.score(predictions, list(frames), lambda name: drawn(read_lanes(frames[name]), size), workers)
    if as_json:
        return json.dumps(found, indent=1)
    head = ("", "ap", "precision", "recall", "threshold")
    rows = [(name, ap, *found["best"][name].values()) for name, ap in found["ap"].items()]
    return table(head, [*rows, ("mean of lanes", found["map"], None, None, None)])


def segmentation(*, predictions: Path, dataset: Plugin, split: str, workers: int, as_json: bool) -> str:
    """Mean IoU of PNGs of official ids, at the paths where `evaluate` writes them, as a table or as JSON."""
    source = dataset.build()
    if not isinstance(metrics.of(source), ClassMetric):
        raise ConfigError(f"dataset {dataset.name!r} has no official form of PNGs; this scores apolloscape and cityscapes")
    train_ids = np.full(256, FOREIGN, np.uint8)
    train_ids[list(source.official_ids)] = range(len(source.official_ids))
    counted = np.zeros(256, bool)
    counted[list(source.evaluated)] = True
    values = np.zeros(256, np.int64)  # how often each is predicted where it counts
    confusion, ids = Confusion(len(source.classes)), source.ids(split)
    paths = {image_id: below(predictions, source.prediction_path(image_id).as_posix(), DatasetError) for image_id in ids}
    require_all(paths.values(), "write it: every frame of the split counts")

    def count(image_id):
        counts, label = Confusion(len(source.classes)), source.label(image_id)
        if label is None:
            raise DatasetError(f"{paths[image_id]}: its frame {image_id!r} has no label to score against; choose another --split")
        predicted = read_index_png(paths[image_id], train_ids)
        require_size(paths[image_id], predicted.shape, label.shape, "its label")
        counts.add(label, train_ids[predicted])
        return counts, np.bincount(predicted[counted[label]], minlength=256)

    with ThreadPoolExecutor(workers) as pool, Progress("scoring", len(ids), "images") as progress:
        for counts, found in map_in_order(pool, count, ids, 2 * workers):
            confusion.merge(counts)
            values += found
            progress.advance()
    if foreign := values[train_ids == FOREIGN].sum():
        say(
            f"Warning: {predictions}: {foreign / values.sum():.2%} of the pixels that count hold "
            f"{what_foreign(values, train_ids, source.metric)}"
        )
    found = {"images": len(ids), **class_scores(source, confusion)}
    if as_json:
        return json.dumps(found, indent=1)
    name = source.metric
    rows = [
        *found[f"{name}_iou"].items(),
        ("mean of classes", found[f"{name}_miou"]),
        *found[f"{name}_category_iou"].items(),
        ("mean of categories", found[f"{name}_category_miou"]),
    ]
    return table(("", "iou"), rows)


def what_foreign(values: np.ndarray, train_ids: np.ndarray, dataset: str) -> str:
    """`values`: how often each comes in the predictions."""
    foreign = np.flatnonzero((values > 0) & (train_ids == FOREIGN))
    shown = ", ".join(map(str, foreign[:4])) + (", ..." if len(foreign) > 4 else "")
    if np.flatnonzero(values).max() < np.count_nonzero(train_ids != FOREIGN):
        return f"{shown}, no official ids of {dataset}: all values are as low as train ids; write `dataset.prediction_ids(...)`"
    return f"{shown}, official ids of {dataset} without a class, or none; they count as wrong"


def require_all(paths: Collection[Path], to_do: str) -> None:
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise DatasetError(f"{missing[0]}: no such file; {len(missing)} of {len(paths)} are missing; {to_do}")


def table(head: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Names to the left, numbers to the right; a dash where a number does not exist."""

    def cell(value):
        return "-" if value is None else f"{value:.6f}" if isinstance(value, float) else str(value)

    lines = [[cell(value) for value in row] for row in (head, *rows)]
    first, *others = (max(map(len, column)) for column in zip(*lines))
    return "\n".join(
        name.ljust(first) + "".join(text.rjust(width + 2) for text, width in zip(cells, others)) for name, *cells in lines
    )
