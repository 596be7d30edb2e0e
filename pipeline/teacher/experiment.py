"""An experiment as the stages open it: a configuration, where its stores and the teacher's weights lie, and what follows.

Each part is made when it is first asked for, and kept: a stage that reads no target makes none.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pipeline.config import MAIN, Config, Plugin, Term, Training
from pipeline.data import prepared
from pipeline.datasets.base import DatasetBase
from pipeline.errors import ConfigError
from pipeline.lookup import find_class
from pipeline.models.base import ModelBase, as_float
from pipeline.store import ArrayGroup, ImageRow, Reader, Store
from pipeline.store.files import AnyPath
from pipeline.targets.base import Context, TargetType
from pipeline.teacher import cache
from pipeline.teacher.online import OnlineTargets, online_targets

Named = dict[str, tuple[TargetType, ArrayGroup]]  # targets by their name in the file, each with where it is stored


@dataclass(frozen=True)
class Experiment:
    """Raises what its parts raise: DatasetError, or StoreError that names what is missing or differs, and what to run."""

    config: Config
    root: AnyPath  # of the stores
    weights_file: Path  # of the section `teacher`

    def anywhere(self) -> "Experiment":
        """The same for a process that stands in another folder, and without what was made already."""
        return Experiment(self.config.anywhere(), self.root.absolute(), self.weights_file.absolute())

    @cached_property
    def teachers(self) -> "dict[str, Experiment]":
        """By name, the same with each teacher alone: its weights, its cache, and the targets that are made from it. Of the others'
        cache nothing is asked. Raises ConfigError if targets that are to be averaged lie on different grids."""
        if not self.config.teachers:
            return {MAIN: self}
        found = {
            name: Experiment(config, self.root, weights_of(self.weights_file, name))
            for name, config in self.config.by_teacher.items()
        }
        for name, plugin in self.config.targets.items():
            first, *others = plugin.teachers
            target, grids = plugin.build(), found[first].context.grids
            for other in others:
                for layer in sorted(target.source_layers()):
                    if (grid := found[other].context.grids.get(layer)) != grids.get(layer):
                        raise ConfigError(
                            f"{self.config.path}: targets.{name}.teacher: {layer} of {first} has {in_words(grids.get(layer))} and "
                            f"of {other} {in_words(grid)}, and maps of different grids have no mean; list a target for each"
                        )
        return found

    def reading(self, names: Iterable[str]) -> "dict[str, tuple[Experiment, list[str]]]":
        """The teachers that these targets are made from, each with its own of them."""
        names = list(names)
        of_each = {teacher: [name for name in names if name in one.config.targets] for teacher, one in self.teachers.items()}
        return {teacher: (self.teachers[teacher], some) for teacher, some in of_each.items() if some}

    @cached_property
    def source(self) -> DatasetBase:
        return self.config.dataset.build()

    def check_views(self) -> None:
        cache.check_views(self.config.views, self.source, self.config.dataset.name)

    # Prepared images

    @cached_property
    def sample(self) -> ArrayGroup:
        return prepared.sample_pass(self.config.prepare.size, self.source.lanes, self.config.prepare.fit)

    @cached_property
    def home(self) -> str:
        """The folder below the root where the stores lie."""
        config, source = self.config, self.source
        return prepared.home(self.root, config.dataset, source, prepared.identity(source, config.prepare), source.ids("train"))

    def find_prepared(self) -> Store:
        """The prepared store, whole or not."""
        return Store.find(self.root, "prepared", self.home, prepared.identity(self.source, self.config.prepare))

    @cached_property
    def pixels(self) -> Store:
        """The prepared store, whole for the training images."""
        return self._prepared[0]

    @cached_property
    def images(self) -> list[ImageRow]:
        """The training images that are prepared, in the dataset's order."""
        return list(self._prepared[1])

    @cached_property
    def ids(self) -> list[str]:
        return [image.id for image in self.images]

    @cached_property
    def _prepared(self) -> tuple[Store, list[ImageRow]]:
        config = self.config
        store, _, images = prepared.open_whole(self.root, config.dataset, self.source, config.prepare, self.source.ids("train"))
        return store, images

    @cached_property
    def shown_labels(self) -> frozenset[str] | None:
        """The training images whose labels are used; None where none are hidden."""
        return self.source.shown_labels()

    @cached_property
    def labelled(self) -> frozenset[str]:
        """The training images that show a label."""
        return frozenset(prepared.labelled(self.sample, self.images, self.shown_labels))

    def labelled_per_batch(self, training: Training, from_labels: bool) -> int | None:
        """How many images of a batch have a label. What learns `from_labels` alone is shown no others, where the file says anything
        of few labels: equal steps are then equal numbers of labelled images."""
        if from_labels and (self.source.labelled_part is not None or training.labelled_per_batch is not None):
            return training.batch
        return training.labelled_per_batch

    def samples(self, ids: Sequence[str] | None = None, store: Store | None = None, **how: Any) -> Reader:
        """Reads prepared images: all for training, if none are named."""
        store = self.pixels if store is None else store
        return prepared.SampleReader(store, self.sample, self.ids if ids is None else ids, self.shown_labels, **how)

    # Networks

    @cached_property
    def context(self) -> Context:
        """What targets and losses know about the teacher, of several about the first."""
        return cache.context(self.config.teacher.model, self.source, self.config.view_size)

    @cached_property
    def lanes(self) -> int:
        """Outputs of a student's existence head; 0 where it has none."""
        return self.source.lanes if self.config.training.existence_weight else 0

    def student_context(self, student: Plugin) -> Context:
        return cache.context(student, self.source, self.config.view_size, self.lanes)

    def build(self, student: Plugin) -> ModelBase:
        return student.build(num_classes=len(self.source.classes), size=self.context.size, lanes=self.lanes)

    def try_students(self) -> None:
        """Makes every student and the losses of every method, without a run. Raises what they raise."""
        contexts = [self.student_context(student) for student in self.config.students.values()]
        for terms in self.config.methods.values():
            for term in terms if contexts else ():
                self.loss(term, contexts[0])

    def loss(self, term: Term, student: Context) -> Any:  # a LossModule, which stage one does not load
        """The loss of a term, for a student of this context."""
        teacher, names = next(iter(self.reading(term.reads).values()), (self, []))
        targets = {name: teacher.config.targets[name] for name in names}
        reads = {name: target for name, (target, _) in cache.target_passes(targets, teacher.context).items()}
        return term.loss.build(reads=reads, context=teacher.context, student=student)

    def load_teacher(self) -> ModelBase:
        return cache.load_teacher(self.config.teacher, self.source, self.config.view_size, self.weights_file)

    def try_teacher(self, model: ModelBase) -> None:
        """Shows the teacher one empty image and makes every target of its answer, before hours are spent on it. Raises what they
        raise."""
        height, width = self.context.size
        with torch.no_grad():
            output = as_float(model.eval()(torch.zeros(1, 3, height, width), torch.zeros(1, height, width, dtype=torch.uint8)))
            for target, _ in self.targets.values():
                target.compute(output, torch.zeros(1, height, width, dtype=torch.uint8), self.context)

    # The cache

    @cached_property
    def targets(self) -> Named:
        """Every target of the file."""
        return self.some_targets(self.config.targets)

    def some_targets(self, names: Iterable[str]) -> Named:
        self._refuse_several()
        return cache.target_passes({name: self.config.targets[name] for name in names}, self.context, self.hidden)

    @cached_property
    def hidden(self) -> cache.HiddenLabels | None:
        """What targets that look at labels are stored under, where some labels are hidden."""
        shown = self.shown_labels
        teacher_looks = find_class("models", self.config.teacher.model.name).uses_labels
        return None if shown is None else cache.HiddenLabels(prepared.labels_digest(shown), teacher_looks)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Of the cache."""
        self._refuse_several()
        config = self.config
        digest = cache.weights_digest(config.teacher, self.weights_file)
        return cache.identity(self.source, config.prepare, config.views, config.teacher, digest)

    def _refuse_several(self) -> None:
        if self.config.teachers:
            names = ", ".join(self.config.by_teacher)
            raise ConfigError(f"{self.config.path}: has several teachers, with a cache each; name one of {names}")

    def find_cache(self) -> Store:
        """The cache, whole or not."""
        return Store.find(self.root, "targets", self.home, self.identity)

    def check_teacher_in_the_loop(self) -> None:
        """Raises ConfigError where the teacher can't run beside the student as it does in a fill."""
        config, precisions = self.config, (self.config.teacher.precision, self.config.training.precision)
        if precisions.count("tf32") == 1:
            raise ConfigError(
                f"{config.path}: teacher.precision is {precisions[0]} and training.precision {precisions[1]}, but TF32 is on or "
                f"off for a whole process; write tf32 for both or for none, or run `pipeline cache-teacher` first"
            )

    def open_cache(self, targets: Named) -> tuple[Store, list[ArrayGroup]]:
        """The cache and its passes, the matrices first, whole for these targets and the training images."""
        config = self.config
        return cache.open_whole(self.root, self.home, self.identity, self.images, config.views.count, targets, config.path)

    def online_targets(self, names: Iterable[str], samples: Reader, *, batch: int, device: str) -> OnlineTargets:
        """The same from the teacher itself, for these samples."""
        config = self.config
        return online_targets(
            config.teacher,
            {name: config.targets[name] for name in names},
            self.source,
            config.prepare,
            config.views,
            self.weights_file,
            samples,
            self.sample,
            self.hidden,
            batch=batch,
            device=device,
        )


def weights_of(file: Path, teacher: str) -> Path:
    """Where the weights of a named teacher lie, beside those of the section `teacher`."""
    return file if teacher == MAIN else file.with_suffix("") / f"{teacher}{file.suffix}"


def in_words(grid: tuple[int, int] | None) -> str:
    return "no map" if grid is None else f"{grid[0]} x {grid[1]} cells"
