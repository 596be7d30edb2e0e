"""What a command says while it runs, on stderr: a bar on a terminal, elsewhere a plain line now and then.

Nothing here changes a result. `verbosity` is set once, by the command line: -1 results and errors alone, 0, or 1 with notes
on how a thing is done.
"""

import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

verbosity = 0
NARROW = 60  # columns of a terminal; below, progress is a name, a count and the time left


def say(text: str) -> None:
    """A remark that a user should see, unless quiet was asked for."""
    if verbosity >= 0:
        print(text, file=sys.stderr, flush=True)


def detail(text: str) -> None:
    """A note for those who ask for them."""
    if verbosity >= 1:
        print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """In words, the two greatest units: 45 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    left = round(seconds)
    if left < 60:
        return f"{left} s"
    units = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
    size, name, smaller, unit = next(row for row in units if left >= row[0])
    return f"{left // size} {name} {left % size // smaller} {unit}"


def byte_size(num_bytes: float) -> str:
    """In words, by powers of 1000: 512 bytes, 20.5 kB, 3.1 GB."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} PB"


def table_row(cells: Iterable[object]) -> str:
    """A line of a Markdown table. A cell that is None stays empty."""
    return "|" + "".join(" |" if cell is None else f" {cell} |" for cell in cells)


def table_lines(head: Sequence[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """The lines of a Markdown table."""
    return [table_row(head), "|---" * len(head) + "|", *map(table_row, rows)]


class Progress:
    """`with Progress("filling", 120, "images") as progress: progress.advance(8)`; `note` adds a few words to the line."""

    EVERY_S = 10.0  # between plain lines, at first; a day's work says less often how it goes
    SHARE = 20

    def __init__(self, what: str, total: int, unit: str, done: int = 0):
        self.what, self.total, self.unit, self.done, self.before = what, total, unit, done, done
        self.bar: Bar | None = None
        self.said = False

    def __enter__(self):
        self.start = self.last = time.monotonic()
        if verbosity >= 0 and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            from rich.console import Console
            from rich.markup import escape
            from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar  # noqa: F811

            console, left = Console(stderr=True), TimeRemainingColumn(elapsed_when_finished=True)  # rich knows NO_COLOR
            columns: tuple[ProgressColumn, ...] = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} {task.fields[unit]}"),
                TextColumn("{task.fields[rate]}"),
                left,
            )
            if console.width < NARROW:  # rich would cut every column short
                name = self.what if len(self.what) <= console.width // 3 else f"{self.what[: console.width // 3 - 3]}..."
                columns = (TextColumn(escape(name)), TextColumn("{task.completed}/{task.total}"), left)
            self.bar = Bar(*columns, console=console)
            self.bar.start()
            self.task = self.bar.add_task(self.what, total=self.total or None, completed=self.done, unit=self.unit, rate="")
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        now = time.monotonic()
        words = f"{self.rate:.1f} {self.unit}/s" + (f"  {note}" if note else "")
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, rate=words)
        elif now - self.last >= max(self.EVERY_S, (now - self.start) / self.SHARE):
            self.last, self.said = now, True
            left = max(0, self.total - self.done) / max(self.rate, 1e-9)
            say(f"{self.what}: {self.done}/{self.total} {self.unit}, {words}, {duration(left)} left")

    def reach(self, done: int, total: int) -> None:
        """For callers that count for themselves."""
        self.total = total
        if self.bar is not None:
            self.bar.update(self.task, total=total or None)
        self.advance(done - self.done)

    @property
    def rate(self) -> float:
        return (self.done - self.before) / max(time.monotonic() - self.start, 1e-9)

    def __exit__(self, kind, *_):
        if self.bar is not None:
            self.bar.stop()
        elif self.said and kind is None:
            say(
                f"{self.what}: {self.done}/{self.total} {self.unit} in {duration(time.monotonic() - self.start)}, "
                f"{self.rate:.1f} {self.unit}/s"
            )
