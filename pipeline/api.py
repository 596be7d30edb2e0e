"""What a notebook, or a training loop of your own, needs of the pipeline: a cache opened, its records, batches and losses.

    cache = pipeline.open_cache("configs/demo.yaml")               # or the folder or URL of a cache
    record = cache[cache.ids[0], 1]                                # an image id and a view
    batches = DataLoader(cache, batch_size=8, sampler=cache.sampler(seed=0), collate_fn=pipeline.collate)
    loss = pipeline.make_loss("affinity", cache, reads=["graph_mid", "graph_high"], student=model)
    loss(model(batch.images_B3HW), batch).backward()               # the model returns a pipeline.Output

Everything is joined by image id, and pixels and labels are warped with the matrix that is stored beside the rows. A
config is held to the same as by `pipeline train-student`. A folder or URL alone has no say in what is right: it shows
what is there, under the names of the stored passes, with pixels if the prepared store lies beside it.

B images, H W the network input, L lane slots.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from pipeline import config, records
from pipeline.config import load as load_config
from pipeline.data import prepared, transforms
from pipeline.data import views as geometry
from pipeline.data.frames import canvas
from pipeline.errors import ConfigError, StoreError
from pipeline.identity import diff, join_names
from pipeline.later import fill_in
from pipeline.lookup import did_you_mean, find_class
from pipeline.losses.base import Batch, LossModule
from pipeline.models.base import Output
from pipeline.paths import default_root
from pipeline.store import ArrayGroup, Reader, Store
from pipeline.store.files import AnyPath, as_path, local
from pipeline.store.store import store_folder
from pipeline.targets.base import Context, Field, TargetType
from pipeline.teacher import cache as caches
from pipeline.teacher.experiment import Experiment
from pipeline.training.loading import permutation, scan_order

Memory = Literal["auto", "ram", "disk"]


@dataclass(frozen=True)
class Record:
    """One view of one image. Without a prepared store there are no pixels: they are None."""

    id: str
    view: int
    matrix_23: Tensor  # float64; from pixels of the view to pixels of the prepared image
    targets: dict[str, dict[str, Tensor]]  # decoded fields by target, as a loss sees them
    image_3HW: Tensor | None  # float32 RGB 0..255
    label_HW: Tensor | None  # uint8, 255 = ignored
    inside_HW: Tensor | None  # bool: False where the view looks outside the image
    existence_L: Tensor | None  # uint8 lane flags; only where the dataset has them, opened by its config


@dataclass(frozen=True)
class Pixels:
    """The prepared images that the teacher saw, for the cache's ids."""

    reader: Reader
    sample: ArrayGroup
    content: tuple[int, int]  # height, width without the padding
    permutation: tuple[int, ...] | None  # of the classes in a mirrored view
    lane_classes: tuple[int, ...] = ()
    mirror_lanes: tuple[int, ...] | None = None
    crop: tuple[int, int] | None = None  # height, width of a view, if it is not the whole image

    def seen(self, position: int, matrix_23: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Image, label, inside-mask and lane flags of one view."""
        rows = self.reader.read(self.sample, np.array([position]), np.array([0]))
        found = {name: torch.from_numpy(values) for name, values in rows.items()}
        images, labels, inside = geometry.apply(
            found["image"],
            found["label"],
            matrix_23[None],
            content=found.get("content", self.content),
            permutation=self.permutation,
            size=self.crop,
        )
        flags = None
        if self.lane_classes and "existence" in found:
            flags = geometry.existence(found["existence"], labels, self.lane_classes, matrix_23[None], self.mirror_lanes)[0]
        return images[0], labels[0], inside[0], flags


class Cache(Dataset[Record]):
    """Records by (image id, view), for a notebook or for DataLoader; safe to hand to forked and spawned workers."""

    def __init__(
        self,
        store: Store,
        targets: dict[str, tuple[TargetType, ArrayGroup]],
        ids: Sequence[str],
        num_views: int,
        pixels: Pixels | None,
        memory: Memory,
    ):
        self.folder, self.identity, self.ids, self.num_views = store.folder, store.identity["record"], list(ids), num_views
        self.targets = {name: target for name, (target, _) in targets.items()}
        self._passes = {name: pass_ for name, (_, pass_) in targets.items()}
        self._pixels = pixels
        self._reader = Reader(store, [caches.MATRIX, *self._passes.values()], ids, num_views, memory=memory)
        self._positions = {image_id: position for position, image_id in enumerate(ids)}
        self._contexts: dict[tuple[int, int], Context] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        said = [f"  {name}: {str(target).replace('Target', self._passes[name].name, 1)}" for name, target in self.targets.items()]
        height, width = self.size
        return "\n".join([f"{self.folder}: {len(self.ids)} images x {self.num_views} views of {height} x {width} pixels", *said])

    def __getitem__(self, key: str | tuple[str, int]) -> Record:
        """`cache[image_id, view]`, or `cache[image_id]` for view 0. Raises StoreError on an unknown image or view."""
        image_id, view = key if isinstance(key, tuple) else (key, 0)
        if not isinstance(image_id, str):
            raise StoreError(
                f"{self.folder}: {image_id!r} is no image id; ask for cache['id', view], and give DataLoader "
                f"sampler=cache.sampler(seed)"
            )
        if image_id not in self._positions:
            raise StoreError(
                f"{self.folder}: no image {image_id!r}{did_you_mean(image_id, self.ids)}; there are {join_names(self.ids)}"
            )
        if not 0 <= view < self.num_views:
            raise StoreError(f"{self.folder}: no view {view} of {image_id!r}; there are 0 to {self.num_views - 1}")
        position = self._positions[image_id]
        matrix_23 = self._read(caches.MATRIX, position, view)["matrix"][0]
        decoded = {name: target.decode(self._read(self._passes[name], position, view)) for name, target in self.targets.items()}
        targets = {name: {field: values[0] for field, values in fields.items()} for name, fields in decoded.items()}
        seen = self._pixels.seen(position, matrix_23) if self._pixels else (None, None, None, None)
        return Record(image_id, view, matrix_23, targets, *seen)

    def _read(self, pass_: ArrayGroup, position: int, view: int) -> dict[str, Tensor]:
        rows = self._reader.read(pass_, np.array([position]), np.array([view]))
        return {field: torch.from_numpy(values) for field, values in rows.items()}

    def sampler(self, seed: int, ids: Sequence[str] | None = None) -> "Epochs":
        """Each of these images (all, if none are named) once an epoch, each epoch in another of its views."""
        return Epochs(self.ids if ids is None else ids, self.num_views, seed)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what the networks see."""
        height, width = self.identity["views"].get("crop", self.identity["prepare"]["canvas"])
        return height, width

    @property
    def classes(self) -> list[str]:
        return list(self.identity["prepare"]["classes"])

    @cached_property
    def context(self) -> Context:
        """What losses know about the teacher. Makes its network without weights or arithmetic."""
        return self.context_at(self.size)

    def context_at(self, size: tuple[int, int]) -> Context:
        """The same for an input of this height and width: the grids that the teacher has there. Raises ConfigError if it takes no
        such input."""
        if (fits := canvas(size)) != size:
            raise ConfigError(f"{size[0]} x {size[1]}: networks take multiples of 8 pixels; write {fits[0]} x {fits[1]}")
        if size not in self._contexts:
            teacher = self.identity["teacher"]
            args = fill_in(teacher["args"], find_class("models", teacher["name"]))
            model = config.Plugin(kind="models", name=teacher["name"], args=args)
            self._contexts[size] = caches.described(model, len(self.classes), self.identity["regions"], size)
        return self._contexts[size]

    @property
    def symmetry(self) -> transforms.Symmetry:
        """What a mirrored image changes in labels and lanes, as far as it is known."""
        if self._pixels is None:
            return transforms.Symmetry(None, (), None)
        return transforms.Symmetry(self._pixels.permutation, self._pixels.lane_classes, self._pixels.mirror_lanes)


class Epochs(Sampler[tuple[str, int]]):
    """(image id, view), an epoch at each iteration, in the order and views of `pipeline train-student` with this seed.

    It lives in the main process, so workers need not be told about epochs. `set_epoch` goes on somewhere else.
    """

    def __init__(self, ids: Sequence[str], num_views: int, seed: int):
        self.ids, self.num_views, self.seed, self.epoch = list(ids), num_views, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        for position in permutation(self.seed, epoch, len(self.ids)):
            image_id = self.ids[position]
            yield image_id, geometry.view_of_epoch(image_id, epoch, self.num_views)


def collate(records: Sequence[Record]) -> Batch:
    """The batch of these records, at step 0: a loss that looks at the step (skd_holistic) wants `replace(batch, step=n)`."""

    def stacked(name: str) -> Tensor:
        tensors = [getattr(record, name) for record in records]
        if any(tensor is None for tensor in tensors):
            raise StoreError(
                f"{records[0].id}: this record has no pixels; open the cache by its config, or beside its prepared store"
            )
        return torch.stack(tensors)

    rows = {
        name: {field: torch.stack([record.targets[name][field] for record in records]) for field in fields}
        for name, fields in records[0].targets.items()
    }
    images_B3HW = stacked("image_3HW").contiguous(memory_format=torch.channels_last)
    existence_BL = None if records[0].existence_L is None else stacked("existence_L")
    return Batch(
        images_B3HW,
        stacked("label_HW"),
        stacked("inside_HW"),
        existence_BL,
        rows,
        step=0,
        ids=tuple(record.id for record in records),
        views=tuple(record.view for record in records),
        matrices_B23=torch.stack([record.matrix_23 for record in records]),
    )


def open_cache(
    where: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    root: str | os.PathLike[str] | None = None,
    targets: Sequence[str] | None = None,
    memory: Memory = "disk",
    teacher: str | None = None,
) -> Cache:
    """The cache that a config asks for, or the one in this folder or at this URL.

    Paths in a config count from where the process stands, as they do for the commands; `overrides` are those of `--set`,
    `root` that of `--root`. `targets` leaves others out. `memory`: rows stay on disk, or are held in RAM ("ram"; "auto":
    where they fit). `teacher`: whose cache, where the config has several teachers. Raises a PipelineError, naming what differs,
    if the config asks for another teacher, other pixels, labels, views or targets, or if rows are missing.
    """
    folder = as_path(os.fspath(where))
    if not local(folder) or folder.is_dir():
        return _opened_alone(folder, targets, memory)
    return _opened_by_config(config.load(Path(where), overrides), root, targets, memory, teacher)


def make_loss(
    name: str,
    cache: Cache,
    *,
    student: nn.Module,
    reads: Sequence[str] = (),
    size: tuple[int, int] | None = None,
    **settings: Any,
) -> LossModule:
    """The loss pipeline/losses/<name>.py that compares `student` with these targets of the cache; keywords as in a YAML.

    Call it with the student's Output and the batch. What parameters it has (projections, discriminators) are yours to move
    and to optimise. The student is run once, on an empty image, for its grids and channels. `size` (height, width) is that of the
    batches, if they were cropped by `pipeline.transforms`; by default that of the cache. The loss raises ConfigError at a batch of
    another size, whose rows would be compared with other cells. Raises ConfigError.
    """
    size = cache.size if size is None else (size[0], size[1])
    plugin = config.plugin("losses", name, settings)
    accepted = find_class("losses", name).reads_types
    for target in reads:
        if target not in cache.targets:
            raise ConfigError(
                f"{name}: reads: no target {target!r}{did_you_mean(target, cache.targets)}; there are {', '.join(cache.targets)}"
            )
        if cache._passes[target].name not in accepted:
            raise ConfigError(
                f"{name} cannot read {target!r} (type {cache._passes[target].name}); it reads "
                f"{' or '.join(accepted) or 'no target'}"
            )
    if accepted and not reads:
        raise ConfigError(f"{name}: reads: name targets of type {' or '.join(accepted)}")
    loss: LossModule = plugin.build(
        reads={target: cache.targets[target] for target in reads},
        context=cache.context_at(size),
        student=_context_of(student, cache, size),
    )
    loss.register_forward_pre_hook(partial(_refuse_other_size, name, size))
    if loss.needs_scan:
        loss.scan(
            {name: cache.targets[name].decode(cache._read(cache._passes[name], position, 0)) for name in reads}
            for position in scan_order(cache.ids)
        )
    return loss


def evaluate(
    network: nn.Module,
    config: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    split: str | None = None,
    predictions: str | os.PathLike[str] | None = None,
    batch: int = 8,
    workers: int | None = None,
) -> dict[str, Any]:
    """The scores of any network on the dataset of a config, as `pipeline evaluate` takes them: on full frames, cropped and resized
    for the network as `prepare` says, and put back to their own size.

    `network` is called with RGB images [B, 3, H, W], float32 in 0..255, on the device of its parameters, and returns an Output or
    logits [B, classes, h, w] on any grid. It runs in eval mode and is left in the mode it was in. `split`: if not the config's
    `evaluate.split`. `predictions`: a folder for the files that the dataset's own evaluator reads. Returns at least "mean_iou"
    (0..1; None without labels), "iou" by class, "images" and "metric", the name of the entry that is the dataset's official score.
    Nothing is written elsewhere, and no report knows of it. Raises a PipelineError.
    """
    from pipeline.scoring.score import score

    cfg = load_config(Path(config), overrides)
    folder = None if predictions is None else Path(predictions)
    return score(network, cfg, split=split, predictions=folder, batch=batch, workers=workers)


def _refuse_other_size(name: str, size: tuple[int, int], loss: nn.Module, given: tuple[Output, Batch]) -> None:
    shown = tuple(given[1].labels_BHW.shape[-2:])
    if shown != size:
        raise ConfigError(
            f"{name}: this batch shows {shown[0]} x {shown[1]} pixels, and the loss was made for {size[0]} x {size[1]}; take "
            f"images and rows together through pipeline.transforms, and make the loss with size={shown}"
        )


def _context_of(student: nn.Module, cache: Cache, size: tuple[int, int]) -> Context:
    device = next((tensor.device for tensor in student.parameters()), torch.device("cpu"))
    trained = student.training
    with torch.no_grad():
        output = student.eval()(torch.zeros(1, 3, *size, device=device))
    student.train(trained)
    if not isinstance(output, Output):
        raise ConfigError(
            f"{type(student).__name__}: returns {type(output).__name__}; return pipeline.Output(logits, "
            f"{{'mid': ..., 'high': ...}})"
        )
    named = output.features if output.logits is None else {**output.features, "logits": output.logits}
    return Context(
        len(cache.classes),
        tuple(cache.identity["regions"]),
        size,
        {role: (tensor.shape[-2], tensor.shape[-1]) for role, tensor in named.items()},
        {role: tensor.shape[1] for role, tensor in named.items()},
    )


def _opened_by_config(
    cfg: config.Config, root: str | os.PathLike[str] | None, names: Sequence[str] | None, memory: Memory, teacher: str | None
) -> Cache:
    top = as_path(os.fspath(root or default_root()))
    experiment = Experiment(cfg, top, Path("teachers") / f"{cfg.name}.safetensors")
    if teacher is not None:
        cfg, experiment = cfg.of_teacher(teacher), experiment.teachers[teacher]
    experiment.check_views()
    source, ids = experiment.source, experiment.ids
    named = experiment.some_targets(_chosen(cfg.targets, names, str(cfg.path)))
    store, _ = experiment.open_cache(named)
    return Cache(
        store,
        named,
        ids,
        cfg.views.count,
        Pixels(
            experiment.samples(memory=memory),
            experiment.sample,
            cfg.prepare.size,
            source.mirror,
            source.lane_classes,
            source.mirror_lanes,
            cfg.views.crop,
        ),
        memory,
    )


def _opened_alone(folder: AnyPath, names: Sequence[str] | None, memory: Memory) -> Cache:
    store = Store.open(folder)
    if store.kind != "targets":
        raise StoreError(f"{store.folder}: holds {store.kind} images, no targets; open a targets-... folder beside it")
    store.refuse_lost_lists()
    passes = {name: name for name in store.stored_passes() if name != caches.MATRIX.folder}
    stored = {name: _stored_target(store, name) for name in _chosen(passes, names, str(store.folder))}
    views = {view for view, name in store.stored_groups() if name == caches.MATRIX.folder}
    images = [image for image in store.images if image.id]
    ids = [image.id for image in images]

    record = store.identity["record"]["prepare"]
    beside = store_folder(store.folder.absolute().parent.parent, "prepared", store.folder.absolute().parent.name, record)
    pixels = None
    if (beside / "store.json").exists():
        sample = prepared.sample_pass(tuple(record["size"]), record["lanes"], record.get("fit", "stretch"))
        if some := [name for name, (_, pass_) in stored.items() if "labelled" in pass_.record]:
            raise StoreError(
                f"{folder}: {some[0]} was made with a part of the labels (dataset.labelled_part), and only the config says which; "
                f"open the cache by its config, or leave it out (targets=[...])"
            )
        by_labels = any(caches.by_labels(store.identity["record"], target) for target, _ in stored.values())
        Store.open(beside).check(images, range(1), [(sample, by_labels)])
        mirror = store.identity["record"]["views"]["permutation"]
        pixels = Pixels(
            Reader(Store.open(beside), [sample], ids, 1, memory=memory),
            sample,
            tuple(record["size"]),
            tuple(mirror) if mirror else None,
            crop=tuple(crop) if (crop := store.identity["record"]["views"].get("crop")) else None,
        )
    return Cache(store, stored, ids, len(views), pixels, memory)


def _stored_target(store: Store, folder: str) -> tuple[TargetType, ArrayGroup]:
    """A pass as its file describes it. Raises StoreError if this version of the code would read other numbers from it."""
    content = store.pass_file(folder)
    record, kind = content["record"], content["record"]["type"]
    args = {key: value for key, value in record.items() if key not in ("type", "version", "uses_labels", "labelled")}
    target = config.plugin("targets", kind, fill_in(args, find_class("targets", kind))).build()
    labelled = {"labelled": record["labelled"]} if "labelled" in record else {}  # as cache.target_passes adds it
    if apart := diff(record, target.record(kind) | labelled):
        raise StoreError(f"{store.folder}: {folder} was stored by other code: {join_names(apart)}; leave it out (targets=[...])")
    fields = {name: Field(tuple(field["shape"]), field["dtype"], tuple(field["dims"])) for name, field in content["fields"].items()}
    pass_ = ArrayGroup(content["name"], record, fields, records.target_code(kind))
    store.refuse_other_code([pass_])
    return target, pass_


def _chosen(targets: dict[str, Any], names: Sequence[str] | None, where: str) -> dict[str, Any]:
    for name in names or ():
        if name not in targets:
            raise ConfigError(f"{where}: no target {name!r}{did_you_mean(name, targets)}; there are {', '.join(targets)}")
    return targets if names is None else {name: targets[name] for name in names}
