"""A student step with cached targets against the plain step and against a teacher in the loop, side by side in one run.

    $ python -m bench.step configs/demo.yaml --student erfnet --method intra

Needs the config's prepared store and cache. Steps of the three kinds take turns, so that what else the machine does falls on
all of them (on the CPU, seconds of work are counted); medians, and the medians of the ratios of steps side by side, are printed
and written as JSON with the machine's description. The next batch is made while a step runs, as in training. The plain step has
the same images and views, and no losses. A step on a batch that is at hand already shows what of a step is waiting for its
input. On a GPU, one more run under PyTorch's profiler counts the time in which nothing runs there. `--share 0.3` adds a step whose
losses have `weight: {gradient: 0.3}`; with `--together 20` each run has one measurement of the gradients' norms.
"""

import argparse
import dataclasses
import itertools
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from bench.machine import described, goal, measured_on, ratio, time_interleaved, wait, with_range, write_result
from bench.page import insert
from pipeline import config
from pipeline.config import GradientShare
from pipeline.models.base import set_precision
from pipeline.progress import table_lines
from pipeline.store import Reader
from pipeline.teacher import cache
from pipeline.teacher.experiment import Experiment
from pipeline.training import step as steps
from pipeline.training.loading import CachedTargets, Loader, ahead

BUSY_STEPS = 30


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--student", default="erfnet")
    parser.add_argument("--method", default="intra")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--together", type=int, help="steps of a kind in a row, for which no GPU waits; 10 there, 1 on the CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cached-only", action="store_true", help="leave out the teacher in the loop")
    parser.add_argument("--share", type=float, help="also the cached step with weights by gradient")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--root", type=Path, default=Path("cache"))
    parser.add_argument("--out", type=Path, default=Path("reports/bench/step.json"))
    parser.add_argument("--page", type=Path, help="a page whose table is to be replaced")
    args = parser.parse_args()
    cfg = config.load(args.config, args.overrides)
    device = args.device
    together = args.together or (10 if device.startswith("cuda") else 1)
    experiment = Experiment(cfg, args.root, Path("teachers") / f"{cfg.name}.safetensors")
    source, context, plugin, method = experiment.source, experiment.context, cfg.student(args.student), cfg.method(args.method)
    named = experiment.some_targets(dict.fromkeys(name for term in method for name in term.reads))
    store, passes = experiment.open_cache(named)
    samples, host_samples = experiment.samples(device=device), experiment.samples()
    rows = Reader(store, passes, experiment.ids, cfg.views.count, device=device, host=[cache.MATRIX])
    cached = CachedTargets(rows, cache.MATRIX, named)
    print(f"images: {samples.strategy}; rows: {cached.reader.strategy}")
    set_precision(cfg.training.precision)
    online = experiment.online_targets(named, host_samples, batch=cfg.training.batch, device=device)
    own = experiment.student_context(plugin)

    def loader(rows=None):
        return Loader.of(experiment, samples, cfg.training, seed=0, device=device, cached=rows)

    plain_loader, cached_loader, online_loader = loader(), loader(cached), loader(online)
    shares_K = plain_loader.class_shares() if cfg.training.class_weights == "enet" else None
    weights_K = steps.class_weights(source, cfg.training, device, shares_K)

    def student(terms):
        steps.reseed(0, 0)
        model = experiment.build(plugin).to(device)
        losses = [experiment.loss(term, own).to(device) for term in terms]
        for loss in losses:
            if loss.needs_scan:
                loss.scan(cached_loader.scan())
        return steps.Step(model, terms, losses, cfg.training, weights_K, 0)

    plain_step, cached_step, online_step = student(()), student(method), student(method)

    rounds = -(-args.steps // together)
    shown = range(1, 1 + (rounds + 1) * together + 2)  # gradient norms are measured at none of these steps
    assert shown.stop + BUSY_STEPS <= min(cfg.training.norm_every, cfg.training.steps), (
        "fewer --steps, or a larger norm_every, please"
    )
    plain_batches, cached_batches = ahead(plain_loader, shown), ahead(cached_loader, shown)
    online_numbers = iter(shown)

    at_hand, fixed_step = cached_loader.batch(1), student(method)
    work = {
        "plain": lambda: plain_step(next(plain_batches)),
        "from the cache": lambda: cached_step(next(cached_batches)),
        "its batch at hand": lambda: fixed_step(at_hand),
        "teacher in the loop": lambda: online_step(online_loader.batch(next(online_numbers))),
    }
    if args.cached_only:
        del work["teacher in the loop"]
    if args.share:
        shares = [dataclasses.replace(term, weight=GradientShare(gradient=args.share)) for term in method]
        weighed_step, weighed_batches = student(shares), ahead(cached_loader, shown)
        work["weights by gradient"] = lambda: weighed_step(next(weighed_batches))
    peaks: dict[str, int] = {}
    if device.startswith("cuda"):  # of a step, on top of what is held before; then its teacher
        for kind, once in work.items():
            once()
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            once()
            peaks[kind] = torch.cuda.max_memory_allocated() - held
        if not args.cached_only:
            peaks["teacher in the loop"] += sum(value.nbytes for value in online.answers.model.state_dict().values())
    in_a_row = {kind: lambda once=once: [once() for _ in range(together)] for kind, once in work.items()}
    seconds = {
        kind: [value / together for value in values] for kind, values in time_interleaved(in_a_row, rounds, device, warm=1).items()
    }
    kept = {
        memory: CachedTargets(Reader(store, passes, experiment.ids, cfg.views.count, memory=memory), cache.MATRIX, named)
        for memory in ("ram", "disk")
    }
    reading = time_interleaved({memory: reads(cached_loader, targets) for memory, targets in kept.items()}, args.steps, "cpu")
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    ratios = {kind: ratio(values, seconds["plain"]) for kind, values in seconds.items()}
    waits = 1 - ratio(seconds["its batch at hand"], seconds["from the cache"])
    print(f"{args.config}: {args.student}, {args.method}, batch {cfg.training.batch}, {context.size}, {described(device)}")
    head = ["step", "median ms", "against plain", *(["peak MiB"] if peaks else [])]
    lines = [
        [kind, f"{1000 * medians[kind]:.1f}", f"{ratios[kind]:.3f}x", *([f"{peaks[kind] / 2**20:.0f}"] if peaks else [])]
        for kind in work
    ]
    print(*table_lines(head, lines), sep="\n")
    print(f"waiting for input: {waits:.1%} of a step from the cache")
    print(
        *(f"reading rows from {memory}: {1000 * statistics.median(values):.3f} ms" for memory, values in reading.items()), sep="; "
    )
    if args.share:
        against = with_range(seconds["weights by gradient"], seconds["from the cache"])
        print(f"weights by gradient against those from the configuration, median (quartiles): {against}")
    found = {
        "config": str(args.config),
        "overrides": args.overrides,
        "student": args.student,
        "method": args.method,
        "steps": args.steps,
        "median_s": medians,
        "against_plain": ratios,
        "waits": waits,
        "reading": {memory: statistics.median(values) / medians["from the cache"] for memory, values in reading.items()},
        "seconds": seconds,
        "peak_bytes": peaks,
    }
    write_result(args.out, device, found)
    if args.page:
        insert(args.page, f"bench/step {cfg.name}", text({"machine": described(device), **found}))
    if device.startswith("cuda"):
        more = ahead(cached_loader, range(shown.stop, shown.stop + BUSY_STEPS))
        found["idle"] = idle(lambda: [cached_step(batch) for batch in more], device)
        print(f"nothing runs on the GPU: {found['idle']:.1%} of the time of {BUSY_STEPS} steps, with the profiler's own cost")
        write_result(args.out, device, found)


def reads(loader: Loader, targets: CachedTargets) -> Callable[[], None]:
    """Reads what a batch needs of a cache, of one step after the other."""
    steps = itertools.count()

    def once() -> None:
        positions, epochs = loader.positions(next(steps))
        numbers = loader.views_at(positions, epochs)
        targets.matrices(positions, numbers), targets.rows(positions, numbers, torch.from_numpy)

    return once


def text(found: dict) -> str:
    """What the page shows of a result."""
    seconds = found["seconds"]
    lines = ["| step | median ms | against plain, median (quartiles) |", "|---|---|---|"]
    for kind, values in seconds.items():
        lines.append(f"| {kind} | {1000 * found['median_s'][kind]:.1f} | {with_range(values, seconds['plain'])} |")
    goals = (
        f"Goals: {goal('from the cache at most 1.02x', 1.02 - found['against_plain']['from the cache'], 'x')}; "
        f"{goal('waiting for input at most 5 %', 5 - 100 * found['waits'], ' %')} ({found['waits']:.1%} of a step from the cache)."
    )
    reading = ", ".join(f"{share:.2%} from {memory}" for memory, share in found["reading"].items()).replace("ram", "RAM")
    read = f"Reading and decoding the rows and matrices of a batch, of a step from the cache: {reading}."
    return "\n".join([*lines, "", f"{goals} {read} {measured_on(found['machine'])}"])


def idle(work, device: str) -> float:
    """The share of the time from the first kernel to the last in which none ran and nothing was copied."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        work()
        wait(device)
    return gaps(
        [
            (event.time_range.start, event.time_range.end)
            for event in profiler.events()
            if event.device_type == torch.profiler.DeviceType.CUDA
        ]
    )


def gaps(spans: list[tuple[float, float]]) -> float:
    """What part of the time from the first beginning to the last end lies in no span."""
    spans, covered = sorted(spans), 0.0
    end = spans[0][0]
    for start, stop in spans:
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return 1 - covered / (end - spans[0][0])


if __name__ == "__main__":
    main()
