"""What a validation while training costs (`training.validate_every`): its time beside that of a plain step.

    $ python -m bench.validation configs/camvid-cpu.yaml

Needs the config's prepared store. Prints the median of a step on cross-entropy alone, the first validation, which decodes the
frames of the split val, the median of those that follow, and what part of the training's time they are every so many steps.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from bench.machine import described, time_interleaved, wait, write_result
from pipeline import config
from pipeline.models.base import set_precision
from pipeline.teacher.experiment import Experiment
from pipeline.training import step as steps
from pipeline.training.loading import Loader, ahead
from pipeline.training.validation import Validation


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--student", default="erfnet")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--root", type=Path, default=Path("cache"))
    parser.add_argument("--out", type=Path, default=Path("reports/bench/validation.json"))
    args = parser.parse_args()
    cfg, device = config.load(args.config, args.overrides), args.device
    experiment = Experiment(cfg, args.root, Path("teachers") / f"{cfg.name}.safetensors")
    source = experiment.source
    set_precision(cfg.training.precision)
    loader = Loader.of(experiment, experiment.samples(device=device), cfg.training, seed=0, device=device)
    weights_K = steps.class_weights(source, cfg.training, device, loader.class_shares())
    model = experiment.build(cfg.student(args.student)).to(device)
    step = steps.Step(model, [], [], cfg.training, weights_K, seed=0)
    validation = Validation(source, cfg.prepare, cfg.training, cfg.evaluate, weights_K)
    wait(device)
    (first,) = time_interleaved({"first": lambda: validation(step.model)}, 1, device, warm=0, clock=time.perf_counter)["first"]
    batches = ahead(loader, range(args.steps + 2))
    seconds = time_interleaved({"step": lambda: step(next(batches))}, args.steps, device, clock=time.perf_counter)
    seconds |= time_interleaved({"validation": lambda: validation(step.model)}, 5, device, warm=1, clock=time.perf_counter)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"machine: {described(device)}")
    print(f"a step of {cfg.training.batch} images: {medians['step']:.3f} s")
    print(f"a validation of {len(validation.ids)} frames: {first:.2f} s the first time, {medians['validation']:.2f} s from then on")
    for every in args.every:
        part = medians["validation"] / (every * medians["step"])
        print(f"validate_every: {every}: {100 * part:.1f} % more time")
    write_result(args.out, device, {"first": first, **medians, "frames": len(validation.ids), "config": str(args.config)})


if __name__ == "__main__":
    main()
