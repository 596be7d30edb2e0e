"""How fast a store is verified, by the number of threads, and how what is done once a store grows with its images.

    $ python -m bench.verifying --rows 40960
    $ python -m bench.verifying --rows 1000000 --tiny

Writes a store of attention maps (26 x 122 float16, 4 views), or with `--tiny` of single numbers in one view, into a
temporary folder, then opens, grows, checks, lists and verifies it in turns. Medians; the files are in memory where they fit.
`structure` is a verify of names, marks and sizes only. Memory is the peak of a process that opens the store.
"""

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from pipeline.store import ArrayGroup, ImageRow, Store, plan, verification
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


def opened(folder: Path) -> tuple[float, float]:
    """Peak memory in MB, before and after the store is opened."""
    before = peak_mb()
    Store.open(folder)
    return before, peak_mb()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=40960)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    pass_, views = (NUMBERS, range(1)) if args.tiny else (MAPS, range(4))
    images = [ImageRow(f"driver_{i // 1000:06d}/{i:09d}", f"{i:016x}", f"{i:016x}") for i in range(args.rows)]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        store = Store.create_or_open(
            folder, "targets", "bench", {"bench": 1}, card={}, block_rows=plan.block_rows(args.rows, [pass_])
        )
        times = {"grow": [timed(lambda: store.grow(images))]}
        store.add_pass(pass_, views)
        rng = np.random.default_rng(0)
        rows = {name: rng.random((store.block_rows, *field.shape)).astype(field.dtype) for name, field in pass_.fields.items()}

        def fill():
            for view in views:
                for block in range(store.num_blocks):
                    here = len(store.block_images(block))
                    store.write_block(pass_, view, block, {name: values[:here] for name, values in rows.items()})

        times |= {"fill": [timed(fill)], "finalise": [timed(store.finalise)]}
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
                work[f"verify, {number} threads"] = lambda n=number: verification.verify(store, True, {}, n)
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
        for name, found in times.items():
            print(f"{name}: {statistics.median(found):.2f} s")
        first = times[f"verify, {args.workers[0]} threads"]
        for number in args.workers[1:]:
            ratios = [a / b for a, b in zip(first, times[f"verify, {number} threads"])]
            print(f"verify with {number} threads: {statistics.median(ratios):.2f}x as fast as with {args.workers[0]}")


if __name__ == "__main__":
    main()
