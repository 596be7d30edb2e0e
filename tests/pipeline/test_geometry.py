"""Frames keep their shape: known sizes, crops in three ways, padding instead of stretching, and networks that can take them."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipeline.config import Prepare, load
from pipeline.data import prepared, views
from pipeline.data.frames import content_of, crop_record, frame, require_frame
from pipeline.datasets.apolloscape import Dataset as ApolloScape
from pipeline.datasets.base import DatasetBase
from pipeline.datasets.folder import EXAMPLE
from pipeline.datasets.folder import Dataset as Folder
from pipeline.errors import ConfigError, DatasetError
from stages import doctor

ROOT = Path(__file__).parents[2]
LANES = Prepare(size=(505, 1692), codec="raw")


def refused(shape, dataset, prepare=None) -> str:
    with pytest.raises(DatasetError) as caught:
        require_frame(Path("x.jpg"), shape, dataset, prepare)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("x.jpg: ")
    return str(caught.value)


def apolloscape(**keys) -> ApolloScape:
    return ApolloScape(root="nowhere", val=[], **keys)


def test_a_cut_made_for_the_whole_frame_is_refused_on_the_edition_without_sky():
    require_frame(Path("x.jpg"), (2710, 3384), apolloscape(), LANES)
    assert "leaves 10" in refused((1710, 3384), apolloscape(), LANES)
    require_frame(Path("x.jpg"), (1710, 3384), apolloscape(crop_top=700), LANES)


def test_rows_counted_from_the_bottom_are_the_same_of_both_editions():
    dataset = apolloscape(crop_bottom_rows=1010)
    assert [dataset.rows_cut(rows) for rows in (2710, 1710)] == [1700, 700]
    for rows in (2710, 1710):
        require_frame(Path("x.jpg"), (rows, 3384), dataset, LANES)
    assert crop_record(dataset) == {"crop_bottom_rows": 1010} and crop_record(apolloscape()) == {"crop_top": 1700}
    assert "crop_bottom_rows keeps 1711" in refused((1710, 3384), apolloscape(crop_bottom_rows=1711))


def test_a_share_of_the_rows_and_its_contradiction():
    assert apolloscape(crop_top_share=0.25).rows_cut(2710) == 678
    with pytest.raises(ConfigError, match="write one of them"):
        apolloscape(crop_top_share=0.25, crop_bottom_rows=9)


def test_frames_of_another_size_than_the_readers_are_refused_until_it_is_said():
    assert "1920 x 1080 pixels, but the dataset's frames are 3384 x 2710 or 3384 x 1710" in refused((1080, 1920), apolloscape())
    require_frame(Path("x.jpg"), (1080, 1920), apolloscape(crop_top=0, size=(1080, 1920)))


@pytest.mark.parametrize("name, size", [("culane", (590, 1640)), ("cityscapes", (1024, 2048)), ("camvid", (360, 480))])
def test_every_reader_knows_the_sizes_of_its_frames(name, size):
    from pipeline.lookup import find_class

    assert find_class("datasets", name)(root="nowhere").frame_sizes == (size,)
    assert find_class("datasets", name)(root="nowhere", size=(10, 20)).frame_sizes == ((10, 20),)


def test_too_much_stretching_is_refused_and_padding_is_not():
    dataset = SimpleNamespace(frame_sizes=None, crop_top=0, crop_bottom_rows=None, crop_top_share=None, rows_cut=lambda rows: 0)
    small = {"size": (96, 128), "codec": "raw"}
    for shape in ((480, 360), (1080, 1920), (640, 640)):
        assert "stretched by 1." in refused(shape, dataset, Prepare(**small))
        require_frame(Path("x.jpg"), shape, dataset, Prepare(**small, fit="pad"))
        require_frame(Path("x.jpg"), shape, dataset, Prepare(**small, max_stretch=2.0))
    require_frame(Path("x.jpg"), (360, 480), dataset, Prepare(**small))


@pytest.mark.parametrize("shape, content", [((60, 40), (30, 20)), ((40, 60), (27, 40)), ((30, 40), (30, 40)), ((1, 4000), (1, 40))])
def test_padding_keeps_the_aspect(shape, content):
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (*shape, 3), np.uint8), rng.integers(0, 5, shape, np.uint8)
    height, width = content_of(shape, (30, 40), "pad")
    assert (height, width) == content
    shown, labels = frame(image, label, 0, (30, 40), "pad")
    alone, its_labels = frame(image, label, 0, content)
    assert shown.shape == (32, 40, 3)
    assert (shown[:height, :width] == alone[:height, :width]).all() and (
        labels[:height, :width] == its_labels[:height, :width]
    ).all()
    outside = np.ones((32, 40), bool)
    outside[:height, :width] = False
    assert (labels[outside] == 255).all() and (shown[outside] == views.FILL).all()


def own(root: Path, sizes, crop="crop_top: 0") -> Folder:
    (root / "classes.yaml").write_text(EXAMPLE.replace("crop_top: 0 ", f"{crop} "))
    for number, size in enumerate(sizes):
        for folder, pixels in (("images", np.full((*size, 3), 40 + number, np.uint8)), ("labels", np.full(size, 1, np.uint8))):
            (root / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{number}.png")
    return Folder(root=str(root))


def test_a_padded_row_says_what_is_inside(tmp_path):
    dataset, prepare = own(tmp_path, [(60, 40), (40, 60)]), Prepare(size=(30, 40), codec="raw", fit="pad")
    rows = [prepared.sample(dataset, image_id, prepare) for image_id in dataset.ids("train")]
    fields = prepared.sample_pass(prepare.size, 0, prepare.fit).fields
    assert {name: (field.shape, field.dtype) for name, field in fields.items()} == {
        name: (value.shape, str(value.dtype)) for name, value in rows[0].items()
    }
    images, labels, content = (torch.from_numpy(np.stack([row[name] for row in rows])) for name in ("image", "label", "content"))
    plain = torch.from_numpy(np.stack([views.identity()] * 2))
    shown, seen, inside = views.apply(images, labels, plain, content=content)
    assert inside.sum(dim=(1, 2)).tolist() == [30 * 20, 27 * 40] and (seen[~inside] == 255).all() and (seen[inside] == 1).all()
    assert (shown.permute(0, 2, 3, 1)[~inside] == torch.tensor(views.FILL)).all()


def test_keys_at_their_defaults_are_in_no_identity(tmp_path):
    dataset = own(tmp_path, [(60, 40)])
    as_before = prepared.identity(dataset, Prepare(size=(30, 40), codec="raw", max_stretch=3.0))
    assert set(as_before) == {"version", "size", "canvas", "crop_top", "fill", "classes", "lanes"}
    assert prepared.identity(dataset, Prepare(size=(30, 40), codec="raw", fit="pad")) == as_before | {"fit": "pad"}
    assert prepared.sample_pass((30, 40), 0).record == {"type": "sample", "version": 1, "size": [30, 40], "lanes": 0}


@pytest.mark.parametrize("crop, cut", [("crop_top: 9", 9), ("crop_bottom_rows: 20", 40), ("crop_top_share: 0.5", 30)])
def test_own_data_say_the_crop_in_three_ways(tmp_path, crop, cut):
    assert own(tmp_path, [(60, 40)], crop).rows_cut(60) == cut


def test_own_data_say_one_crop(tmp_path):
    with pytest.raises(DatasetError, match="only one may be there"):
        own(tmp_path, [(60, 40)], "crop_top: 4\ncrop_bottom_rows: 20")


def test_doctor_counts_the_sizes_and_finds_what_prepare_would_refuse(tmp_path, capsys):
    sizes = [(48, 36), (36, 48), (108, 192), (64, 64), (36, 48)]
    own(tmp_path, sizes)
    plugin = SimpleNamespace(name="folder", build=lambda: Folder(root=str(tmp_path)))
    said = doctor.run(dataset=plugin, splits=["train"], workers=1, prepare=Prepare(size=(36, 48), codec="raw", fit="pad"))
    assert [line.split()[:4] for line in said.splitlines()[1:3]] == [["48", "x", "36", "2"], ["36", "x", "48", "1"]]
    with pytest.raises(DatasetError) as caught:
        doctor.run(dataset=plugin, splits=["train"], workers=1, prepare=Prepare(size=(36, 48), codec="raw"))
    assert str(caught.value).count("above prepare.max_stretch 1.25") == 3
    assert "48 x 36" in capsys.readouterr().err


def test_a_config_whose_network_cannot_take_the_prepared_images_is_refused(tmp_path):
    raw = yaml.safe_load((ROOT / "configs/own-data.yaml").read_text())
    raw["prepare"]["size"] = [360, 640]
    raw["teacher"] = {
        "name": "adapter",
        "factory": "a:b",
        "arguments": {},
        "logits": "linear",
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "multiple": 32,
        "layers": {"mid": "x", "high": "y"},
        **{key: raw["teacher"][key] for key in ("checkpoint", "backbone", "precision")},
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=r"teacher: adapter takes .* multiples of 32, .* 360 x 640; write .*\[384, 640\]"):
        load(path, [])


@pytest.mark.skipif("APOLLOSCAPE_ROOT" not in os.environ, reason="APOLLOSCAPE_ROOT does not name real frames of ApolloScape")
def test_real_frames_of_the_edition_without_sky():
    dataset = ApolloScape(root=os.environ["APOLLOSCAPE_ROOT"], val=["road02/Record004"], crop_bottom_rows=1010)
    image_id = dataset.ids("train")[0]
    image, whole = dataset.image(image_id), apolloscape()
    assert image.shape == (1710, 3384, 3)
    assert "leaves 10" in refused(image.shape[:2], whole)
    row = prepared.sample(dataset, image_id, LANES)
    assert row["image"].shape == (512, 1696, 3) and len(np.unique(row["label"][:505])) > 1
    assert isinstance(dataset, DatasetBase)
