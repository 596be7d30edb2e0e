"""One file for each field of a block, as stores have them, beside one file for each pass with its fields one after the other.

    $ python -m bench.files --page docs/cache-format.md

A simulation: the same bytes (the four targets of IntRA on CULane's grid and the matrices, 128 rows a block), written, fsynced,
renamed, read back and marked as a store does, and read in its ways. Both layouts take turns. For the last column every open, stat,
read, write, fsync and rename waits `--latency-ms`, as on a network file system.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google_crc32c import value as crc32c

from bench.machine import described, measured_on, write_result
from bench.page import insert
from pipeline.progress import table_lines

ROWS = 128
FIELDS = {
    "matrix": [48],
    "graph_mid": [600, 20],
    "graph_high": [600, 20],
    "attention_mid": [6344],
    "attention_high": [6344],
}  # bytes


@dataclass
class Layout:
    together: bool  # the fields of a pass in one file
    top: Path
    wait_s: float
    calls: int = 0

    def call(self) -> None:
        self.calls += 1
        if self.wait_s:
            time.sleep(self.wait_s)

    def place(self, pass_: str, field: int, block: int) -> tuple[Path, int]:
        """File and first byte of a field's rows; its crcs come after them."""
        if not self.together:
            return self.top / f"{pass_}/{field}/c.{block}", 0
        return self.top / f"{pass_}/c.{block}", sum(ROWS * (size + 4) + 8 for size in FIELDS[pass_][:field])

    def files(self, pass_: str, block: int) -> Iterator[tuple[Path, bytes]]:
        parts = []
        for field, size in enumerate(FIELDS[pass_]):
            rows, crcs = (data + crc32c(data).to_bytes(4, "little") for data in (bytes(ROWS * size), bytes(ROWS * 4)))
            path, _ = self.place(pass_, field, block)
            parts.append(rows + crcs)
            if not self.together:
                yield from [(path, rows), (path.with_name(f"crc.{block}"), crcs)]
        if self.together:
            yield path, b"".join(parts)

    def put(self, files: list[tuple[Path, bytes]]) -> None:
        def sync(path: Path) -> None:
            self.call()
            fd = os.open(path, os.O_RDONLY)
            self.call()
            os.fsync(fd)
            os.close(fd)

        partial = {path: path.with_name(path.name + ".tmp") for path, _ in files}
        with ThreadPoolExecutor(8) as pool:
            for path, data in files:
                self.call()
                self.call()
                partial[path].write_bytes(data)
            list(pool.map(sync, partial.values()))
            for path in partial:
                self.call()
                os.replace(partial[path], path)
            list(pool.map(sync, {path.parent for path in partial}))

    def get(self, path: Path) -> bytes:
        self.call()
        self.call()
        return path.read_bytes()

    def mark(self, pass_: str, block: int) -> Path:
        return self.top / f"done/{block}.{pass_}.json"

    # What is measured

    def write(self, blocks: int) -> None:
        shutil.rmtree(self.top, ignore_errors=True)
        for path in [self.mark("", 0), *(path for pass_ in FIELDS for path, _ in self.files(pass_, 0))]:
            path.parent.mkdir(parents=True, exist_ok=True)
        for block in range(blocks):
            for pass_ in FIELDS:
                files = list(self.files(pass_, block))
                self.put(files)
                assert all(self.get(path) == data for path, data in files)
                sizes = {str(path.relative_to(self.top)): len(data) for path, data in files}
                self.put([(self.mark(pass_, block), json.dumps(sizes).encode())])

    def check(self, blocks: int) -> None:
        for block in range(blocks):
            for pass_ in FIELDS:
                for name, size in json.loads(self.get(self.mark(pass_, block))).items():
                    self.call()
                    assert os.stat(self.top / name).st_size == size

    def whole(self, blocks: int) -> None:
        for block in range(blocks):
            for pass_, sizes in FIELDS.items():
                for path in dict.fromkeys(self.place(pass_, field, block)[0] for field in range(len(sizes))):
                    crc32c(self.get(path))

    def rows(self, blocks: int, stay_open: bool, count: int = 400) -> None:
        rng, fds = np.random.default_rng(0), {}
        for block, row in zip(rng.integers(0, blocks, count).tolist(), rng.integers(0, ROWS, count).tolist()):
            for pass_, sizes in FIELDS.items():
                for field, size in enumerate(sizes):
                    path, start = self.place(pass_, field, block)
                    if path not in fds:
                        self.call()
                        fds[path] = os.open(path, os.O_RDONLY)
                    self.call()
                    crc32c(os.pread(fds[path], size, start + row * size))
                for path in [] if stay_open else list(fds):
                    os.close(fds.pop(path))
        for fd in fds.values():
            os.close(fd)


WORK: dict[str, Callable[[Layout, int], None]] = {
    "write": Layout.write,
    "check markers and sizes": Layout.check,
    "read whole blocks": Layout.whole,
    "read 400 random rows, files stay open": lambda layout, blocks: layout.rows(blocks, True),
    "read 400 random rows, files do not stay open": lambda layout, blocks: layout.rows(blocks, False),
}


def measure(folder: Path, wait_s: float, blocks: int, runs: int) -> dict[str, list[list[tuple[float, float, int]]]]:
    """Of each work, by run and layout: seconds, CPU seconds and calls."""
    found: dict[str, list[list[tuple[float, float, int]]]] = {name: [] for name in WORK}
    layouts = [Layout(False, folder / "fields", wait_s), Layout(True, folder / "passes", wait_s)]
    for _ in range(runs):
        for name, do in WORK.items():
            both = []
            for layout in layouts:
                layout.calls, start, work = 0, time.perf_counter(), time.process_time()
                do(layout, blocks)
                both.append((time.perf_counter() - start, time.process_time() - work, layout.calls))
            found[name].append(both)
    return found


def against(runs: list[list[tuple[float, float, int]]], what: int) -> str:
    return f"{statistics.median(together[what] / apart[what] for apart, together in runs):.2f}x"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, nargs=2, default=(40, 10), help="without and with latency")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--latency-ms", type=float, default=1)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; a temporary folder here without it")
    parser.add_argument("--out", type=Path, default=Path("reports/bench/files.json"))
    parser.add_argument("--page", type=Path, help="a page whose table is to be replaced")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder or Path.cwd(), prefix="bench-") as folder:
        local = measure(Path(folder), 0, args.blocks[0], args.runs)
        far = measure(Path(folder), args.latency_ms / 1000, args.blocks[1], args.runs)
    rows = [
        [name, against(local[name], 2), against(local[name], 0), against(local[name], 1), against(far[name], 0)] for name in WORK
    ]
    head = [
        "one file for each pass, against today",
        "calls",
        "time, local disk",
        "work, local disk",
        f"time, {args.latency_ms:g} ms a call",
    ]
    text = "\n".join([*table_lines(head, rows), "", f"Medians of {args.runs} runs. {measured_on(described('cpu'))}"])
    print(text)
    write_result(args.out, "cpu", {"local": local, "far": far})
    if args.page:
        insert(args.page, "bench/files.py", text)


if __name__ == "__main__":
    main()
