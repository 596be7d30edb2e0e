"""Stage two: train a student with a method, against cached targets; no teacher in memory."""

import sys
from pathlib import Path

from pipeline import cache, lookup, loading, prepared, runs, training as steps, views as geometry
from pipeline.config import Plugin, Prepare, Teacher, Term, Training, Views
from pipeline.errors import ConfigError, StoreError
from pipeline.files import plain
from pipeline.loading import CachedTargets, Loader
from pipeline.models.base import set_precision
from pipeline.store import Reader, Store


def run(*, dataset: Plugin, prepare: Prepare, views: Views, teacher: Teacher, targets: dict[str, Plugin], training: Training,
        student: Plugin, method: tuple[Term, ...], seed: int, root: Path, folder: Path, weights_file: Path, config: Path,
        settings: str, device: str) -> str:
    """Trains to the last step, resuming from the last checkpoint; writes the run's folder.

    Raises StoreError, naming what differs, if the cache was made from other weights, data, preprocessing, views or targets
    than this config asks for, or is not whole.
    """
    source = dataset.build()
    cache.check_views(views, source, dataset.name)
    pixels, sample, images = prepared.open_whole(root, dataset, source, prepare, source.ids("train"))
    ids = [image.id for image in images]
    context = cache.context(teacher.model, source, prepare.size)
    record = {"student": student, "method": method, "training": training, "views": views, "seed": seed,
              "dataset": prepared.meaning(source),
              "prepared": {"identity": pixels.identity, "digest": pixels.digest_of(images, range(1), [sample])}}
    cached = None
    names = [name for term in method for name in term.reads]
    if names and training.fresh_views:
        raise ConfigError(f"{config}: training.fresh_views: cached targets exist for the {views.count} stored views only; "
                          f"write false, or train with a method that reads none")
    if names:
        named = cache.target_passes({name: targets[name] for name in names}, context)
        passes = {pass_.folder: (pass_, target.uses_labels) for target, pass_ in named.values()}
        identity = cache.identity(source, prepare, views, teacher, cache.weights_digest(teacher, weights_file))
        try:
            store = Store.find(root, "targets", dataset.name, identity)
            wanted = [(cache.MATRIX, False), *passes.values()]
            store.check(images, range(views.count), wanted)
        except StoreError as error:
            raise StoreError(f"{error}; run `pipeline cache-teacher {config}`") from None
        record["cache"] = {"identity": store.identity,
                           "rows": store.digest_of(images, range(views.count), [pass_ for pass_, _ in wanted])}
        reader = Reader(store, [pass_ for pass_, _ in wanted], ids, views.count)
        print(f"cached targets: {reader.strategy}", file=sys.stderr)
        cached = CachedTargets(reader, cache.MATRIX, named)

    lanes = source.lanes if training.existence_weight else 0
    plugins = [lookup.find("models", student.name), *(lookup.find("losses", term.loss.name) for term in method),
               *(lookup.find("targets", targets[name].name) for name in names)]
    record["code"] = runs.code_digest(runs, steps, loading, geometry, *plugins)
    run = runs.Run(folder, plain(record), settings)
    set_precision(training.precision)
    steps.reseed(seed, 0)
    model = student.build(num_classes=len(source.classes), size=context.size, lanes=lanes).to(device)
    own = cache.context(student, source, prepare.size, lanes)
    losses = [term.loss.build(reads={name: cached.targets[name][0] for name in term.reads}, context=context,
                              student=own).to(device) for term in method]
    samples = Reader(pixels, [sample], ids, 1)
    print(f"prepared images: {samples.strategy}", file=sys.stderr)
    loader = Loader(samples, sample, ids, dataset=source, content=prepare.size, views=views, training=training, seed=seed,
                    device=device, cached=cached)
    step = steps.Step(model, method, losses, training, steps.class_weights(source, training, device), seed)
    runs.fit(run, step, loader, folder.name)
    last = run.curves[-1]
    return f"{run.weights}: {training.steps} steps, " + ", ".join(f"{k} {v:.4g}" for k, v in last.items() if k != "step")
