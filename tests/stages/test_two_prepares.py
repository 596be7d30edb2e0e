"""Prepared stores under hard conditions: two runs at once, rows in the wrong place, and image ids that are odd."""

import os

import cv2
import numpy as np
import pytest

from pipeline.config import Plugin, Prepare, Views
from pipeline.data import prepared, views
from pipeline.store import Reader, Store, image_row
from pipeline.store.verification import repair, verify
from pipeline.training import loading
from stages import prepare

SIZE = Prepare(size=(16, 16), codec="raw")
CLASSES = "classes: [{name: a, colour: [0, 0, 0]}, {name: b, colour: [0, 0, 1]}]\nignore: [255]\nbackground: null\n"


@pytest.fixture
def dataset(tmp_path):
    """Makes a folder dataset of random pictures with these names."""

    def make(names):
        rng = np.random.default_rng(0)
        for name in names:
            path = tmp_path / "data/images" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".png", rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))[1].tobytes())
        (tmp_path / "data/classes.yaml").write_text(CLASSES)
        return Plugin(kind="datasets", name="folder", args={"root": str(tmp_path / "data")})

    return make


def run(dataset, folder):
    prepare.run(dataset=dataset, prepare=SIZE, root=folder / "cache", report=folder / "report.json", workers=1)


def wrong(dataset, folder):
    """Images whose prepared pixels are not those of their files."""
    source = dataset.build()
    store, sample, images = prepared.open_whole(folder / "cache", dataset, source, SIZE, source.ids("train"))
    ids = [image.id for image in images]
    rows = Reader(store, [sample], ids, 1).read(sample, np.arange(len(ids)), np.zeros(len(ids), int))
    return [
        image_id
        for image_id, pixels in zip(ids, rows["image"], strict=True)
        if not np.array_equal(pixels, prepared.sample(source, image_id, SIZE)["image"])
    ]


@pytest.mark.parametrize("taken", [16, 3])
def test_what_another_run_has_put_into_blocks_meanwhile_is_written_where_it_stands(tmp_path, dataset, monkeypatch, taken):
    plugin, grow, begun = dataset(f"{number:02d}" for number in range(20)), Store.grow, []

    def after_another(store, rows):
        if not begun:  # another process grows the store and writes no block yet
            begun.append(True)
            source = plugin.build()
            grow(
                Store.open(store.folder),
                [image_row(image_id, prepared.sample(source, image_id, SIZE)) for image_id in source.ids("train")[:taken]],
            )
        grow(store, rows)

    monkeypatch.setattr(Store, "grow", after_another)
    run(plugin, tmp_path)
    assert wrong(plugin, tmp_path) == []


def test_rows_of_other_images_than_their_block_lists_are_found_and_mended(tmp_path, dataset):
    plugin = dataset(f"{number:02d}" for number in range(16))
    run(plugin, tmp_path)
    store = Store.find(tmp_path / "cache", "prepared", plugin.homes[0], prepared.identity(plugin.build(), SIZE))
    sample = prepared.sample_pass(SIZE.size, 0)
    first = Reader(store, [sample], [row.id for row in store.block_images(0)], 1).read(sample, np.arange(8), np.zeros(8, int))
    assert verify(store) == []
    store.mark_path("v000", sample.folder, 1).unlink()
    store.write_block(sample, 0, 1, first)
    fault = verify(store)[-1]  # before it: other blocks were filled than the manifest says
    assert "not those of the digest in the list of images, for image '08', '09', '10' and 5 more (block 1" in fault
    assert len(wrong(plugin, tmp_path)) == 8
    assert "block 1 of sample" in repair(store)[0]
    run(plugin, tmp_path)
    assert wrong(plugin, tmp_path) == [] == verify(store)


def test_what_two_runs_note_of_their_files_is_kept_together(tmp_path, dataset):
    source = dataset(["a", "b"]).build()
    first, second = (prepare._Sources(tmp_path / "sources.tsv", source, ["a", "b"]) for _ in range(2))
    second.fresh["b"] = second.now["b"]  # noted where nothing can be appended
    first.seen(["a"])
    first.save()
    second.save()
    assert prepared.known_files(tmp_path / "sources.tsv") == first.now


@pytest.mark.parametrize("name", ["a\u2028b", "c\rd", os.fsdecode(b"caf\xe9"), "a/A", "x" * 200])
def test_an_image_may_have_any_name_that_a_file_may_have(tmp_path, dataset, name):
    plugin = dataset([name, "A/a"])
    run(plugin, tmp_path)
    assert wrong(plugin, tmp_path) == []
    drawn = Views(count=2, seed=0, scale=(0.9, 1.1), rotate_deg=1.0, shift=0.0, mirror=False)
    assert views.draw(drawn, name, 1, (16, 16)).shape == (2, 3) and views.view_of_epoch(name, 0, 2) in (0, 1)
    assert sorted(loading.scan_order([name, "A/a"])) == [0, 1]


def test_a_picture_left_out_may_have_any_name_too(tmp_path, dataset):
    name = os.fsdecode(b"caf\xe9\xe2\x80\xa8")
    plugin = dataset([name, "whole"])
    (tmp_path / "data/images" / f"{name}.png").write_bytes(b"no picture")
    prepare.run(dataset=plugin, prepare=SIZE, root=tmp_path / "cache", report=tmp_path / "r.json", workers=1, skip_bad=True)
    assert wrong(plugin, tmp_path) == []
    store = Store.find(tmp_path / "cache", "prepared", plugin.homes[0], prepared.identity(plugin.build(), SIZE))
    assert list(prepared.skipped(store)) == [name]
