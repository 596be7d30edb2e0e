"""Stage two: train a student with a method, against cached targets; no teacher in memory (a study may ask for online targets)."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import lookup, records, weights
from pipeline.data import prepared
from pipeline.errors import ConfigError
from pipeline.models import _scaled
from pipeline.models.base import set_precision
from pipeline.progress import detail, say
from pipeline.store import Reader
from pipeline.teacher import cache, online
from pipeline.teacher.experiment import Experiment
from pipeline.teacher.fill import FillingTargets, every_pass
from pipeline.teacher.several import SeveralTargets
from pipeline.training import distributed
from pipeline.training import run as runs
from pipeline.training import step as steps
from pipeline.training.loading import CachedTargets, Loader

FILL_BATCH = 8  # images per forward pass of the teacher, as `cache-teacher` has by default: then the bytes are the same


def run(
    experiment: Experiment,
    *,
    student: str,
    method: str,
    seed: int,
    folder: Path,
    device: str,
    online_targets: bool = False,
    fill: bool = False,
    log: Sequence[str] = (),
) -> str:
    """Trains to the last step, resuming from the last checkpoint; writes the run's folder.

    `online_targets`: the teacher answers at each step, on the same images and views, and no cache is needed. `fill`: what the cache
    lacks is computed and stored when a step asks for it, as `cache-teacher` would have. Otherwise raises StoreError, naming what
    differs, if the cache was made from other weights, data, preprocessing, views or targets than this config asks for, or is not
    whole. `log` names loggers (pipeline/training/loggers.py).
    """
    logs = None
    if log:
        from pipeline.training.loggers import Logs

        logs = Logs(log)
    config, source = experiment.config, experiment.source
    plugin, terms, training = config.student(student), config.method(method), config.training
    device = distributed.start(device)
    experiment.check_views()
    pixels, sample, images = experiment.pixels, experiment.sample, experiment.images
    if from_labels := not cache.learns_unlabelled(terms, config.targets):
        prepared.require_labels(pixels, sample, images, source, "the method learns from labels alone")
    own = experiment.student_context(plugin)
    steps.check_batch(lambda: experiment.build(plugin), experiment.context.size, training, device, "training")
    record = {
        "student": plugin,
        **lookup.version_record(plugin.name, plugin.args),
        "method": terms,
        "training": training,
        "views": config.views,
        "seed": seed,
        "dataset": prepared.meaning(source),
        "prepared": prepared.on_record(pixels, sample, images),
        **prepared.labels_on_record(source),
    }
    if plugin.start:
        record["start"] = {key: weights.digest(weights.load_file(path)) for key, path in plugin.start.items()}
    names = list(dict.fromkeys(name for term in terms for name in term.reads))
    reading = experiment.reading(names)
    if terms:
        contexts = {teacher: one.context for teacher, (one, _) in reading.items()}
        record["contexts"] = {"student": own} | (
            {"teachers": contexts} if len(contexts) > 1 else {"teacher": next(iter(contexts.values()), experiment.context)}
        )
    if online_targets or fill:
        if not names:
            raise ConfigError(f"{config.path}: methods.{method}: reads nothing of a teacher; leave out --live and --fill")
        for one, _ in reading.values():
            one.check_teacher_in_the_loop()
    if names and training.fresh_views is True and not online_targets:
        raise ConfigError(
            f"{config.path}: training.fresh_views: cached targets exist for the {config.views.count} stored views only; "
            f"write false or labelled, or train with a method that reads none"
        )
    parts: dict[str, Any] = {}
    made: dict[str, dict] = {}
    for teacher, (one, some) in reading.items():
        targets = one.some_targets(some)
        if online_targets:
            made[teacher] = {"live": {"teacher": one.identity, "targets": {name: config.targets[name] for name in some}}}
            parts[teacher] = one.online_targets(some, experiment.samples(), batch=training.batch, device=device)
        elif fill:
            parts[teacher] = FillingTargets(one, some, batch=FILL_BATCH, device=device)
            read = sorted(pass_.folder for pass_ in every_pass(targets))
            made[teacher] = {"cache": {"identity": parts[teacher].store.identity, "filled": read}}
        else:
            store, passes = one.open_cache(targets)
            rows = store.digest_of(images, range(config.views.count), passes)
            made[teacher] = {"cache": {"identity": store.identity, "rows": rows}}
            reader = Reader(store, passes, experiment.ids, config.views.count, device=device, host=[cache.MATRIX])
            detail(f"cached targets: {reader.strategy}")
            parts[teacher] = CachedTargets(reader, cache.MATRIX, targets)
    cached = next(iter(parts.values()), None)
    if len(parts) > 1:
        of_each = {name: config.targets[name].teachers for name in names}
        cached = SeveralTargets(parts, of_each)
        record |= {"teachers": made, "made_from": of_each}
    else:
        record |= next(iter(made.values()), {})

    plugins = [
        lookup.find("models", plugin.name),
        *(lookup.find("losses", term.loss.name) for term in terms),
        *(lookup.find("targets", config.targets[name].name) for name in names),
        *([_scaled] if "input_scale" in plugin.args else []),
    ]
    if plugin.start:
        plugins.append(weights)
    if training.validate_every:
        from pipeline.scoring import validation as own_metric
        from pipeline.training import validation as validating

        plugins += [validating, *([own_metric] if training.validate_metric == "own" else [])]
        record |= config.evaluate.windows
    if online_targets:
        plugins += [online, cache, *(lookup.find("models", one.config.teacher.model.name) for one, _ in reading.values())]
    record["code"] = records.code_digest(sys.modules[__name__], *plugins)
    record |= records.code_outside(plugins[0].Model, plugin.args)
    set_precision(training.precision)
    steps.reseed(seed, 0)
    model = experiment.build(plugin)
    if "backbone" in plugin.start:
        weights.load_backbone(model, plugin.start["backbone"], say)
    if "init" in plugin.start:
        weights.load_partly(model, plugin.start["init"], say)
    model.to(device)
    losses = [experiment.loss(term, own).to(device) for term in terms]
    samples = experiment.samples(device=device)
    detail(f"prepared images: {samples.strategy}")
    loader = Loader.of(
        experiment,
        samples,
        training,
        seed=seed,
        device=device,
        cached=cached,
        share=distributed.rank_and_world_size(),
        labelled=experiment.labelled,
        labelled_per_batch=experiment.labelled_per_batch(training, from_labels),
    )
    for loss in losses:
        if loss.needs_scan:
            loss.scan(loader.scan())
    shares_K = loader.class_shares() if training.class_weights == "enet" else None
    weights_K = steps.class_weights(source, training, device, shares_K)
    step = steps.Step(model, terms, losses, training, weights_K, seed, loader.partly_labelled)
    validation: runs.Validate | None = None
    if training.validate_every:
        canvas_scores = validating.Validation(source, config.prepare, training, config.evaluate, weights_K)
        own = training.validate_metric == "own"
        validation = own_metric.OwnMetric(canvas_scores, source, config.prepare, training) if own else canvas_scores
    run = runs.Run(folder, record, config.text)
    runs.fit(run, step, loader, folder.name, validation, logs)
    for part in parts.values():
        if isinstance(part, FillingTargets):
            part.finish()
    return f"{run.weights}: {run.in_words(training)}"
