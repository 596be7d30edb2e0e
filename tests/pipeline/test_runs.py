import errno
import json
import os
import shutil
import subprocess
import threading
import time
import zipfile

import pytest
import torch
from test_engine import step

from pipeline import lookup, records, weights
from pipeline.errors import PipelineError
from pipeline.files import plain
from pipeline.training import run as runs


def test_code_digests_follow_what_a_plugin_takes_from_other_plugin_files(monkeypatch):
    resnet, shared = lookup.find("models", "resnet18"), lookup.find("models", "resnet50")
    before = records.code_digest(resnet)
    assert before == records.code_digest(resnet, resnet) != records.code_digest(shared)
    whole = records.source
    monkeypatch.setattr(records, "source", lambda name: whole(name) + ("\nx = 1" if name.endswith("_resnet") else ""))
    assert records.code_digest(resnet) != before


def test_a_record_survives_json_unchanged(tmp_path):
    from pipeline.config import Photometric

    record = plain({"a": (1, 2), "b": Photometric(brightness=0.1, contrast=0.0, noise=0.0), "c": tmp_path})
    assert record == json.loads(json.dumps(record)) and record["a"] == [1, 2] and record["b"]["brightness"] == 0.1


def test_set_aside_folders_never_overwrite_each_other(tmp_path, capsys):
    for number in range(3):
        runs.Run(tmp_path / "run", {"number": number}).open()
        (tmp_path / "run" / "mine").write_text(str(number))
    assert (tmp_path / "run.before-1" / "mine").read_text() == "0"
    assert (tmp_path / "run.before-2" / "mine").read_text() == "1"
    assert capsys.readouterr().err.count("set aside") == 2


@pytest.mark.parametrize("names", [1, 4])
def test_curves_are_drawn_one_panel_a_term(tmp_path, names):
    curves = [{"step": s, **{f"term {n}": s * n for n in range(names)}} for s in range(5)]
    runs.draw_curves(tmp_path / "curves.png", curves)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("broken", ["model", "mean"])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, broken):
    """A finite loss may have a gradient that is not; at the last step no further loss would tell."""
    run, mine = runs.Run(tmp_path / "run", {}), step(ema=0.9)
    run.open()
    run.save(mine, 1)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    with torch.no_grad():
        {"model": mine.model.state_dict(), "mean": mine.mean}[broken]["second.bias"][1] = torch.nan
    with pytest.raises(PipelineError, match="step 1: the weights are not finite"):
        run.save(mine, 2)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


@pytest.fixture
def saved(tmp_path):
    """A run with a checkpoint after two steps."""
    run, mine = runs.Run(tmp_path / "run", {}), step()
    run.open()
    run.save(mine, 2)
    return tmp_path / "run"


def test_a_checkpoint_is_resumed_and_any_tool_reads_it(saved):
    again = runs.Run(saved, {})
    assert again.resume(step()) == 2
    state = torch.load(saved / "checkpoint.pt", weights_only=True)
    assert zipfile.ZipFile(saved / "checkpoint.pt").testzip() is None and state["steps"] == 2
    assert equal(weights.load_file(saved / "checkpoint.pt"), step().model.state_dict())


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_one_flipped_bit_anywhere_in_a_checkpoint_is_refused(saved):
    path = saved / "checkpoint.pt"
    whole = path.read_bytes()
    places = {*range(0, len(whole), max(1, len(whole) // 300)), *range(len(whole) - 100, len(whole))}
    for place in sorted(places):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        with pytest.raises(PipelineError, match="checkpoint.pt: cannot be read .*delete it to start this run afresh") as caught:
            runs.Run(saved, {}).resume(step())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 1, 50, 1000, -1, -71, -72, -200])
def test_a_checkpoint_that_was_cut_short_is_refused(saved, keep):
    path = saved / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(PipelineError, match="its checksum does not fit"):
        runs.Run(saved, {}).resume(step())


def test_a_checkpoint_of_another_network_is_refused_in_one_line(saved):
    other = step()
    other.model.second = torch.nn.Conv2d(6, 4, 1)
    with pytest.raises(PipelineError, match="checkpoint.pt: cannot be read") as caught:
        runs.Run(saved, {}).resume(other)
    assert "\n" not in str(caught.value)


def full(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_at_a_checkpoint_is_one_line_and_leaves_the_last_one_alone(saved, monkeypatch):
    run, before = runs.Run(saved, {}), {path.name: path.read_bytes() for path in saved.iterdir()}
    run.open()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(PipelineError, match="No space left on device at step 3; make room .*the last checkpoint is kept") as caught:
        run.save(step(), 3)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before  # no *.tmp that keeps the disk full


def test_what_a_killed_process_left_behind_is_removed(saved):
    for name in (".checkpoint.pt.123.tmp", "checkpoint.pt.tmp", "run.json.0a1b.tmp"):
        (saved / name).write_bytes(b"half")
    runs.Run(saved, {}).open()
    assert not list(saved.glob("*.tmp")) and (saved / "checkpoint.pt").exists()


def test_nothing_is_moved_before_a_run_is_opened(saved):
    run = runs.Run(saved, {"other": 1})
    assert run.apart and run.resume(step()) == 0 and (saved / "checkpoint.pt").exists()
    run.open()
    assert not (saved / "checkpoint.pt").exists() and (saved.with_name("run.before-1") / "checkpoint.pt").exists()


def test_who_waited_for_a_run_that_was_set_aside_looks_again(saved, capsys):
    """Two processes ask for the same other run at the same moment: the second must not move the first one's away."""
    first, second = runs.Run(saved, {"other": 1}), runs.Run(saved, {"other": 1})
    assert second.apart
    with first.alone():
        first.open()
        waiting = threading.Thread(target=lambda: waited(second))
        waiting.start()
        time.sleep(0.3)
        first.save(step(), 1)
    waiting.join()
    assert not second.apart and not saved.with_name("run.before-2").exists()
    assert runs.Run(saved, {"other": 1}).resume(step()) == 1


def waited(run):
    with run.alone():
        run.open()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a small disk needs root")
def test_a_disk_that_is_really_full(saved, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        run, mine = runs.Run(disk / "run", {}), step()
        run.open()
        run.save(mine, 1)
        before = (disk / "run/checkpoint.pt").read_bytes()
        with open(disk / "filler", "wb", buffering=0) as filler, pytest.raises(OSError):
            while True:
                filler.write(bytes(4096))
        with pytest.raises(PipelineError, match="No space left on device at step 2; make room"):
            run.save(mine, 2)
        assert (disk / "run/checkpoint.pt").read_bytes() == before and not list((disk / "run").glob("*.tmp"))
    finally:
        subprocess.run(["umount", disk], check=True)
