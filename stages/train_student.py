"""Stage two: train a student with a method, against cached targets; no teacher in memory (a study may ask for a live one)."""

import sys
from pathlib import Path

from pipeline import lookup, records
from pipeline.config import Plugin, Prepare, Teacher, Term, Training, Views
from pipeline.data import prepared
from pipeline.errors import ConfigError
from pipeline.models import _scaled
from pipeline.models.base import set_precision
from pipeline.progress import detail
from pipeline.store import Reader
from pipeline.teacher import cache
from pipeline.teacher import online as live_module
from pipeline.training import distributed
from pipeline.training import run as runs
from pipeline.training import step as steps
from pipeline.training.loading import CachedTargets, Loader


def run(
    *,
    dataset: Plugin,
    prepare: Prepare,
    views: Views,
    teacher: Teacher,
    targets: dict[str, Plugin],
    training: Training,
    student: Plugin,
    method: tuple[Term, ...],
    seed: int,
    root: Path,
    folder: Path,
    weights_file: Path,
    config: Path,
    settings: str,
    device: str,
    live: bool = False,
) -> str:
    """Trains to the last step, resuming from the last checkpoint; writes the run's folder.

    `live`: the teacher answers at each step, on the same images and views, and no cache is needed. Otherwise raises StoreError,
    naming what differs, if the cache was made from other weights, data, preprocessing, views or targets than this config asks
    for, or is not whole.
    """
    device = distributed.start(device)
    source = dataset.build()
    cache.check_views(views, source, dataset.name)
    pixels, sample, images = prepared.open_whole(root, dataset, source, prepare, source.ids("train"))
    if not cache.learns_unlabelled(method, targets):
        prepared.require_labels(pixels, sample, images, source, "the method learns from labels alone")
    ids = [image.id for image in images]
    context = cache.context(teacher.model, source, prepare.size)
    lanes = source.lanes if training.existence_weight else 0
    own = cache.context(student, source, prepare.size, lanes)
    steps.check_batch(
        lambda: student.build(num_classes=len(source.classes), size=context.size, lanes=lanes),
        context.size,
        training,
        device,
        "training",
    )
    record = {
        "student": student,
        **lookup.version_record(student.name, student.args),
        "method": method,
        "training": training,
        "views": views,
        "seed": seed,
        "dataset": prepared.meaning(source),
        "prepared": prepared.on_record(pixels, sample, images),
    }
    if method:
        record["contexts"] = {"student": own, "teacher": context}
    cached = None
    names = [name for term in method for name in term.reads]
    if names and training.fresh_views and not live:
        raise ConfigError(
            f"{config}: training.fresh_views: cached targets exist for the {views.count} stored views only; "
            f"write false, or train with a method that reads none"
        )
    if names:
        named = cache.target_passes({name: targets[name] for name in names}, context)
        identity = cache.identity(source, prepare, views, teacher, cache.weights_digest(teacher, weights_file))
    if names and live:
        reads = {name: targets[name] for name in names}
        record["live"] = {"teacher": identity, "targets": reads}
        cached = live_module.live_targets(
            teacher,
            reads,
            source,
            prepare,
            views,
            weights_file,
            Reader(pixels, [sample], ids, 1),
            sample,
            batch=training.batch,
            device=device,
        )
    elif names:
        store, passes = cache.open_whole(root, dataset.name, identity, images, views.count, named, config)
        record["cache"] = {"identity": store.identity, "rows": store.digest_of(images, range(views.count), passes)}
        reader = Reader(store, passes, ids, views.count, device=device, host=[cache.MATRIX])
        detail(f"cached targets: {reader.strategy}")
        cached = CachedTargets(reader, cache.MATRIX, named)

    plugins = [
        lookup.find("models", student.name),
        *(lookup.find("losses", term.loss.name) for term in method),
        *(lookup.find("targets", targets[name].name) for name in names),
        *([_scaled] if "input_scale" in student.args else []),
    ]
    if live:
        plugins += [live_module, cache, lookup.find("models", teacher.model.name)]
    record["code"] = records.code_digest(sys.modules[__name__], *plugins)
    record |= records.code_outside(plugins[0].Model, student.args)
    set_precision(training.precision)
    steps.reseed(seed, 0)
    model = student.build(num_classes=len(source.classes), size=context.size, lanes=lanes).to(device)
    losses = [
        term.loss.build(reads={name: cached.targets[name][0] for name in term.reads}, context=context, student=own).to(device)
        for term in method
    ]
    samples = Reader(pixels, [sample], ids, 1, device=device)
    detail(f"prepared images: {samples.strategy}")
    loader = Loader(
        samples,
        sample,
        ids,
        dataset=source,
        content=prepare.size,
        views=views,
        training=training,
        seed=seed,
        device=device,
        cached=cached,
        share=distributed.share(),
    )
    for loss in losses:
        if loss.needs_survey:
            loss.survey(loader.survey())
    shares_K = loader.class_shares() if training.class_weights == "enet" else None
    step = steps.Step(model, method, losses, training, steps.class_weights(source, training, device, shares_K), seed)
    run = runs.Run(folder, record, settings)
    runs.fit(run, step, loader, folder.name)
    last = run.curves[-1]
    return f"{run.weights}: {training.steps} steps, " + ", ".join(f"{k} {v:.4g}" for k, v in last.items() if k != "step")
