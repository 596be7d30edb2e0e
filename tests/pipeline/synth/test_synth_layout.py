"""The road set on disk: the same bytes from any number of workers, resumable, lists last."""

from pathlib import Path

import pytest

from pipeline.synth.layout import write
from pipeline.synth.settings import Settings

SETTINGS = Settings(size=(96, 320), seed=0, difficulty=0.5)
COUNTS = {"train": 12, "val": 1, "test": 4}


def written(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def nothing(done, total):
    pass


def test_two_workers_write_what_one_writes(tmp_path):
    calls = []
    write(tmp_path / "one", SETTINGS, COUNTS, 1, lambda done, total: calls.append((done, total)))
    write(tmp_path / "two", SETTINGS, COUNTS, 2, nothing)
    assert written(tmp_path / "one") == written(tmp_path / "two")
    assert calls[-1] == (17, 17)


def test_a_stopped_run_goes_on_and_ends_in_the_same_bytes(tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total):
        if done >= 10:
            raise Stop

    with pytest.raises(Stop):
        write(tmp_path / "stopped", SETTINGS, COUNTS, 1, stop)
    files = written(tmp_path / "stopped")
    assert files and not any(name.startswith("list") for name in files)
    kept = tmp_path / "stopped" / f"{SETTINGS.image_id('train', 0)}.jpg"
    times = kept.stat().st_mtime_ns
    # A picture is written last: without it the frame is made again.
    (tmp_path / "stopped" / f"{SETTINGS.image_id('train', 1)}.jpg").unlink()
    write(tmp_path / "stopped", SETTINGS, COUNTS, 1, nothing)
    assert kept.stat().st_mtime_ns == times
    write(tmp_path / "whole", SETTINGS, COUNTS, 1, nothing)
    assert written(tmp_path / "stopped") == written(tmp_path / "whole")


def test_more_frames_keep_those_that_are_there(tmp_path):
    write(tmp_path, SETTINGS, {"train": 4, "val": 0, "test": 0}, 1, nothing)
    before = {name: data for name, data in written(tmp_path).items() if not name.startswith("list")}
    write(tmp_path, SETTINGS, {"train": 6, "val": 1, "test": 1}, 1, nothing)
    after = written(tmp_path)
    assert len(before) == 12 and all(after[name] == data for name, data in before.items())
    assert len((tmp_path / "list/train.txt").read_text().splitlines()) == 6


def test_other_content_has_other_ids():
    others = [
        Settings(size=(96, 320), seed=1, difficulty=0.5),
        Settings(size=(96, 320), seed=0, difficulty=0.6),
        Settings(size=(96, 328), seed=0, difficulty=0.5),
    ]
    assert len({settings.driver for settings in (SETTINGS, *others)}) == 4
    assert SETTINGS.driver.startswith("driver_roads_s0_")
    whole, real = (Settings(size=(96, 320), seed=0, difficulty=difficulty) for difficulty in (1, 1.0))
    assert whole.driver == real.driver
    assert SETTINGS.image_id("val", 205).endswith("/val_0002.MP4/00150")
