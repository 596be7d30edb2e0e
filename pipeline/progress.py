"""What a long command says while it runs: a bar on a terminal, a plain line now and then elsewhere. On stderr."""

import sys
import time


class Progress:
    """`with Progress("filling", 120, "images") as progress: progress.advance(8)`; `note` adds a few words to the line."""

    EVERY_S = 10.0

    def __init__(self, what: str, total: int, unit: str, done: int = 0):
        self.what, self.total, self.unit, self.done, self.before = what, total, unit, done, done
        self.bar = None

    def __enter__(self):
        self.start = self.last = time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress as Bar, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} {task.fields[unit]}"),
                       TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
            self.bar = Bar(*columns, console=Console(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task(self.what, total=self.total, completed=self.done, unit=self.unit, rate="")
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        now = time.monotonic()
        rate = (self.done - self.before) / max(now - self.start, 1e-9)
        words = f"{rate:.1f} {self.unit}/s" + (f"  {note}" if note else "")
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, rate=words)
        elif now - self.last >= self.EVERY_S:
            self.last = now
            left = (self.total - self.done) / max(rate, 1e-9)
            print(f"{self.what}: {self.done}/{self.total} {self.unit}, {words}, {left:.0f} s left", file=sys.stderr, flush=True)

    def reach(self, done: int, total: int) -> None:
        """For callers that count for themselves."""
        self.total = total
        if self.bar is not None:
            self.bar.update(self.task, total=total)
        self.advance(done - self.done)

    @property
    def rate(self) -> float:
        return (self.done - self.before) / max(time.monotonic() - self.start, 1e-9)

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.stop()
