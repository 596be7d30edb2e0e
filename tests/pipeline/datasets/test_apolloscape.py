import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.apolloscape import IGNORED, MARKINGS, NAMES, NOISE, Dataset
from pipeline.errors import ConfigError, DatasetError

IDS = [row[0] for row in MARKINGS] + [NOISE[0], IGNORED[0]]
COLOURS = {row[0]: row[3] for row in MARKINGS} | dict([NOISE, IGNORED])
HOME = "/home/someone/ApolloScapes"


def write_frame(root, road, record, camera, stem, ids, form="rgb"):
    """A frame in the official layout; `ids` is its label in official ids, written in one of the forms found on disk."""
    image = root / f"ColorImage_{road}/ColorImage/{record}/{camera}/{stem}.jpg"
    label = root / f"Labels_{road}/Label/{record}/{camera}/{stem}_bin.png"
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*ids.shape, 3), 90, np.uint8)).save(image)
    if form == "rgb":
        colours = np.zeros((256, 3), np.uint8)
        colours[list(COLOURS)] = list(COLOURS.values())
        picture = Image.fromarray(colours[ids])
    else:
        picture = Image.fromarray(ids.astype(np.uint8))
        if form == "palette":
            picture = picture.convert("P")
            picture.putpalette([(7 * n + 30) % 256 for n in range(768)])  # not the official colours
    picture.save(label)
    return image, label


@pytest.fixture
def root(tmp_path):
    void = np.zeros((4, 6), int)
    for road, record, camera, stem in [
        ("road02", "Record001", "Camera 5", "171206_1_Camera_5"),
        ("road02", "Record001", "Camera 6", "171206_1_Camera_6"),
        ("road03", "Record001", "Camera 5", "171206_2_Camera_5"),
        ("road04", "Record015", "Camera 6", "171206_3_Camera_6"),
        ("road04", "Record017", "Camera 5", "171206_4_Camera_5"),
        ("road04", "Record017", "Camera 6", "171206_4_Camera_6"),
    ]:
        write_frame(tmp_path, road, record, camera, stem, void)
    (tmp_path / "ColorImage_road05").mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / "ColorImage_road05/171206_9_Camera_6.jpg")
    return tmp_path


def test_frames_in_camera_folders_with_a_space_are_split_by_record(root):
    dataset = Dataset(root=root, val=["road04/Record015/Camera 6", "road04/Record017"])
    assert dataset.ids("train") == [
        "road02/Record001/Camera_5/171206_1_Camera_5",
        "road02/Record001/Camera_6/171206_1_Camera_6",
        "road03/Record001/Camera_5/171206_2_Camera_5",
    ]
    assert dataset.ids("val") == [
        "road04/Record015/Camera_6/171206_3_Camera_6",
        "road04/Record017/Camera_5/171206_4_Camera_5",
        "road04/Record017/Camera_6/171206_4_Camera_6",
    ]
    assert dataset.ids("test") == ["road05/171206_9_Camera_6"]
    for split in dataset.splits:
        assert all(dataset.image(image_id).shape == (4, 6, 3) for image_id in dataset.ids(split))
    assert "Camera 5" in str(dataset.files(dataset.ids("train")[0])[1])


def test_a_renamed_camera_folder_keeps_the_ids(root):
    before = Dataset(root=root, val=["road04"]).ids("train")
    for folder in list(root.glob("*/*/*/Camera 5")):
        folder.rename(folder.with_name("Camera_5"))
    dataset = Dataset(root=root, val=["road04"])
    assert dataset.ids("train") == before
    assert dataset.label(before[0]).shape == dataset.image(before[0]).shape[:2] == (4, 6)


def test_a_val_entry_is_a_whole_name_and_must_name_frames(root):
    with pytest.raises(DatasetError, match="'road04/Record01'.*correct dataset.val"):
        Dataset(root=root, val=["road04/Record01"]).ids("train")


def test_a_missing_road_is_named_and_can_be_left_out(root):
    (root / "ColorImage_road03").rename(root / "elsewhere")
    with pytest.raises(DatasetError, match="ColorImage_road03"):
        Dataset(root=root, val=["road04"]).ids("train")
    assert len(Dataset(root=root, val=["road04"], roads=("road02", "road04")).ids("train")) == 2


@pytest.mark.parametrize("form", ["rgb", "palette", "grey"])
@pytest.mark.parametrize("ignored", ["class", 255])
def test_every_id_reads_the_same_in_every_form(tmp_path, form, ignored):
    ids = np.random.default_rng(0).permutation(np.resize(IDS, 80)).reshape(8, 10)
    write_frame(tmp_path, "road02", "Record001", "Camera 5", "a", ids, form)
    dataset = Dataset(root=tmp_path, val=[], roads=("road02",), ignored=ignored)
    label = dataset.label(dataset.ids("train")[0])
    slow = [[36 if ignored == "class" else 255] * 10 for _ in range(8)]
    for y in range(8):
        for x in range(10):
            for train_id, row in enumerate(MARKINGS):
                if row[0] == ids[y, x]:
                    slow[y][x] = train_id
    assert label.dtype == np.uint8 and label.tolist() == slow
    assert len(dataset.classes) == len(dataset.colours) == len(dataset.mirror) == (37 if ignored == "class" else 36)
    assert dataset.regions == tuple(range(36)) and dataset.background == 0 and dataset.crop_top == 1700


def test_the_table_is_the_official_one():
    assert len(set(IDS)) == len(set(COLOURS.values())) == 38
    assert len({5 * b + 3 * g + r for r, g, b in COLOURS.values()}) == 38  # the published hash parts them
    assert [name for t, name in enumerate(NAMES) if t in Dataset.evaluated] == (
        "void s_w_d s_y_d ds_y_dn b_w_g b_y_g s_w_s s_w_p c_wy_z a_w_t a_w_tl a_w_tr a_w_l a_w_r a_w_lr b_n_sr r_wy_np om_n_n"
    ).split()
    assert list(dict.fromkeys(Dataset.categories)) == [
        "void",
        "dividing",
        "guiding",
        "stopping",
        "chevron",
        "parking",
        "zebra",
        "thru/turn",
        "reduction",
        "attention",
        "no parking",
        "others",
    ]
    assert MARKINGS[15][:2] == (219, "s_y_c") and MARKINGS[27][:2] == (230, "a_n_lu") and MARKINGS[35][0] == 250


def test_a_colour_with_the_hash_of_another_is_refused(tmp_path):
    _, path = write_frame(tmp_path, "road02", "Record001", "Camera 5", "a", np.zeros((4, 6), int))
    assert COLOURS[200] == (70, 130, 180) and 5 * 180 + 3 * 130 + 70 == 5 * 165 + 3 * 133 + 136
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[3, 1], picture[2, 5] = (70, 130, 180), (136, 133, 165)
    Image.fromarray(picture).save(path)
    dataset = Dataset(root=tmp_path, val=[], roads=("road02",))
    with pytest.raises(DatasetError, match=r"a_bin\.png: colour \(136, 133, 165\) at x=5, y=2 .* 0 other"):
        dataset.label("road02/Record001/Camera_5/a")


def test_an_unknown_id_is_refused_with_file_and_pixel(tmp_path):
    ids = np.zeros((4, 6), int)
    ids[1, 3:5] = 36  # a train id is no official id
    write_frame(tmp_path, "road02", "Record001", "Camera 5", "a", ids, "grey")
    with pytest.raises(DatasetError, match=r"a_bin\.png: value 36 at x=3, y=1 .* 1 other"):
        Dataset(root=tmp_path, val=[]).label("road02/Record001/Camera_5/a")


def test_other_kinds_of_pixels_are_refused(tmp_path):
    _, path = write_frame(tmp_path, "road02", "Record001", "Camera 5", "a", np.zeros((4, 6), int))
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(path)
    with pytest.raises(DatasetError, match=r"a_bin\.png: has 'I;16' pixels"):
        Dataset(root=tmp_path, val=[]).label("road02/Record001/Camera_5/a")


def test_a_mirror_swaps_left_and_right_arrows_only():
    mirror = Dataset(root=".", val=[]).mirror
    swapped = {(NAMES[a], NAMES[b]) for a, b in enumerate(mirror[:36]) if a != b}
    assert swapped == {("a_w_tl", "a_w_tr"), ("a_w_tr", "a_w_tl"), ("a_w_l", "a_w_r"), ("a_w_r", "a_w_l")}
    assert [mirror[b] for b in mirror] == list(range(37))
    assert (mirror[21], mirror[24], mirror[27], mirror[36]) == (22, 25, 27, 36)


def test_predictions_are_written_as_ids_where_the_server_looks(root):
    dataset = Dataset(root=root, val=["road04"])
    prediction = np.arange(37, dtype=np.uint8).reshape(1, 37)
    assert dataset.prediction_ids(prediction).tolist() == [IDS[:37]] and IDS[36] == 249
    assert dataset.prediction_ids(prediction).dtype == np.uint8
    assert dataset.prediction_path("road05/171206_9_Camera_6").as_posix() == "test/road05/171206_9_Camera_6.png"
    assert dataset.label("road05/171206_9_Camera_6") is None


def list_line(road, record, camera, stem):
    return (
        f"{HOME}/ColorImage_{road}/ColorImage/{record}/{camera}/{stem}.jpg "
        f"{HOME}/Labels_{road}/Label/{record}/{camera}/{stem}_bin.png 1 1 1 1"
    )


def test_published_lists_are_read_from_any_machine_and_either_spelling(root):
    (root / "train.txt").write_text(
        list_line("road02", "Record001", "Camera_6", "171206_1_Camera_6")
        + "\n\n"
        + list_line("road02", "Record001", "Camera 5", "171206_1_Camera_5")
        + "\n"
    )
    (root / "test_img.txt").write_text(  # as published: every line with one and the same label
        f"{HOME}/ColorImage_road05/171206_9_Camera_6.jpg {HOME}/Labels_road04/Label/Record017/Camera_6/1_Camera_6_bin.png"
    )
    dataset = Dataset(root=root, lists={"train": "train.txt", "test": "test_img.txt"})
    assert dataset.splits == ("train", "test")
    assert dataset.ids("train") == [
        "road02/Record001/Camera_6/171206_1_Camera_6",
        "road02/Record001/Camera_5/171206_1_Camera_5",
    ]
    assert dataset.ids("test") == ["road05/171206_9_Camera_6"] and dataset.label("road05/171206_9_Camera_6") is None
    assert Dataset(root=root, lists={"train": "train.txt"}).ids("test") == dataset.ids("test")
    assert dataset.label(dataset.ids("train")[0]).shape == (4, 6)


@pytest.mark.parametrize(
    "second_line, message",
    [
        (list_line("road02", "Record001", "Camera_5", "171206_1_Camera_5"), "line 2: .*a second time, first at .*line 1"),
        ("ColorImage_road02/Record001/x.jpg 1 1 1 1", "line 2: .*holds no path"),
        (list_line("road02", "Record001", "Camera_6", "1_Camera_6").replace("_6_bin", "_5_bin"), "line 2: label .*another"),
    ],
)
def test_a_bad_line_is_named(root, second_line, message):
    first_line = list_line("road02", "Record001", "Camera_5", "171206_1_Camera_5")
    (root / "train.txt").write_text(f"{first_line}\n{second_line}")
    with pytest.raises(DatasetError, match=message):
        Dataset(root=root, lists={"train": "train.txt"}).ids("train")


def test_a_list_that_points_nowhere_is_named_with_its_line(root):
    (root / "train.txt").write_text("\n" + list_line("road02", "Record001", "Camera_5", "gone"))
    dataset = Dataset(root=root, lists={"train": "train.txt", "val": "missing.txt"})
    (image_id,) = dataset.ids("train")
    with pytest.raises(DatasetError, match=r"train\.txt: line 2: no such image .*gone\.jpg"):
        dataset.image(image_id)
    Image.new("RGB", (6, 4)).save(root / "ColorImage_road02/ColorImage/Record001/Camera 5/gone.jpg")
    with pytest.raises(DatasetError, match=r"train\.txt: line 2: no such label .*gone_bin\.png"):
        dataset.label(image_id)
    with pytest.raises(DatasetError, match=r"missing\.txt: cannot be read"):
        dataset.ids("val")


def test_missing_truncated_and_mismatched_files_are_named(root):
    dataset = Dataset(root=root, val=["road04"])
    first, second, third = dataset.ids("train")
    image, label = dataset.files(first)
    label.unlink()
    with pytest.raises(DatasetError, match="171206_1_Camera_5_bin.png: no such file"):
        dataset.label(first)
    image.write_bytes(image.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=r"171206_1_Camera_5\.jpg: cannot be read"):
        dataset.image(first)
    Image.new("RGB", (5, 4)).save(dataset.files(second)[1])
    with pytest.raises(DatasetError, match=r"171206_1_Camera_6_bin\.png: is 5 x 4 pixels, but .* 6 x 4"):
        dataset.label(second)
    write_frame(root, "road03", "Record001", "Camera 5", "171206_2_Camera_5", np.resize(IDS, (40, 60)))
    path = dataset.files(third)[1]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DatasetError, match=r"171206_2_Camera_5_bin\.png: cannot be read .*truncated"):
        dataset.label(third)
    with pytest.raises(DatasetError, match="no split 'valid'; there are train, val, test"):
        dataset.ids("valid")


def test_the_config_must_say_what_validation_is():
    for keys in ({}, {"val": [], "lists": {"train": "train.txt"}}):
        with pytest.raises(ConfigError, match="'val' .*'lists'"):
            Dataset(root=".", **keys)
    with pytest.raises(ConfigError, match="ignored"):
        Dataset(root=".", val=[], ignored="maybe")


def test_a_frame_of_the_official_size_loses_nothing_by_the_cut(tmp_path):
    ids = np.zeros((2710, 3384), np.uint8)
    ids[1720:1760, 1000:1020], ids[2310:] = 200, 255
    write_frame(tmp_path, "road02", "Record001", "Camera 5", "a", ids)
    dataset = Dataset(root=tmp_path, val=[], roads=("road02",))
    whole = dataset.label("road02/Record001/Camera_5/a")
    kept = whole[dataset.crop_top :]
    assert kept.shape == (1010, 3384) and not whole[:1700].any()
    assert np.bincount(kept.ravel()).tolist() == [kept.size - 800 - 400 * 3384, 800, *[0] * 34, 400 * 3384]
