"""Run a plan's tasks: one after the other (the reference), in threads, or in worker processes by Dask.

Worker processes are local, or those of a Dask scheduler that runs already. What a process needs (a teacher, open
stores) it makes once, from a small description that travels with every task. Tasks are idempotent, since their marks
decide what is done: a worker that dies costs the tasks it had, and when this process dies, running it again goes on.
"""

import contextlib
import functools
import logging
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from pipeline.errors import PipelineError
from pipeline.progress import say
from pipeline.threads import map_in_order

IN_FLIGHT = 2  # tasks per worker, one at work and one waiting: stopping or dying costs little
CONNECT_S = 10


def serial(tasks: Sequence, work: Callable) -> Iterator:
    """`work(task)` for each, in order, one after the other."""
    for task in tasks:
        yield work(task)


def threads(tasks: Sequence, work: Callable, workers: int) -> Iterator:
    """The same in `workers` threads. The first error stops what has not begun."""
    with ThreadPoolExecutor(workers) as pool:
        yield from map_in_order(pool, work, tasks, 4 * workers)


def processes(
    tasks: Sequence,
    make: Callable[[Any, str], Callable],
    spec,
    *,
    device: str,
    workers: int = 1,
    num_threads: int | None = None,
    scheduler: str | None = None,
) -> Iterator:
    """`make(spec, device)(task)` for each: here, in `workers` local processes, or by the workers of a Dask scheduler.

    `make` is importable, `spec` small and picklable. From several processes results come in any order. `num_threads` is
    torch's CPU threads in each; without it a single process has torch's own number, local ones share that, and a
    scheduler's worker has as many as Dask threads (`dask worker --nthreads`), but one task at a time. A single process
    on a GPU calls `overlapped(tasks)` of what was made, if it has that: reading and writing beside the work. PipelineError if
    the scheduler can't be reached, or a task kills every worker it is given to; the first error stops the rest.
    """
    if not tasks:
        return
    import torch

    if scheduler is None and workers == 1:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        work = make(spec, device)
        overlapped = getattr(work, "overlapped", None) if device.startswith("cuda") else None
        yield from overlapped(tasks) if overlapped else serial(tasks, work)
        return
    devices = [device]
    if scheduler is None:
        num_threads = num_threads or max(1, torch.get_num_threads() // workers)
        if device == "cuda":  # no particular one: each worker its own
            devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    with _local(workers) if scheduler is None else _remote(scheduler) as client:
        arguments = pickle.dumps((make, spec)), devices, num_threads
        yield from _distributed(client, tasks, functools.partial(client.submit, _in_worker, *arguments, pure=False))


def _distributed(client, tasks: Sequence, submit: Callable) -> Iterator:
    """Results as they come, with a few tasks per worker in flight, however many workers there are by then."""
    from concurrent.futures import CancelledError

    from distributed import KilledWorker, as_completed

    running: dict[Any, Any] = {}  # a task by its future
    waiting, done = iter(tasks), as_completed()

    def refill():
        room = IN_FLIGHT * max(1, len(client.nthreads())) - len(running)
        for task in islice(waiting, max(0, room)):
            future = submit(task)
            running[future] = task
            done.add(future)

    try:
        refill()
        for future in done:
            try:
                result = future.result()
            except KilledWorker as error:
                times = error.allowed_failures + 1
                raise PipelineError(
                    f"{running[future]}: the worker it was given to died, {times} times over; look "
                    f"into its log (memory?) and run this again: what is finished is safe"
                ) from None
            except CancelledError:
                raise PipelineError("the Dask scheduler is gone; start it and run this again: what is finished is safe") from None
            del running[future]
            refill()
            yield result
    finally:
        client.cancel(list(running))


# The worker's side

_one_at_a_time = threading.Lock()  # a worker may have several Dask threads, but has one teacher


def _in_worker(made_from: bytes, devices: Sequence[str], num_threads: int | None, task):
    """Runs in a worker process, which has a number in a local cluster."""
    import torch
    from distributed import get_worker

    worker = get_worker()
    device = devices[worker.name % len(devices)] if isinstance(worker.name, int) else devices[0]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with _one_at_a_time:
        torch.set_num_threads(num_threads or worker.state.nthreads)  # here: threads that run already keep theirs
        return _made(made_from, device)(task)


@functools.lru_cache(maxsize=1)
def _made(made_from: bytes, device: str) -> Callable:
    """Once in a process; its next description replaces it."""
    make, spec = pickle.loads(made_from)
    return make(spec, device)


@contextlib.contextmanager
def _local(workers: int):
    import dask
    from distributed import Client, LocalCluster

    # Dask's defaults give every library one thread, and leave that behind in this process's environment
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": {}}),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, memory_limit=0, preload=[__name__], dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        try:
            yield client
        finally:
            _quiet(logging.CRITICAL)  # workers are ended at their work, and Dask would say so


def dask_setup(worker) -> None:
    """Called by Dask in each local worker. Ctrl-C, or a batch system, signals all processes of a group at once; a worker
    leaves it to the process that started it, which ends it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)  # what a task raises travels to that process; the rest is its end. Dask
    # resets its handlers' levels when a worker closes, but not this


def _quiet(level: int) -> None:
    for handler in logging.getLogger("distributed").handlers:
        handler.setLevel(level)


@contextlib.contextmanager
def _remote(scheduler: str):
    from distributed import Client

    try:
        client = Client(scheduler, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise PipelineError(
            f"--scheduler {scheduler}: cannot be reached ({error}); give the address that "
            f"`dask scheduler` prints, e.g. tcp://10.0.0.1:8786"
        ) from None
    with client:
        if not client.nthreads():
            say(f"{scheduler}: no workers yet, waiting for the first")
        try:
            yield client
        finally:
            _quiet(logging.CRITICAL)
