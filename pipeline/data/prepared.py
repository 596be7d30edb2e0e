"""The prepared store: every training image once decoded, cropped, resized and padded, so that both stages read equal pixels.

One pass, `sample`, of one view: `image` [H, W, 3] uint8 RGB, `label` [H, W] uint8 (255 = ignored, padded, or unlabelled) and
`existence` [lanes] uint8 (255 = unknown); where frames keep their aspect (`fit: pad`) also `content` [2] int32, the height and
width that the frame takes. H W is the canvas: the prepared size padded at the bottom and right to the
networks' multiple.
"""

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from pipeline import records
from pipeline.config import Plugin, Prepare
from pipeline.config.schema import Fit
from pipeline.data.frames import VERSION, canvas, content_of, crop_record, frame, require_frame
from pipeline.data.views import FILL
from pipeline.datasets._images import READING
from pipeline.datasets.base import IGNORE, DatasetBase
from pipeline.errors import DatasetError, NoStore, StoreError
from pipeline.identity import join_names, sha256
from pipeline.lookup import is_own
from pipeline.paths import if_done_for_dvc, started_in
from pipeline.progress import say
from pipeline.store import ArrayGroup, ImageRow, Reader, Store, image_row
from pipeline.store.executors import threads
from pipeline.store.files import AnyPath, append, as_path, local, locked, writable, write, writing
from pipeline.store.notes import is_without_times, rows_of, table
from pipeline.store.store import store_folder
from pipeline.targets.base import Field

FILES_COMPARED = 16  # of a store, to tell whether it is the dataset's
AT_A_TIME = 64  # images whose labels `require_labels` looks at before it opens more


def sample(dataset: DatasetBase, image_id: str, prepare: Prepare) -> dict[str, np.ndarray]:
    """The row of one image. Raises DatasetError from the reader, and on a frame that the settings don't suit."""
    full = dataset.image(image_id)
    require_frame(dataset.files(image_id)[0], full.shape[:2], dataset, prepare)
    cut = dataset.rows_cut(len(full))
    image, label = frame(full, dataset.label(image_id), cut, prepare.size, prepare.fit)
    row = {"image": image, "label": label}
    if prepare.fit == "pad":
        row["content"] = np.array(content_of((len(full) - cut, full.shape[1]), prepare.size, prepare.fit), np.int32)
    if dataset.lanes:
        flags = dataset.existence(image_id)
        row["existence"] = np.full(dataset.lanes, IGNORE, np.uint8) if flags is None else flags.astype(np.uint8)
    return row


def sample_pass(size: tuple[int, int], lanes: int, fit: Fit = "stretch") -> ArrayGroup:
    H, W = canvas(size)
    grid = (f"y{H}", f"x{W}")
    fields = {
        "image": Field((H, W, 3), "uint8", (*grid, "rgb")),
        "label": Field((H, W), "uint8", grid),
    }
    if lanes:
        fields["existence"] = Field((lanes,), "uint8", ("lane",))
    record = {"type": "sample", "version": VERSION, "size": list(size), "lanes": lanes}
    if fit == "pad":
        fields["content"] = Field((2,), "int32", ("side",))
        record["fit"] = fit
    return ArrayGroup("sample", record, fields)


def identity(dataset: DatasetBase, prepare: Prepare) -> dict:
    """What prepared pixels were made from, the files apart (those are the rows' digests)."""
    return {
        "version": VERSION,
        "size": list(prepare.size),
        "canvas": list(canvas(prepare.size)),
        **crop_record(dataset),
        "fill": list(FILL),
        "classes": list(dataset.classes),
        "lanes": dataset.lanes,
        **({"fit": prepare.fit} if prepare.fit != "stretch" else {}),
    }


def skipped(store: Store) -> dict[str, str]:
    """The images that `prepare --skip-bad` left out for good, each with the reason."""
    return rows_of(store.path("skipped.tsv"), head=1)


def put_on_record(store: Store, bad: Mapping[str, str]) -> None:
    path = store.path("skipped.tsv")
    if not bad and not path.exists():
        return
    with locked(store.folder):
        if bad:
            write([(path, b"image\treason\n" + table(bad))])
        else:
            path.unlink(missing_ok=True)


def reading_rule(dataset: DatasetBase) -> str:
    """Names the rule by which files are read: the readers' (datasets/_images.py), the dataset's own keys if it has any, and the
    code of a reader of one's own."""
    module = type(dataset).__module__
    own = dataset.reading + (records.code_among(module, is_own) if is_own(module) else "")
    return f"r{READING}" + (f"-{blake2b(own.encode(), digest_size=4).hexdigest()}" if own else "")


def files_now(dataset: DatasetBase, image_id: str) -> str:
    """The rule of reading, and size and time of the files behind an image; empty where there are none."""
    try:
        found = [path.stat() for path in dataset.files(image_id) if path.exists()]
    except DatasetError:  # reading it will say so
        return ""
    return " ".join([reading_rule(dataset), *(f"{s.st_size}:{s.st_mtime_ns}" for s in found)]) if found else ""


def known_files(path: AnyPath) -> dict[str, str]:
    """What `files_now` said when an image was prepared, from a store's sources.tsv."""
    return rows_of(path)


def on_record(store: Store, sample: ArrayGroup, images: Sequence[ImageRow]) -> dict:
    """What a run's record says of the images it is trained on, in this order: the order decides the batches."""
    order = sha256("\n".join(image.id for image in images).encode("utf-8", "surrogateescape"))[:16]
    return {"identity": store.identity, "digest": store.digest_of(list(images), range(1), [sample]), "order": order}


def meaning(dataset: DatasetBase) -> dict:
    """What the dataset says beside its pixels and labels, and training depends on."""
    return {name: getattr(dataset, name) for name in ("classes", "background", "regions", "mirror", "mirror_lanes", "lane_classes")}


class SampleReader(Reader):
    """Reads prepared images with the labels and lane flags of `shown` alone (DatasetBase.shown_labels; None: of all): the others'
    are 255, as if there were none. Whoever trains a network or answers for a target reads through it."""

    def __init__(self, store: Store, sample: ArrayGroup, ids: Sequence[str], shown: Collection[str] | None, **how: Any):
        super().__init__(store, [sample], ids, 1, **how)
        self.hidden_N = None if shown is None else np.array([image_id not in shown for image_id in ids], bool)

    def read(self, pass_: ArrayGroup, positions: np.ndarray, views: np.ndarray) -> dict[str, Any]:
        rows = super().read(pass_, positions, views)
        if self.hidden_N is None:
            return rows
        hidden_B = self.hidden_N[positions]
        return rows | {name: blanked(rows[name], hidden_B) for name in ("label", "existence") if name in rows}


def blanked(values: Any, hidden_B: np.ndarray) -> Any:
    """A copy [B, ...] with 255 in these rows; of a tensor, on its device."""
    hidden = hidden_B.reshape(-1, *[1] * (values.ndim - 1))
    if isinstance(values, np.ndarray):
        return np.where(hidden, np.uint8(IGNORE), values)
    import torch

    return values.masked_fill(torch.from_numpy(hidden).to(values.device), IGNORE)


def labelled(sample: ArrayGroup, images: Iterable[ImageRow], shown: Collection[str] | None) -> list[str]:
    """Ids of the images that show a label or a lane's flag, by their digests: a label all of which is ignored is none."""
    shapes = {name: field.shape for name, field in sample.fields.items()}
    nothing = {name: np.full(shape, IGNORE, np.uint8) for name, shape in shapes.items() if name != "content"}
    unlabelled = image_row("", nothing).label_digest
    return [image.id for image in images if image.label_digest != unlabelled and (shown is None or image.id in shown)]


def labels_on_record(dataset: DatasetBase) -> dict[str, Any]:
    """What a run's record says where labels are hidden: how the others were chosen, and which they are."""
    shown = dataset.shown_labels()
    if shown is None:
        return {}
    how = "list" if isinstance(dataset.labelled_part, str) else dataset.labelled_part
    return {"labelled": {"part": how, "seed": dataset.labelled_seed, "images": len(shown), "digest": labels_digest(shown)}}


def labels_digest(shown: Collection[str]) -> str:
    return sha256("\n".join(sorted(shown)).encode("utf-8", "surrogateescape"))[:16]


def say_labels(dataset: DatasetBase) -> str | None:
    """ "20 of 200 training images have labels (dataset.labelled_part: 0.1)"; None where no label is hidden."""
    shown = dataset.shown_labels()
    if shown is None:
        return None
    seed = f", labelled_seed: {dataset.labelled_seed}" if dataset.labelled_seed else ""
    return (
        f"{len(shown)} of {len(dataset.ids('train'))} training images have labels (dataset.labelled_part: "
        f"{dataset.labelled_part}{seed})"
    )


def require_labels(store: Store, sample: ArrayGroup, images: Sequence[ImageRow], dataset: DatasetBase, need: str) -> None:
    """Raises DatasetError, with `need` (what learns from labels), unless two classes are labelled in these images, or a lane's
    flag is known: of one class alone nothing can be learned. Looks at no more images than it must."""
    with_label = labelled(sample, images, dataset.shown_labels())
    seen: set[int] = set()
    for start in range(0, len(with_label), AT_A_TIME):
        ids = with_label[start : start + AT_A_TIME]
        reader = Reader(store, [sample], ids, 1, memory="disk")
        for position in range(len(ids)):
            row = reader.read(sample, np.array([position]), np.array([0]))
            seen |= set(np.unique(row["label"]).tolist()) - {IGNORE}
            if len(seen) >= min(2, len(dataset.classes)) or (row.get("existence", np.uint8(IGNORE)) != IGNORE).any():
                return
    what = (
        f"all labelled pixels of {len(with_label)} of {len(images)} training images are of one class "
        f"({dataset.classes[seen.pop()]}), all others are ignored"
        if seen
        else f"not one of {len(images)} training images has a labelled pixel: they have no label, or all its values are ignored"
    )
    raise DatasetError(
        f"{store.folder}: {what}, and {need}; correct the labels or what their values mean (of masks of 0 and 255 "
        f"the 255 may be ignored), or learn from a trained teacher's answers alone"
    )


def home(root: AnyPath, plugin: Plugin, dataset: DatasetBase, record: dict, ids: Sequence[str]) -> str:
    """The folder below the root where this dataset's stores lie: its own, unless an earlier version put them elsewhere."""
    own, *earlier = plugin.homes
    if earlier and not (store_folder(root, "prepared", own, record) / "store.json").exists():
        for name in earlier:
            if any(_is_of(store, dataset, ids) for store in _stores(as_path(root) / name, record)):
                return name
    return own


def _stores(folder: AnyPath, record: dict) -> Iterator[Store]:
    """Those below a folder that hold images prepared so, or targets of such."""
    for path in sorted(folder.glob("*-*")) if local(folder) else []:
        with contextlib.suppress(StoreError):  # somebody else's, perhaps
            store = Store.open(path)
            found = store.identity["record"]
            if record == (found if store.kind == "prepared" else found.get("prepare")):
                yield store


def _is_of(store: Store, dataset: DatasetBase, ids: Sequence[str]) -> bool:
    """Whether a store holds images of these names, whose files have the sizes that it noted, as far as both are known."""
    common = [ids[position] for position in np.flatnonzero(store.images.rows(ids) >= 0)[:FILES_COMPARED].tolist()]
    noted = known_files(store.path("sources.tsv")) if store.kind == "prepared" else {}
    pairs = [(_sizes(noted.get(image_id, "")), _sizes(files_now(dataset, image_id))) for image_id in common]
    told = [before == now for before, now in pairs if before and now]
    return bool(common) and 2 * sum(told) >= len(told)


def _sizes(note: str) -> list[str]:
    return [word.partition(":")[0] for word in note.split() if ":" in word]


def changed(store: Store, dataset: DatasetBase, prepare: Prepare, ids: Sequence[str], which: str) -> list[str]:
    """Those of the images whose content is not what the store holds, or can't be read."""
    say(f"{store.folder}: comparing the content of {len(ids)} images {which}")

    def is_other(image_id: str) -> bool:
        try:
            return image_row(image_id, sample(dataset, image_id, prepare)) != store.images[store.row_of[image_id]]
        except DatasetError:
            return True

    return [image_id for image_id, other in zip(ids, threads(ids, is_other, os.cpu_count() or 1)) if other]


def _compare_pulled(store: Store, dataset: DatasetBase, prepare: Prepare, now: Mapping[str, str]) -> None:
    """Compares the files of these images, once, with the digests of a store that was filled from other files. Raises DatasetError
    where the content differs."""
    other = changed(store, dataset, prepare, list(now), "with the digests of this store, which was pulled")
    if other:
        raise DatasetError(
            f"{store.folder}: {len(other)} of {len(now)} images have other content in {dataset.files(other[0])[0].parent} than "
            f"in this store, which was pulled ({join_names(other)}); get the images that it was made from, or make a store of "
            f"these with `pipeline prepare` and another --root"
        )
    with contextlib.suppress(StoreError), writing(store.folder):  # where it can't be written, the next run compares again
        append(store.path("sources.tsv"), table(now))


def open_whole(
    root: AnyPath, plugin: Plugin, dataset: DatasetBase, prepare: Prepare, ids: Sequence[str]
) -> tuple[Store, ArrayGroup, list[ImageRow]]:
    """The prepared store, its pass, and the lines of these images, all of them whole, without those that are on record
    as bad (which it says on stderr). Raises StoreError with what to run."""
    sample = sample_pass(prepare.size, dataset.lanes, prepare.fit)
    try:
        record = identity(dataset, prepare)
        store = Store.find(root, "prepared", home(root, plugin, dataset, record, ids), record)
        bad = skipped(store)
        left_out = [image_id for image_id in ids if image_id in bad]
        if left_out:
            say(
                f"{store.folder}: {len(left_out)} of {len(ids)} images are left out, as skipped.tsv there says: "
                f"{join_names(left_out)}"
            )
        ids = [image_id for image_id in ids if image_id not in bad]
        store.rows_of(ids)
        known = known_files(store.path("sources.tsv"))
        now = {image_id: files_now(dataset, image_id) for image_id in ids}
        touched = [image_id for image_id in ids if now[image_id] and known.get(image_id) != now[image_id]]
        if pulled := {image_id: now[image_id] for image_id in touched if is_without_times(known.get(image_id, ""))}:
            _compare_pulled(store, dataset, prepare, pulled)
            touched = [image_id for image_id in touched if image_id not in pulled]
        # drawn again in an experiment's own checkout, or copied beside a store that can't be written: not to be noted there
        if touched and (started_in() is not None or not writable(store.folder)):
            touched = changed(store, dataset, prepare, touched, "whose files were touched")
        if touched:  # where the files are not at hand, the store speaks for them
            raise StoreError(
                f"{store.folder}: the files of {len(touched)} images were touched since ({join_names(touched)}), "
                f"which copying them does too, or were read by another version's rule; nothing is filled or "
                f"trained again if their content is the same"
            )
        rule = reading_rule(dataset)
        earlier = [image_id for image_id in ids if image_id in known and known[image_id].split(" ")[0] != rule]
        if earlier:
            raise StoreError(
                f"{store.folder}: {len(earlier)} images were read by another version's rule ({join_names(earlier)}), and "
                f"their files are not here to be compared; where they are, update the store and bring it here again"
            )
        images = store.named(ids)
        store.check(images, range(1), [(sample, True)])
    except NoStore as error:
        raise StoreError(
            f"{error}; copy one that was filled elsewhere with `pipeline cache pull URL {root}`, or make it with `pipeline "
            f"prepare` with this config{if_done_for_dvc('prepare')}"
        ) from None
    except StoreError as error:
        raise StoreError(f"{error}; run `pipeline prepare` with this config{if_done_for_dvc('prepare')}") from None
    return store, sample, images
