"""SIGTERM and Ctrl-C as one exception, which a loop may take in its own time."""

import contextlib
import signal
from collections.abc import Iterator

_loops: list[list[int]] = []  # those that end in order, with the signals each has been given


class Stopped(BaseException):
    """SIGTERM or Ctrl-C; no Exception, so that nothing on its way takes it for a failure to be dealt with."""

    def __init__(self, number: int, said: str = "nothing finished is lost"):
        self.number, self.said = number, said  # a stage that counts says how much is done

    @property
    def exit_code(self) -> int:
        """75 (EX_TEMPFAIL, try again) for SIGTERM, which batch systems send; 130, as shells have it, for Ctrl-C."""
        return 75 if self.number == signal.SIGTERM else 128 + self.number


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """While it lasts, SIGTERM and Ctrl-C raise Stopped in the main thread, wherever that is. What is in flight is abandoned:
    a fill's block may take longer than the half minute that batch systems wait, and stores bear even a SIGKILL."""

    def stop(number, frame):
        if not _loops or _loops[-1] and number == signal.SIGINT:
            raise Stopped(number)
        _loops[-1].append(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def in_order() -> Iterator[list[int]]:
    """For a loop of short steps within `stoppable`: signals are put into this list instead, and the loop raises Stopped once it
    has kept what it did. A Ctrl-C after another signal does not wait."""
    _loops.append([])
    try:
        yield _loops[-1]
    finally:
        _loops.pop()
