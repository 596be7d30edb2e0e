"""Train the teacher on the prepared images, or take the checkpoint that the YAML names."""

import sys
from pathlib import Path

from pipeline import lookup, records, weights
from pipeline.config import Plugin, Prepare, Teacher, Training, Views
from pipeline.data import prepared
from pipeline.data.frames import canvas
from pipeline.files import write_json
from pipeline.models.base import set_precision
from pipeline.progress import detail, say
from pipeline.store import Reader
from pipeline.teacher import cache
from pipeline.training import distributed
from pipeline.training import run as runs
from pipeline.training import step as steps
from pipeline.training.loading import Loader


def run(
    *,
    dataset: Plugin,
    prepare: Prepare,
    views: Views,
    teacher: Teacher,
    teacher_training: Training | None,
    root: Path,
    folder: Path,
    weights_file: Path,
    report: Path,
    settings: str,
    device: str,
) -> str:
    """Writes the weights and a report with their digest. Resumes from its last checkpoint."""
    source = dataset.build()
    cache.check_views(views, source, dataset.name)
    if teacher.checkpoint is not None:
        state = weights.load_file(teacher.checkpoint, say)
        model = cache.build_teacher(teacher, source, prepare.size, source.lanes if weights.has_existence(state) else 0)
        weights.load_into(model, state, str(teacher.checkpoint), say)
        line = f"{weights_file}: copied from {teacher.checkpoint}"
    elif teacher_training is None:
        steps.reseed(0, 0)
        model = cache.build_teacher(teacher, source, prepare.size)
        line = f"{weights_file}: {teacher.model.name}, as its factory made it"
    else:
        steps.reseed(0, 0)  # before the network is made, and the same in every process
        lanes = source.lanes if teacher_training.existence_weight else 0
        model = cache.build_teacher(teacher, source, prepare.size, lanes)
        device = distributed.start(device)
        steps.check_batch(
            lambda: cache.build_teacher(teacher, source, prepare.size, lanes),
            canvas(prepare.size),
            teacher_training,
            device,
            "teacher_training",
        )
        _train(model, source, dataset, prepare, views, teacher, teacher_training, root, folder, settings, device)
        line = f"{weights_file}: {teacher.model.name}, {teacher_training.steps} steps"
    if not distributed.first():
        return line
    weights_file.parent.mkdir(parents=True, exist_ok=True)
    weights.save_file(weights_file, model.state_dict())
    write_json(report, {"weights": weights.digest(model.state_dict())})
    return line


def _train(model, source, dataset, prepare, views, teacher, training, root, folder, settings, device):
    store, sample, images = prepared.open_whole(root, dataset, source, prepare, source.ids("train"))
    prepared.require_labels(store, sample, images, source, "the teacher is trained on labels")
    ids = [image.id for image in images]
    plugin = lookup.find("models", teacher.model.name)
    code = records.code_digest(sys.modules[__name__], plugin, *([weights] if teacher.backbone else []))
    backbone = None if teacher.backbone is None else weights.digest(weights.load_file(teacher.backbone))
    record = {
        "teacher": teacher.model,
        **lookup.version_record(teacher.model.name, teacher.model.args),
        "backbone": backbone,
        "training": training,
        "views": views,
        "code": code,
        "dataset": prepared.meaning(source),
        "prepared": prepared.on_record(store, sample, images),
    }
    record |= records.code_outside(plugin.Model, teacher.model.args)
    set_precision(training.precision)
    if teacher.backbone is not None:
        weights.load_backbone(model, teacher.backbone, say)
    model.to(device)
    reader = Reader(store, [sample], ids, 1, device=device)
    detail(f"prepared images: {reader.strategy}")
    loader = Loader(
        reader,
        sample,
        ids,
        dataset=source,
        content=prepare.size,
        views=views,
        training=training,
        seed=0,
        device=device,
        share=distributed.share(),
    )
    shares_K = loader.class_shares() if training.class_weights == "enet" else None
    step = steps.Step(model, [], [], training, steps.class_weights(source, training, device, shares_K), seed=0)
    run = runs.Run(folder, record, settings)
    runs.fit(run, step, loader, "training the teacher")
    model.load_state_dict(step.weights())
