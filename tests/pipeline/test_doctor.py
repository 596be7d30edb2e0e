import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipeline.data.doctor import Fault, SplitCounts, check, fault_of, too_few_classes
from pipeline.datasets.folder import EXAMPLE, Dataset
from pipeline.errors import DatasetError
from pipeline.reporting import contact_sheet
from stages import doctor as stage


def write(root, name, label=None, seed=None, size=(12, 16)):
    """An image of noise (of the name, unless a seed is given), and a label of one value if any."""
    rng = np.random.default_rng(list(name.encode()) if seed is None else seed)
    image = root / "images" / f"{name}.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(image)
    if label is not None:
        path = root / "labels" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full(size, label, np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "classes.yaml").write_text(EXAMPLE)
    for number in range(6):
        write(tmp_path, f"train/{number}", number % 3)
    write(tmp_path, "train/6", 255)
    write(tmp_path, "val/0", 0, size=(12, 20))
    write(tmp_path, "val/1")
    return tmp_path


def spoil(root):
    picture = root / "images/train/0.png"
    picture.write_bytes(picture.read_bytes()[:-100])
    Image.fromarray(np.full((12, 16), 9, np.uint8)).save(root / "labels/train/1.png")
    Image.fromarray(np.zeros((12, 15), np.uint8)).save(root / "labels/train/2.png")
    for name, seed in (("train/3", 7), ("val/1", 7), ("train/4", 8), ("train/5", 8)):
        write(root, name, seed=seed)


def files(report, word):
    return sorted(fault.file.split("images/")[-1].split("labels/")[-1] for fault in report.faults if word in fault.what)


def test_a_sound_dataset_has_no_faults_and_is_counted(root):
    calls = []
    report = check(Dataset(root=root), ["train", "val"], workers=1, progress=lambda *call: calls.append(call))
    assert report.faults == []
    train, val = report.counts["train"], report.counts["val"]
    assert (train.images, train.labelled, val.images, val.labelled) == (7, 7, 2, 1)
    assert train.pixels == {0: 2 * 192, 1: 2 * 192, 2: 2 * 192, 255: 192} and val.pixels == {0: 240}
    assert train.sizes == {(12, 16): 7} and val.sizes == {(12, 20): 1, (12, 16): 1}
    assert calls == [(done, 9) for done in range(1, 10)]


def test_everything_wrong_is_in_one_report(root):
    spoil(root)
    report = check(Dataset(root=root), ["train", "val"], workers=1)
    assert files(report, "truncated") == ["train/0.png"]
    assert files(report, "value 9 at x=0, y=0") == ["train/1.png"]
    assert files(report, "is 15 x 12 pixels, but") == ["train/2.png"]
    assert files(report, "has the pixels of 1 more: val val/1") == ["train/3.png"]
    assert files(report, "has the pixels of 1 more: train train/5") == ["train/4.png"]
    assert len(report.faults) == 5 and all(fault.what_to_do for fault in report.faults)
    assert report.counts["train"].labelled == 5 and sum(report.counts["train"].sizes.values()) == 6


def test_processes_report_what_one_process_reports(root):
    spoil(root)
    dataset = Dataset(root=root)
    assert check(dataset, ["train", "val"], workers=2) == check(dataset, ["train", "val"], workers=1)


def test_a_list_that_points_nowhere_is_reported_line_by_line_and_the_rest_is_read(root):
    (root / "train.txt").write_text("train/0\ntrain/gone\ntrain/1\ntrain/lost\n")
    (root / "val.txt").write_text("val/0\nval/0\n")
    report = check(Dataset(root=root), ["train", "val"], workers=1)
    assert [fault.what[:35] for fault in report.faults] == [
        "line 2: 'val/0' a second time, firs",
        "line 2: there is no image 'train/go",
        "line 4: there is no image 'train/lo",
    ]
    assert report.counts["train"].labelled == 2 and report.counts["val"].images == 1


def test_one_image_in_two_splits_is_reported(root):
    (root / "train.txt").write_text("train/0\ntrain/1\n")
    (root / "val.txt").write_text("train/1\n")
    (fault,) = check(Dataset(root=root), ["train", "val"], workers=1).faults
    assert fault.file.endswith("images/train/1.png") and "val train/1" in fault.what
    assert fault.what_to_do == "take it out of all splits but one"


def test_counts_are_held_against_the_official_ones(root):
    class Counted(Dataset):
        official_counts = {"train": 7, "val": 3, "train+val": 10, "test": 5}

    faults = check(Counted(root=root), ["train", "val"], workers=1).faults
    assert [fault.what for fault in faults] == [
        "val has 2 images, officially 3",
        "train+val has 9 images, officially 10",
    ]
    assert [fault.what for fault in check(Counted(root=root), ["train"], workers=1).faults] == []


def test_frames_no_higher_than_the_cut_are_reported(root):
    (root / "classes.yaml").write_text(EXAMPLE.replace("crop_top: 0", "crop_top: 12"))
    report = check(Dataset(root=root), ["val"], workers=1)
    assert files(report, "has 12 rows, of which crop_top removes 12") == ["val/0.png", "val/1.png"]


def test_a_cut_that_leaves_almost_nothing_is_reported(root):
    for cut, faults in ((10, 0), (11, 2)):  # of 12 rows
        (root / "classes.yaml").write_text(EXAMPLE.replace("crop_top: 0", f"crop_top: {cut}"))
        assert len(check(Dataset(root=root), ["val"], workers=1).faults) == faults
    assert "removes 11 and leaves 1, below a tenth" in check(Dataset(root=root), ["val"], workers=1).faults[0].what


@pytest.mark.parametrize(
    "pixels, labelled, said",
    [
        ({}, 0, "not one pixel of train is labelled (0 of 9 images have a label)"),
        ({255: 50}, 9, "not one pixel of train is labelled (9 of 9 images have a label)"),
        ({0: 30, 255: 10}, 9, "all labelled pixels of train are of one class (background), and 25% are ignored"),
        ({0: 30, 2: 1, 255: 10}, 9, None),
    ],
)
def test_labels_of_which_nothing_can_be_learned_are_told(root, pixels, labelled, said):
    counts = {"train": SplitCounts(images=9, labelled=labelled, pixels=Counter(pixels))}
    faults = list(too_few_classes(Dataset(root=root), counts, "train", 2, "the teacher is trained on labels"))
    assert [fault.what for fault in faults] == ([f"{said}, but the teacher is trained on labels"] if said else [])
    assert not list(too_few_classes(Dataset(root=root), counts, "val", 2, ""))  # not read
    counts["train"].flags = 9  # of lanes it is known which there are
    assert not list(too_few_classes(Dataset(root=root), counts, "train", 2, ""))


def test_a_reader_that_breaks_its_contract_is_reported(root):
    class Loose(Dataset):
        def label(self, image_id):
            return np.full((12, 16), 4 if image_id == "val/1" else 0, np.uint8)

    report = check(Loose(root=root), ["val"], workers=1)
    assert [fault.what for fault in report.faults] == [
        "label is 16 x 12, image 20 x 12 pixels",
        "holds [4], where there are 3 classes",
    ]


def test_a_message_comes_apart_into_file_fault_and_cure():
    assert fault_of(DatasetError("a b/c.png: is cut; off; fetch it")) == Fault("a b/c.png", "is cut; off", "fetch it")
    assert fault_of(DatasetError("a.txt: line 3: is empty")) == Fault("a.txt", "line 3: is empty", "")
    assert fault_of(DatasetError("a.yaml: bad; do:\nx: 1; y")) == Fault("a.yaml", "bad", "do:\nx: 1; y")


def test_shares_of_classes_are_shown_and_what_never_occurs_is_told(root):
    plugin = SimpleNamespace(name="folder", build=lambda: Dataset(root=str(root)))
    said = stage.run(dataset=plugin, splits=["train", "val"], workers=1)
    rows = {line.split()[0]: line.split()[-2:] for line in said.splitlines()}
    labelled = 6 * 192 + 240
    assert rows["background"] == [f"{(2 * 192 + 240) / labelled:.4%}", "37.5%"]  # 3 of 8 labelled images
    assert rows["(ignored)"] == [f"{192 / (labelled + 192):.4%}", "12.5%"]
    assert "train: every pixel is ignored in 1 images (train/6)" in said
    assert "val: no label shows left line, right line" in said
    assert said.splitlines()[-1].startswith("folder: nothing wrong (train: 7 images, 7 labelled; val: 2 images, 1 labelled)")


def asked(root, **keywords):
    plugin = SimpleNamespace(name="folder", build=lambda: Dataset(root=str(root)))
    return stage.run(dataset=plugin, splits=[], workers=1, **keywords)


def refused(root, **keywords):
    """The lines of the error, with paths below the root."""
    with pytest.raises(DatasetError) as raised:
        asked(root, **keywords)
    return str(raised.value).replace(f"{root}/", "").splitlines()


def test_faults_of_the_card_the_layout_the_lists_and_the_files_are_told_in_one_go(root):
    spoil(root)
    (root / "classes.yaml").write_text(EXAMPLE.replace("background: background", "background: road"))
    (root / "labels/train/6.png").rename(root / "labels/train/6.jpg")
    (root / "labels/val/0.png").rename(root / "labels/val/lost.png")
    (root / "train.txt").write_text("\n".join(f"train/{number}" for number in (*range(7), 1, "gone")))
    lines = refused(root, needs_labels="every method learns from labels alone", scored="val")
    for said in (
        "classes.yaml: 'background' must be a class or null, not 'road'",
        "labels/train/6.jpg: is one of 1 labels that are not .png",
        "labels/val/lost.png: is one of 1 labels without an image of its name",
        "train.txt: line 8: 'train/1' a second time, first at",
        "train.txt: line 9: there is no image 'train/gone' below images/",
        "images/train/0.png: cannot be ",
        "labels/train/2.png: is 15 x 12 pixels, but 2.png 16 x 12",
    ):
        assert [line for line in lines if said in line], (said, lines)
    assert not [line for line in lines if "is no class" in line or "is labelled" in line]  # it is not known what values mean
    assert lines[-1].startswith("8 faults in folder (train: 8 images, 5 labelled")


@pytest.mark.parametrize("content", ["classes: [", "- 3\n", None])
def test_a_card_that_cannot_be_read_hides_no_other_fault(root, content):
    (root / "classes.yaml").unlink() if content is None else (root / "classes.yaml").write_text(content)
    picture = root / "images/val/1.png"
    picture.write_bytes(picture.read_bytes()[:-100])
    lines = refused(root)
    assert lines[0].startswith("classes.yaml: ") and [line for line in lines if line.startswith("images/val/1.png: ")]


def test_of_many_faults_of_a_kind_the_first_are_listed_and_all_if_asked(root, monkeypatch):
    for number in range(15):
        Image.fromarray(np.zeros((12, 16), np.uint8)).save(root / f"labels/train/lost{number}.png")
    lines = refused(root)
    assert len([line for line in lines if "without an image of its name" in line]) == 10
    assert "... and 5 more like these (`pipeline -v doctor` lists all)" in lines and lines[-1].startswith("15 faults in folder")
    monkeypatch.setattr("pipeline.progress.verbosity", 1)
    assert len([line for line in refused(root) if "without an image of its name" in line]) == 15


def test_the_sheet_spreads_over_the_images_and_shows_what_is_rare(root, tmp_path):
    showing = {("train", str(n)): frozenset({0, 1} if n % 10 else {0}) for n in range(100)}
    showing["train", "57"] = frozenset({0, 2})
    found = contact_sheet.chosen(showing)
    assert len(found) == 12 and ("train", "57") in found
    gaps = np.diff([int(image_id) for _, image_id in found])
    assert gaps.min() > 0 and gaps.max() < 18
    assert contact_sheet.chosen({}) == [] and len(contact_sheet.chosen({("val", "a"): frozenset({0})})) == 1


def test_the_sheet_paints_classes_dims_what_is_ignored_and_marks_the_crop(root):
    (root / "classes.yaml").write_text(EXAMPLE.replace("crop_top: 0", "crop_top: 6"))
    label = np.array(Image.open(root / "labels/train/1.png"))
    label[:, 8:] = 255
    Image.fromarray(label).save(root / "labels/train/1.png")
    Image.fromarray(np.full((12, 16, 3), 200, np.uint8)).save(root / "images/train/1.png")
    shown = contact_sheet.picture(Dataset(root=root), "train/1")
    assert shown.shape == (480, 640, 3) and (shown[240] == 255).all()
    assert np.abs(shown[10, 10].astype(int) - (0.65 * np.array([255, 0, 0]) + 0.35 * 200)).max() <= 1
    assert (shown[10, 630] == 70).all()
    said = asked(root, sheet=root / "sheets/labels.png")
    assert "sheets/labels.png: 8 of 8 labelled images" in said
    assert Image.open(root / "sheets/labels.png").size[0] > 1500


def test_a_sheet_without_labels_is_said_to_be_left_out(root):
    shutil.rmtree(root / "labels")
    said = asked(root, sheet=root / "labels.png")
    assert "labels.png: not written, since no label could be read" in said and not (root / "labels.png").exists()
