"""Fill a cache of targets: one block of one view at a time, by a teacher in memory.

`BlockFiller` is the worker of `cache-teacher`: there is one in each process. `FillingTargets` stands in for loading.CachedTargets
where a student is trained while the cache is filled: the block that a step asks for, and that is missing, is computed then, by the
same worker and therefore in the same bytes, stored, and read from then on.
"""

import functools
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
from torch import Tensor

from pipeline.data import views as geometry
from pipeline.data.frames import canvas
from pipeline.errors import StoreError
from pipeline.identity import join_names
from pipeline.models.base import set_precision
from pipeline.progress import say
from pipeline.store import ArrayGroup, Store, plan
from pipeline.store.files import AnyPath, InUse, view_name
from pipeline.store.reader import RAM_SHARE, free_bytes
from pipeline.teacher import cache
from pipeline.teacher.experiment import Experiment, Named


def open_to_fill(experiment: Experiment, every: Sequence[ArrayGroup]) -> Store:
    """The cache that the experiment asks for, made if there is none, with its images, these passes and all views. Raises StoreError
    if it was made from other pixels or labels, or by other code."""
    config, source, images = experiment.config, experiment.source, experiment.images
    store = Store.create_or_open(
        experiment.root,
        "targets",
        experiment.home,
        experiment.identity,
        block_rows=plan.block_rows(len(images), every[1:]),
        card={"dataset": config.dataset.name, "classes": list(source.classes), "teacher": config.teacher.model.name},
    )
    store.grow(images)
    for pass_ in every:
        store.add_pass(pass_, range(config.views.count))
    try:
        targets = experiment.targets.values()
        store.check(images, range(0), [(pass_, cache.by_labels(experiment.identity, target)) for target, pass_ in targets])
    except StoreError as error:
        raise StoreError(
            f"{error}; rows that were made from other labels can't be mended: remove that folder with "
            f"`pipeline cache rm` and fill it again"
        ) from None
    return store


def every_pass(named: Named) -> list[ArrayGroup]:
    """The matrices, and each target's arrays once."""
    return [cache.MATRIX, *{pass_.folder: pass_ for _, pass_ in named.values()}.values()]


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
        folders = {pass_.folder for pass_ in every_pass(self.named)}
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
        padded = self.views.crop is not None and "content" in self.sample.fields
        contents_B2 = self.images(task.block)["content"] if padded else None
        matrices = geometry.drawn(self.views, (image.id for image in block), itertools.repeat(task.view), self.canvas, contents_B2)
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


class FillingTargets:
    """The targets of these names, from a cache that is filled on the way. The teacher is loaded only if a row is missing. A block
    that was read stays in memory, as far as a quarter of the free RAM goes. May be used by several threads."""

    def __init__(self, experiment: Experiment, names: Iterable[str], *, batch: int, device: str):
        self.targets, self.matrix = experiment.some_targets(names), cache.MATRIX
        every = every_pass(experiment.targets)  # what the teacher answers of an image is stored for every method
        self.store = open_to_fill(experiment, every)
        self.in_use = InUse(self.store.folder)
        self.folders = tuple(pass_.folder for pass_ in every)
        self._rows = self.store.rows_of(experiment.ids)
        self._whole: set[tuple[int, int]] = set()  # (view, block)
        self._blocks: OrderedDict[tuple[str, int, int], dict[str, np.ndarray]] = OrderedDict()  # decoded, the oldest first
        self._room, self._lock = int(RAM_SHARE * free_bytes()), Lock()
        wanted = sorted({int(row) // self.store.block_rows for row in self._rows})
        views = range(experiment.config.views.count)
        missing = {(view, block) for view in views for pass_ in every for block in self.store.missing(pass_, view)}
        left = sum(block in wanted for _, block in missing)
        self.filler = None
        if left:
            say(f"{self.store.folder}: {left} of {len(wanted) * len(views)} blocks are missing, and filled when a step asks")
            rows = experiment.pixels.digest_of(experiment.images, range(1), [experiment.sample])
            spec = Spec(
                experiment=experiment.anywhere(),
                batch=batch,
                store=self.store.folder.absolute(),
                passes=frozenset(self.folders),
                rows=rows,
            )
            self.filler = BlockFiller(spec, device)

    def matrices(self, positions: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """[B, 2, 3]."""
        return self._read(self.matrix, positions, numbers)["matrix"]

    def rows(self, positions: np.ndarray, numbers: np.ndarray, to_device: Callable) -> dict[str, dict[str, Tensor]]:
        """[B, ...] by target and field, decoded. `to_device` is how arrays get there."""
        read = {
            pass_.folder: {field: to_device(values) for field, values in self._read(pass_, positions, numbers).items()}
            for pass_ in {pass_.folder: pass_ for _, pass_ in self.targets.values()}.values()
        }
        return {name: target.decode(read[pass_.folder]) for name, (target, pass_) in self.targets.items()}

    def _read(self, pass_: ArrayGroup, positions: np.ndarray, numbers: np.ndarray) -> dict[str, np.ndarray]:
        size = self.store.block_rows
        with self._lock:
            found = [self._block(pass_.folder, int(v), int(self._rows[p]) // size) for p, v in zip(positions, numbers)]
        return {name: np.stack([rows[name][self._rows[p] % size] for p, rows in zip(positions, found)]) for name in pass_.fields}

    def _block(self, folder: str, view: int, block: int) -> dict[str, np.ndarray]:
        """The block's rows [n, ...] by field; filled first if it is missing."""
        key = folder, view, block
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return self._blocks[key]
        if (view, block) not in self._whole:
            missing = tuple(name for name in self.folders if self.store.fault(view_name(view), name, block))
            if missing and self.filler is None:
                raise StoreError(
                    f"{self.store.folder}: block {block}, view {view}, was whole when this run began, and is not any more"
                )
            if missing and self.filler is not None:
                self.filler(plan.Task(view, block, missing))
            self._whole.add((view, block))
        rows = self.store.read_block(view_name(view), folder, block)
        self._blocks[key] = rows
        self._room -= sum(values.nbytes for values in rows.values())
        while self._room < 0 and len(self._blocks) > 1:
            _, oldest = self._blocks.popitem(last=False)
            self._room += sum(values.nbytes for values in oldest.values())
        return rows

    def finish(self) -> None:
        """Writes down which blocks are whole now."""
        self.store.finalise()
