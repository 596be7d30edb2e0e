"""Run a plan's tasks. Serial is the reference; threads overlap what releases Python's lock (decoding, resizing, writing)."""

from typing import Callable, Iterator, Sequence


def serial(tasks: Sequence, work: Callable) -> Iterator:
    """`work(task)` for each, in order, one after the other."""
    for task in tasks:
        yield work(task)


def threads(tasks: Sequence, work: Callable, workers: int) -> Iterator:
    """The same in `workers` threads by Dask, results in order. The first error stops what has not begun."""
    import dask

    for start in range(0, len(tasks), 4 * workers):
        group = [dask.delayed(work, pure=False)(task) for task in tasks[start:start + 4 * workers]]
        yield from dask.compute(*group, scheduler="threads", num_workers=workers)
