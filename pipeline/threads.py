"""Work in threads, with the results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any


def map_in_order(pool: Executor, work: Callable[[Any], Any], items: Iterable[Any], ahead: int) -> Iterator[Any]:
    """`work(item)` of each item, in order, computed by the pool's threads.

    Up to `ahead` items are submitted before the first of their results is asked for, and `items` is read no further. An error of
    `work` is raised at its own item. After an error, or when the caller stops early, no waiting item is begun.
    """
    waiting: deque[Future] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
