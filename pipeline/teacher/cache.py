"""What a cache of teacher targets is made from (its identity), what it holds (its passes), and one block's worth of answers.

A cache never holds pixels: it holds, per (image, view), the view's matrix and every target's fields.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline import records, weights
from pipeline.config import Config, Plugin, Prepare, Teacher, Term, Views
from pipeline.data import prepared
from pipeline.data import views as geometry
from pipeline.data.frames import canvas
from pipeline.datasets.base import DatasetBase
from pipeline.errors import CodeChanged, ConfigError, NoStore, OtherStore, StoreError
from pipeline.files import plain
from pipeline.later import leave_out
from pipeline.lookup import find_class, is_own
from pipeline.models._flipped import FlipAveraged
from pipeline.models.base import ModelBase, Output, as_float, shapes
from pipeline.paths import if_done_for_dvc
from pipeline.store import ArrayGroup, ImageRow, Store
from pipeline.store.files import AnyPath
from pipeline.targets.base import Context, Field, TargetType

MATRIX = ArrayGroup(
    "matrix", {"type": "matrix", "version": geometry.VERSION}, {"matrix": Field((2, 3), "float64", ("row", "column"))}
)


def build_teacher(teacher: Teacher, dataset: DatasetBase, size: tuple[int, int], lanes: int = 0) -> ModelBase:
    return teacher.model.build(num_classes=len(dataset.classes), size=canvas(size), lanes=lanes)


def load_teacher(teacher: Teacher, dataset: DatasetBase, size: tuple[int, int], weights_file: Path) -> ModelBase:
    """The network as it answers, with these weights, and with the existence head if they have one."""
    state = weights.load_file(weights_file)
    model = build_teacher(teacher, dataset, size, dataset.lanes if weights.has_existence(state) else 0)
    weights.load_into(model, state, str(weights_file))
    return as_it_answers(model, teacher, dataset)


def as_it_answers(model: ModelBase, teacher: Teacher, dataset: DatasetBase) -> ModelBase:
    return FlipAveraged(model, dataset.mirror, dataset.mirror_lanes) if teacher.flip_average else model


def context(model: Plugin, dataset: DatasetBase, size: tuple[int, int], lanes: int = 0) -> Context:
    """Grids and channels of a network on this dataset, without running it."""
    regions = range(len(dataset.classes)) if dataset.regions is None else dataset.regions
    return described(model, len(dataset.classes), regions, size, lanes)


def described(model: Plugin, num_classes: int, regions: Sequence[int], size: tuple[int, int], lanes: int = 0) -> Context:
    """The same of what a dataset says."""
    height_width = canvas(size)
    output = shapes(lambda: model.build(num_classes=num_classes, size=height_width, lanes=lanes), height_width)
    named = output.features if output.logits is None else {**output.features, "logits": output.logits}
    return Context(
        num_classes,
        tuple(regions),
        height_width,
        {role: (f.shape[-2], f.shape[-1]) for role, f in named.items()},
        {role: f.shape[1] for role, f in named.items()},
    )


def identity(dataset: DatasetBase, prepare: Prepare, views: Views, teacher: Teacher, weights_digest: str) -> dict:
    """All that changes a teacher's answer, but not which images, how many views, or which targets: those are the extent."""
    model = find_class("models", teacher.model.name)
    regions = range(len(dataset.classes)) if dataset.regions is None else dataset.regions
    looks_mirrored = views.mirror or teacher.flip_average
    return {
        "prepare": prepared.identity(dataset, prepare),
        "views": {
            "version": geometry.VERSION,
            **{key: value for key, value in plain(views).items() if key != "count"},
            "permutation": list(dataset.mirror) if looks_mirrored and dataset.mirror else None,
        },
        "regions": list(regions),
        "teacher": {
            "name": teacher.model.name,
            "args": dict(sorted(leave_out(teacher.model.args, model).items())),
            "version": model.version_of(teacher.model.args),
            **model.made_from(teacher.model.args),
            **own_code(f"pipeline.models.{architecture(teacher.model)}"),
            "weights": weights_digest,
            **leave_out({"precision": teacher.precision, "flip_average": teacher.flip_average}, Teacher),
            **({"mirror_lanes": list(dataset.mirror_lanes)} if teacher.flip_average and dataset.mirror_lanes else {}),
        },
    }


def architecture(model: Plugin) -> str:
    """The network's name; of an ensemble, its members'."""
    name: str = model.args["network"]["name"] if model.name == "ensemble" else model.name
    return name


NOT_CODE = ("weights", "precision", "flip_average", "mirror_lanes")  # of the teacher: with others, its answers are others


def is_code(difference: str) -> bool:
    """Whether a difference of two identities (`identity.diff`) is one of the teacher's code: then the answers may be the same."""
    section, _, key = difference.partition(":")[0].partition(".")
    return section == "teacher" and key.partition(".")[0] not in NOT_CODE


def distance(apart: Sequence[str]) -> tuple[int, int]:
    """How far an identity is from another with these differences: those of code count least."""
    return sum(not is_code(difference) for difference in apart), len(apart)


def may_be_adopted(apart: Sequence[str], config: Path) -> str:
    """What to do about a cache with these differences; empty where more than the teacher's code differs."""
    if distance(apart)[0] or not apart:
        return ""
    return f"if the teacher's answers are the same, `pipeline cache adopt {config} --recompute 32` takes it over"


def own_code(module: str) -> dict[str, str]:
    """A network of one's own by its code, too, since no test asks for a new version of it; nothing for one of this package."""
    return {"code": records.code_among(module, is_own)} if is_own(module) else {}


def check_views(views: Views, dataset: DatasetBase, where: str) -> None:
    """Raises ConfigError if mirroring is asked for where the dataset does not say how classes change."""
    if views.mirror and dataset.mirror is None:
        raise ConfigError(f"{where}: views.mirror: this dataset has no class permutation for mirrored images; write false")


@dataclass(frozen=True)
class HiddenLabels:
    """Of a dataset some of whose labels are not used (DatasetBase.shown_labels)."""

    digest: str  # of the ids whose labels are
    teacher_looks: bool  # whether the teacher answers from labels


def target_passes(
    targets: Mapping[str, Plugin], context: Context, hidden: HiddenLabels | None = None
) -> dict[str, tuple[TargetType, ArrayGroup]]:
    """Each named target with where it is stored. Equal targets under two names share one pass.

    Rows that come from labels are those of one choice of labelled images, which is then in the record: for another choice they
    are stored beside them, in the same cache. All other targets are the same rows whatever labels are hidden.
    """
    result = {}
    for name, plugin in targets.items():
        target = plugin.build()
        if "logits" not in context.grids and "logits" in target.source_layers():
            raise ConfigError(
                f"targets.{name}: is made from logits, and this teacher has none (teacher.logits); leave it out, or "
                f"name a layer with one channel a class"
            )
        record = target.record(plugin.name)
        if hidden is not None and (target.uses_labels or hidden.teacher_looks):
            record["labelled"] = hidden.digest
        result[name] = (
            target,
            ArrayGroup(plugin.name, record, target.fields(context), records.target_code(plugin.name)),
        )
    return result


def by_labels(identity_record: dict, target: TargetType) -> bool:
    """Whether a changed label refuses its rows: because the target looks at labels, or because the teacher does."""
    model: type[ModelBase] = find_class("models", identity_record["teacher"]["name"])
    return target.uses_labels or model.uses_labels


def learns_unlabelled(method: Sequence[Term], targets: Mapping[str, Plugin]) -> bool:
    """Whether some target of a method says something where no pixel is labelled."""
    read = [targets[name].build() for term in method for name in term.reads]
    return any(not target.uses_labels or getattr(target, "regions", None) == "both" for target in read)


def needs_labels(config: Config) -> str | None:
    """What learns from labels, if nothing could be learned without; None if something could."""
    teachers = [one.teacher for one in config.by_teacher.values()]
    if any(teacher.checkpoint is None for teacher in teachers) and config.teacher_training is not None:
        return "the teacher is trained on labels (no teacher.checkpoint)"
    if any(find_class("models", teacher.model.name).uses_labels for teacher in teachers):
        return "the teacher answers from labels"
    if not any(learns_unlabelled(method, config.targets) for method in config.methods.values()):
        return "every method learns from labels alone"
    return None


def open_whole(
    root: AnyPath,
    dataset: str,
    identity_record: dict,
    images: Sequence[ImageRow],
    num_views: int,
    named: Mapping[str, tuple[TargetType, ArrayGroup]],
    config: Path,
) -> tuple[Store, list[ArrayGroup]]:
    """The cache of this identity and its passes, the matrices first, all of them whole for these images and views. Raises
    StoreError with what to run."""
    passes = {pass_.folder: (pass_, by_labels(identity_record, target)) for target, pass_ in named.values()}
    wanted = [(MATRIX, False), *passes.values()]
    try:
        store = Store.find(root, "targets", dataset, identity_record)
        store.check(list(images), range(num_views), wanted)
    except CodeChanged:  # filling doesn't mend it
        raise
    except StoreError as error:
        what = "run"
        if isinstance(error, OtherStore) and (adopt := may_be_adopted(error.apart, config)):
            what = f"{adopt}; otherwise run"
        if isinstance(error, NoStore):
            what = f"copy one that was filled elsewhere with `pipeline cache pull URL {root}`, or fill it with"
        raise StoreError(
            f"{error}; {what} `pipeline cache-teacher {config}` (with the same --set, if there was one)"
            f"{if_done_for_dvc('cache-teacher')}"
        ) from None
    return store, [pass_ for pass_, _ in wanted]


def weights_digest(teacher: Teacher, path: Path) -> str:
    """Digest of the teacher's weights. Raises StoreError that says how to get them, also if the YAML names a checkpoint that is
    not what was copied here."""
    if not path.exists():
        raise StoreError(f"{path}: no teacher weights; run `pipeline train-teacher` (or name a checkpoint in the YAML)")
    copied = weights.load_file(path)
    digest = weights.digest(copied)
    files = (teacher.checkpoint,) if isinstance(teacher.checkpoint, Path) else teacher.checkpoint or ()
    if files and all(file.exists() for file in files):
        named_by = ", ".join(map(str, files))
        state = weights.load_file(files[0]) if isinstance(teacher.checkpoint, Path) else weights.load_checkpoint(files)
        checkpoint = weights.fitted(weights.renamed(find_class("models", teacher.model.name), state), copied, named_by)
        if (named := weights.digest(checkpoint)) != digest:
            raise StoreError(
                f"{path}: holds teacher.weights {digest[:12]}, but {named_by} holds {named[:12]}; run "
                f"`pipeline train-teacher` to copy it"
            )
    return digest


class BadTeacherOutput(StoreError):
    """A teacher's answer from which nothing can be learned: for which of the images and targets, and what is wrong."""

    def __init__(self, image: int, targets: Sequence[int], what: str):
        super().__init__(f"image {image} of those asked about: {what}; check the teacher's weights and its precision")
        self.image, self.targets, self.what = image, list(targets), what


class TeacherRunner:
    """A teacher in eval mode that answers one block's view at a time, in batches of one fixed size.

    Batches never cross a block and the last is filled up with repeats, so a row does not depend on what else is filled.
    """

    def __init__(
        self,
        model: ModelBase,
        dataset: DatasetBase,
        context: Context,
        content: tuple[int, int],
        *,
        precision: str,
        batch: int,
        device,
    ):
        self.device = torch.device(device)
        moved = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # which torch takes
        self.model: ModelBase = moved.eval().requires_grad_(False)
        self.dataset, self.context, self.content, self.batch = dataset, context, content, batch
        self.bf16 = precision == "bf16"

    def output(self, images: np.ndarray, labels: np.ndarray, matrices: np.ndarray) -> tuple[Output, torch.Tensor]:
        """The teacher's float32 output on these views, and the labels of the views. uint8 [B, H, W, 3] and [B, H, W]."""
        shown, labels_BHW = self.seen(images, labels, matrices)
        return self.answer(shown, labels_BHW), labels_BHW

    def seen(self, images: np.ndarray, labels: np.ndarray, matrices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels of these views, on the teacher's device."""
        shown, labels_BHW, _ = geometry.apply(
            torch.from_numpy(images).to(self.device),
            torch.from_numpy(labels).to(self.device),
            torch.from_numpy(matrices),
            content=self.content,
            permutation=self.dataset.mirror,
            size=self.context.size,
        )
        return shown, labels_BHW

    @torch.no_grad()
    def answer(self, shown: torch.Tensor, labels_BHW: torch.Tensor) -> Output:
        """The teacher's float32 output on views."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return as_float(self.model(shown, labels_BHW))

    def rows(
        self, targets: Sequence[TargetType], images: np.ndarray, labels: np.ndarray, matrices: np.ndarray
    ) -> list[dict[str, np.ndarray]]:
        """For each target, its encoded fields [n, ...] for these n images. Raises BadTeacherOutput."""
        return joined([self._batch(targets, images, labels, matrices, start) for start in range(0, len(images), self.batch)])

    def begin(
        self, targets: Sequence[TargetType], images: np.ndarray, labels: np.ndarray, matrices: np.ndarray
    ) -> Callable[[], list[dict[str, np.ndarray]]]:
        """The same, answered by threads while the caller does something else; what it returns waits for the rows. Two batches
        are under way at a time, each in a stream of its own, so that one is copied and encoded while the other is in the
        network."""
        waiting = [
            self._threads.submit(self._batch, targets, images, labels, matrices, start)
            for start in range(0, len(images), self.batch)
        ]
        return lambda: joined([part.result() for part in waiting])

    @functools.cached_property
    def _threads(self) -> ThreadPoolExecutor:
        def own_stream():
            torch.cuda.synchronize(self.device)  # the weights are there
            torch.cuda.set_stream(torch.cuda.Stream(self.device))

        return ThreadPoolExecutor(2, "answers", own_stream) if self.device.type == "cuda" else ThreadPoolExecutor(1, "answers")

    def _batch(self, targets, images, labels, matrices, start: int) -> list[dict[str, np.ndarray]]:
        chosen = np.arange(start, start + self.batch).clip(max=len(images) - 1)
        kept = min(self.batch, len(images) - start)
        output, labels_BHW = self.output(images[chosen], labels[chosen], matrices[chosen])
        refuse_output(output, targets, start)
        found = []
        for number, target in enumerate(targets):
            values = computed(target, output, labels_BHW, self.context)
            refuse_values(values, target, number, labels_BHW, self.context, start)
            found.append({name: rows[:kept] for name, rows in encoded(values, target, number, start).items()})
        return found


def joined(batches: Sequence[list[dict[str, np.ndarray]]]) -> list[dict[str, np.ndarray]]:
    """Rows by target, of all batches."""
    return [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in zip(*batches)]


def computed(target: TargetType, output: Output, labels_BHW: torch.Tensor, context: Context) -> dict[str, torch.Tensor]:
    """What a target makes of a teacher's output; of a flip-averaged one, the mean of what it makes of both. Raises ConfigError
    where whole numbers are stored that differ, of which there is no mean."""
    values = target.compute(output, labels_BHW, context)
    if output.mirrored is None:
        return values
    others = target.compute(output._replace(features=output.mirrored, mirrored=None), labels_BHW, context)
    for name, value in values.items():
        if not value.is_floating_point() and not torch.equal(value, others[name]):
            raise ConfigError(
                f"teacher.flip_average: {name} of a {type(target).__module__.rpartition('.')[2]} target differs in "
                f"the mirrored image, and there is no mean of it; write false, or leave that target out"
            )
    return {name: (value + others[name]) / 2 if value.is_floating_point() else value for name, value in values.items()}


# A teacher that is broken is noticed at its first answer, not when a student has learned nothing


def refuse_output(output: Output, targets: Sequence[TargetType], start: int) -> None:
    """Raises BadTeacherOutput at NaN, infinity, or a map that is the same everywhere, in the layers that the targets read."""
    maps = output.features if output.logits is None else {**output.features, "logits": output.logits}
    for role, map_BChw in maps.items():
        readers = [number for number, target in enumerate(targets) if role in target.source_layers()]
        if readers and map_BChw[0, 0].numel() > 1:
            low_BC, high_BC = map_BChw.amin(dim=(2, 3)), map_BChw.amax(dim=(2, 3))
            finite_B = (low_BC.isfinite() & high_BC.isfinite()).all(dim=1)
            flat_B = (high_BC - low_BC <= 1e-6 * torch.maximum(high_BC.abs(), low_BC.abs())).all(dim=1)
            bad_B = (~finite_B | flat_B).cpu()
            if bad_B.any():
                image = int(bad_B.nonzero()[0])
                what = "the same at all positions" if finite_B[image] else "not finite"
                raise BadTeacherOutput(start + image, readers, f"the teacher's {role!r} is {what}")


def refuse_values(
    values: Mapping[str, torch.Tensor], target: TargetType, number: int, labels_BHW: torch.Tensor, context: Context, start: int
) -> None:
    """Raises BadTeacherOutput at what is not finite, or all zero for every image of a batch that shows a region: one alone may
    well be, e.g. where no labelled cell responds."""
    for name, value in values.items():
        if value.is_floating_point():
            flat_BN = value.flatten(1)
            finite_B, zero_B = torch.stack([flat_BN.isfinite().all(dim=1), (flat_BN == 0).all(dim=1)]).cpu()
            if not finite_B.all():
                raise BadTeacherOutput(start + int((~finite_B).nonzero()[0]), [number], f"its {name} is not finite")
            if zero_B.any() and (shows_B := regions_shown(labels_BHW, target, context)).any() and zero_B[shows_B].all():
                raise BadTeacherOutput(start + int(shows_B.nonzero()[0]), [number], f"its {name} is all zero")


def regions_shown(labels_BHW: torch.Tensor, target: TargetType, context: Context) -> torch.Tensor:
    """[B] bool on the CPU: whether the target surely has something to compare: a region in the middle of one of its cells. Few
    labels, or none, may leave it nothing."""
    if not target.uses_labels:
        return torch.ones(len(labels_BHW), dtype=torch.bool)
    known = torch.zeros(256, dtype=torch.bool, device=labels_BHW.device)
    known[list(context.regions)] = True
    from pipeline.targets._grid import cell_labels  # who trains a teacher imports this file and no target

    layer = min(target.source_layers(), key=lambda layer: (layer == "logits", layer))  # regions are made on a layer's grid
    labels_Bhw = cell_labels(labels_BHW, context.grids[layer])
    return known[labels_Bhw.flatten(1).int()].any(dim=1).cpu()


def encoded(values: dict[str, torch.Tensor], target: TargetType, number: int, start: int) -> dict[str, np.ndarray]:
    try:
        return target.encode(values)
    except OverflowError as error:
        for image in range(len(next(iter(values.values())))):
            try:
                target.encode({name: value[image : image + 1] for name, value in values.items()})
            except OverflowError:
                raise BadTeacherOutput(start + image, [number], str(error)) from None
        raise
