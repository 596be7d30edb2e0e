"""A student step with cached targets against the plain step and against a teacher in the loop, side by side in one run.

    $ python -m bench.step configs/demo.yaml --student erfnet --method intra

Needs the config's prepared store and cache. Steps of the three kinds alternate, so that what else the machine does falls on
all of them; medians and their ratios are printed and written as JSON with the machine's description.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from pipeline import cache, config, prepared, training as steps, weights
from pipeline.loading import CachedTargets, Loader
from pipeline.models.base import set_precision
from pipeline.store import Reader, Store
from stages.verify import live_rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--student", default="erfnet")
    parser.add_argument("--method", default="intra")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--root", type=Path, default=Path("cache"))
    parser.add_argument("--out", type=Path, default=Path("reports/bench/step.json"))
    args = parser.parse_args()
    cfg = config.load(args.config)
    source, device = cfg.dataset.build(), args.device
    ids = source.ids("train")
    pixels, sample, _ = prepared.open_whole(args.root, cfg.dataset, source, cfg.prepare, ids)
    context = cache.context(cfg.teacher.model, source, cfg.prepare.size)
    method = cfg.method(args.method)
    named = cache.target_passes({name: cfg.targets[name] for term in method for name in term.reads}, context)
    state = weights.load_file(Path("teachers") / f"{cfg.name}.safetensors")
    store = Store.find(args.root, "targets", cfg.dataset.name,
                       cache.identity(source, cfg.prepare, cfg.views, cfg.teacher, weights.digest(state)))
    samples = Reader(pixels, [sample], ids, 1)
    reader = Reader(store, [cache.MATRIX, *(pass_ for _, pass_ in named.values())], ids, cfg.views.count)
    cached = CachedTargets(reader, cache.MATRIX, named)
    teacher = cache.build_teacher(cfg.teacher, source, cfg.prepare.size)
    weights.load_into(teacher, state, "teacher")
    set_precision(cfg.training.precision)
    answers = cache.Answers(teacher, source, context, cfg.prepare.size, precision=cfg.teacher.precision, batch=cfg.training.batch,
                            device=device)
    own = cache.context(cfg.student(args.student), source, cfg.prepare.size)

    def student(terms):
        steps.reseed(0, 0)
        model = cfg.student(args.student).build(num_classes=len(source.classes), size=context.size, lanes=0).to(device)
        losses = [t.loss.build(reads={n: named[n][0] for n in t.reads}, context=context, student=own).to(device) for t in terms]
        return steps.Step(model, terms, losses, cfg.training, steps.class_weights(source, cfg.training, device), 0)

    def loader(with_rows):
        return Loader(samples, sample, ids, dataset=source, content=cfg.prepare.size, views=cfg.views, training=cfg.training,
                      seed=0, device=device, cached=cached if with_rows else None)
    plain_step, cached_step, online_step = student(()), student(method), student(method)
    plain_loader, cached_loader = loader(False), loader(True)

    def plain(number):
        plain_step(plain_loader.batch(number))

    def from_cache(number):
        cached_step(cached_loader.batch(number))

    def online(number):
        batch = plain_loader.batch(number)
        positions, epochs = plain_loader.positions(number)
        online_step(batch.with_rows(live_rows(answers, samples, sample, reader, named, positions,
                                              plain_loader.views_at(positions, epochs))))

    times, peaks = {"plain": [], "from the cache": [], "teacher in the loop": []}, {}
    for number in range(1, args.steps + 4):                     # the first three warm up; gradient norms are measured at none
        for kind, step in zip(times, (plain, from_cache, online)):
            if device.startswith("cuda"):
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            step(number if number % cfg.training.norm_every else number + 1)
            if device.startswith("cuda"):
                torch.cuda.synchronize()
                peaks[kind] = max(peaks.get(kind, 0), torch.cuda.max_memory_allocated())
            times[kind].append(time.perf_counter() - start)
    medians = {kind: statistics.median(values[3:]) for kind, values in times.items()}
    ratios = {kind: statistics.median(a / b for a, b in zip(values[3:], times["plain"][3:])) for kind, values in times.items()}
    machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__,
               "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"}
    print(f"{args.config}: {args.student}, {args.method}, batch {cfg.training.batch}, {context.size}, {machine}")
    print("| step | median ms | against plain |", "|---|---|---|", sep="\n")
    for kind in times:
        print(f"| {kind} | {1000 * medians[kind]:.1f} | {ratios[kind]:.3f}x |" + (f" peak {peaks[kind] / 2**20:.0f} MiB" if peaks else ""))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"machine": machine, "config": str(args.config), "median_s": medians, "against_plain": ratios,
                                    "peak_bytes": peaks}, indent=1) + "\n")


if __name__ == "__main__":
    main()
