"""Figures of what is stored: one record (image, regions, teacher's answer, attention, affinity graphs) on one sheet."""

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from pipeline.datasets.base import DatasetBase
from pipeline.scoring.predict import overlay

BRIGHTEST = 99.5  # percentile of an attention map that is shown brightest: a few cells may tower over the rest
MOMENTS = ("mean", "variance", "skewness")


def record_figure(
    title: str,
    image: np.ndarray,
    labels: np.ndarray,
    prediction: np.ndarray | None,
    attention: Mapping[str, np.ndarray],
    graphs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    dataset: DatasetBase,
    regions: Sequence[int],
):
    """A matplotlib figure. `image` [H, W, 3] and `labels` [H, W] as the teacher saw them, `prediction` [H, W] or None,
    attention maps [h, w] by target name, graphs (graph [3, K, K], cells [K]) by target name."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    pictures = [("image", image), ("labels", overlay(image, labels, dataset))]
    if prediction is not None:
        pictures.append(("teacher's prediction", overlay(image, prediction, dataset)))
    brightest = {name: max(float(np.percentile(energy, BRIGHTEST)), 1e-30) for name, energy in attention.items()}
    pictures += [(name, heat(image, energy, brightest[name])) for name, energy in attention.items()]
    columns = min(3, len(pictures))
    top = math.ceil(len(pictures) / columns)
    picture_height = 4.2 * image.shape[0] / image.shape[1] + 0.3
    figure = Figure(figsize=(4.2 * columns, top * picture_height + 3.1 * len(graphs)), layout="constrained")
    upper, *lower = figure.subfigures(
        1 + len(graphs), 1, height_ratios=[top * picture_height] + [3.1] * len(graphs), squeeze=False
    )[:, 0]
    upper.suptitle(title, fontsize=9, parse_math=False)  # ids and names are text, whatever they hold
    places = list(upper.subplots(top, columns, squeeze=False).flat)
    for axes in places:
        axes.axis("off")
    for axes, (name, picture) in zip(places, pictures):
        axes.imshow(picture)
        axes.set_title(name, fontsize=8, parse_math=False)
        if name in brightest:
            bar = upper.colorbar(ScalarMappable(Normalize(0, brightest[name]), "inferno"), ax=axes, shrink=0.7)
            bar.ax.tick_params(labelsize=6)
    for part, (name, (graph, cells)) in zip(lower, graphs.items()):
        part.suptitle(f"{name}: cosine of two regions' moments", fontsize=9)
        *matrices, drawing = part.subplots(1, 4)
        present = np.flatnonzero(cells > 0).tolist()
        words = [dataset.classes[regions[k]] for k in present]
        for axes, moment, matrix in zip(matrices, MOMENTS, graph):
            shown = axes.imshow(matrix[np.ix_(present, present)], vmin=-1, vmax=1, cmap="RdBu_r")
            axes.set_title(moment, fontsize=8)
            axes.set_xticks(range(len(words)), words, rotation=90, fontsize=6, parse_math=False)
            axes.set_yticks(range(len(words)), words if axes is matrices[0] else [], fontsize=6, parse_math=False)
        part.colorbar(shown, ax=matrices, shrink=0.7)
        low, high = draw_graph(drawing, graph[0][np.ix_(present, present)], words, [dataset.colours[regions[k]] for k in present])
        drawing.set_title(f"as a graph (mean, {low:.2f} to {high:.2f})", fontsize=8)
    return figure


def draw_graph(
    axes,
    matrix: np.ndarray,
    names: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    limits: tuple[float, float] | None = None,
    ink: str = "0.2",
) -> tuple[float, float]:
    """Regions on a circle; the nearer two are (cosine), the thicker and darker their edge. After Fig. 5 of IntRA-KD. Returns the
    cosines of the thinnest and the thickest edge: `limits`, or the graph's own least and greatest."""
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False) + np.pi / 2
    places = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    pairs = [(i, j) for i in range(len(names)) for j in range(i)]
    values = np.array([matrix[pair] for pair in pairs]) if pairs else np.zeros(0)
    low, high = limits or ((values.min(), values.max()) if len(values) else (0, 1))
    for (i, j), value in zip(pairs, values):
        strength = np.clip((value - low) / max(high - low, 1e-6), 0, 1)
        axes.plot(*places[[i, j]].T, color=ink, linewidth=0.3 + 3 * strength, alpha=0.15 + 0.7 * strength, zorder=1)
    for place, name, colour in zip(places, names, colours):
        axes.scatter(*place, s=130, color=np.array(colour) / 255, edgecolor=ink, zorder=2)
        side = "center" if abs(place[0]) < 0.5 else "left" if place[0] > 0 else "right"
        axes.text(
            *((1.28 if side == "center" else 1.16) * place), name, ha=side, va="center", fontsize=6, color=ink, parse_math=False
        )
    axes.set(xlim=(-2, 2), ylim=(-1.5, 1.5), aspect="equal")
    axes.axis("off")
    return low, high


def heat(image: np.ndarray, energy: np.ndarray, brightest: float) -> np.ndarray:
    """An attention map [h, w] over its image [H, W, 3], from 0 to the value that is shown brightest."""
    energy = cv2.resize(energy.astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    energy = (255 * (energy / brightest).clip(0, 1)).astype(np.uint8)
    coloured = cv2.cvtColor(cv2.applyColorMap(energy, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return cv2.addWeighted(image, 0.45, coloured, 0.55, 0)
