"""Stage one: run the teacher once over the prepared images and their views, and store its targets."""

from pathlib import Path

import numpy as np

from pipeline import cache, executors, plan, prepared, views as geometry, weights
from pipeline.config import Plugin, Prepare, Teacher, Views
from pipeline.files import write_json
from pipeline.models.base import set_precision
from pipeline.progress import Progress
from pipeline.store import Reader, Store


def run(*, dataset: Plugin, prepare: Prepare, views: Views, teacher: Teacher, targets: dict[str, Plugin], weights_file: Path,
        root: Path, report: Path, device: str, batch: int) -> str:
    """Fills every (block, view) that is not marked as done, in fixed batches, and writes the report that training depends on.

    The report holds the identity and a digest of just the rows asked for here: no time, host or version.
    Raises StoreError if the prepared store is missing or holds other pixels than an existing cache was made from.
    """
    source = dataset.build()
    cache.check_views(views, source, dataset.name)
    ids = source.ids("train")
    pixels, sample, images = prepared.open_whole(root, dataset, source, prepare, ids)

    set_precision(teacher.precision)
    state = weights.load_file(weights_file)
    model = cache.build_teacher(teacher, source, prepare.size)
    weights.load_into(model, state, str(weights_file))
    context = cache.context(teacher.model, source, prepare.size)
    named = cache.target_passes(targets, context)
    passes = {pass_.folder: (target, pass_) for target, pass_ in named.values()}

    store = Store.create_or_open(
        root, "targets", dataset.name, cache.identity(source, prepare, views, teacher, weights.digest(state)),
        block_rows=plan.block_rows(len(ids), [pass_ for _, pass_ in passes.values()]),
        card={"dataset": dataset.name, "classes": list(source.classes), "teacher": teacher.model.name})
    store.grow(images)
    every = [cache.MATRIX, *(pass_ for _, pass_ in passes.values())]
    for pass_ in every:
        store.add_pass(pass_, range(views.count))
    asked_for = {store.row_of[image_id] // store.block_rows for image_id in ids}
    tasks = plan.tasks({(view, pass_.folder): sorted(asked_for.intersection(store.missing(pass_, view)))
                        for view in range(views.count) for pass_ in every})
    together = [image.id for block in sorted({task.block for task in tasks}) for image in store.block_images(block)]
    reader = Reader(pixels, [sample], together, 1)
    place = {image_id: position for position, image_id in enumerate(reader.ids)}
    answers = cache.Answers(model, source, context, prepare.size, precision=teacher.precision, batch=batch, device=device)

    def fill(task: plan.Task) -> int:
        block = store.block_images(task.block)
        matrices = np.stack([geometry.draw(views, image.id, task.view, context.size) for image in block])
        if cache.MATRIX.folder in task.passes:
            store.write_block(cache.MATRIX, task.view, task.block, {"matrix": matrices})
        wanted = [folder for folder in task.passes if folder in passes]
        if wanted:
            positions = np.array([place[image.id] for image in block])
            rows = reader.read(sample, positions, np.zeros_like(positions))
            answered = answers.rows([passes[folder][0] for folder in wanted], rows["image"], rows["label"], matrices)
            for folder, values in zip(wanted, answered):
                store.write_block(passes[folder][1], task.view, task.block, values)
        return len(block)

    total = sum(len(store.block_images(task.block)) for task in tasks)
    with Progress("teacher", total, "views") as progress:
        for count in executors.serial(tasks, fill):
            progress.advance(count)
    store.finalise()
    write_json(report, {"identity": store.identity, "images": len(ids), "views": views.count, "targets": {
        name: {"pass": pass_.folder, "digest": store.digest_of(images, range(views.count), [cache.MATRIX, pass_])}
        for name, (_, pass_) in named.items()}})
    row = sum(plan.row_bytes(pass_) for pass_ in every)
    answers_bytes = 2 * context.num_classes * int(np.prod(context.size))
    return (f"{store.folder}: {len(ids)} images x {views.count} views, {row} bytes each "
            f"({answers_bytes / row:.0f}x less than float16 probability maps), {len(tasks)} blocks filled now")
