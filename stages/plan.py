"""How big a cache will be, and, measured on this machine, how long it takes and when it has paid for itself."""

import contextlib
import shutil
import tempfile
import time
import typing
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from pipeline.data import prepared
from pipeline.data import views as geometry
from pipeline.data.frames import canvas
from pipeline.errors import StoreError
from pipeline.models.base import ModelBase, set_precision
from pipeline.progress import byte_size, duration, say, table_lines
from pipeline.store import ImageRow, Reader, Store, plan, verification
from pipeline.store.files import AnyPath, local
from pipeline.targets.base import TargetType
from pipeline.teacher import cache
from pipeline.teacher.experiment import Experiment, Named
from pipeline.training import step as steps

MEASURE_S = 4.0  # for each of the things measured
WRITTEN_VIEWS = 16  # at most


def run(experiment: Experiment, *, images: int | None, measure: bool, device: str, batch: int) -> str:
    """Returns the plan in words. `images` plans for that many without a dataset on disk. Says it, and raises
    StoreError, if it exceeds the free disk; object storage is not asked."""
    experiment.try_students()
    lines: list[str] = []
    needed, teachers = 0, experiment.teachers
    for name, one in teachers.items():
        if len(teachers) > 1 and not one.config.targets:
            continue
        found, num_bytes = of_one(one, images, measure, device, batch)
        lines += [f"Teacher {name}:", *found, ""] if len(teachers) > 1 else found
        needed += num_bytes
    if len(teachers) > 1:
        lines.append(f"all caches: {byte_size(needed)}")
    root = experiment.root
    if not local(root):
        return "\n".join([*lines, f"free at {root}: object storage doesn't say"])
    free = shutil.disk_usage(there(root)).free
    if needed > free:
        say("\n".join(lines))
        raise StoreError(
            f"{root}: {byte_size(needed)} are needed, {byte_size(free)} are free; choose another --root, fewer "
            f"views, or smaller targets"
        )
    return "\n".join([*lines, f"free at {root}: {byte_size(free)}"])


def of_one(experiment: Experiment, images: int | None, measure: bool, device: str, batch: int) -> tuple[list[str], int]:
    """The lines about one teacher's cache, and its bytes."""
    config, context = experiment.config, experiment.context
    named = cache.target_passes(config.targets, context)  # of as many bytes whatever labels are hidden, which only lists would say
    count = images or len(experiment.source.ids("train"))
    if measure:  # a step of the first student is timed
        student = next(iter(config.students.values()))
        steps.check_batch(
            lambda: student.build(num_classes=context.num_classes, size=context.size, lanes=0),
            context.size,
            config.training,
            device,
            "training",
        )
    sizes = plan.sizes(count, config.views.count, {name: pass_ for name, (_, pass_) in named.items()}, cache.MATRIX, context)
    pixel_bytes = count * plan.row_bytes(experiment.sample)
    lines = [
        f"{count} images x {sizes.num_views} views in {sizes.num_blocks} blocks of {sizes.rows_of_block} rows, "
        f"{sizes.num_files} files",
        *([said] if images is None and (said := prepared.say_labels(experiment.source)) else []),
        "",
        *table_lines(["target", "bytes a view"], [*sizes.target_bytes.items(), ("all", sizes.row_bytes)]),
        "",
        f"cache: {byte_size(sizes.total_bytes)}; prepared images: {byte_size(pixel_bytes)}",
        f"instead of {byte_size(sizes.probability_bytes * count * sizes.num_views)} of probability maps "
        f"({times(sizes.probability_bytes / sizes.row_bytes)}) or {byte_size(sizes.feature_bytes * count * sizes.num_views)} of "
        f"features ({times(sizes.feature_bytes / sizes.row_bytes)})",
    ]
    lines += [f"Warning: {text}" for text in too_large(sizes, {name: target for name, (target, _) in named.items()})]
    if measure:
        cost = measured(experiment, named, sizes, device, batch)
        lines += [
            "",
            f"measured here ({device}): teacher {1 / cost.teacher_s:.1f} views/s, fill {1 / cost.view_s(sizes):.1f} "
            f"views/s, of which writing takes {cost.write_s / sizes.rows_of_block / cost.view_s(sizes):.0%}; student "
            f"{1 / cost.student_s:.1f} images/s",
            f"time to fill, with one process: {duration(cost.fill_total_s(sizes))}; to verify what is in memory: "
            f"{duration(cost.verify_total_s(sizes))}",
            f"paid for itself after {cost.break_even_epochs(sizes):.1f} student epochs, whatever the number of students; "
            f"a step with the teacher in it would take {1 + cost.teacher_s / cost.student_s:.2f}x a plain one",
        ]
    return lines, sizes.total_bytes


def too_large(sizes: plan.Sizes, targets: Mapping[str, TargetType]) -> Iterator[str]:
    """Targets that take as much as the class probabilities of every pixel, and what makes them smaller."""
    for name, target in targets.items():
        if (size := sizes.target_bytes[name]) < sizes.probability_bytes:
            continue
        keys = {"pool": "a quarter of the bytes at `pool: 2`", "rank": "a smaller `rank`", "patch": "a larger `patch`"}
        cure = next((text for key, text in keys.items() if type(getattr(target, key, None)) is int), "another type of target")
        halved = ", half at `dtype: uint8`" if getattr(target, "dtype", "") == "float16" and "uint8" in dtypes_of(target) else ""
        yield (
            f"targets.{name}: {byte_size(size)} a view, {times(size / sizes.probability_bytes)} a map of class probabilities of "
            f"every pixel ({byte_size(sizes.probability_bytes)}); {cure}{halved}"
        )


def dtypes_of(target: TargetType) -> str:
    return str(typing.get_type_hints(type(target)).get("dtype", ""))


def measured(experiment: Experiment, named: Named, sizes: plan.Sizes, device: str, batch: int) -> plan.Cost:
    """Times the very code of the fill on random pictures: teacher alone, its answers, real blocks read from and written to
    this root, then a plain step of the first student."""

    config, source, context = experiment.config, experiment.source, experiment.context
    teacher, training, prepare = config.teacher, config.training, config.prepare

    def timed(what: str, work: Callable, **limits) -> float:
        say(f"measuring {what} ...")  # no bar, as verifying has one of its own
        return seconds(work, device, **limits)

    say(f"measuring: {6 * MEASURE_S:.0f} s and more on {device}, with random pictures")
    set_precision(teacher.precision)
    rng = np.random.default_rng(0)
    whole, (height, width) = canvas(prepare.size), context.size
    pixels = {
        "image": rng.integers(0, 256, (max(2, batch), *whole, 3), dtype=np.uint8),
        "label": rng.integers(0, context.num_classes, (max(2, batch), *whole), dtype=np.uint8),
        "existence": np.zeros((max(2, batch), source.lanes), np.uint8),
    }
    model = cache.build_teacher(teacher, source, config.view_size, source.lanes)
    model = settled(model, pixels["image"][:, :height, :width])
    model = cache.as_it_answers(model, teacher, source)
    answers = cache.TeacherRunner(model, source, context, prepare.size, precision=teacher.precision, batch=batch, device=device)
    images, labels = pixels["image"][:batch], pixels["label"][:batch]
    matrices = np.stack([geometry.draw(config.views, f"{i}", config.views.count - 1, whole) for i in range(batch)])
    list_of_targets = [target for target, _ in named.values()]
    rows = answers.rows(list_of_targets, images, labels, matrices)
    values = {pass_.folder: (pass_, tiled(found, sizes.rows_of_block)) for (_, pass_), found in zip(named.values(), rows)}
    values[cache.MATRIX.folder] = cache.MATRIX, tiled({"matrix": matrices}, sizes.rows_of_block)
    teacher_s = timed("the teacher", lambda: answers.output(images, labels, matrices)) / batch
    answer_s = timed("the teacher with its targets", lambda: answers.rows(list_of_targets, images, labels, matrices)) / batch

    ids = [f"{i}" for i in range(sizes.rows_of_block)]
    sample = experiment.sample
    with scratch(experiment.root) as folder:
        store = new_store(folder, "targets", ids, len(ids))
        for pass_, _ in values.values():
            store.add_pass(pass_, range(WRITTEN_VIEWS))
        fresh = iter(range(WRITTEN_VIEWS))  # a block that is whole would not be written again

        def write():
            view = next(fresh)
            for pass_, found in values.values():
                store.write_block(pass_, view, 0, found)

        write_s = timed("writing", write, most=WRITTEN_VIEWS - 1)
        written = next(fresh, WRITTEN_VIEWS)
        verify_s = timed("verifying", lambda: verification.verify(store), most=1) / written

        prepared_rows = min(len(ids), plan.block_rows(sizes.num_images, [sample]))
        source_store = new_store(folder, "prepared", ids[:prepared_rows], prepared_rows)
        source_store.add_pass(sample, range(1))
        source_store.write_block(sample, 0, 0, tiled({name: pixels[name] for name in sample.fields}, prepared_rows))

        def read():
            reader = Reader(source_store, [sample], ids[:prepared_rows], 1, memory="disk")
            reader.read(sample, np.arange(prepared_rows), np.zeros(prepared_rows, int))

        read_s = timed("reading", read) * len(ids) / prepared_rows

    plugin = next(iter(config.students.values()))
    network = plugin.build(num_classes=context.num_classes, size=context.size, lanes=0).to(device)
    step = steps.Step(network, [], [], training, torch.ones(context.num_classes, device=device), 0)
    shown, labels_BHW = (
        torch.from_numpy(rows).to(device)
        for rows in tiled({name: pixels[name][:, :height, :width] for name in ("image", "label")}, training.batch).values()
    )
    seen = steps.Batch(shown.permute(0, 3, 1, 2).float(), labels_BHW, labels_BHW < 255, None, {}, 1)
    return plan.Cost(
        teacher_s=teacher_s,
        answer_s=answer_s,
        read_s=read_s,
        write_s=write_s,
        verify_s=verify_s,
        student_s=timed("a student's step", lambda: step(seen)) / len(shown),
    )


def settled(model: ModelBase, images: np.ndarray) -> ModelBase:
    """With batch norms that know their input: a deep network from scratch overflows without, and no fill takes that."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the mean of all passes, here of one
    with torch.no_grad():
        model.train()(torch.from_numpy(images).permute(0, 3, 1, 2).float())
    return model


def tiled(rows: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    return {name: values[np.arange(count) % len(values)] for name, values in rows.items()}


def new_store(root: AnyPath, kind: str, ids: list[str], block_rows: int) -> Store:
    store = Store.create_or_open(root, kind, "plan", {"plan": 1}, block_rows=block_rows, card={})
    store.grow([ImageRow(image_id, "-", "-") for image_id in ids])
    return store


@contextlib.contextmanager
def scratch(root: AnyPath) -> Iterator[AnyPath]:
    """A folder for a while, on the disk where the root will be."""
    if local(root):
        with tempfile.TemporaryDirectory(dir=there(root), prefix="plan-") as local_folder:
            yield Path(local_folder)
        return
    folder = root / f"plan-{uuid.uuid4().hex[:8]}"
    try:
        yield folder
    finally:
        folder.remove_tree()


def there(root: Path) -> Path:
    """The root, or the nearest folder above that exists."""
    return next(path for path in (root, *root.parents) if path.exists())


def seconds(work: Callable, device: str, most: float = float("inf")) -> float:
    """Of one call: the mean of those that fit into MEASURE_S, `most` at most, after one to warm up. A mean, not the
    fastest, since a fill meets the slow ones too."""

    def finished() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    work()
    start, calls = finished(), 0
    while calls == 0 or calls < most and time.perf_counter() - start < MEASURE_S:
        work()
        calls += 1
        end = finished()
    return (end - start) / calls


def times(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x"
