"""Block-shuffled training from object storage beside the same from disk: from an S3 server on this machine, 20 ms away.

    $ make install-s3 && for command in synth prepare cache-teacher; do pipeline $command configs/demo.yaml; done
    $ .venv-s3/bin/python -m bench.object_storage configs/demo.yaml --page docs/benchmarks.md

Copies the config's stores in blocks of `--rows` to another folder and to the server (moto), whose answers pass a proxy that holds
each back for `--latency-ms`. Epochs of the method from disk, from S3 by obstore and from S3 by fsspec alone take turns, each with a
student of its own; only rows of the blocks in use are held in RAM. Seconds are wall-clock time, waiting included. Server and proxy
work on the same cores.
"""

import argparse
import asyncio
import importlib.util
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench.machine import described, goal, measured_on, ratio, with_range, write_result
from bench.page import insert
from pipeline import config
from pipeline.progress import table_lines
from pipeline.store import Reader, Store
from pipeline.store.files import as_path
from pipeline.store.notes import NOTES
from pipeline.teacher import cache
from pipeline.teacher.experiment import Experiment
from pipeline.training import step as steps
from pipeline.training.loading import CachedTargets, Loader, ahead
from stages import cache as stage

SOURCES = {"from disk": "", "from S3 by obstore": "s3://bench/cache", "from S3 by fsspec": "s3a://bench/cache"}
GOAL = 0.9


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def hold_back(listen: int, target: int, seconds: float) -> None:
    """A proxy whose answers come so much later, however many are under way. Run in a process of its own."""

    async def pipe(reader, writer, delay):
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def send():
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0, due - loop.time()))
                if not data:
                    writer.close()
                    return
                writer.write(data)
                await writer.drain()

        sending = asyncio.create_task(send())
        data = b"-"
        while data:
            try:
                data = await reader.read(2**18)
            except ConnectionError:
                data = b""
            queue.put_nowait((loop.time() + delay, data))
        await sending

    async def serve(reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(pipe(reader, back, 0), pipe(there, writer, seconds), return_exceptions=True)

    async def main():
        async with await asyncio.start_server(serve, "127.0.0.1", listen, limit=2**20):
            await asyncio.Event().wait()

    asyncio.run(main())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--method", default="intra")
    parser.add_argument("--rows", type=int, default=64, help="of a block, and training.shuffle_block")
    parser.add_argument("--window", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--latency-ms", type=float, default=20)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("reports/bench/object_storage.json"))
    parser.add_argument("--page", type=Path, help="a page whose table is to be replaced")
    args = parser.parse_args()
    if any(importlib.util.find_spec(name) is None for name in ("s3fs", "obstore", "moto")):
        raise SystemExit("Error: this benchmark needs s3fs, obstore and moto: `make install-s3`, and run it by .venv-s3/bin/python")
    torch.set_num_threads(1)
    server, far = free_port(), free_port()
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{far}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(server)]
    moto = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    proxy = multiprocessing.get_context("spawn").Process(target=hold_back, args=(far, server, args.latency_ms / 1000), daemon=True)
    proxy.start()
    try:
        for port in (server, far):
            while socket.socket().connect_ex(("127.0.0.1", port)):
                time.sleep(0.1)
        with tempfile.TemporaryDirectory(dir=".") as folder:
            seconds, loader = measure(args, Path(folder).absolute())
    finally:
        moto.terminate()
        proxy.terminate()
    report(args, seconds, loader)


def measure(args, folder: Path) -> tuple[dict[str, list[tuple[float, float, float]]], Loader]:
    """Of each epoch: wall-clock time, CPU time, and time waited for batches."""
    import fsspec

    fsspec.get_filesystem_class("s3").clear_instance_cache()  # one that knows another server
    fsspec.filesystem("s3").mkdir("bench")
    in_other_blocks(opened(args, "cache"), folder, args)
    stage.pull(source=folder, root=as_path("s3://bench/cache"), num_views=None)
    made = {name: training(args, opened(args, root or str(folder))) for name, root in SOURCES.items()}
    loader = made["from disk"][0]
    num = len(loader.shown) // loader.training.batch
    shown = range(1, 1 + num * (args.epochs + 1))
    batches = {name: iter(ahead(loader, shown)) for name, (loader, _) in made.items()}
    seconds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in made}
    for epoch in range(args.epochs + 1):
        for name, (_, step) in made.items():
            start, work, waited = time.perf_counter(), time.process_time(), 0.0
            for _ in range(num):
                asked = time.perf_counter()
                batch = next(batches[name])
                waited += time.perf_counter() - asked
                step(batch)
            if epoch:
                seconds[name].append((time.perf_counter() - start, time.process_time() - work, waited))
    return seconds, loader


def opened(args, root: str) -> Experiment:
    order = [f"training.shuffle_block={args.rows}", f"training.shuffle_window={args.window}"]
    cfg = config.load(args.config, [*args.overrides, *order])
    return Experiment(cfg, as_path(root), Path("teachers") / f"{cfg.name}.safetensors")


def in_other_blocks(experiment: Experiment, root: Path, args) -> None:
    """Copies of its stores with so many rows a block, and of the method's passes alone."""
    names = dict.fromkeys(name for term in experiment.config.method(args.method) for name in term.reads)
    targets, passes = experiment.open_cache(experiment.some_targets(names))
    for old, every, views in ((experiment.pixels, [experiment.sample], 1), (targets, passes, experiment.config.views.count)):
        new = Store.create_or_open(
            root, old.kind, experiment.home, old.identity["record"], block_rows=args.rows, codec=old.codec, card=old.card
        )
        new.grow(old.named(experiment.ids))
        reader = Reader(old, every, experiment.ids, views, memory="disk")
        for pass_ in every:
            new.add_pass(pass_, range(views))
            for view in range(views):
                for block in range(new.num_blocks):
                    places = np.arange(len(experiment.ids))[block * args.rows : (block + 1) * args.rows]
                    new.write_block(pass_, view, block, reader.read(pass_, places, np.full(len(places), view)))
        new.finalise()
        for name in NOTES:
            if old.path(name).exists():
                new.path(name).write_bytes(old.path(name).read_bytes())


def training(args, experiment: Experiment) -> tuple[Loader, steps.Step]:
    cfg, method = experiment.config, experiment.config.method(args.method)
    named = experiment.some_targets(dict.fromkeys(name for term in method for name in term.reads))
    store, passes = experiment.open_cache(named)
    cached = CachedTargets(Reader(store, passes, experiment.ids, cfg.views.count, memory="disk"), cache.MATRIX, named)
    samples = experiment.samples(memory="disk")
    loader = Loader.of(experiment, samples, cfg.training, seed=0, device="cpu", cached=cached)
    steps.reseed(0, 0)
    plugin = next(iter(cfg.students.values()))
    own, model = experiment.student_context(plugin), experiment.build(plugin)
    losses = [experiment.loss(term, own) for term in method]
    for loss in losses:
        if loss.needs_scan:
            loss.scan(loader.scan())
    return loader, steps.Step(
        model, method, losses, cfg.training, steps.class_weights(experiment.source, cfg.training, "cpu", None), 0
    )


def report(args, seconds: dict[str, list[tuple[float, float, float]]], loader: Loader) -> None:
    wall = {name: [each[0] for each in found] for name, found in seconds.items()}
    disk = wall["from disk"]
    rows = [
        [
            name,
            *(f"{statistics.median(column):.2f}" for column in zip(*found)),
            with_range(disk, wall[name]),
        ]
        for name, found in seconds.items()
    ]
    head = ["an epoch", "wall s", "CPU s", "waiting for batches s", "speed against disk, median (quartiles)"]
    speed, machine = ratio(disk, wall["from S3 by obstore"]), described("cpu")
    training = loader.training
    text = "\n".join(
        [
            *table_lines(head, rows),
            "",
            f"{args.config}, {len(loader.shown)} images in batches of {training.batch}, `shuffle_block: {training.shuffle_block}, "
            f"shuffle_window: {training.shuffle_window}`, {args.latency_ms:g} ms of added latency, {args.epochs} epochs of each. "
            f"{goal(f'Goal: at least {GOAL:g}x', speed - GOAL, 'x')}. {measured_on(machine)}",
        ]
    )
    print(text)
    write_result(args.out, "cpu", {"config": str(args.config), "latency_ms": args.latency_ms, "seconds": seconds, "speed": speed})
    if args.page:
        insert(args.page, "bench/object_storage.py", text)


if __name__ == "__main__":
    main()
