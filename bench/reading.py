"""How fast the store's rows are read and written, beside np.memmap and the formats of other distillation projects.

    $ python -m bench.reading --records 12800 --runs 5

The same random records in every format: 12,688 bytes of attention energy [2, 26, 122] and 300 of affinity [2, 3, 5, 5],
in float16, as two arrays; batches of 12 random records are handed over as two tensors. Formats take turns within a run,
so that what else the machine does falls on all of them; every figure is the median over runs, and a ratio the median of
each run's own ratio to np.memmap. Cold means that the pages of just these files were dropped before.

Formats: one .npy (np.memmap); LMDB; a torch.save file a record in 10,000 folders (torchdistill); keys.txt and
values.bin, fixed-size records found through a dict, seek and read (TinyViT and its segmentation forks); and this store,
with rows from disk and from RAM. Only this store fsyncs what it writes, reads it back, and compares each row it reads
with a checksum.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from bench.needs import need
from bench.page import insert
from pipeline.progress import table_lines
from pipeline.store import ArrayGroup, ImageRow, Reader, Store
from pipeline.targets.base import Field

ATTENTION, GRAPH = (2, 26, 122), (2, 3, 5, 5)
SPLIT = 2 * int(np.prod(ATTENTION))
RECORD = SPLIT + 2 * int(np.prod(GRAPH))
BATCH, BLOCK_ROWS = 12, 128


def tensors(records_BR: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Records of bytes as the two tensors they hold."""
    return (
        torch.from_numpy(records_BR[:, :SPLIT].copy().view(np.float16)).view(-1, *ATTENTION),
        torch.from_numpy(records_BR[:, SPLIT:].copy().view(np.float16)).view(-1, *GRAPH),
    )


class Format(Protocol):
    """One way to keep records of bytes on disk."""

    name: str

    @staticmethod
    def write(folder: Path, records_NR: np.ndarray) -> None: ...

    def __init__(self, folder: Path): ...

    def batch(self, positions: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]: ...


class Memmap:
    name = "np.memmap"

    @staticmethod
    def write(folder: Path, records_NR: np.ndarray) -> None:
        np.save(folder / "records.npy", records_NR)

    def __init__(self, folder: Path):
        self.folder, self.rows = folder, np.load(folder / "records.npy", mmap_mode="r")

    def batch(self, positions):
        return tensors(self.rows[positions])

    def __reduce__(self):
        return type(self), (self.folder,)


class Lmdb:
    name = "LMDB"

    @staticmethod
    def write(folder: Path, records_NR: np.ndarray) -> None:
        import lmdb

        with lmdb.open(str(folder), map_size=4 * records_NR.nbytes + 2**24) as env:
            for start in range(0, len(records_NR), 1000):
                with env.begin(write=True) as transaction:
                    for i in range(start, min(start + 1000, len(records_NR))):
                        transaction.put(i.to_bytes(4, "big"), records_NR[i].tobytes())

    def __init__(self, folder: Path):
        import lmdb

        self.folder = folder
        self.transaction = lmdb.open(str(folder), readonly=True, lock=False, readahead=False).begin()

    def batch(self, positions):
        found = b"".join(self.transaction.get(int(i).to_bytes(4, "big"), b"") for i in positions)
        return tensors(np.frombuffer(found, np.uint8).reshape(len(positions), RECORD))

    def __reduce__(self):
        return type(self), (self.folder,)


class TorchFiles:
    name = "torch.save files (torchdistill)"

    @staticmethod
    def path(folder: Path, i: int) -> Path:
        return folder / f"{i % 10000:04d}" / f"{i}.pt"

    @classmethod
    def write(cls, folder: Path, records_NR: np.ndarray) -> None:
        for i, record_R in enumerate(records_NR):
            attention, graph = tensors(record_R[None])
            path = cls.path(folder, i)
            path.parent.mkdir(exist_ok=True)
            torch.save({"attention": attention[0], "graph": graph[0]}, path)

    def __init__(self, folder: Path):
        self.folder = folder

    def batch(self, positions):
        found = [torch.load(self.path(self.folder, int(i)), weights_only=True) for i in positions]
        return torch.stack([each["attention"] for each in found]), torch.stack([each["graph"] for each in found])


class TinyVit:
    name = "keys.txt + values.bin (TinyViT)"

    @staticmethod
    def write(folder: Path, records_NR: np.ndarray) -> None:
        with open(folder / "keys.txt", "w") as keys, open(folder / "values.bin", "wb") as values:
            for i, record_R in enumerate(records_NR):
                keys.write(f"image-{i}\n")
                values.write(record_R.tobytes())

    def __init__(self, folder: Path):
        self.folder = folder
        self.places = {key: i for i, key in enumerate((folder / "keys.txt").read_text().split())}
        self.file = open(folder / "values.bin", "rb")

    def batch(self, positions):
        # by pread: the workers of a loader are forks that share the file's position
        found = [os.pread(self.file.fileno(), RECORD, self.places[f"image-{i}"] * RECORD) for i in positions]
        return tensors(np.frombuffer(b"".join(found), np.uint8).reshape(len(positions), RECORD))

    def __reduce__(self):
        return type(self), (self.folder,)


class FromDisk:
    name = "this store, rows from disk"
    memory: Literal["disk", "ram"] = "disk"
    passes = [
        ArrayGroup("attention", {"version": 1}, {"energy": Field(ATTENTION, "float16", ("layer", "y26", "x122"))}),
        ArrayGroup("affinity", {"version": 1}, {"graph": Field(GRAPH, "float16", ("layer", "moment", "region", "other"))}),
    ]

    @classmethod
    def write(cls, folder: Path, records_NR: np.ndarray) -> None:
        store = Store.create_or_open(folder, "targets", "bench", {"bench": 1}, block_rows=BLOCK_ROWS, card={})
        store.grow([ImageRow(f"image-{i}", "-", "-") for i in range(len(records_NR))])
        for pass_ in cls.passes:
            store.add_pass(pass_, range(1))
        for block in range(store.num_blocks):
            rows = tensors(records_NR[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS])
            for pass_, name, values in zip(cls.passes, ("energy", "graph"), rows):
                store.write_block(pass_, 0, block, {name: values.numpy()})
        store.finalise()

    def __init__(self, folder: Path):
        store = Store.find(folder, "targets", "bench", {"bench": 1})
        ids = [row.id for row in store.images if row.id]
        self.reader = Reader(store, self.passes, ids, 1, memory=self.memory)

    def batch(self, positions):
        views = np.zeros_like(positions)
        return (
            torch.from_numpy(self.reader.read(self.passes[0], positions, views)["energy"]),
            torch.from_numpy(self.reader.read(self.passes[1], positions, views)["graph"]),
        )


class FromRam(FromDisk):
    name = "this store, rows from RAM"
    memory = "ram"


FORMATS: list[type[Format]] = [Memmap, Lmdb, TorchFiles, TinyVit, FromDisk, FromRam]


class Rows(torch.utils.data.Dataset):
    """What a DataLoader is given: a whole batch at a time, for every format alike."""

    def __init__(self, source, count: int):
        self.source, self.count = source, count

    def __len__(self):
        return self.count

    def __getitems__(self, positions):
        return self.source.batch(np.array(positions))


def whole(batch):
    return batch


def drop(folder: Path) -> None:
    """The pages of these files leave the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def random_reads(source, batches) -> float:
    """Records a second."""
    return sum(map(len, batches)) / timed(lambda: [source.batch(positions) for positions in batches])


def epoch(source, count: int, workers: int) -> float:
    loader = torch.utils.data.DataLoader(Rows(source, count), BATCH, shuffle=True, num_workers=workers, collate_fn=whole)
    return timed(lambda: sum(len(batch[0]) for batch in loader))


def measure(form: type[Format], folder: Path, records_NR: np.ndarray, num_batches: int, rng) -> dict[str, float]:
    count = len(records_NR)
    path = folder / form.__name__
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    found = {"write_s": timed(lambda: form.write(path, records_NR))}
    found["disk_bytes"] = sum(each.stat().st_blocks * 512 for each in path.rglob("*"))
    found["files"] = sum(each.is_file() for each in path.rglob("*"))
    start = time.perf_counter()
    source = form(path)
    found["open_s"] = time.perf_counter() - start
    positions = rng.permutation(count)
    for part in np.split(positions, range(BATCH, count, BATCH)):  # what is timed is right; and now it is warm
        energy, graph = source.batch(part)
        records = np.concatenate(
            [energy.numpy().view(np.uint8).reshape(len(part), -1), graph.numpy().view(np.uint8).reshape(len(part), -1)], axis=1
        )
        assert np.array_equal(records, records_NR[part]), form.name
    batches = [rng.integers(0, count, BATCH) for _ in range(num_batches)]
    found["warm_per_s"] = random_reads(source, batches if form is not TorchFiles else batches[:300])
    for workers in (0, 2):
        found[f"epoch_{workers}_workers_s"] = epoch(source, count, workers)
    del source
    if form is not FromRam:
        cold = form(path)  # open, but with no page of its data in memory
        drop(path)
        found["cold_per_s"] = random_reads(cold, batches[:100])
    return found


BETTER_HIGH = ("warm_per_s", "cold_per_s")
COLUMNS = {
    "disk_bytes": "du, x raw",
    "files": "files",
    "write_s": "write s",
    "open_s": "open s",
    "warm_per_s": "random warm /s",
    "cold_per_s": "random cold /s",
    "epoch_0_workers_s": "epoch, 0 workers, s",
    "epoch_2_workers_s": "epoch, 2 workers, s",
}


def table(runs: list[dict[str, dict[str, float]]], raw_bytes: int) -> tuple[str, dict]:
    """Medians, with the median of the ratios to np.memmap in the same run in brackets."""
    rows = []
    medians: dict[str, dict] = {}
    for form in FORMATS:
        cells, here = [], medians.setdefault(form.name, {})
        for key in COLUMNS:
            values = [run[form.name][key] for run in runs if key in run[form.name]]
            if not values:
                cells.append("-")
                continue
            here[key] = statistics.median(values)
            if key == "disk_bytes":
                here["disk_over_raw"] = here[key] / raw_bytes
                cells.append(f"{here['disk_over_raw']:.3f}")
            elif key == "files":
                cells.append(f"{here[key]:.0f}")
            else:
                ratio = statistics.median(run[form.name][key] / run[Memmap.name][key] for run in runs)
                here[f"{key}_over_memmap"] = ratio
                number = f"{here[key]:,.0f}" if key in BETTER_HIGH else f"{here[key]:.2f}"
                cells.append(f"{number} ({ratio:.2f})")
        rows.append([form.name, *cells])
    return "\n".join(table_lines(["format", *COLUMNS.values()], rows)), medians


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=12800, help="a multiple of 128; 100 blocks are 166 MB")
    parser.add_argument("--batches", type=int, default=3000, help="of random reads")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; a temporary folder here without it")
    parser.add_argument("--out", type=Path, default=Path("reports/bench/reading.json"))
    parser.add_argument("--page", type=Path, help="a page whose table is to be replaced")
    args = parser.parse_args()
    need("lmdb")
    rng = np.random.default_rng(0)
    records_NR = rng.standard_normal((args.records, RECORD // 2)).astype(np.float16).view(np.uint8)
    with tempfile.TemporaryDirectory(dir=args.folder or Path.cwd(), prefix="bench-") as folder:
        runs = [
            {form.name: measure(form, Path(folder), records_NR, args.batches, rng) for form in FORMATS} for _ in range(args.runs)
        ]
    text, medians = table(runs, records_NR.nbytes)
    print(f"{args.records} records of {RECORD} bytes, batches of {BATCH}, {args.runs} runs\n\n{text}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        json.dumps(
            {
                "records": args.records,
                "bytes": RECORD,
                "machine": platform.platform(),
                "cores": os.cpu_count(),
                "torch": torch.__version__,
                "numpy": np.__version__,
                "formats": medians,
                "runs": runs,
            },
            indent=1,
        )
        + "\n"
    )
    if args.page:
        insert(args.page, "bench/reading.py", text)


if __name__ == "__main__":
    main()
