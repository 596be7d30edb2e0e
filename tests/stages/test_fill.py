"""`train-student --fill`: what the cache lacks is computed when a step asks, in the bytes and with the refusals of
`cache-teacher`; and `--live`, the teacher in the loop."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from killing import ended, forked
from safetensors.torch import load_file
from test_cache_commands import content

from pipeline.store import Store
from pipeline.store.verification import verify


@pytest.fixture
def emptied(experiment):
    """The experiment without its cache, which lies in `before`."""
    experiment.before = experiment.folder / "before"
    shutil.move(experiment.store("targets"), experiment.before)
    return experiment


def same_weights(*folders):
    first, *others = [load_file(folder / "weights.safetensors") for folder in folders]
    return all(np.array_equal(first[name].numpy(), other[name].numpy()) for other in others for name in first)


def blocks(folder):
    """The bytes of every finished block, and of the metadata that does not depend on what is finished."""
    return {name: data for name, data in content(folder).items() if not name.startswith("manifest")}


def test_a_run_that_fills_ends_in_the_weights_and_the_bytes_of_a_filled_cache(emptied, monkeypatch):
    filling = emptied.train("intra", "--fill")
    assert filling.exit_code == 0 and "are missing, and filled when a step asks" in filling.stderr, filling.output
    run, store = emptied.folder / "runs/toy/erfnet-intra-0", emptied.store("targets")
    assert verify(Store.open(store)) == []
    filled, whole = blocks(store), blocks(emptied.before)
    assert all(whole[name] == data for name, data in filled.items())
    emptied.do("cache-teacher")  # the rest
    assert content(store) == content(emptied.before)
    # the same command finds the run finished, and another student reads what is there
    assert "filled when" not in emptied.train("intra", "--fill").stderr and not list(run.parent.glob("*.before-*"))
    from pipeline.teacher import cache

    def refuse(*_):
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(cache, "load_teacher", refuse)
    shutil.move(run, emptied.folder / "filled")
    assert emptied.train("intra").exit_code == 0 and same_weights(run, emptied.folder / "filled")
    assert emptied.train("kd", "--fill").exit_code == 0


def test_a_run_that_fills_is_interrupted_and_goes_on(emptied, power_cut):
    with power_cut(3):
        assert emptied.train("intra", "--fill").exit_code != 0
    assert verify(Store.open(emptied.store("targets"))) == []
    run = emptied.folder / "runs/toy/erfnet-intra-0"
    assert emptied.train("intra", "--fill").exit_code == 0 and json.loads((run / "run.json").read_text())["cache"]["filled"]


def test_a_run_that_began_with_fill_goes_on_with_it_unasked(emptied):
    assert emptied.train("intra", "--fill").exit_code == 0
    run = emptied.folder / "runs/toy/erfnet-intra-0"
    before = content(run)
    emptied.do("cache-teacher")
    again = emptied.train("intra")
    assert again.exit_code == 0 and "began with --fill, and goes on with it" in again.stderr
    assert content(run) == before and not list(run.parent.glob("*.before-*"))


def test_a_kill_in_the_middle_of_a_block_leaves_a_valid_store(emptied):
    left, write_block = [5], Store.write_block

    def dying(self, *given):
        left[0] -= 1
        if not left[0]:
            replace = os.replace

            def killed(*paths):
                replace(*paths)
                os.kill(os.getpid(), signal.SIGKILL)

            os.replace = killed
        return write_block(self, *given)

    def fill():
        Store.write_block = dying
        emptied.train("intra", "--fill")

    assert ended(forked(fill)) == -signal.SIGKILL
    store = Store.open(emptied.store("targets"))
    assert verify(store) == [] and len(list(store.folder.rglob("done/*/*.json"))) == 4
    emptied.do("cache-teacher")
    assert content(store.folder) == content(emptied.before)


def test_what_cache_teacher_refuses_is_refused(emptied, monkeypatch):
    from pipeline.models import resnet18

    forward = resnet18.Model.forward

    def broken(self, images_B3HW, labels_BHW=None):
        output = forward(self, images_B3HW, labels_BHW)
        return output._replace(logits=output.logits * float("nan"))

    with monkeypatch.context() as patch:
        patch.setattr(resnet18.Model, "forward", broken)
        result = emptied.train("kd", "--fill")
    assert result.exit_code == 1 and "check the teacher's weights" in result.stderr and "not finite" in result.stderr
    assert not list(emptied.store("targets").rglob("c.*")) or verify(Store.open(emptied.store("targets"))) == []
    fresh = emptied.train("intra", "--fill", "--set", "training.fresh_views=true")
    assert fresh.exit_code == 1 and "training.fresh_views" in fresh.stderr


def test_live_needs_no_cache_and_agrees_with_one_up_to_rounding(emptied):
    assert emptied.train("intra", "--live").exit_code == 0 and not list(Path(emptied.folder / "cache/roads").glob("targets-*"))
    assert "live" in json.loads((emptied.folder / "runs/toy/erfnet-intra-0/run.json").read_text())
    for arguments, said in (
        (("plain", "--live"), "reads nothing of a teacher"),
        (("intra", "--live", "--set", "training.precision=tf32"), "TF32 is on or off"),
        (("intra", "--fill", "--set", "teacher.precision=tf32"), "TF32 is on or off"),
    ):
        result = emptied.train(*arguments)
        assert result.exit_code == 1 and said in result.stderr and result.stderr.count("\n") == 1
    assert emptied.train("intra", "--live", "--fill").exit_code == 2
