"""How big a cache will be, and, measured on this machine, how long it takes and when it has paid for itself."""

import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pipeline import cache, plan, prepared, training as steps
from pipeline.config import Plugin, Prepare, Teacher, Training, Views
from pipeline.errors import StoreError
from pipeline.models.base import set_precision
from pipeline.store import ImageRow, Store

MEASURED_VIEWS = 64


def run(*, dataset: Plugin, prepare: Prepare, views: Views, teacher: Teacher, targets: dict[str, Plugin], training: Training,
        students: dict[str, Plugin], root: Path, images: int | None, measure: bool, device: str, batch: int) -> str:
    """Returns the plan in words. `images` plans for that many without a dataset on disk. Raises StoreError, after the plan's
    figures, if they exceed the free disk."""
    root.mkdir(parents=True, exist_ok=True)
    source = dataset.build()
    count = images or len(source.ids("train"))
    context = cache.context(teacher.model, source, prepare.size)
    named = cache.target_passes(targets, context)
    sizes = plan.sizes(count, views.count, {name: pass_ for name, (_, pass_) in named.items()}, cache.MATRIX, context)
    canvas = prepared.sample_pass(prepare.size, source.lanes)
    lines = [f"{count} images x {sizes.num_views} views in {sizes.num_blocks} blocks of {sizes.rows_of_block} rows, "
             f"{sizes.num_files} files", "", "| target | bytes a view |", "|---|---|"]
    lines += [f"| {name} | {size} |" for name, size in sizes.target_bytes.items()]
    lines += [f"| all | {sizes.row_bytes} |", "",
              f"cache: {words(sizes.total_bytes)}; prepared images: {words(count * plan.row_bytes(canvas))}",
              f"instead of {words(sizes.probability_bytes * count * sizes.num_views)} of probability maps "
              f"({sizes.probability_bytes / sizes.row_bytes:.0f}x) or {words(sizes.feature_bytes * count * sizes.num_views)} of "
              f"features ({sizes.feature_bytes / sizes.row_bytes:.0f}x)"]
    if measure:
        cost = measured(source, prepare, views, teacher, named, context, training, students, root, device, batch, sizes)
        lines += ["", f"measured here ({device}, {MEASURED_VIEWS} views): teacher {1 / cost.teacher_s:.1f} views/s, fill "
                      f"{1 / cost.fill_s:.1f} views/s, student {1 / cost.student_s:.1f} images/s",
                  f"time to fill: {duration(cost.fill_total_s(sizes))}",
                  f"paid for itself after {cost.break_even_epochs(sizes):.1f} student epochs, whatever the number of students; "
                  f"a step with the teacher in it would take {1 + cost.teacher_s / cost.student_s:.2f}x a plain one"]
    free = shutil.disk_usage(root).free
    if sizes.total_bytes > free:
        raise StoreError("\n".join([*lines, f"{root}: {words(sizes.total_bytes)} are needed, {words(free)} are free; choose "
                                            f"another --root, fewer views, or smaller targets"]))
    return "\n".join([*lines, f"free at {root}: {words(free)}"])


def measured(source, prepare, views, teacher, named, context, training, students, root, device, batch, sizes) -> plan.Cost:
    """Times the very code of the fill on random pictures: teacher alone, then targets, encoding and a real block written to
    this root, then a plain step of the first student. """
    set_precision(teacher.precision)
    model = cache.build_teacher(teacher, source, prepare.size)
    answers = cache.Answers(model, source, context, prepare.size, precision=teacher.precision, batch=batch, device=device)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (MEASURED_VIEWS, *context.size, 3), dtype=np.uint8)
    labels = rng.integers(0, context.num_classes, (MEASURED_VIEWS, *context.size), dtype=np.uint8)
    matrices = np.repeat(np.array([[[1.0, 0, 0], [0, 1, 0]]]), MEASURED_VIEWS, axis=0)

    def bare():
        for start in range(0, MEASURED_VIEWS, batch):
            here = slice(start, start + batch)
            answers.output(images[here], labels[here], matrices[here])

    list_of_targets = [target for target, _ in named.values()]
    passes = [pass_ for _, pass_ in named.values()]
    with tempfile.TemporaryDirectory(dir=root, prefix="plan-") as folder:
        store = Store.create_or_open(Path(folder), "targets", "plan", {"plan": 1}, block_rows=sizes.rows_of_block, card={})
        store.grow([ImageRow(f"{i}", "-", "-") for i in range(-(-MEASURED_VIEWS // sizes.rows_of_block) * sizes.rows_of_block)])
        for pass_ in passes:
            store.add_pass(pass_, range(1))

        def fill():
            rows = answers.rows(list_of_targets, images, labels, matrices)
            for block in range(store.num_blocks):
                chosen = np.arange(block * sizes.rows_of_block, (block + 1) * sizes.rows_of_block) % MEASURED_VIEWS
                for pass_, values in zip(passes, rows):
                    store.write_block(pass_, 0, block, {name: value[chosen] for name, value in values.items()})
        teacher_s, fill_s = timed(bare, device) / MEASURED_VIEWS, timed(fill, device) / MEASURED_VIEWS
    plugin = next(iter(students.values()))
    network = plugin.build(num_classes=context.num_classes, size=context.size, lanes=0).to(device)
    step = steps.Step(network, [], [], training, torch.ones(context.num_classes, device=device), 0)
    shown, labels_BHW = torch.from_numpy(images[:training.batch]).to(device), torch.from_numpy(labels[:training.batch]).to(device)
    seen = steps.Batch(shown.permute(0, 3, 1, 2).float(), labels_BHW, labels_BHW < 255, None, {}, 1)
    return plan.Cost(teacher_s, fill_s, timed(lambda: step(seen), device) / len(shown))


def timed(work, device, calls=3) -> float:
    """Seconds of the fastest of a few calls; the first one warms up."""
    best = float("inf")
    for _ in range(1 + calls):
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def words(num_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
