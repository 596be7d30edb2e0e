"""What every dataset promises (pipeline/datasets/base.py), for each of which a tiny instance can be made on disk."""

import importlib.util
import inspect
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.base import IGNORE, DatasetBase
from pipeline.errors import DatasetError
from pipeline.lookup import find_class, names

HERE = Path(__file__).parent


def beside(test_file: str):
    """The module of a test file in this folder, for its `make`."""
    spec = importlib.util.spec_from_file_location(f"makers_{test_file}", HERE / f"{test_file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_apolloscape(root: Path):
    write_frame, ids = beside("test_apolloscape").write_frame, np.array([[0, 200, 204], [249, 255, 221]])
    for record, number in (("Record001", 1), ("Record001", 2), ("Record002", 3)):
        write_frame(root, "road02", record, "Camera 5", f"171206_{number}_Camera_5", ids)
    keys = dict(val=["road02/Record002"], roads=("road02",), crop_top=1)
    return find_class("datasets", "apolloscape")(root=str(root), **keys)


def make_cityscapes(root: Path):
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "frankfurt")):
        for folder, ending, pixels in (
            ("leftImg8bit", "leftImg8bit", np.full((4, 9, 3), 90, np.uint8)),
            ("gtFine", "gtFine_labelIds", np.arange(36, dtype=np.uint8).reshape(4, 9) % 34),
        ):
            path = root / folder / split / city / f"{city}_000000_000019_{ending}.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(pixels).save(path)
    return find_class("datasets", "cityscapes")(root=str(root))


def make_folder(root: Path):
    module = beside("test_folder")
    (root / "classes.yaml").write_text(module.EXAMPLE)
    for name, label in (("train/1", 1), ("train/2", None), ("val/1", 255)):
        module.write(root, name, label)
    return find_class("datasets", "folder")(root=str(root))


def make_llamas(root: Path):
    module = beside("test_llamas")
    for place in (f"train/{module.LANE_3}/2", f"train/{module.LANE_3}/3", f"valid/{module.RAMPS}/5"):
        module.write_label(root, [module.lane("l0", -1.8, [5, 10, 15])], place, size=(40, 64))
    return find_class("datasets", "llamas")(root=str(root), protocol="official", size=(40, 64), crop_top=8)


def make_roads(root: Path, name: str = "roads"):
    keys = dict(train=3, val=1, test=2, size=[96, 320], seed=0, difficulty=0.3)
    dataset = find_class("datasets", name)(root=str(root), **keys)
    dataset.generate(workers=1, progress=lambda done, total: None)
    return dataset


# A new dataset: add how to make a tiny one on disk, with two frames or more for train and at least one other split.
MAKERS = {
    "apolloscape": make_apolloscape,
    "camvid": lambda root: beside("test_camvid").make(root),
    "cityscapes": make_cityscapes,
    "culane": lambda root: beside("test_culane").make(root, (118, 328)),
    "folder": make_folder,
    "llamas": make_llamas,
    "markings": lambda root: make_roads(root, "markings"),
    "roads": make_roads,
}


@pytest.fixture(scope="module", params=names("datasets"))
def dataset(request, tmp_path_factory):
    assert request.param in MAKERS, f"add to MAKERS how to make a tiny {request.param}"
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param))


def present(dataset) -> dict[str, list[str]]:
    """Ids of the splits that the tiny instance has."""
    found = {}
    for split in dataset.splits:
        try:
            found[split] = dataset.ids(split)
        except DatasetError:
            pass
    return found


def every_id(dataset) -> list[str]:
    return [image_id for ids in present(dataset).values() for image_id in ids]


def test_the_class_is_a_dataset_whose_settings_are_keywords(dataset):
    assert isinstance(dataset, DatasetBase)
    parameters = list(inspect.signature(type(dataset)).parameters.values())
    assert parameters and all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)


def test_classes_colours_and_regions_agree(dataset):
    count = len(dataset.classes)
    assert len(dataset.colours) == count == len(set(dataset.classes))
    assert all(len(colour) == 3 and all(0 <= c <= 255 for c in colour) for colour in dataset.colours)
    assert dataset.background is None or 0 <= dataset.background < count
    assert dataset.regions is None or set(dataset.regions) <= set(range(count))


def test_mirroring_twice_changes_nothing(dataset):
    for permutation, count in ((dataset.mirror, len(dataset.classes)), (dataset.mirror_lanes, dataset.lanes)):
        if permutation is not None:
            assert len(permutation) == count
            assert [permutation[k] for k in permutation] == list(range(count))
    if dataset.lanes and dataset.mirror:
        assert len(dataset.lane_classes) == dataset.lanes
        mirrored = [dataset.mirror[c] for c in dataset.lane_classes]
        assert mirrored == [dataset.lane_classes[k] for k in dataset.mirror_lanes]
    if dataset.background is not None and dataset.mirror:
        assert dataset.mirror[dataset.background] == dataset.background


def test_ids_are_distinct_strings_and_callers_cannot_spoil_them(dataset):
    found = present(dataset)
    assert "train" in found and len(found) >= 2
    ids = every_id(dataset)
    assert ids and len(set(ids)) == len(ids)
    assert all(isinstance(image_id, str) and image_id and not image_id.startswith("/") for image_id in ids)
    dataset.ids("train").clear()
    assert dataset.ids("train") == found["train"]


def test_images_and_labels_fit_together(dataset):
    labelled = 0
    for image_id in every_id(dataset):
        image, label = dataset.image(image_id), dataset.label(image_id)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        assert 0 <= dataset.crop_top < image.shape[0]
        if label is not None:
            labelled += 1
            assert label.dtype == np.uint8 and label.shape == image.shape[:2]
            assert set(np.unique(label)) <= set(range(len(dataset.classes))) | {IGNORE}
    assert labelled


def test_arrays_are_the_callers_own(dataset):
    image_id = dataset.ids("train")[0]
    for read in (dataset.image, dataset.label):
        first = read(image_id)
        kept = first.copy()
        first[:] = 7
        assert np.array_equal(read(image_id), kept)


def test_flags_are_given_where_there_are_lanes(dataset):
    for image_id in dataset.ids("train"):
        flags = dataset.existence(image_id)
        if dataset.lanes == 0:
            assert flags is None
        elif flags is not None:
            assert flags.dtype == np.uint8 and flags.shape == (dataset.lanes,) and set(flags) <= {0, 1}


def test_files_exist_and_the_image_comes_first(dataset):
    for image_id in every_id(dataset):
        files = dataset.files(image_id)
        assert files and all(isinstance(path, Path) and path.is_file() for path in files)


def test_whether_an_image_has_a_label_is_known_without_reading_it(dataset):
    for image_id in every_id(dataset):
        found = dataset.label(image_id) is not None or dataset.existence(image_id) is not None
        assert dataset.has_label(image_id) == found, image_id


def test_a_part_of_the_labels_is_drawn_from_the_training_images_and_the_readers_own_labels_stay(dataset):
    with_label = {image_id for image_id in dataset.ids("train") if dataset.has_label(image_id)}
    try:
        dataset.labelled_part = 0.5 if len(with_label) > 1 else 1.0
        shown = dataset.shown_labels()
        assert shown is None if len(with_label) == 1 else shown < with_label and len(shown) == round(len(with_label) / 2)
        assert all(dataset.label(image_id) is not None for image_id in with_label if dataset.label(image_id) is not None)
    finally:
        dataset.labelled_part = None


def test_a_missing_image_is_named(dataset):
    image_id = dataset.ids("train")[-1]
    path = dataset.files(image_id)[0]
    hidden = path.with_name(path.name + ".hidden")
    path.rename(hidden)
    try:
        with pytest.raises(DatasetError, match=path.name):
            dataset.image(image_id)
    finally:
        hidden.rename(path)


def test_an_unknown_split_is_refused(dataset):
    with pytest.raises(DatasetError):
        dataset.ids("no such split")
