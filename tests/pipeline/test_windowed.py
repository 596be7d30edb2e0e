"""An order that goes from block to block: every image once an epoch, every block fetched once, the same after a resume."""

import dataclasses
import threading

import numpy as np
import pytest
from toy_store import GRAPH, VIEWS, filled, images, values

from pipeline.data import prepared
from pipeline.errors import ConfigError
from pipeline.store import Reader, Store
from pipeline.training.loading import Loader, block_shuffled, permutation

IDS = [row.id for row in images(30)]


@pytest.fixture
def fetched(monkeypatch):
    """The chunk files that readers fetch, as they do."""
    paths, whole = [], Reader._chunk
    monkeypatch.setattr(Reader, "_chunk", lambda self, path: paths.append(path) or whole(self, path))
    return paths


@pytest.mark.parametrize("window", [1, 3, 8, 50])
def test_an_epoch_shows_every_image_once_and_never_needs_more_blocks_than_the_window_has(window):
    blocks = np.delete(np.arange(170), [4, 5, 160]) // 16  # some are held out; the last block is short
    order = block_shuffled(0, 2, blocks, window)
    assert sorted(order) == list(range(len(blocks)))
    places = [np.flatnonzero(blocks[order] == block) for block in range(11)]
    begun_and_not_done = [sum(where[0] <= step <= where[-1] for where in places) for step in range(len(order))]
    assert max(begun_and_not_done) == min(window, 11)


def test_an_order_follows_from_seed_and_epoch_and_mixes_what_lies_in_a_window():
    blocks = np.arange(4096) // 128
    order = block_shuffled(3, 7, blocks, 8)
    assert np.array_equal(order, block_shuffled(3, 7, blocks, 8))
    assert all((order != other).mean() > 0.99 for other in (block_shuffled(3, 8, blocks, 8), block_shuffled(4, 7, blocks, 8)))
    neighbours = blocks[order][1:] == blocks[order][:-1]
    assert 0.09 < neighbours.mean() < 0.16  # one in eight, where nothing ties images together
    assert abs(np.corrcoef(order[:1024], np.arange(1024))[0, 1]) < 0.1


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_each_chunk_is_fetched_once_an_epoch_and_rows_are_those_that_were_written(tmp_path, fetched, codec):
    reader = Reader(filled(tmp_path, 30, [GRAPH], codec=codec), [GRAPH], IDS, len(VIEWS), memory="disk")
    reader.keep_chunks(2 * 4)
    assert "by whole chunks, those of 8 images kept" in reader.strategy and not reader.resident
    for epoch in range(2):
        fetched.clear()
        order = block_shuffled(0, epoch, np.arange(30) // 4, 2)
        views = (order + epoch) % len(VIEWS)
        for start in range(0, 30, 7):  # batches that begin a window before the last one ends
            here, at = order[start : start + 7], views[start : start + 7]
            found = reader.read(GRAPH, here, at)
            for i, (position, view) in enumerate(zip(here, at)):
                assert np.array_equal(found["graph"][i], values(GRAPH, view, [images(30)[position]])["graph"][0])
        assert len(fetched) == len(set(fetched))
        assert {path.rpartition("/")[2].split(".")[1] for path in fetched} == {str(block) for block in range(8)}
    assert sum(len(chunks) for chunks in reader._chunks._of.values()) == 2 * 2 * len(VIEWS)  # blocks, fields, views


def test_threads_may_share_what_is_held(tmp_path):
    reader = Reader(filled(tmp_path, 30, [GRAPH]), [GRAPH], IDS, len(VIEWS), memory="disk")
    reader.keep_chunks(4)
    alone, wrong = Reader(filled(tmp_path, 30, [GRAPH]), [GRAPH], IDS, len(VIEWS), memory="ram"), []

    def work(seed):
        draw = np.random.default_rng(seed)
        for _ in range(60):
            positions, views = draw.integers(0, 30, 5), draw.integers(0, len(VIEWS), 5)
            if reader.read(GRAPH, positions, views)["graph"].tobytes() != alone.read(GRAPH, positions, views)["graph"].tobytes():
                wrong.append(positions)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert not wrong


def test_a_loader_keeps_to_its_blocks_after_a_resume_and_in_shares(cached_experiment, fetched):
    cfg = cached_experiment.load()
    cfg.dataset.args["root"] = str(cached_experiment.folder / cfg.dataset.args["root"])
    source = cfg.dataset.build()
    sample, ids = prepared.sample_pass(cfg.prepare.size, source.lanes), source.ids("train")
    store = Store.find(cached_experiment.folder / "cache", "prepared", "roads", prepared.identity(source, cfg.prepare))

    def loader(memory="disk", share=(0, 1), **order):
        return Loader(
            Reader(store, [sample], ids, 1, memory=memory),
            sample,
            ids,
            dataset=source,
            content=cfg.prepare.size,
            views=cfg.views,
            training=dataclasses.replace(cfg.training, **order),
            seed=0,
            device="cpu",
            share=share,
        )

    order = {"shuffle_block": 8, "shuffle_window": 1, "batch": 2}
    whole, resumed = loader(**order), loader(**order)
    shown = np.concatenate([whole.positions(step)[0] for step in range(13)]).reshape(2, 13)  # two epochs
    assert np.array_equal(resumed.positions(9)[0], shown.ravel()[18:20])
    assert all(sorted(epoch) == list(range(13)) and np.count_nonzero(np.diff(epoch // 8)) == 1 for epoch in shown)
    for step in range(6):
        batch = whole.batch(step)
        assert batch.images_B3HW.equal(loader("ram", **order).batch(step).images_B3HW)
    assert len(fetched) == len(set(fetched)) + 6 * len(set(fetched))  # once by the first; each of the others loads all
    shares = [loader(share=(rank, 2), **order).batch(3).labels_BHW for rank in range(2)]
    assert np.array_equal(np.concatenate(shares), whole.batch(3).labels_BHW)
    assert np.array_equal(loader().positions(0)[0], permutation(0, 0, 13)[: cfg.training.batch])  # without the key
    with pytest.raises(ConfigError, match="write a multiple of 8"):
        loader(shuffle_block=12)
    loader("ram", shuffle_block=12)  # what is in memory has no blocks to fetch
