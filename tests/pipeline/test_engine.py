"""What changes how a step is made, and not what it means: parts, processes, prefetch, rows on the device, running means."""

import copy
import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import plain_training
from torch import nn
from toy_store import GRAPH, MATRIX, PASSES, VIEWS, filled, images

from pipeline.errors import ConfigError
from pipeline.losses.base import Batch
from pipeline.models.base import Output
from pipeline.store import Reader
from pipeline.training import step as steps
from pipeline.training.loading import Loader, ahead

TRAINING = plain_training(steps=20, batch=4, lr=0.1, background_weight=0.4, norm_every=1000)
WEIGHTS = torch.tensor([0.4, 1.0, 2.0])


class Toy(nn.Module):
    """Two convolutions and no batch norm, which would see only its part of a batch."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 1)

    def forward(self, images_B3HW, labels_BHW=None):
        features = self.first(images_B3HW / 255).relu()
        return Output(self.second(features), {"high": features})


def batch(step):
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, 3, (4, 8, 10), generator=generator).to(torch.uint8)
    labels[: step % 4] = 255  # parts have unequal numbers of labelled pixels
    images = torch.rand(4, 3, 8, 10, generator=generator) * 255
    return Batch(images, labels, torch.ones(4, 8, 10, dtype=torch.bool), None, {}, step)


def step(**changes):
    torch.manual_seed(0)
    return steps.Step(Toy(), [], [], dataclasses.replace(TRAINING, **changes), WEIGHTS, 0)


def trained(whole, count=6):
    return [float(whole(batch(number))[0]["ce"]) for number in range(count)], whole.weights()


def close(mine, theirs):
    return all(torch.allclose(mine[name], theirs[name], atol=1e-6) for name in theirs)


def test_a_batch_in_parts_gives_the_loss_and_the_weights_of_the_whole():
    losses, weights = trained(step())
    parted, others = trained(step(accumulate=2))
    assert parted == pytest.approx(losses, rel=1e-5) and close(others, weights)


def test_two_processes_train_as_one_does_at_the_same_batch(tmp_path):
    losses, weights = trained(step())
    script = tmp_path / "share.py"
    script.write_text(
        "import sys; sys.path[:0] = [*sys.argv[1:3], sys.argv[2] + '/tests']\n"
        "import test_engine as t, torch\n"
        "from pipeline.training import distributed\n"
        "assert distributed.start('cpu') == 'cpu'\n"
        "rank, count = distributed.rank_and_world_size()\n"
        "assert count == 2 and distributed.is_main_process() == (rank == 0)\n"
        "whole = t.batch\n"
        "t.batch = lambda step: whole(step).parts(2)[rank]\n"
        "torch.save(t.trained(t.step()), f'{sys.argv[3]}/{rank}.pt')\n"
        "distributed.barrier()\n"
    )
    here = os.path.dirname(__file__)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            script,
            here,
            os.path.join(here, "..", ".."),
            tmp_path,
        ],
        check=True,
        capture_output=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for rank in range(2):
        shared, others = torch.load(tmp_path / f"{rank}.pt")
        assert shared == pytest.approx(losses, rel=1e-5) and close(others, weights)


def test_the_running_mean_is_that_of_a_loop():
    mine, mean = step(ema=0.7), None
    for number in range(5):
        mine(batch(number))
        now = {name: value.double() for name, value in mine.model.state_dict().items()}
        decay = min(0.7, number / (number + 1))
        mean = now if mean is None else {name: decay * mean[name] + (1 - decay) * now[name] for name in now}
    assert all(torch.allclose(mine.weights()[name].double(), mean[name], atol=1e-6) for name in mean)
    assert not close(mine.weights(), mine.model.state_dict())


def test_a_running_mean_is_resumed_to_the_same_bits():
    whole = step(ema=0.9)
    for number in range(3):
        whole(batch(number))
    resumed = step(ema=0.9)
    resumed.load_state(copy.deepcopy(whole.state()))
    for number in range(3, 6):
        whole(batch(number)), resumed(batch(number))
    assert all(torch.equal(resumed.weights()[name], value) for name, value in whole.weights().items())


def test_channels_last_changes_no_result_beyond_rounding():
    losses, weights = trained(step())
    other, others = trained(step(channels_last=True))
    assert other == pytest.approx(losses, rel=1e-5) and close(others, weights)


@pytest.fixture
def compiler(monkeypatch):
    """torch.compile with nothing left from before, and what it was told forgotten afterwards."""
    import torch._dynamo
    import torch._inductor.config as inductor
    from torch._dynamo import config as dynamo

    before = dynamo.suppress_errors, inductor.fallback_random, inductor.compile_threads
    inductor.compile_threads = 1  # a pool of processes takes longer to start than this takes
    torch._dynamo.reset()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()
    dynamo.suppress_errors, inductor.fallback_random, inductor.compile_threads = before


class Dropping(Toy):
    def forward(self, images_B3HW, labels_BHW=None):
        features = nn.functional.dropout2d(self.first(images_B3HW / 255).relu(), 0.5, self.training)
        return Output(self.second(features), {"high": features})


def test_a_compiled_network_trains_and_is_resumed_as_it_would_be_not_compiled(compiler, monkeypatch):
    monkeypatch.setitem(globals(), "Toy", Dropping)
    plain, whole, resumed = step(norm_every=2), *(step(compile=True, norm_every=2) for _ in range(2))
    for number in range(4):
        if number == 2:
            resumed.load_state(copy.deepcopy(whole.state()))
        (loss, norm), *others = [each(batch(number)) for each in ((plain, whole) if number < 2 else (plain, whole, resumed))]
        for other, other_norm in others:
            assert float(other["ce"]) == pytest.approx(float(loss["ce"]), rel=1e-5)
            assert other_norm == pytest.approx(norm, rel=1e-4) and bool(norm) == (number % 2 == 0)
    assert compiler["stats"]["unique_graphs"] > 0  # or nothing was compiled at all
    assert close(whole.weights(), plain.weights()) and set(whole.weights()) == set(plain.weights())
    assert all(torch.equal(resumed.weights()[name], value) for name, value in whole.weights().items())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_network_replayed_by_cuda_graphs_trains_as_it_would_without(compiler, monkeypatch):
    monkeypatch.setitem(globals(), "Toy", lambda: Dropping().cuda())
    monkeypatch.setitem(globals(), "WEIGHTS", WEIGHTS.cuda())
    plain, replayed = step(norm_every=3), step(norm_every=3, compile="graphs")
    for number in range(6):
        seen = batch(number).to("cuda")
        assert float(replayed(seen)[0]["ce"]) == pytest.approx(float(plain(seen)[0]["ce"]), rel=1e-3)


def test_cuda_graphs_and_parts_of_a_batch_are_refused_together():
    with pytest.raises((ConfigError, ValueError), match="accumulate: 1"):  # the schema's own, where no file is read
        step(accumulate=2, compile="graphs")


@pytest.mark.parametrize("compile", [True, "graphs"])
def test_where_there_is_no_compiler_the_network_runs_as_it_is(compile, compiler, monkeypatch):
    import torch._inductor.config as inductor

    before = inductor.cpp.cxx, inductor.force_disable_caches
    inductor.cpp.cxx, inductor.force_disable_caches = ("no-such-compiler",), True
    try:
        monkeypatch.setitem(globals(), "Toy", Dropping)
        (losses, weights), (others, other_weights) = trained(step(), 2), trained(step(compile=compile), 2)
    finally:
        inductor.cpp.cxx, inductor.force_disable_caches = before
    assert others == losses and all(torch.equal(other_weights[name], value) for name, value in weights.items())


class Numbers:
    """A loader of numbers whose eighth is broken."""

    device = torch.device("cpu")

    def __init__(self):
        self.made = []
        self.steps_to_fetch = 0

    def batch(self, number):
        if number == 7:
            raise ConfigError("the eighth")
        self.made.append(number)
        return number


def test_batches_made_ahead_come_in_order_and_an_error_at_its_own_step():
    loader = Numbers()
    seen = []
    with pytest.raises(ConfigError, match="eighth"):
        for number in ahead(loader, range(3, 10)):
            assert loader.made[-1] <= number + 1  # no more than one is waiting
            seen.append(number)
    assert seen == [3, 4, 5, 6] and list(ahead(loader, range(5, 5))) == []


def test_blocks_are_fetched_some_steps_before_their_batch_is_made():
    loader, fetched = Numbers(), []
    loader.steps_to_fetch = 3
    loader.fetch = lambda step: fetched.append(step) or step
    for number in ahead(loader, range(8, 20)):
        assert fetched[: len(loader.made)] == loader.made and fetched[-1] <= number + 5
    assert loader.made == fetched == list(range(8, 20))


def test_rows_on_the_device_are_those_on_disk_and_the_log_says_where_they_are(tmp_path):
    store, ids = filled(tmp_path, 10), [row.id for row in images(10)]
    ours = Reader(store, PASSES, ids, len(VIEWS), memory="device", device="cpu", host=[MATRIX])
    theirs = Reader(store, PASSES, ids, len(VIEWS), memory="disk")
    generator = np.random.default_rng(0)
    positions, views = generator.integers(0, 10, 40), generator.integers(0, len(VIEWS), 40)
    for name, values in theirs.read(GRAPH, positions, views).items():
        found = ours.read(GRAPH, positions, views)[name]
        assert isinstance(found, torch.Tensor) and np.array_equal(found.numpy(), values, equal_nan=True)
    assert isinstance(ours.read(MATRIX, positions, views)["matrix"], np.ndarray)
    assert [text.split("B ")[1] for text in ours.strategy.split("; ")] == ["on cpu", "in RAM"]


def test_shares_of_a_batch_are_the_batch(cached_experiment):
    from pipeline.data import prepared
    from pipeline.store import Store

    cfg = cached_experiment.load()
    cfg.dataset.args["root"] = str(cached_experiment.folder / cfg.dataset.args["root"])
    source = cfg.dataset.build()
    sample, ids = prepared.sample_pass(cfg.prepare.size, source.lanes), source.ids("train")
    store = Store.find(cached_experiment.folder / "cache", "prepared", "roads", prepared.identity(source, cfg.prepare))
    training = dataclasses.replace(cfg.training, photometric=TRAINING.photometric)

    def loader(memory="auto", **options):
        reader = Reader(store, [sample], ids, 1, memory=memory, device="cpu")
        return Loader(
            reader,
            sample,
            ids,
            dataset=source,
            content=cfg.prepare.size,
            views=cfg.views,
            training=training,
            seed=0,
            device="cpu",
            **options,
        )

    for number in (0, 5):  # held on a device or not
        whole = loader().batch(number)
        shares = [loader("device", share=(rank, 2)).batch(number) for rank in range(2)]
        for name in ("images_B3HW", "labels_BHW", "inside_BHW"):
            assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(whole, name)), name
    with pytest.raises(ConfigError, match="multiple of 3"):
        loader(share=(0, 3))
