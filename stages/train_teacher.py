"""Train the teacher on the prepared images, or take the checkpoint that the YAML names."""

import sys
from pathlib import Path

from pipeline import cache, lookup, loading, prepared, runs, training as steps, views as geometry, weights
from pipeline.config import Plugin, Prepare, Teacher, Training, Views
from pipeline.files import plain, write_json
from pipeline.loading import Loader
from pipeline.models.base import set_precision
from pipeline.store import Reader


def run(*, dataset: Plugin, prepare: Prepare, views: Views, teacher: Teacher, teacher_training: Training | None, root: Path,
        folder: Path, weights_file: Path, report: Path, settings: str, device: str) -> str:
    """Writes the weights and a report with their digest. Resumes from its last checkpoint."""
    source = dataset.build()
    cache.check_views(views, source, dataset.name)
    model = cache.build_teacher(teacher, source, prepare.size)
    if teacher.checkpoint is not None:
        weights.load_into(model, weights.load_file(teacher.checkpoint), str(teacher.checkpoint))
        line = f"{weights_file}: copied from {teacher.checkpoint}"
    else:
        _train(model, source, dataset, prepare, views, teacher, teacher_training, root, folder, settings, device)
        line = f"{weights_file}: {teacher.model.name}, {teacher_training.steps} steps"
    weights_file.parent.mkdir(parents=True, exist_ok=True)
    weights.save_file(weights_file, model.state_dict())
    write_json(report, {"weights": weights.digest(model.state_dict())})
    return line


def _train(model, source, dataset, prepare, views, teacher, training, root, folder, settings, device):
    store, sample, images = prepared.open_whole(root, dataset, source, prepare, source.ids("train"))
    ids = [image.id for image in images]
    code = runs.code_digest(runs, steps, loading, geometry, lookup.find("models", teacher.model.name))
    backbone = None if teacher.backbone is None else weights.digest(weights.load_file(teacher.backbone))
    record = {"teacher": teacher.model, "backbone": backbone, "training": training, "views": views, "code": code,
              "dataset": prepared.meaning(source),
              "prepared": {"identity": store.identity, "digest": store.digest_of(images, range(1), [sample])}}
    run = runs.Run(folder, plain(record), settings)
    set_precision(training.precision)
    steps.reseed(0, 0)
    if teacher.backbone is not None:
        weights.load_backbone(model, teacher.backbone)
    model.to(device)
    reader = Reader(store, [sample], ids, 1)
    print(f"prepared images: {reader.strategy}", file=sys.stderr)
    loader = Loader(reader, sample, ids, dataset=source, content=prepare.size, views=views, training=training, seed=0,
                    device=device)
    step = steps.Step(model, [], [], training, steps.class_weights(source, training, device), seed=0)
    runs.fit(run, step, loader, "training the teacher")
