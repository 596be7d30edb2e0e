"""Stage one: run the teacher once over the prepared images and their views, and store its targets.

`run` decides: it opens the stores, lists the blocks that are missing, and hands them to an executor. A `BlockFiller` acts:
there is one in each process, with a teacher in memory, and it fills one block of one view at a time.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data import views as geometry
from pipeline.data.frames import canvas
from pipeline.errors import OtherStore, StoreError
from pipeline.files import write_json
from pipeline.identity import join_names
from pipeline.models.base import set_precision
from pipeline.progress import Progress, say
from pipeline.stopping import Stopped
from pipeline.store import ArrayGroup, Store, executors, plan
from pipeline.store.files import AnyPath, InUse, locked, view_name
from pipeline.store.store import runs
from pipeline.teacher import cache
from pipeline.teacher.experiment import Experiment


def run(
    experiment: Experiment,
    *,
    report: Path,
    device: str,
    batch: int,
    workers: int = 1,
    threads: int | None = None,
    scheduler: str | None = None,
    share: tuple[int, int] = (0, 1),
) -> str:
    """Fills every (block, view) not marked as done, in fixed batches, and writes the report that training depends on.

    The report holds the identity and a digest of just the rows asked for here: no time, host or version. `share` (i, n)
    is the blocks whose number leaves the remainder i on division by n; who finds nothing missing any more writes the
    report. Raises StoreError if the prepared store is missing or holds other pixels than an existing cache was made
    from, or if the teacher answers with NaN or constants.
    """
    config, source, views, context = experiment.config, experiment.source, experiment.config.views, experiment.context
    experiment.check_views()
    pixels, images, identity = experiment.pixels, experiment.images, experiment.identity
    experiment.load_teacher()  # refused before a store is made for it
    remark_on_adoption(experiment)
    named = experiment.targets
    every = [cache.MATRIX, *{pass_.folder: pass_ for _, pass_ in named.values()}.values()]
    store = Store.create_or_open(
        experiment.root,
        "targets",
        experiment.home,
        identity,
        block_rows=plan.block_rows(len(images), every[1:]),
        card={"dataset": config.dataset.name, "classes": list(source.classes), "teacher": config.teacher.model.name},
    )
    in_use = InUse(store.folder)  # noqa: F841  # until this returns
    store.grow(images)
    for pass_ in every:
        store.add_pass(pass_, range(views.count))
    try:
        store.check(images, range(0), [(pass_, cache.by_labels(identity, target)) for target, pass_ in named.values()])
    except StoreError as error:
        raise StoreError(
            f"{error}; rows that were made from other labels can't be mended: remove that folder with "
            f"`pipeline cache rm` and fill it again"
        ) from None
    asked_for = {store.row_of[image.id] // store.block_rows for image in images}

    def missing() -> list[plan.Task]:
        """All views of a block in a row, so that its images are read once."""
        found = plan.tasks(
            {
                (view, pass_.folder): sorted(asked_for.intersection(store.missing(pass_, view)))
                for view in range(views.count)
                for pass_ in every
            }
        )
        return sorted(found, key=lambda task: (task.block, task.view))

    tasks = [task for task in missing() if task.block % share[1] == share[0] % share[1]]
    spec = Spec(
        experiment=experiment.anywhere(),
        batch=batch,
        store=store.folder.absolute(),
        passes=frozenset(pass_.folder for pass_ in every),
        rows=pixels.digest_of(images, range(1), [experiment.sample]),
    )
    with Progress("teacher", sum(len(store.block_images(task.block)) for task in tasks), "views") as progress:
        try:
            for count in executors.processes(
                tasks, BlockFiller, spec, device=device, workers=workers, num_threads=threads, scheduler=scheduler
            ):
                progress.advance(count)
        except Stopped as stopped:
            stopped.said = f"{store.folder}: {progress.done} of the {progress.total} views that were missing are filled"
            raise
    left = missing()
    if left:
        return (
            f"{store.folder}: {len(tasks)} blocks filled now; {len(left)} of {len(asked_for) * views.count} are "
            f"still missing ({blocks(left)}); {report} is written by the share that finds none"
        )
    store.finalise()
    with locked(store.folder):  # two shares may end at the same moment
        write_json(
            report,
            {
                "identity": store.identity,
                "images": len(images),
                "views": views.count,
                "targets": {
                    name: {"pass": pass_.folder, "digest": store.digest_of(images, range(views.count), [cache.MATRIX, pass_])}
                    for name, (_, pass_) in named.items()
                },
            },
        )
    row = sum(plan.row_bytes(pass_) for pass_ in every)
    answers_bytes = 2 * context.num_classes * int(np.prod(context.size))
    return (
        f"{store.folder}: {len(images)} images x {views.count} views, {row} bytes each "
        f"({answers_bytes / row:.0f}x less than float16 probability maps), {len(tasks)} blocks filled now"
    )


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a process is told to become a BlockFiller. Paths are absolute, since a worker may have been started elsewhere."""

    experiment: Experiment
    batch: int
    store: AnyPath  # the cache to fill,
    passes: frozenset[str]  # and what of it
    rows: str  # digest of the prepared rows: a worker that stays must not answer from older ones


class BlockFiller:
    """A teacher and both stores in one process; called with a task, it fills the block and returns the number of views.

    It finds the cache by what *it* would answer from, so a worker with other weights or other code refuses to write.
    """

    def __init__(self, spec: Spec, device: str):
        experiment = spec.experiment
        config, source = experiment.config, experiment.source
        set_precision(config.teacher.precision)
        model = experiment.load_teacher()
        self.views, self.context, self.named = config.views, experiment.context, experiment.targets
        self.answers = cache.TeacherRunner(
            model, source, self.context, config.prepare.size, precision=config.teacher.precision, batch=spec.batch, device=device
        )
        self.store = experiment.find_cache()
        folders = {cache.MATRIX.folder, *(pass_.folder for _, pass_ in self.named.values())}
        if self.store.folder != spec.store or folders != spec.passes:
            raise StoreError(
                f"{spec.store}: is to be filled, but this worker would answer for {self.store.folder} "
                f"({join_names(sorted(folders))}); start it again with the same code and weights file"
            )
        self.store.refuse_other_code(pass_ for _, pass_ in self.named.values())
        self.in_use = InUse(self.store.folder)
        self.experiment, self.pixels, self.sample = experiment, experiment.find_prepared(), experiment.sample
        self.canvas = canvas(experiment.config.prepare.size)
        self.held: tuple[int, dict] = (-1, {})  # the last block's images, for its other views

    def __call__(self, task: plan.Task) -> int:
        return self.begin(task)()

    def overlapped(self, tasks: Iterable[plan.Task]) -> Iterator[int]:
        """The same for one task after the other. While a block is answered, the one before it is written and the next is
        read, which keeps a GPU at work; on the CPU the network needs every core anyway."""
        before = None
        for task in tasks:
            answering = self.begin(task, self.answers.begin)
            if before is not None:
                yield before()
            before = answering
        if before is not None:
            yield before()

    def begin(self, task: plan.Task, ask: Callable | None = None) -> Callable[[], int]:
        """Asks the teacher, with `ask` in the background, for what is missing of the block; what it returns writes it, and
        returns the number of views."""
        block = self.store.block_images(task.block)
        passes = [folder for folder in task.passes if self.store.fault(view_name(task.view), folder, task.block)]
        wanted = {pass_.folder: (target, pass_) for target, pass_ in self.named.values() if pass_.folder in passes}
        matrices = np.stack([geometry.draw(self.views, image.id, task.view, self.canvas) for image in block])
        if wanted:
            rows, targets = self.images(task.block), [target for target, _ in wanted.values()]
            inputs = targets, rows["image"], rows["label"], matrices
            answers = ask(*inputs) if ask else functools.partial(self.answers.rows, *inputs)

        def write() -> int:
            answered: list[tuple[ArrayGroup, dict]] = []
            if cache.MATRIX.folder in passes:
                answered.append((cache.MATRIX, {"matrix": matrices}))
            if wanted:
                answered += self.checked(task, list(wanted.values()), answers)
            for pass_, values in answered:
                self.store.write_block(pass_, task.view, task.block, values)
            return len(block)

        return write

    def checked(self, task: plan.Task, wanted, answers: Callable[[], list[dict]]) -> list[tuple[ArrayGroup, dict]]:
        targets = [target for target, _ in wanted]
        try:
            found = answers()
        except cache.BadTeacherOutput as bad:
            image = self.store.block_images(task.block)[bad.image]
            names = [name for name, (target, _) in self.named.items() if target in [targets[i] for i in bad.targets]]
            raise StoreError(
                f"{self.store.folder}: image {image.id!r}, view {task.view}, target {join_names(names)}: "
                f"{bad.what}; check the teacher's weights and teacher.precision (nothing of this block "
                f"was written)"
            ) from None
        return [(pass_, values) for (_, pass_), values in zip(wanted, found)]

    def images(self, block: int) -> dict[str, np.ndarray]:
        if self.held[0] != block:
            ids = [image.id for image in self.store.block_images(block)]
            positions = np.arange(len(ids))
            reader = self.experiment.samples(ids, self.pixels, memory="disk")
            self.held = block, reader.read(self.sample, positions, np.zeros_like(positions))
        return self.held[1]


def remark_on_adoption(experiment: Experiment) -> None:
    """Says so before the teacher runs, where a cache is there that differs in the teacher's code alone."""
    try:
        experiment.find_cache()
    except OtherStore as error:
        if remark := cache.may_be_adopted(error.apart, experiment.config.path):
            say(f"{error.folder}: differs only in {join_names(error.apart)}; {remark}")
    except StoreError:  # there is none, or one that will be refused
        pass


def blocks(tasks: list[plan.Task]) -> str:
    """Their numbers in words: "blocks 0-3, 7"."""
    numbers = sorted({task.block for task in tasks})
    return "blocks " + join_names([f"{first}-{last}" if first < last else f"{first}" for first, last in runs(numbers)])
