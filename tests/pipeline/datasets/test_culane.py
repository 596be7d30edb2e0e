"""CULane's layout, with a handful of frames of the real size: lists, labels, lines, and every way that they break."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.culane import Dataset
from pipeline.errors import DatasetError

CLIP = "driver_23_30frame/05151649_0422.MP4"


def make(root: Path, size=(590, 1640)) -> Dataset:
    """Two frames each for train and test; the test split has no labels, as the real one."""
    rng = np.random.default_rng(0)
    for name in ("00000", "00030", "00060", "00090"):
        smooth = np.cumsum(rng.integers(-2, 3, (*size, 3)), axis=1) % 200
        save(root / CLIP / f"{name}.jpg", smooth.astype(np.uint8))
        (root / CLIP / f"{name}.lines.txt").write_text("-20.4835 580 19.3893 570 58.1682 560 \n1170.27 590 1151 580 \n")
    for name in ("00000", "00030"):
        label = np.zeros(size, np.uint8)
        label[-50:, 100:116], label[-50:, 300:316] = 2, 4
        save(root / "laneseg_label_w16" / CLIP / f"{name}.png", label)
    write(
        root / "list/train_gt.txt",
        *(
            f"/{CLIP}/{name}.jpg /laneseg_label_w16/{CLIP}/{name}.png {flags}"
            for name, flags in (("00030", "0 1 0 1"), ("00000", "1 1 1 0"))
        ),
    )
    write(root / "list/test.txt", f"/{CLIP}/00060.jpg", f"/{CLIP}/00090.jpg")
    write(root / "list/test_split/test0_normal.txt", f"/{CLIP}/00060.jpg")
    write(root / "list/test_split/test8_night.txt", f"/{CLIP}/00090.jpg", "")
    return Dataset(root=str(root))


def save(path: Path, pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))


def test_lists_are_read_in_their_order_without_the_leading_slash(tmp_path):
    data = make(tmp_path)
    assert data.ids("train") == [f"{CLIP}/00030", f"{CLIP}/00000"]
    assert data.ids("test") == [f"{CLIP}/00060", f"{CLIP}/00090"]
    assert data.categories("test") == {"normal": [f"{CLIP}/00060"], "night": [f"{CLIP}/00090"]}
    assert data.categories("train") == {}


def test_a_frame_has_image_label_flags_and_lines(tmp_path):
    data = make(tmp_path)
    image_id = data.ids("train")[0]
    assert data.image(image_id).shape == (590, 1640, 3)
    label = data.label(image_id)
    assert label.dtype == np.uint8 and set(np.unique(label)) == {0, 2, 4}
    assert data.existence(image_id).tolist() == [0, 1, 0, 1]
    lines = data.lines(image_id)
    np.testing.assert_allclose(lines[0], [[-20.4835, 580], [19.3893, 570], [58.1682, 560]])
    assert lines[1].shape == (2, 2)
    assert [path.name for path in data.files(image_id)] == ["00030.jpg", "00030.lines.txt", "00030.png"]


def test_the_real_test_split_has_no_labels_and_no_flags(tmp_path):
    data = make(tmp_path)
    image_id = data.ids("test")[0]
    assert data.label(image_id) is None and data.existence(image_id) is None
    assert [path.name for path in data.files(image_id)] == ["00060.jpg", "00060.lines.txt"]


@pytest.mark.parametrize("size, rows", [((590, 1640), 240), ((295, 820), 120), ((236, 656), 96), ((118, 328), 48)])
def test_the_rows_cut_at_the_top_scale_with_the_frame(tmp_path, size, rows):
    assert make(tmp_path, size).crop_top == rows


def test_a_first_frame_that_is_missing_does_not_hide_the_height_of_the_others(tmp_path):
    make(tmp_path, (295, 820))
    data = Dataset(root=str(tmp_path))
    first = data.files(data.ids("train")[0])[0]
    first.unlink()
    assert data.crop_top == 120
    for path in tmp_path.rglob("*.jpg"):
        path.write_bytes(b"")
    assert first.name in complaint(lambda: Dataset(root=str(tmp_path)).crop_top)


def test_a_palette_label_keeps_its_indices(tmp_path):
    data = make(tmp_path)
    path = tmp_path / "laneseg_label_w16" / CLIP / "00000.png"
    picture = Image.open(path).convert("P")
    picture.putdata(np.asarray(Image.open(path)).ravel())
    picture.putpalette([200, 10, 10] * 256)
    picture.save(path)
    assert set(np.unique(data.label(f"{CLIP}/00000"))) == {0, 2, 4}


def test_lists_may_have_a_byte_order_mark_and_names_another_unicode_form(tmp_path):
    make(tmp_path, (118, 328))
    clip = tmp_path / CLIP
    for file in list(clip.glob("00060.*")):
        file.rename(clip / unicodedata.normalize("NFD", f"caf\u00e9{file.name[5:]}"))
    (tmp_path / "list/test.txt").write_text(f"/{CLIP}/caf\u00e9.jpg\n", encoding="utf-8-sig")
    data = Dataset(root=str(tmp_path))
    assert data.ids("test") == [f"{CLIP}/caf\u00e9"]
    assert data.image(f"{CLIP}/caf\u00e9").shape == (118, 328, 3) and len(data.lines(f"{CLIP}/caf\u00e9")) == 2


def complaint(do) -> str:
    with pytest.raises(DatasetError) as caught:
        do()
    return str(caught.value)


def test_a_missing_list_is_named(tmp_path):
    data = make(tmp_path)
    assert "list/val.txt" in complaint(lambda: data.ids("val"))


def test_a_repeated_id_is_refused_with_both_lines(tmp_path):
    data = make(tmp_path)
    write(tmp_path / "list/test.txt", f"/{CLIP}/00060.jpg", "", f"/{CLIP}/00060.jpg")
    message = complaint(lambda: data.ids("test"))
    assert "test.txt: line 3" in message and "test.txt: line 1" in message


@pytest.mark.parametrize(
    "line, word",
    [
        (f"/{CLIP}/00000.jpg /x.png 1 1 1", "4 flags"),
        (f"/{CLIP}/00000.jpg /x.png 1 1 1 2", "4 flags"),
        (f"/{CLIP}/00000.bmp", ".jpg"),
    ],
)
def test_a_broken_list_line_is_named(tmp_path, line, word):
    data = make(tmp_path)
    write(tmp_path / "list/train_gt.txt", f"/{CLIP}/00030.jpg", line)
    message = complaint(lambda: data.ids("train"))
    assert "train_gt.txt: line 2" in message and word in message


def test_missing_files_are_named(tmp_path):
    data = make(tmp_path)
    image_id = data.ids("train")[0]
    data.files(image_id)[2].unlink()
    assert "00030.png: no such file" in complaint(lambda: data.label(image_id))
    data.files(image_id)[0].unlink()
    assert "00030.jpg: no such file" in complaint(lambda: data.image(image_id))


def test_a_truncated_jpeg_is_refused_wherever_it_ends(tmp_path):
    data = make(tmp_path, (118, 328))
    image_id = data.ids("train")[0]
    path = data.files(image_id)[0]
    whole = path.read_bytes()
    for end in [*np.linspace(0, len(whole) - 1, 40).astype(int), len(whole) - 2]:
        path.write_bytes(whole[:end])
        assert path.name in complaint(lambda: data.image(image_id))
        path.write_bytes(whole[:end] + bytes(len(whole) - end))  # the tail was never written
        assert path.name in complaint(lambda: data.image(image_id))
    path.write_bytes(whole + b"a camera's trailer")
    assert data.image(image_id).shape == (118, 328, 3)


def test_a_truncated_label_is_refused(tmp_path):
    data = make(tmp_path, (118, 328))
    image_id = data.ids("train")[0]
    path = data.files(image_id)[2]
    path.write_bytes(path.read_bytes()[:-40])
    assert "cannot be read" in complaint(lambda: data.label(image_id))


def test_a_label_of_another_size_or_kind_or_value_is_refused(tmp_path):
    data = make(tmp_path, (118, 328))
    image_id = data.ids("train")[0]
    path = data.files(image_id)[2]
    save(path, np.zeros((117, 328), np.uint8))
    message = complaint(lambda: data.label(image_id))
    assert "328 x 117" in message and "328 x 118" in message
    save(path, np.zeros((118, 328, 3), np.uint8))
    assert "'RGB' pixels" in complaint(lambda: data.label(image_id))
    save(path, np.full((118, 328), 5, np.uint8))
    assert "value 5" in complaint(lambda: data.label(image_id))


@pytest.mark.parametrize("text", ["12.5 590 13.0\n", "1 590\n12.5 590 x 580\n"])
def test_a_broken_annotation_is_named_with_its_line(tmp_path, text):
    data = make(tmp_path, (118, 328))
    image_id = data.ids("train")[0]
    data.files(image_id)[1].write_text(text)
    assert f"00030.lines.txt: line {len(text.splitlines())}" in complaint(lambda: data.lines(image_id))


def test_an_empty_annotation_means_no_lines(tmp_path):
    data = make(tmp_path, (118, 328))
    image_id = data.ids("train")[0]
    data.files(image_id)[1].write_text("")
    assert data.lines(image_id) == []
