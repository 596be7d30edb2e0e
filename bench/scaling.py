"""How costs grow with the number of images, classes, views and workers, and where they stop growing in a straight line.

    $ python -m bench.scaling                                        # all four, on small networks: minutes on a CPU
    $ python -m bench.scaling --only workers --full --device cuda    # bench/step.yaml's own networks and size

Everything is given per image (or per image and view), so that a straight line is a column of equal numbers. Stores are written in
a temporary folder of `--root`. `images`: rows as the affinity target of five classes has them, 380 bytes an image with the view's
matrix, in microseconds of work; opening and an epoch's reading are measured in a fresh process, with as many open files as this
one may have and with 1,024; the last line has the largest number of images in blocks as large as `plan` makes them for 100
million. `classes`: rows, targets of a ResNet-101 and losses of ERFNet with their gradients on CULane's grids, labels of all
classes everywhere. `views` and `workers`: a fill of drawn roads by the code of `cache-teacher`.
"""

import argparse
import dataclasses
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from bench.machine import described, measured_on, time_interleaved, write_result
from bench.page import insert
from pipeline import config, weights
from pipeline.lookup import find_class
from pipeline.losses.base import Batch
from pipeline.models.base import Output
from pipeline.progress import table_lines
from pipeline.store import ArrayGroup, ImageRow, Reader, Store, executors, plan
from pipeline.store.verification import verify
from pipeline.targets.base import Context
from pipeline.teacher import cache
from pipeline.teacher.experiment import Experiment
from pipeline.teacher.fill import BlockFiller, Spec
from stages import prepare, synth
from stages.plan import settled

CONFIG = Path("bench/step.yaml")
SMALL = ["teacher.name=resnet18", "teacher.width=8", "prepare.size=[104, 488]"]
GRIDS = {"mid": (26, 122), "high": (26, 122), "logits": (26, 122)}  # CULane's, of the teacher
TEACHER, STUDENT = {"mid": 512, "high": 2048}, {"mid": (64, 52, 244), "high": (128, 26, 122)}
BATCH, FEW_FILES, SHOWN = 12, 1024, 24_000  # SHOWN: images of an epoch that is cut short
MANY = 100_000_000
T = TypeVar("T")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--images", type=int, nargs="+", default=(1_000, 10_000, 100_000))
    parser.add_argument("--classes", type=int, nargs="+", default=(5, 11, 19, 36))
    parser.add_argument("--views", type=int, nargs="+", default=(1, 2, 4, 8))
    parser.add_argument("--workers", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--filled", type=int, default=32, help="images of a fill, in blocks of 8")
    parser.add_argument("--pictures", type=int, default=2, help="images of a batch, for the classes")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--full", action="store_true", help="networks and size of the file instead of small ones")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--root", type=Path, default=Path("."), help="on the disk to be measured")
    parser.add_argument("--out", type=Path, default=Path("reports/bench/scaling.json"))
    parser.add_argument("--page", type=Path, help="a page whose tables are to be replaced")
    args = parser.parse_args()
    print(described(args.device))
    found, tables = {}, {}
    for name in args.only:
        with tempfile.TemporaryDirectory(dir=args.root, prefix="scaling-") as folder:
            found[name] = PARTS[name](args, Path(folder).absolute())
        lines = table(found[name])
        print(f"\n{name}\n", *lines, sep="\n", flush=True)
        tables[name] = "\n".join([*lines, "", measured_on(described(args.device))])
    write_result(args.out, args.device, {"overrides": args.overrides, "full": args.full, **found})
    for name, text in tables.items() if args.page else ():
        insert(args.page, f"bench/scaling {name}", text)


def table(rows: list[dict]) -> list[str]:
    def cell(value):
        return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if value < 100 else f"{value:,.0f}"

    return table_lines(list(rows[0]), (map(cell, row.values()) for row in rows))


# Images


def images(args, folder: Path) -> list[dict]:
    rows, largest = [], max(args.images)
    sizes = [*((count, plan.block_rows(count, passes(5))) for count in args.images), (largest, plan.block_rows(MANY, passes(5)))]
    for count, block_rows in sizes:
        where = folder / f"{count}-{block_rows}"
        store, created_s = timed(lambda: listed(where, count, block_rows))
        (_, written_s), waited_s = timed(lambda: timed(lambda: write(store, passes(5))), time.perf_counter)
        _, verified_s = timed(lambda: verify(store))
        files = sum(path.is_file() for path in where.rglob("*"))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            opened = fresh.submit(opening, where, count).result()
        shutil.rmtree(where)
        rows.append(
            {
                "images": count,
                "rows of a block": block_rows,
                "files": files,
                "list us": 1e6 * created_s / count,
                "write us": 1e6 * written_s / count,
                "write, with the disk us": 1e6 * waited_s / count,
                "verify us": 1e6 * verified_s / count,
                **opened,
            }
        )
    print(
        f"\n{MANY:,} images at the last line's cost: "
        + ", ".join(f"{name.replace(' us', '')} {MANY * value / 3.6e9:.2g} h" for name, value in rows[-1].items() if " us" in name)
        + f"; {MANY * rows[-1]['RAM bytes'] / 1e9:.0f} GB of RAM in each process that opens it"
    )
    return rows


def passes(classes: int) -> list[ArrayGroup]:
    context = Context(classes, tuple(range(classes)), (208, 976), GRIDS, TEACHER)
    target = find_class("targets", "affinity")(layer="high")
    return [cache.MATRIX, ArrayGroup("affinity", target.record("affinity"), target.fields(context))]


def listed(folder: Path, count: int, block_rows: int) -> Store:
    store = Store.create_or_open(folder, "targets", "scaling", {"scaling": count}, block_rows=block_rows, card={})
    store.grow([ImageRow(f"driver_23_30frame/0515{i:07d}.MP4/{i:05d}", f"{i:016x}", f"{i:016x}") for i in range(count)])
    return store


def write(store: Store, every: list[ArrayGroup], view: int = 0) -> None:
    rng = np.random.default_rng(view)
    for pass_ in every:
        store.add_pass(pass_, [view])
    values = {
        pass_.folder: {
            name: rng.integers(0, 9, (store.block_rows, *field.shape)).astype(field.dtype) for name, field in pass_.fields.items()
        }
        for pass_ in every
    }
    for block in range(store.num_blocks):
        here = len(store.block_images(block))
        for pass_ in every:
            store.write_block(pass_, view, block, {name: rows[:here] for name, rows in values[pass_.folder].items()})
    store.finalise()


def opening(folder: Path, count: int) -> dict:
    """Run in a process that has opened nothing yet: seconds and memory until the first batch, and batches after it."""
    before, every = resident_bytes(), passes(5)

    def opened():
        store = Store.find(folder, "targets", "scaling", {"scaling": count})
        store.check([row for row in store.images if row.id], range(1), [(pass_, True) for pass_ in every])
        return Reader(store, every, list(store.row_of), 1, memory="disk"), store

    (reader, store), opened_s = timed(opened)
    grown = resident_bytes() - before
    order = np.random.default_rng(0).permutation(count)
    batches = np.array_split(order, -(-count // BATCH))
    epoch = batches[: SHOWN // BATCH]

    def shown(source):
        for positions in epoch:
            for pass_ in every:
                source.read(pass_, positions, np.zeros_like(positions))

    num = sum(map(len, epoch))
    shown(reader)  # the files are open now
    disk_s = statistics.median(timed(lambda: shown(reader))[1] for _ in range(3))  # noqa: F821
    held = Reader(store, every, reader.ids, 1, memory="ram")
    ram_s = statistics.median(timed(lambda: shown(held))[1] for _ in range(3))
    del reader
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    few = Reader(store, every, list(store.row_of), 1, memory="disk")
    shown(few)
    few_s = statistics.median(timed(lambda: shown(few))[1] for _ in range(3))
    return {
        "open us": 1e6 * opened_s / count,
        "RAM bytes": grown // count,
        "read us, disk": 1e6 * disk_s / num,
        f"read us, {FEW_FILES:,} files": 1e6 * few_s / num,
        "read us, RAM": 1e6 * ram_s / num,
    }


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# Classes


def classes(args, folder: Path) -> list[dict]:
    """Teacher's targets and student's losses of one batch of pictures, in rotation; rows of both layers."""
    count, device = args.pictures, args.device
    generator = torch.Generator().manual_seed(0)

    def maps(shapes):
        return {role: torch.randn(count, *shape, generator=generator).relu().to(device) for role, shape in shapes.items()}

    teacher = maps({role: (channels, *GRIDS[role]) for role, channels in TEACHER.items()})
    student = {role: map_BChw.requires_grad_() for role, map_BChw in maps(STUDENT).items()}
    work: dict[str, Callable[[], None]] = {}
    sizes = {}
    for n in args.classes:
        context = Context(n, tuple(range(n)), (208, 976), GRIDS, TEACHER)
        labels = torch.randint(0, n, (count, 26, 122), generator=generator).to(torch.uint8).to(device)
        labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)  # squares of 8 px: some regions a cell
        targets = {role: find_class("targets", "affinity")(layer=role) for role in TEACHER}
        loss = find_class("losses", "affinity")(reads=targets, context=context, student=context).to(device)

        def stored(targets=targets, labels=labels, context=context):
            return {role: target.compute(Output(None, teacher), labels, context) for role, target in targets.items()}

        rows = {
            role: targets[role].decode(
                {name: torch.from_numpy(values).to(device) for name, values in targets[role].encode(value).items()}
            )
            for role, value in stored().items()
        }
        batch = Batch(labels[:, None].expand(-1, 3, -1, -1).float(), labels, labels < 255, None, rows, 0)

        def learned(loss=loss, batch=batch):
            torch.autograd.grad(loss(Output(None, student), batch), list(student.values()))

        work |= {f"targets {n}": torch.no_grad()(stored), f"loss {n}": learned}
        sizes[n] = 2 * plan.row_bytes(passes(n)[1])
    seconds = time_interleaved(work, args.runs, device)
    return [
        {
            "classes": n,
            "row bytes": sizes[n],
            "teacher's targets ms": 1e3 * statistics.median(seconds[f"targets {n}"]) / count,
            "student's loss ms": 1e3 * statistics.median(seconds[f"loss {n}"]) / count,
        }
        for n in args.classes
    ]


# Views and workers


def views(args, folder: Path) -> list[dict]:
    site = Site(args, folder)
    rows = []
    for count in args.views:
        _, block_s, store = site.fill(count, 1)
        _, opened_s = timed(lambda: site.reader(store, count))
        files = sum(path.is_file() for path in store.folder.rglob("*"))
        rows.append(
            {
                "views": count,
                "files": files,
                "fill ms": 1e3 * block_s / store.block_rows,
                "open ms": 1e3 * opened_s / args.filled / count,
            }
        )
    return rows


def workers(args, folder: Path) -> list[dict]:
    site, rows = Site(args, folder), []
    for count in args.workers:
        first_s, block_s, store = site.fill(4, count)
        _, verified_s = timed(lambda: verify(store, workers=count), time.perf_counter)
        rows.append(
            {
                "workers": count,
                "until the first block s": first_s,
                "views/s from then on": store.block_rows / block_s,
                "verify ms a view": 1e3 * verified_s / 4 / args.filled,
            }
        )
    return rows


class Site:
    """Drawn roads, prepared, and a teacher's weights."""

    def __init__(self, args, root: Path):
        torch.manual_seed(0)
        self.args, self.root, self.number = args, root, 0
        drawn = [f"dataset.root={root}/data", f"dataset.train={args.filled}", "dataset.size=[295, 820]"]
        self.cfg = config.load(CONFIG, [*drawn, *([] if args.full else SMALL), *args.overrides])
        self.source = self.cfg.dataset.build()
        self.context = cache.context(self.cfg.teacher.model, self.source, self.cfg.prepare.size)
        self.named = cache.target_passes(self.cfg.targets, self.context)
        self.every = [cache.MATRIX, *(pass_ for _, pass_ in self.named.values())]
        synth.run(dataset=self.cfg.dataset, workers=1)
        prepare.run(dataset=self.cfg.dataset, prepare=self.cfg.prepare, root=root, report=root / "prepare.json", workers=1)
        self.weights_file = root / "teacher.safetensors"
        experiment = Experiment(self.cfg, root, self.weights_file)
        self.images = experiment.images
        shown = Reader(experiment.pixels, [experiment.sample], experiment.ids[:2], 1).read(
            experiment.sample, np.arange(2), np.zeros(2, int)
        )
        model = settled(cache.build_teacher(self.cfg.teacher, self.source, self.cfg.prepare.size), shown["image"])
        weights.save_file(self.weights_file, model.state_dict())

    def fill(self, count: int, workers: int) -> tuple[float, float, Store]:
        """Seconds until the first block was there, and for each after it; a store of its own each time."""
        self.number += 1
        cfg = dataclasses.replace(self.cfg, views=dataclasses.replace(self.cfg.views, count=count, seed=self.number))
        experiment = Experiment(cfg, self.root, self.weights_file)
        store = Store.create_or_open(self.root, "targets", cfg.dataset.name, experiment.identity, block_rows=8, card={})
        store.grow(self.images)
        for pass_ in self.every:
            store.add_pass(pass_, range(count))
        folders = tuple(pass_.folder for pass_ in self.every)
        tasks = [plan.Task(view=view, block=block, passes=folders) for block in range(store.num_blocks) for view in range(count)]
        spec = Spec(
            experiment=experiment.anywhere(),
            batch=8,
            store=store.folder,
            passes=frozenset(folders),
            rows="",
        )
        start, ends = time.perf_counter(), []
        if store.num_blocks * count < 2:
            raise SystemExit("--filled: at least two blocks of 8 are needed, one to begin with and one to measure")
        for _ in executors.processes(tasks, BlockFiller, spec, device=self.args.device, workers=workers):
            ends.append(time.perf_counter() - start)
        store.finalise()
        return ends[0], (ends[-1] - ends[0]) / (len(ends) - 1), store

    def reader(self, store: Store, count: int) -> Reader:
        store = Store.open(store.folder)
        store.check(self.images, range(count), [(pass_, True) for pass_ in self.every])
        return Reader(store, self.every, [image.id for image in self.images], count, memory="disk")


def timed(work: Callable[[], T], clock: Callable[[], float] = time.process_time) -> tuple[T, float]:
    """What comes of it, and the seconds of work it took in this process; or those that passed on another clock."""
    start = clock()
    result = work()
    return result, clock() - start


PARTS = {"images": images, "classes": classes, "views": views, "workers": workers}

if __name__ == "__main__":
    main()
