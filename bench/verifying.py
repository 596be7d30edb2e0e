"""How fast a store is verified, by the number of threads, and how what is done once a store grows with its images.

    $ python -m bench.verifying --rows 40960
    $ python -m bench.verifying --rows 10000000 --tiny --opened --keep /disk/large --page docs/benchmarks.md

Writes a store of attention maps (26 x 122 float16, 4 views), or with `--tiny` of single numbers in one view, into a
temporary folder or one that stays (`--keep`), and uses the store that is there already. Then it opens, grows, checks, lists and
verifies it in turns: medians; the files are in memory where they fit. `structure` is a verify of names, marks and sizes only.
`--opened` does so in fresh processes, each with its peak memory beside that of the program, and writes a table.
"""

import argparse
import contextlib
import functools
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from bench.machine import described, goal, measured_on
from bench.page import insert
from pipeline.progress import table_lines
from pipeline.store import ArrayGroup, ImageRow, Reader, Store, plan, verification
from pipeline.store.files import AnyPath
from pipeline.store.images import INDEX
from pipeline.targets.base import Field

MAPS = ArrayGroup("attention", {"type": "attention"}, {"energy": Field((26, 122), "float16", ("y26", "x122"))})
NUMBERS = ArrayGroup("number", {"type": "number"}, {"number": Field((), "float32", ())})


def timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_mb() -> float:
    """Of this process alone; getrusage would count what the process had that started it."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1000


def image(i: int) -> ImageRow:
    return ImageRow(f"driver_{i // 1000:06d}/{i:09d}", f"{i:016x}", f"{i:016x}")


def in_parts(count: int) -> Iterator[list[ImageRow]]:
    for start in range(0, count, 2**19):
        yield [image(i) for i in range(start, min(count, start + 2**19))]


def opened(folder: AnyPath) -> tuple[float, float]:
    """Peak memory in MB, before and after the store is opened."""
    before = peak_mb()
    Store.open(folder)
    return before, peak_mb()


def alone(folder: AnyPath, what: str) -> tuple[float, float, float]:
    """Run in a process of its own: CPU and wall-clock seconds, and peak memory in MB beside that of the program."""
    rng, given = np.random.default_rng(0), []
    store = None if what.startswith("open") else Store.open(folder)
    if store is not None and what.endswith("a million images"):
        given = [image(i).id for i in rng.permutation(min(10**6, store.images.num_images - 100)).tolist()]
    before, work, start = peak_mb() if store is None or given else alone.program, time.process_time(), time.perf_counter()  # type: ignore[attr-defined]
    if store is None:
        Store.open(folder)
    elif what == "list missing blocks":
        store.missing(NUMBERS, 0)
    elif what == "add five images":
        store.grow([ImageRow(f"new/{time.time_ns()}/{i}", "0", "0") for i in range(5)])
    elif what == "verify names, marks and sizes":
        verification.verify(store, False)
    elif what == "find the rows of a million images":
        store.rows_of(given)
    else:
        Reader(store, [NUMBERS], given, 1, memory="disk")
    return time.process_time() - work, time.perf_counter() - start, peak_mb() - before


def program() -> None:
    alone.program = peak_mb()  # type: ignore[attr-defined]


FIRST = "open, where there is no index yet"
WORK = [
    FIRST,
    "open",
    "list missing blocks",
    "add five images",
    "verify names, marks and sizes",
    "find the rows of a million images",
    "make a reader of a million images",
]


def in_processes(store: Store) -> str:
    """The table of what is done in fresh processes, and the goals."""
    (store.folder / INDEX).unlink(missing_ok=True)
    found = {}
    for what in WORK:
        with ProcessPoolExecutor(1, get_context("spawn"), program) as fresh:
            found[what] = fresh.submit(alone, store.folder, what).result()
    rows = [[what, *(f"{each:.2f}" for each in times), f"{memory:.0f}"] for what, (*times, memory) in found.items()]
    _, open_s, memory = found["open"]
    files = sum(1 for path in store.folder.rglob("*") if path.is_file())
    index = store.folder / INDEX
    size = f"an index of {index.stat().st_size / 1e6:,.0f} MB" if index.exists() else "no index"
    return "\n".join(
        [
            *table_lines(["", "CPU s", "s", "MB beside the program"], rows),
            "",
            f"{store.images.num_images:,} images in {store.num_blocks:,} blocks, {files:,} files, {size}. "
            f"Goals: {goal('open in less than 5 s', 5 - open_s, ' s')}; "
            f"{goal('and less than 100 MB', 100 - memory, ' MB')}. {measured_on(described('cpu'))}",
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=40960)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--keep", type=Path, help="a folder for the store, which stays, and is used again")
    parser.add_argument("--opened", action="store_true", help="in fresh processes, of a store with --tiny")
    parser.add_argument("--page", type=Path, help="a page whose table is to be replaced")
    args = parser.parse_args()
    pass_, views = (NUMBERS, range(1)) if args.tiny else (MAPS, range(4))
    where = contextlib.nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory(dir=args.folder)
    with where as folder:
        store = Store.create_or_open(
            folder, "targets", "bench", {"bench": 1}, card={}, block_rows=plan.block_rows(args.rows, [pass_])
        )

        def grow():
            for part in in_parts(args.rows):
                store.grow(part)

        times = {"grow": [timed(grow)] if not store.num_blocks else []}
        store.add_pass(pass_, views)
        rng = np.random.default_rng(0)
        rows = {name: rng.random((store.block_rows, *field.shape)).astype(field.dtype) for name, field in pass_.fields.items()}

        def fill():
            for view in views:
                for block in store.missing(pass_, view):
                    here = len(store.block_images(block))
                    store.write_block(pass_, view, block, {name: values[:here] for name, values in rows.items()})

        times |= {"fill": [timed(fill)], "finalise": [timed(store.finalise)]}
        if args.opened:
            text = in_processes(store)
            print(*(f"{name}: {each[0]:.0f} s" for name, each in times.items() if each), text, sep="\n")
            if args.page:
                insert(args.page, "bench/verifying.py", text)
            return
        images = [image(i) for i in range(args.rows)]
        for run in range(args.runs):
            few = [ImageRow(f"new/{run}/{i}", "0", "0") for i in range(5)]
            work = {
                "open": lambda: Store.open(store.folder),
                "missing": lambda: store.missing(pass_, 0),
                "check": lambda: store.check(images, views, [(pass_, False)]),
                "digest": lambda: store.digest_of(images, views, [pass_]),
                "grow by nothing": lambda: store.grow(images[: store.block_rows]),
                "grow by 5": lambda: store.grow(few),
                "structure": lambda: verification.verify(store, False),
            }
            for number in args.workers:
                work[f"verify, {number} threads"] = functools.partial(verification.verify, store, True, {}, number)
            for name, do in work.items():
                times.setdefault(name, []).append(timed(do))
        size = sum(path.stat().st_size for path in store.folder.rglob("*") if path.is_file())
        files = sum(1 for path in store.folder.rglob("*") if path.is_file())
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            before, after = fresh.submit(opened, store.folder).result()
        print(
            f"{args.rows} images, {store.num_blocks} blocks, {files} files, {size / 1e6:.0f} MB; opening it takes "
            f"{after - before:.0f} MB beside the {before:.0f} MB of the program"
        )
        for name, found in ((name, found) for name, found in times.items() if found):
            print(f"{name}: {statistics.median(found):.2f} s")
        first = times[f"verify, {args.workers[0]} threads"]
        for number in args.workers[1:]:
            ratios = [a / b for a, b in zip(first, times[f"verify, {number} threads"])]
            print(f"verify with {number} threads: {statistics.median(ratios):.2f}x as fast as with {args.workers[0]}")


if __name__ == "__main__":
    main()
