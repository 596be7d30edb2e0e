"""A fill whose reading, answering and writing overlap leaves the bytes of one that does one after the other."""

import shutil

from pipeline.store import executors


def contents(folder):
    """Every array's and list's bytes, and the marks' names."""
    return {
        path.relative_to(folder): path.read_bytes()
        for part in ("targets.zarr", "images", "done")
        for path in (folder / part).rglob("*")
        if path.is_file()
    }


def test_an_overlapped_fill_leaves_the_same_bytes(experiment, monkeypatch):
    store = experiment.store("targets")
    before = contents(store)
    shutil.rmtree(store)
    made, counts = [], []

    def processes(tasks, make, spec, *, device, **_):  # what a single process does on a GPU
        made.append(make(spec, device))
        for count in made[0].overlapped(tasks):
            counts.append(count)
            yield count

    monkeypatch.setattr(executors, "processes", processes)
    experiment.do("cache-teacher")
    assert sum(counts) == 13 * 3 and len(counts) > 3  # several blocks, each reported when it is written
    assert contents(store) == before
