"""What the networks of an experiment make of the same images: their answers, their affinity graphs, their deep features.

After Figs. 8, 5 and 9 of Hou, Ma, Liu, Hui, Loy, "Inter-Region Affinity Distillation for Road Marking Segmentation", CVPR 2020.
Departures: features are shown by principal components unless t-SNE is asked for, since these keep distances; and graphs of all
networks are drawn to one scale, or their edges could not be compared.

B images, H W the network input, C channels, h w a layer's grid, N cells, K regions.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from pipeline.config import Config, Plugin, Prepare
from pipeline.data.frames import canvas, frame
from pipeline.datasets.base import DatasetBase
from pipeline.errors import PipelineError
from pipeline.lookup import find_class
from pipeline.metrics.segmentation import Confusion
from pipeline.models.base import ModelBase, Output
from pipeline.reporting import record_pictures as pictures
from pipeline.reporting.charts import INK, new_figure, svg
from pipeline.reporting.results import Results
from pipeline.scoring import load as trained
from pipeline.scoring import predict as prediction
from pipeline.scoring.predict import Sample
from pipeline.teacher import cache

SHOWN, MEASURED = 4, 16  # images drawn, images that distances and features are taken from
CELLS = 100  # of a class, in the drawing of features
FEATURES = "high"  # the layer of the drawing of features
WIDTH = 440  # of a picture, px


@dataclass(frozen=True)
class Picture:
    name: str
    data: str  # a data URI
    score: float | None  # mean IoU of this frame


@dataclass(frozen=True)
class Frame:
    image_id: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Graph:
    name: str
    drawing: str
    here: float | None  # distance to the teacher's on the image drawn; None: the teacher's own
    mean: float | None  # over the measured images


@dataclass(frozen=True)
class Features:
    name: str
    drawing: str
    between: float  # share of the variance that lies between the classes' means


@dataclass(frozen=True, kw_only=True)
class NetworkPictures:
    classes: list[tuple[str, str]]  # names and CSS colours
    frames: list[Frame]
    graph_image: str
    num_graphs: int
    graphs: dict[str, list[Graph]]  # by layer; none where no image has labels
    edges: dict[str, tuple[float, float]]  # by layer: the cosines of the thinnest and of the thickest edge
    feature_layer: str
    num_features: int
    features: list[Features]
    projection: str = "pca"  # or "tsne"


def draw_networks(
    config: Config, results: Results, runs: Path, weights_file: Path, device: str, projection: str = "pca"
) -> NetworkPictures:
    """Of the teacher, and of each student and method's run with the lowest seed; `projection` of features is "pca" or "tsne".
    PipelineError where weights are missing, or scikit-learn for t-SNE."""
    if projection == "tsne":
        _tsne()  # before anything runs
    source, prepare, teacher = config.dataset.build(), config.prepare, config.teacher
    ids = source.ids(config.evaluate.split)
    chosen = [ids[number] for number in np.linspace(0, len(ids) - 1, min(MEASURED, len(ids))).round().astype(int)]
    samples = [Sample(image_id, source.image(image_id), source.label(image_id)) for image_id in chosen]
    shown = samples[:: max(1, len(samples) // SHOWN)][:SHOWN]
    measured = [sample for sample in samples if sample.label is not None]
    answers, features = {}, {}
    graphs: dict[str, dict] = {}  # by layer and network
    rows_of: dict[str, list] = {}  # by layer
    window = config.evaluate.window or prepare.size  # features are those of one window
    for name, network in _networks(source, config, results, runs, weights_file, device):
        whole = trained.sliding(network, prepare, config.evaluate)
        found = prediction.answered(whole, source, shown, prepare.size, device=device, batch=SHOWN, fit=prepare.fit)
        answers[name] = [answer.classes_HW for _, answer in found]
        outputs = [_answer(network, sample, source, prepare, window, device) for sample in measured]
        for layer, target in _affinities(config.targets).items():
            context = cache.context(teacher.model, source, window)
            rows_of.setdefault(layer, [target.compute(*one, context) for one in outputs])
            graphs.setdefault(layer, {})[name] = [
                target.graph(output.features[layer], target.seen(labels, **rows), context)
                for (output, labels), rows in zip(outputs, rows_of[layer])
            ]
        features[name] = _cells([(output.features[FEATURES], labels) for output, labels in outputs])
    regions = cache.context(teacher.model, source, window).regions
    drawn = {layer: _graphs(found, regions, source) for layer, found in graphs.items()} if measured else {}
    return NetworkPictures(
        classes=[
            (name, "rgb({}, {}, {})".format(*source.colours[number]))
            for number, name in enumerate(source.classes)
            if number != source.background
        ],
        frames=[
            _frame(sample, {name: found[number] for name, found in answers.items()}, source) for number, sample in enumerate(shown)
        ],
        graph_image=measured[0].image_id if measured else "",
        num_graphs=len(measured),
        graphs={layer: drawings for layer, (drawings, _) in drawn.items()},
        edges={layer: limits for layer, (_, limits) in drawn.items()},
        feature_layer=FEATURES,
        num_features=len(measured),
        features=[_features(name, *cells, source, projection) for name, cells in features.items() if len(cells[0])],
        projection=projection,
    )


def _networks(source, config, results, runs, weights_file, device):
    """Names and networks, the teacher first; one at a time, as they need not fit into memory together."""
    prepare, window = config.prepare, config.evaluate.window
    yield "teacher", trained.load(config.teacher.model, source, prepare, None, weights_file, device, window=window)
    for (student, method), found in results.groups().items():
        file = runs / found[0].name / "weights.safetensors"
        plugin = config.students[student]
        yield f"{student} {method}", trained.load(plugin, source, prepare, config.training, file, device, window=window)


@torch.no_grad()
def _answer(
    network: ModelBase, sample: Sample, source: DatasetBase, prepare: Prepare, window: tuple[int, int], device: str
) -> tuple[Output, torch.Tensor]:
    """The output of one image, or of the window in its middle, and the labels [1, H, W] that belong to it, on the CPU."""
    image, label = frame(sample.image, sample.label, source.rows_cut(len(sample.image)), prepare.size, prepare.fit)
    middle = tuple(slice((of - side) // 2, (of + side) // 2) for of, side in zip(label.shape, canvas(window)))
    image, label = image[middle], label[middle]
    labels_1HW = torch.from_numpy(label)[None]
    output = network(
        torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float(), labels_1HW.to(device) if network.uses_labels else None
    )
    features = {layer: values.float().cpu() for layer, values in output.features.items()}
    return Output(output.logits.float().cpu(), features), labels_1HW


def _affinities(targets: Mapping[str, Plugin]) -> dict[str, Any]:
    """By layer: the experiment's own affinity targets, or those of the paper if it has none."""
    own = [plugin.build() for plugin in targets.values() if plugin.name == "affinity"]
    of_the_paper = [find_class("targets", "affinity")(layer=layer) for layer in ("mid", "high")]
    return {target.layer: target for target in own or of_the_paper}


def _graphs(
    found: Mapping[str, Sequence[Mapping]], regions: Sequence[int], source: DatasetBase
) -> tuple[list[Graph], tuple[float, float]]:
    """Drawn for the first image, by the cosines of mean features; with the cosines of the thinnest and of the thickest edge."""
    teacher = found["teacher"]
    loss = find_class("losses", "affinity")(reads={}, context=None, student=None)
    present = np.flatnonzero((teacher[0]["cells"][0] > 0).numpy()).tolist()
    matrices = {name: many[0]["graph"][0, 0].numpy()[np.ix_(present, present)] for name, many in found.items()}
    apart = np.concatenate([matrix[~np.eye(len(present), dtype=bool)] for matrix in matrices.values()])
    limits = (float(apart.min()), float(apart.max())) if len(apart) else (0.0, 1.0)
    drawn = []
    for name, many in found.items():
        figure, axes = new_figure(2.8, 2.4)
        pictures.draw_graph(
            axes,
            matrices[name],
            [source.classes[regions[k]] for k in present],
            [source.colours[regions[k]] for k in present],
            limits,
            INK,
        )
        distances = [float(loss.distance(student, rows)) for student, rows in zip(many, teacher)]
        own = name == "teacher"
        drawn.append(Graph(name, _markup(svg(figure)), None if own else distances[0], None if own else float(np.mean(distances))))
    return drawn, limits


def _cells(outputs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """[N, C] features and [N] labels at the cells' centres, at most CELLS a class, the same every time."""
    features, labels = [np.zeros((0, 0), np.float32)], [np.zeros(0, np.uint8)]
    for features_1Chw, labels_1HW in outputs:
        (h, w), (H, W) = features_1Chw.shape[2:], labels_1HW.shape[1:]
        centres = labels_1HW[0][torch.arange(h)[:, None] * H // h + H // h // 2, torch.arange(w) * W // w + W // w // 2]
        features.append(features_1Chw[0].flatten(1).T.numpy())
        labels.append(centres.flatten().numpy())
    found, known = np.concatenate(features[1:] or features), np.concatenate(labels)
    rng = np.random.default_rng(0)
    chosen = [rng.permutation(np.flatnonzero(known == value))[:CELLS] for value in np.unique(known) if value != 255]
    kept = np.concatenate(chosen) if chosen else np.zeros(0, int)
    return found[kept], known[kept]


def between_classes(features_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """The share of the variance that the classes' means explain: 0 if they are all one, 1 if all cells of a class are equal."""
    centred = features_NC.astype(np.float64) - features_NC.mean(axis=0, dtype=np.float64)
    groups = [centred[labels_N == value] for value in np.unique(labels_N)]
    between = sum(len(group) * np.square(group.mean(axis=0)).sum() for group in groups)
    return float(between / max(np.square(centred).sum(), 1e-30))


def components(features_NC: np.ndarray) -> np.ndarray:
    """[N, 2] along the two directions of greatest variance; the sign makes the farthest cell's coordinate positive."""
    centred = features_NC.astype(np.float64) - features_NC.mean(axis=0, dtype=np.float64)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    places = centred @ directions[:2].T
    return places * np.sign(places[np.abs(places).argmax(axis=0), np.arange(places.shape[1])])


def neighbours(features_NC: np.ndarray) -> np.ndarray:
    """[N, 2] by t-SNE (van der Maaten, Hinton, "Visualizing Data using t-SNE", JMLR 2008), from the principal components on: cells
    that are near stay near, distances mean nothing. The same every time on one machine."""
    if len(features_NC) < 5:
        return components(features_NC)
    perplexity = min(30.0, (len(features_NC) - 1) / 3)
    found: np.ndarray = _tsne()(perplexity=perplexity, init="pca", random_state=0).fit_transform(features_NC.astype(np.float32))
    return found


def _tsne() -> Any:
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise PipelineError("t-SNE needs scikit-learn: pip install 'offline-distillation-pipeline[tsne]'") from None
    return TSNE


PROJECTIONS = {"pca": components, "tsne": neighbours}


def _features(name: str, features_NC: np.ndarray, labels_N: np.ndarray, source: DatasetBase, projection: str = "pca") -> Features:
    figure, axes = new_figure(2.6, 2.4)
    colours = np.array(source.colours)[labels_N] / 255
    order = np.random.default_rng(0).permutation(len(labels_N))  # or the last class would cover the others
    axes.scatter(*PROJECTIONS[projection](features_NC)[order].T, s=7, c=colours[order], edgecolors=INK, linewidths=0.15)
    axes.set_xticks([])
    axes.set_yticks([])
    return Features(name, _markup(svg(figure)), between_classes(features_NC, labels_N))


def _frame(sample: Sample, answers: Mapping[str, np.ndarray], source: DatasetBase) -> Frame:
    def shown(name, classes, score=None):
        picture = sample.image if classes is None else prediction.overlay(sample.image, classes, source)
        height = round(picture.shape[0] * WIDTH / picture.shape[1])
        small = cv2.resize(picture, (WIDTH, height), interpolation=cv2.INTER_AREA)
        encoded = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
        return Picture(name, "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode(), score)

    found = [shown("image", None)]
    if sample.label is not None:
        found.append(shown("ground truth", sample.label))
    for name, classes in answers.items():
        score = None
        if sample.label is not None:
            counts = Confusion(len(source.classes))
            counts.add(sample.label, classes)
            score = counts.mean_iou()
        found.append(shown(name, classes, score))
    return Frame(sample.image_id, found)


def _markup(text: str):
    from markupsafe import Markup

    return Markup(text)
