"""Look at a cache: what it is and holds, or one record drawn beside its image. No stage of dvc.yaml."""

from pathlib import Path

import cv2
import numpy as np
import torch

from pipeline.config import Views
from pipeline.data import prepared
from pipeline.data import views as geometry
from pipeline.errors import StoreError
from pipeline.identity import join_names
from pipeline.lookup import did_you_mean
from pipeline.progress import table_lines
from pipeline.reporting import record_pictures as pictures
from pipeline.store import Reader, Store, plan
from pipeline.store.card import in_lines
from pipeline.teacher import cache
from pipeline.teacher.experiment import Experiment
from pipeline.teacher.fill import every_pass


def run(experiment: Experiment, *, image_id: str | None, view: int, out: Path) -> str:
    """A summary in words; with an image id, a figure of that record in `out`. Raises StoreError on an unknown id or view."""
    config, source, views = experiment.config, experiment.source, experiment.config.views
    store, named = experiment.find_cache(), experiment.targets
    store.refuse_lost_lists()
    if image_id is None:
        return "\n".join(filter(None, [summary(store, named, views), prepared.say_labels(source)]))
    if image_id not in store.row_of:
        raise StoreError(
            f"{store.folder}: no image {image_id!r}{did_you_mean(image_id, store.row_of)}; there are "
            f"{join_names([image.id for image in store.images if image.id])}"
        )
    if view >= views.count:
        raise StoreError(f"--view {view}: there are {views.count} views, counted from 0; ask for one of 0..{views.count - 1}")
    pixels, sample, _ = prepared.open_whole(experiment.root, config.dataset, source, config.prepare, [image_id])
    rows = experiment.samples([image_id], pixels).read(sample, np.array([0]), np.array([0]))
    reader = Reader(store, every_pass(named), [image_id], view + 1, memory="disk")
    here = np.array([0]), np.array([view])
    matrix = reader.read(cache.MATRIX, *here)["matrix"]
    shown, labels, _ = geometry.apply(
        torch.from_numpy(rows["image"]),
        torch.from_numpy(rows["label"]),
        torch.from_numpy(matrix),
        content=config.prepare.size,
        permutation=source.mirror,
        size=views.crop,
    )
    image = shown[0].permute(1, 2, 0).round().numpy().astype(np.uint8)
    found = {
        name: target.decode({field: torch.from_numpy(values) for field, values in reader.read(pass_, *here).items()})
        for name, (target, pass_) in named.items()
    }
    kinds = {name: plugin.name for name, plugin in config.targets.items()}
    logits = next((rows["logits"][0] for name, rows in found.items() if kinds[name] == "logits"), None)
    prediction = (
        None
        if logits is None
        else cv2.resize(logits.argmax(0).numpy().astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    )
    figure = pictures.record_figure(
        f"{image_id}, view {view}",
        image,
        labels[0].numpy(),
        prediction,
        {name: rows["energy"][0].numpy() for name, rows in found.items() if kinds[name] == "attention"},
        {name: (rows["graph"][0].numpy(), rows["cells"][0].numpy()) for name, rows in found.items() if kinds[name] == "affinity"},
        source,
        experiment.context.regions,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    return str(out)


def summary(store: Store, named, views: Views) -> str:
    record = store.identity["record"]
    lines = [
        f"{store.folder}: {len(store.row_of)} images in {store.num_blocks} blocks of {store.block_rows}, codec {store.codec}",
        f"teacher {record['teacher']['name']}, weights {record['teacher']['weights'][:12]}, {record['teacher']['precision']}; "
        f"input {record['views'].get('crop', record['prepare']['canvas'])}",
        *in_lines(store),
        "",
    ]
    rows = []
    for name, (_, pass_) in named.items():
        filled = [store.num_blocks - len(store.missing(pass_, view)) if store.has_pass(pass_) else 0 for view in range(views.count)]
        rows.append((f"{name} ({pass_.folder})", plan.row_bytes(pass_), " ".join(f"{n}/{store.num_blocks}" for n in filled)))
    return "\n".join([*lines, *table_lines(["target", "bytes a view", "filled blocks, by view"], rows)])
