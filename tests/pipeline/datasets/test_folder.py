import pickle
import unicodedata

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.datasets.folder import EXAMPLE, Dataset, read_classes
from pipeline.errors import DatasetError


def write(root, name, label=None, ending=".png", size=(6, 8)):
    path = root / "images" / f"{name}{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (1, 2, 3)).save(path)
    if label is not None:
        path = root / "labels" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.broadcast_to(np.uint8(label), size)).save(path)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "classes.yaml").write_text(EXAMPLE)
    return tmp_path


def test_images_labels_and_the_example_are_enough(root):
    write(root, "0001", [0, 1, 2, 255, 0, 1, 2, 255], ending=".JPG")
    write(root, "street/0002")
    dataset = Dataset(root=root)
    assert dataset.splits == ("train",) and dataset.ids("train") == ["0001", "street/0002"]
    assert dataset.image("0001").shape == (6, 8, 3)
    assert dataset.label("0001")[3].tolist() == [0, 1, 2, 255, 0, 1, 2, 255]
    assert dataset.label("street/0002") is None and len(dataset.files("street/0002")) == 1
    assert dataset.classes == ("background", "left line", "right line")
    assert dataset.colours == ((0, 0, 0), (255, 0, 0), (0, 0, 255))
    assert (dataset.background, dataset.mirror, dataset.crop_top, dataset.regions) == (0, (0, 2, 1), 0, None)
    assert pickle.loads(pickle.dumps(dataset)).ids("train") == dataset.ids("train")


def test_palette_labels_keep_their_index(root):
    write(root, "0001", 0)
    picture = Image.fromarray(np.uint8([[0, 1, 2, 255]] * 6).repeat(2, axis=1)).convert("P")
    picture.putpalette([255 - n % 256 for n in range(768)])
    picture.save(root / "labels/0001.png")
    assert np.unique(Dataset(root=root).label("0001")).tolist() == [0, 1, 2, 255]


def test_one_bit_labels_are_0_and_1(root):
    write(root, "0001")
    (root / "labels").mkdir()
    Image.fromarray(np.uint8([[0, 255] * 4] * 6)).convert("1").save(root / "labels/0001.png")
    (root / "classes.yaml").write_text(EXAMPLE.replace("ignore: [255]", "ignore: []"))  # else they may be 0 and 255
    assert Dataset(root=root).label("0001")[0].tolist() == [0, 1] * 4


def test_further_ignored_values_and_missing_keys_that_may_be_missing(root):
    card = "classes: [{name: a, colour: [1, 2, 3]}]\nignore: [7, 254, 255]\nbackground: null\n"
    (root / "classes.yaml").write_text(card)
    write(root, "0001", [0, 7, 254, 255] * 2)
    dataset = Dataset(root=root)
    assert dataset.label("0001")[0].tolist() == [0, 255, 255, 255] * 2
    assert dataset.mirror is None and dataset.background is None and dataset.crop_top == 0


def test_an_empty_mirror_means_that_nothing_swaps(root):
    (root / "classes.yaml").write_text(EXAMPLE.replace("[[left line, right line]]", "[]").replace("[255] ", "255"))
    write(root, "0001", 255)
    assert Dataset(root=root).mirror == (0, 1, 2) and (Dataset(root=root).label("0001") == 255).all()


def test_split_folders(root):
    for name in ("train/a", "train/deep/b", "training/c", "test/a"):
        write(root, name, 0)
    dataset = Dataset(root=root)
    assert dataset.splits == ("train", "test")
    assert dataset.ids("train") == ["train/a", "train/deep/b"] and dataset.ids("test") == ["test/a"]
    with pytest.raises(DatasetError, match="no split 'val'; there are train, test"):
        dataset.ids("val")


def test_lists_keep_their_order_and_take_names_with_or_without_ending(root):
    for name in ("a", "b.c", "d"):
        write(root, name, 0)
    (root / "train.txt").write_text("d.png\n\na\n")
    (root / "val.txt").write_text("b.c\n")
    dataset = Dataset(root=root)
    assert dataset.splits == ("train", "val")
    assert dataset.ids("train") == ["d", "a"] and dataset.ids("val") == ["b.c"]


def test_bad_lists_are_named_with_the_line(root):
    write(root, "a", 0)
    (root / "train.txt").write_text("a\na.png\n")
    (root / "val.txt").write_text("\ngone.png\n")
    (root / "test.txt").write_text("\n")
    dataset = Dataset(root=root)
    with pytest.raises(DatasetError, match=r"train\.txt: line 2: 'a' a second time, first at .*line 1"):
        dataset.ids("train")
    (gone,) = dataset.ids("val")
    for read in (dataset.image, dataset.label):
        with pytest.raises(DatasetError, match=r"val\.txt: line 2: there is no image 'gone'"):
            read(gone)
    with pytest.raises(DatasetError, match=r"test\.txt: is empty"):
        dataset.ids("test")


def test_faulty_files_are_named(root):
    write(root, "a", 0)
    write(root, "b", [0, 1, 3, 0] * 2)
    write(root, "c")
    Image.new("L", (8, 5)).save(root / "labels/c.png")
    write(root, "d", 0)
    Image.fromarray(np.random.default_rng(0).integers(0, 3, (60, 80, 3), np.uint8)).save(root / "images/d.png")
    whole = (root / "images/d.png").read_bytes()
    (root / "images/d.png").write_bytes(whole[: len(whole) // 2])
    dataset = Dataset(root=root)
    with pytest.raises(DatasetError, match=r"b\.png: value 3 at x=2, y=0 is no class, nor are 11 other .* 0\.\.2"):
        dataset.label("b")
    with pytest.raises(DatasetError, match=r"c\.png: is 8 x 5 pixels, but c\.png 8 x 6"):
        dataset.label("c")
    with pytest.raises(DatasetError, match=r"d\.png: cannot be read .*truncated"):
        dataset.image("d")
    Image.fromarray(np.zeros((6, 8), np.uint16)).save(root / "images/a.png")
    with pytest.raises(DatasetError, match=r"a\.png: has 'I;16' pixels, not 8 bits"):
        dataset.image("a")


@pytest.mark.parametrize("listed, stored", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_are_the_same_in_either_unicode_form(root, listed, stored):
    on_disk = unicodedata.normalize(stored, "Stra\u00dfe/\u00e9t\u00e9")
    write(root, on_disk)
    write(root, "b", 0)
    label = root / "labels" / unicodedata.normalize(listed, f"{on_disk}.png")
    label.parent.mkdir(parents=True)
    Image.fromarray(np.full((6, 8), 2, np.uint8)).save(label)
    for ending in ("", ".png"):
        (root / "train.txt").write_text(unicodedata.normalize(listed, on_disk) + ending + "\nb\n", encoding="utf-8")
        dataset = Dataset(root=root)
        assert dataset.ids("train") == [on_disk, "b"]
        assert dataset.image(on_disk).shape == (6, 8, 3) and (dataset.label(on_disk) == 2).all()


def test_two_images_whose_names_look_alike_are_refused(root):
    for form in ("NFC", "NFD"):
        write(root, unicodedata.normalize(form, "\u00e9t\u00e9"))
    if len(list((root / "images").iterdir())) == 2:  # not on a disk that takes them for one
        with pytest.raises(DatasetError, match="a second time"):
            Dataset(root=root).ids("train")


def test_a_byte_order_mark_in_a_list_is_no_part_of_a_name(root):
    write(root, "a", 0)
    (root / "train.txt").write_text("a.png\n", encoding="utf-8-sig")
    (root / "val.txt").write_text("", encoding="utf-8-sig")
    (root / "classes.yaml").write_text(EXAMPLE, encoding="utf-8-sig")
    dataset = Dataset(root=root)
    assert dataset.ids("train") == ["a"] and dataset.image("a").shape == (6, 8, 3)
    with pytest.raises(DatasetError, match=r"val\.txt: is empty"):
        dataset.ids("val")


def test_what_systems_leave_beside_pictures_is_no_label_and_no_picture(root):
    write(root, "drive/a", 0)
    for name in (
        "labels/Thumbs.db",
        "labels/drive/desktop.ini",
        "labels/.DS_Store",
        "images/Thumbs.db",
        "labels/@eaDir/a.png@SynoEAStream",
        "labels/drive/@eaDir/a.png/SYNOPHOTO_THUMB_M.png",
        "images/@eaDir/drive/SYNO_THUMB.jpg",
        "labels/__MACOSX/._a.png",
        "labels/.ipynb_checkpoints/a-checkpoint.png",
        "images/.ipynb_checkpoints/a-checkpoint.png",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"left behind")
    dataset = Dataset(root=root)
    assert dataset.ids("train") == ["drive/a"] and len(dataset.files("drive/a")) == 2


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda root: write(root, "a", ending=".jpg"), r"a\.png: 'a' a second time, first at .*a\.jpg"),
        (lambda root: Image.new("L", (8, 6)).save(root / "labels/a_mask.png"), r"a_mask\.png: is one of 1 labels without"),
        (lambda root: Image.new("L", (8, 6)).save(root / "labels/a.jpg"), r"a\.jpg: is one of 1 labels that are not \.png"),
        (lambda root: (root / "images/a.png").unlink(), "images: holds no picture"),
    ],
)
def test_names_that_do_not_pair_are_refused(root, spoil, message):
    write(root, "a", 0)
    assert Dataset(root=root).ids("train") == ["a"]
    spoil(root)
    with pytest.raises(DatasetError, match=message):
        Dataset(root=root).ids("train")


def test_a_missing_card_shows_an_example_that_works(tmp_path):
    with pytest.raises(DatasetError, match=r"classes\.yaml: no such file; write it like this:\n") as caught:
        Dataset(root=tmp_path)  # the command line prints its indented lines as they are
    (tmp_path / "classes.yaml").write_text(str(caught.value).split("like this:\n")[1])
    assert read_classes(tmp_path / "classes.yaml").names == ("background", "left line", "right line")


def test_every_fault_of_a_card_is_in_one_message(root):
    card = yaml.safe_load(EXAMPLE) | {"ignore": [1, 256], "background": "backround", "mirror": [["left line", "road"]]}
    (root / "classes.yaml").write_text(yaml.safe_dump(card | {"crop_top": -1}))
    with pytest.raises(DatasetError) as caught:
        read_classes(root / "classes.yaml")
    for part in ("from 3 to 255, not 1", "not 256", "did you mean 'background'", "'road', which is no class", "not -1"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("classes: [", "not YAML"),
        ("- a\n", "must hold keys and values"),
        ("clases: []\nignore: []\n", "'clases' is no key of it; did you mean 'classes'\\?, and 'classes' is missing, and "),
        ("classes: []\nignore: []\nbackground: null\n", "a list of 1 to 254 classes"),
        (EXAMPLE.replace("name: left line", "name: no"), "class 1 must read like"),
        (EXAMPLE.replace("[255, 0, 0]", "red"), "colour of 'left line' must be three numbers"),
        (EXAMPLE.replace("[255, 0, 0]", "[256, 0, 0]"), "colour of 'left line' must be three numbers"),
        (EXAMPLE.replace("name: right line", "name: left line"), "class 'left line' comes twice"),
        (EXAMPLE.replace("[[left line, right line]]", "[left line, right line]"), "'mirror' must be a list of pairs"),
        (EXAMPLE.replace("[[left line, right line]]", "[[left line, left line]]"), "'mirror' names 'left line' twice"),
    ],
)
def test_a_malformed_card_says_what_is_wrong(root, text, message):
    (root / "classes.yaml").write_text(text)
    with pytest.raises(DatasetError, match=rf"classes\.yaml: .*{message}.*like this:"):
        read_classes(root / "classes.yaml")


def test_a_root_that_is_not_there_is_said_to_be_missing_without_an_example(tmp_path):
    with pytest.raises(DatasetError, match="nowhere: no such folder, seen from .*; put or link the dataset there") as caught:
        Dataset(root=tmp_path / "nowhere")
    assert "\n" not in str(caught.value)
