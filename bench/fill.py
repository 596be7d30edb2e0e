"""Filling a cache against the teacher's bare forward pass, side by side in one run, and where a block's time goes.

    $ python -m bench.fill bench/step.yaml --blocks 4

Needs the config's prepared store and teacher. The bare pass sees the same images, already warped and on the device, in the same
batches and precision. Stages are timed one after the other on one block, so their sum is the fill without overlap. The cache is
filled in a temporary folder. Both clocks are read: the wall's, and that of the work of all threads, which other load changes less.
The goal is one of work on the CPU, where writing waits for a disk that others use, and one of time on a GPU.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench.machine import described, goal, measured_on, ratio, time_interleaved, wait, with_range, write_result
from bench.page import insert
from pipeline import config
from pipeline.data import views as geometry
from pipeline.progress import table_lines
from pipeline.store import Store, plan
from pipeline.teacher import cache
from pipeline.teacher.experiment import Experiment
from pipeline.teacher.fill import BlockFiller, Spec, every_pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--blocks", type=int, default=4, help="of --rows images each")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--root", type=Path, default=Path("cache"))
    parser.add_argument("--out", type=Path, default=Path("reports/bench/fill.json"))
    parser.add_argument("--page", type=Path, help="a page whose table is to be replaced")
    args = parser.parse_args()
    cfg = config.load(args.config, args.overrides)
    device, weights_file = args.device, Path("teachers") / f"{cfg.name}.safetensors"
    experiment = Experiment(cfg, args.root, weights_file)
    pixels, source, context = experiment.pixels, experiment.source, experiment.context
    images, named, identity = experiment.images[: args.blocks * args.rows], experiment.targets, experiment.identity
    passes = every_pass(named)

    with tempfile.TemporaryDirectory(dir=args.root) as folder:
        root = Path(folder).absolute()
        os.symlink(
            (args.root / cfg.dataset.name).absolute() / pixels.folder.name, made(root / cfg.dataset.name) / pixels.folder.name
        )
        views = iter(range(10**6))

        def filler() -> tuple[BlockFiller, Store]:
            store = Store.create_or_open(root, "targets", cfg.dataset.homes[0], identity, block_rows=args.rows, card={})
            store.grow(images)
            spec = Spec(
                experiment=Experiment(cfg, root, weights_file).anywhere(),
                batch=args.batch,
                store=store.folder,
                passes=frozenset(pass_.folder for pass_ in passes),
                rows="",
            )
            for pass_ in passes:
                store.add_pass(pass_, range(1))
            return BlockFiller(spec, device), store

        work, store = filler()

        def tasks():
            """A view that has never been filled: its blocks."""
            view = next(views)
            for pass_ in passes:
                store.add_pass(pass_, range(view + 1))
                work.store.add_pass(pass_, range(view + 1))
            return [
                plan.Task(view=view, block=block, passes=tuple(pass_.folder for pass_ in passes))
                for block in range(store.num_blocks)
            ]

        rows = work.images(0)
        chosen = np.arange(args.batch) % len(rows["image"])
        matrices = np.stack([geometry.draw(cfg.views, store.images[i].id, 1, work.canvas) for i in chosen])
        shown, labels, _ = geometry.apply(
            torch.from_numpy(rows["image"][chosen]).to(device),
            torch.from_numpy(rows["label"][chosen]).to(device),
            torch.from_numpy(matrices),
            content=cfg.prepare.size,
            permutation=source.mirror,
            size=cfg.views.crop,
        )
        batches = store.num_blocks * -(-args.rows // args.batch)

        @torch.no_grad()
        def bare():
            for _ in range(batches):
                with torch.autocast(work.answers.device.type, torch.bfloat16, enabled=work.answers.bf16):
                    work.answers.model(shown, labels)

        asked = iter([tasks() for _ in range(2 * (1 + args.runs))])  # beforehand: a view is made once, however many blocks it has

        def one_by_one():
            for task in next(asked):
                work(task)

        both = time_interleaved(
            {
                "bare forward": bare,
                "fill, one after the other": one_by_one,
                "fill, overlapped": lambda: [None for _ in work.overlapped(next(asked))],
            },
            args.runs,
            device,
            warm=1,
            clock=clocks,
        )
        seconds, work_seconds = ({name: [float(pair[i]) for pair in pairs] for name, pairs in both.items()} for i in (0, 1))
        stages = staged(work, tasks()[0], device)
    views_filled = len(images)
    print(
        f"{args.config}: {views_filled} views in {store.num_blocks} blocks, batch {args.batch}, {context.size}, {described(device)}"
    )
    lines = [
        (name, f"{views_filled / statistics.median(values):.2f}", *(f"{ratio(c['bare forward'], c[name]):.3f}x" for c in clocked))
        for clocked in [(seconds, work_seconds)]
        for name, values in seconds.items()
    ]
    print(*table_lines(["work", "images/s", "against the bare forward", "by seconds of work"], lines), sep="\n")
    print(
        "one block: " + ", ".join(f"{name} {1000 * wall:.1f} ms, {1000 * cpu:.1f} of work" for name, (wall, cpu) in stages.items())
    )
    found = {
        "config": str(args.config),
        "overrides": args.overrides,
        "views": views_filled,
        "batch": args.batch,
        "seconds": seconds,
        "work_s": work_seconds,
        "stages_s": stages,
    }
    write_result(args.out, device, found)
    if args.page:
        insert(args.page, f"bench/fill {cfg.name}", text({"machine": described(device), **found}))


def clocks() -> np.ndarray:
    """Seconds of the wall's clock, and of the work of all threads of this process."""
    return np.array([time.perf_counter(), time.process_time()])


def text(found: dict) -> str:
    """What the page shows of a result."""
    seconds, work, on_gpu = found["seconds"], found["work_s"], "gpu" in found["machine"]
    lines = ["| | views a second | of the bare forward pass, by time: median (quartiles) | by work |", "|---|---|---|---|"]
    for name, values in seconds.items():
        ratios = " | ".join(with_range(clock["bare forward"], clock[name]) for clock in (seconds, work))
        lines.append(f"| {name} | {found['views'] / statistics.median(values):.2f} | {ratios} |")
    lines += ["", "| stage of one block, alone | ms | ms of work | share of the work |", "|---|---|---|---|"]
    whole = sum(cpu for _, cpu in found["stages_s"].values())
    lines += [f"| {name} | {1000 * t:.1f} | {1000 * c:.1f} | {c / whole:.1%} |" for name, (t, c) in found["stages_s"].items()]
    clock = seconds if on_gpu else work
    best = max(ratio(clock["bare forward"], values) for name, values in clock.items() if name != "bare forward")
    words = f"at least 0.95x by {'time' if on_gpu else 'work'}"
    return "\n".join([*lines, "", f"Goal: {goal(words, best - 0.95, 'x')}. {measured_on(found['machine'])}"])


def staged(work: BlockFiller, task: plan.Task, device: str) -> dict[str, tuple[float, float]]:
    """Seconds and seconds of work of each stage of a block, alone, as `TeacherRunner` goes through them."""
    clock = [clocks()]
    found: dict[str, np.ndarray] = {}

    def stage(name):
        wait(device)
        clock.append(clocks())
        found[name] = found.get(name, np.zeros(2)) + clock[-1] - clock[-2]

    work.held = (-1, {})
    rows = work.images(task.block)
    matrices = np.stack([geometry.draw(work.views, image.id, 1, work.canvas) for image in work.store.block_images(task.block)])
    stage("read")
    found_rows: dict[str, list] = {name: [] for name in work.named}
    targets = [target for target, _ in work.named.values()]
    for start in range(0, len(matrices), work.answers.batch):
        part = slice(start, start + work.answers.batch)
        shown, labels = work.answers.seen(rows["image"][part], rows["label"][part], matrices[part])
        stage("copy and warp")
        output = work.answers.answer(shown, labels)
        stage("forward")
        values = {name: cache.computed(target, output, labels, work.context) for name, (target, _) in work.named.items()}
        stage("targets")
        cache.refuse_output(output, targets, start)
        for number, (name, (target, _)) in enumerate(work.named.items()):
            cache.refuse_values(values[name], target, number, labels, work.context, start)
        stage("check")
        for name, (target, _) in work.named.items():
            found_rows[name].append(target.encode(values[name]))
        stage("encode")
    work.store.write_block(cache.MATRIX, task.view, task.block, {"matrix": matrices})
    for name, (_, pass_) in work.named.items():
        fields = {field: np.concatenate([part[field] for part in found_rows[name]]) for field in found_rows[name][0]}
        work.store.write_block(pass_, task.view, task.block, fields)
    stage("write, read back")
    return {name: (float(wall), float(cpu)) for name, (wall, cpu) in found.items()}


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    main()
