"""A store with an index of its images: it answers as one that holds them all, and nothing wrong is read through a bad index."""

import errno
import os
import pickle
import shutil

import numpy as np
import pytest
from toy_store import GRAPH, PASSES, VIEWS, create, filled, images, tree, values

from pipeline.errors import StoreError
from pipeline.store import ImageRow, Reader, Store
from pipeline.store import images as module
from pipeline.store.files import images_tsv, with_checksum
from pipeline.store.images import INDEX, Index
from pipeline.store.verification import repair, verify

COUNT = 30
IDS = [row.id for row in images(COUNT)]
ROWS = list(range(COUNT))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """As if the store were large, and pages many."""
    monkeypatch.setattr(module, "HELD", 4)
    monkeypatch.setattr(module, "PAGE", 3)


@pytest.fixture
def store(tmp_path):
    return filled(tmp_path / "cache", COUNT, [GRAPH], range(1))


def rewritten(path, data):
    path.unlink()
    path.write_bytes(data)


def check(store):
    """Every row is found and is what was written; unknown ids are unknown."""
    assert store.images.rows([*IDS, "nobody"]).tolist() == [*ROWS, -1]
    assert store.named(IDS[::-1]) == images(COUNT)[::-1] and len(store.row_of) == COUNT
    found = Reader(store, [GRAPH], IDS[::-1], 1, memory="disk").read(GRAPH, np.arange(COUNT), np.zeros(COUNT, int))
    assert all(np.array_equal(found[name], meant[::-1]) for name, meant in values(GRAPH, 0, images(COUNT)).items())


def test_a_store_with_an_index_answers_as_one_that_holds_its_images(tmp_path, monkeypatch):
    large = filled(tmp_path / "large", COUNT)
    monkeypatch.setattr(module, "HELD", 1000)
    small = filled(tmp_path / "small", COUNT)
    monkeypatch.setattr(module, "HELD", 4)
    assert (large.folder / INDEX).exists() and not (small.folder / INDEX).exists()
    assert tree(large.folder) == tree(small.folder)
    for opened in (large, Store.open(large.folder), pickle.loads(pickle.dumps(large))):
        assert opened.images._index.num_images >= COUNT - 4
        assert list(opened.images) == list(small.images) and opened.images[3:5] == small.images[3:5]
        assert opened.images[-1] == small.images[-1] and len(opened.images) == len(small.images)
        assert dict(opened.row_of) == dict(small.row_of) and "nobody" not in opened.row_of
        asked = images(COUNT)[::-2]
        assert opened.digest_of(asked, VIEWS, PASSES) == small.digest_of(asked, VIEWS, PASSES)
        opened.check(asked, VIEWS, [(pass_, True) for pass_ in PASSES])
        changed = [*asked[:5], ImageRow(asked[5].id, asked[5].image_digest, "beef")]
        with pytest.raises(StoreError, match=f"the label of '{asked[5].id}' has changed: digest .* here, beef asked for"):
            opened.check(changed, VIEWS, [(GRAPH, True)])
        assert verify(opened) == []


def test_a_reader_is_sent_to_a_process_without_its_ids(store):
    reader = Reader(store, [GRAPH], IDS[::-1], 1, memory="disk")
    sent = pickle.dumps(reader)
    assert b"seq/07" not in sent and pickle.loads(sent).ids == reader.ids == IDS[::-1]


def test_a_store_grows_past_its_index(store):
    index = (store.folder / INDEX).read_bytes()
    other = Store.open(store.folder)
    store.grow(images(COUNT + 3))
    assert (store.folder / INDEX).read_bytes() == index  # so few are held
    assert store.row_of[images(COUNT + 3)[-1].id] == 34
    store.grow(images(COUNT + 12))
    assert (store.folder / INDEX).read_bytes() != index
    for opened in (store, Store.open(store.folder)):
        assert opened.images.rows([row.id for row in images(COUNT + 12)]).tolist() == [*range(30), *range(32, 35), *range(36, 45)]
    check(other)  # which has the file of before
    other.images.load()
    assert list(other.images) == list(store.images)


def test_no_flipped_cut_or_lengthened_index_leads_to_a_wrong_row(store):
    path, generator = store.folder / INDEX, np.random.default_rng(0)
    data, refused = path.read_bytes(), 0
    harmed = [data[:-1], data + b"\0", data[:100], b"", b"\0" * len(data), b"[]\n"]
    for position in [0, len(data) - 1, *generator.integers(0, len(data), 40)]:
        harmed.append(data[:position] + bytes([data[position] ^ 1 << generator.integers(8)]) + data[position + 1 :])
    head = {"format": 1, "store": store.identity["digest"], "block_rows": 4, "images": 28, "blocks": 7, "tables": "0"}
    for other in ({"images": "many"}, {"images": 10**18}, {"blocks": -1}, {"blocks": None}, {"block_rows": 8}, {}):
        harmed.append(with_checksum({**head, **other}, indent=None) + data.partition(b"\n")[2])
    for content in harmed:
        path.write_bytes(content)
        opened = Store.open(store.folder)
        try:
            check(opened)  # made again from the lists
        except StoreError as error:
            refused += 1
            assert f"{path}: damaged; remove it, and it is made again" in str(error)
            assert verify(opened) == [str(error)]
            assert any(str(path) in done for done in repair(opened)) and not path.exists()
            check(Store.open(store.folder))
        check(Store.open(store.folder))
        rewritten(path, data)
    assert 5 < refused < 40


def test_a_list_that_changed_is_refused_when_the_store_is_opened_or_the_list_is_read(store):
    path = store.images.path(2)
    data = path.read_bytes()
    opened = Store.open(store.folder)
    for content, said in ((data[:-3] + b"0\n", "damaged"), (store.images.path(3).read_bytes(), "lists other images")):
        rewritten(path, content)
        with pytest.raises(StoreError, match=f"{path}: {said}"):
            opened.images.block(2)
        assert any(str(path) in fault for fault in verify(opened))
        with pytest.raises(StoreError, match=f"{path}: {said}"):
            repair(opened)
        assert opened.mark_path("v000", GRAPH.folder, 2).exists()
        if said == "damaged":
            with pytest.raises(StoreError, match=f"{path}: damaged"):
                Store.open(store.folder)
        else:
            with pytest.raises(StoreError, match="4 of 30 images are not in it"):
                Store.open(store.folder).rows_of(IDS)
    path.unlink()
    with pytest.raises(StoreError, match=f"{path}: "):
        opened.images.block(2)
    with pytest.raises(StoreError, match=f"{path}: missing; bring it back from a copy"):
        Store.open(store.folder)
    path.write_bytes(data)
    check(Store.open(store.folder))


def test_an_index_that_is_lost_foreign_or_of_a_copy_is_made_again(store, tmp_path):
    path = store.folder / INDEX
    other = filled(tmp_path / "other", COUNT, [GRAPH], range(1), record={"teacher": "another"})
    turned = filled(tmp_path / "turned", 0, [GRAPH], range(1))
    turned.grow(images(COUNT)[::-1])
    for index in (None, (other.folder / INDEX).read_bytes(), (turned.folder / INDEX).read_bytes()):
        path.unlink()
        if index:
            path.write_bytes(index)
        check(Store.open(store.folder))
        assert Index.open(path, store.images._head()).num_images >= COUNT - 4
    copy = tmp_path / "copy"
    shutil.copytree(store.folder, copy)
    check(Store.open(copy))
    assert (copy / INDEX).read_bytes() != path.read_bytes()  # other files, so other times
    path.unlink()
    path.symlink_to(copy / INDEX)
    with pytest.raises(StoreError, match=f"{path}: is a link that leads out of"):
        Store.open(store.folder)


def test_a_store_whose_last_lists_are_lost_is_not_opened_by_its_index(store):
    store.images.path(store.num_blocks - 1).unlink()
    opened = Store.open(store.folder)
    assert len(opened.row_of) == 28 and opened.images.rows(IDS[-2:]).tolist() == [-1, -1]
    with pytest.raises(StoreError, match="manifest.json knows 30 images, and the lists here name 28"):
        opened.refuse_lost_lists()


def test_an_index_that_cannot_be_written_is_held_in_memory(store, monkeypatch):
    path = store.folder / INDEX
    path.unlink()
    replace = os.replace

    def full(source, target):
        if str(target).endswith(INDEX):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    opened = Store.open(store.folder)
    assert not path.exists() and opened.images._index._entries is not None
    check(opened)
    opened.grow(images(COUNT + 20))
    assert opened.row_of[images(COUNT + 20)[-1].id] == 51 and len(opened.row_of) == COUNT + 20


def test_ids_whose_digests_begin_alike_are_told_apart(monkeypatch, tmp_path):
    def keys_of(ids, own=module.keys_of):
        keys = own(ids).copy()
        keys[:, 0] %= 3  # runs of equal halves that cross pages
        return keys

    monkeypatch.setattr(module, "keys_of", keys_of)
    check(filled(tmp_path, COUNT, [GRAPH], range(1)))


def test_an_index_vouches_for_no_id_that_leads_out_of_a_folder(tmp_path, monkeypatch):
    store = create(tmp_path / "cache")
    with monkeypatch.context() as lenient:
        lenient.setattr("pipeline.store.files.id_fault", lambda image_id: None)
        path = store.path("images/000000.tsv")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(images_tsv([ImageRow("../../outside", "1", "2"), *images(3)]))
        for block in range(1, 3):
            store.path(f"images/{block:06d}.tsv").write_bytes(images_tsv(images(4, 4 * block)))
        store = Store.open(store.folder)
        assert store.images._index.num_images  # made by somebody who accepts such an id
    for opened in (store, Store.open(store.folder)):
        assert opened.images._index.num_images
        with pytest.raises(StoreError, match="the image id '../../outside' "):
            opened.images.block(0)
