"""What each method stores, costs and needs, and what the studies found of it: `python -m bench.choosing`, for docs/methods.md.

The methods are those of configs/camvid-methods.yaml. Nothing is read but the tables in docs/studies: bytes follow from the targets'
fields; the time of a step is the CPU time of the method's losses, forward and backward, on random outputs of the teacher and the
student of that file, on one thread. Takes a minute. Numbers go to docs/results/choosing.json, the table into the page.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from bench.machine import described as machine
from bench.page import insert
from pipeline import config
from pipeline.datasets import camvid
from pipeline.files import write_json
from pipeline.losses.base import Batch
from pipeline.models.base import Output
from pipeline.progress import table_lines
from pipeline.reporting.statistics import compare
from pipeline.store import plan
from pipeline.targets.base import Context
from pipeline.teacher import cache

ROOT = Path(__file__).parents[1]
CONFIG, RESULT, PAGE = ROOT / "configs/camvid-methods.yaml", ROOT / "docs/results/choosing.json", ROOT / "docs/methods.md"
STUDIES = ("camvid-120", "roads", "markings")  # whose arms have the names of methods
LABELS = {"dkd", "bpkd", "dks"}  # losses that look at labels; targets say so themselves
BATCH, TIMES = 8, 3


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    cfg, classes = config.load(CONFIG), len(camvid.Dataset.classes)
    size, student = cfg.prepare.size, cfg.student(next(iter(cfg.students)))
    contexts = [cache.described(plugin, classes, range(classes), size) for plugin in (cfg.teacher.model, student)]
    studies = {name: scores(ROOT / f"docs/studies/{name}.tsv") for name in STUDIES}
    found: dict = {"machine": machine("cpu"), "size": list(contexts[0].size), "methods": {}}
    for method, terms in cfg.methods.items():
        if method == "plain":
            continue
        found["methods"][method] = measured(cfg, terms, *contexts) | {
            "studies": {name: against for name, arms in studies.items() if (against := arms.get(method))}
        }
        print(method, found["methods"][method], file=sys.stderr)
    write_json(RESULT, found)
    print(text := table(json.loads(RESULT.read_text())))
    insert(PAGE, "choosing", text)


def measured(cfg: config.Config, terms, teacher: Context, student: Context) -> dict:
    """Bytes of all that is read, CPU milliseconds of a step's losses, and what they need."""
    targets = {name: cfg.targets[name].build() for term in terms for name in term.reads}
    losses = [
        term.loss.build(reads={name: targets[name] for name in term.reads}, context=teacher, student=student) for term in terms
    ]
    answer = outputs(teacher, 0)
    labels_BHW = torch.zeros(BATCH, *teacher.size, dtype=torch.uint8)
    labels_BHW[:, teacher.size[0] // 3 :], labels_BHW[:, :, teacher.size[1] // 2 :] = 1, 2
    rows = {name: target.compute(answer, labels_BHW, teacher) for name, target in targets.items()}
    images = torch.zeros(BATCH, 3, *teacher.size)
    batch = Batch(images, labels_BHW, torch.ones_like(labels_BHW, dtype=torch.bool), None, rows, 0)
    for loss in losses:
        if loss.needs_scan:
            loss.scan([rows])
    needs = {"labels"} if any(target.uses_labels for target in targets.values()) else set()
    needs |= {"labels"} if LABELS & {term.loss.name for term in terms} else set()
    needs |= {"learnt parts"} if any(list(loss.parameters()) for loss in losses) else set()
    needs |= {"a scan of the cache"} if any(loss.needs_scan for loss in losses) else set()
    return {
        "bytes": sum(plan.field_bytes(field) for target in targets.values() for field in target.fields(teacher).values()),
        "ms": 1000 * min(step(losses, outputs(student, 1), batch) for _ in range(TIMES)),
        "needs": sorted(needs),
    }


def outputs(context: Context, seed: int) -> Output:
    generator = torch.Generator().manual_seed(seed)
    maps = {
        layer: torch.randn(BATCH, context.channels[layer], *grid, generator=generator).requires_grad_(seed > 0)
        for layer, grid in context.grids.items()
    }
    return Output(maps.pop("logits"), maps)


def step(losses, output: Output, batch: Batch) -> float:
    begin = time.process_time()
    sum(loss(output, batch) for loss in losses).backward()
    return time.process_time() - begin


def scores(path: Path) -> dict[str, dict]:
    """Of each arm but plain: its difference from plain on the first split, in points, with Welch's interval."""
    with open(path) as file:
        lines = [line for line in csv.DictReader(file, delimiter="\t") if line["seed"]]
    split = next(key for key in lines[0] if key not in ("arm", "seed"))
    arms: dict[str, list[float]] = {}
    for line in lines:
        arms.setdefault(line["arm"], []).append(float(line[split]))
    plain = arms.pop("plain")
    found = {}
    for arm, values in arms.items():
        against = compare(values, plain)
        found[arm] = {"mean": against.mean, "low": against.low, "high": against.high, "seeds": len(values)}
    return found


def table(found: Mapping) -> str:
    head = ["method", "bytes", "ms a step", "needs", *(f"{name}: against plain" for name in STUDIES)]
    height, width = found["size"]
    done_on = f"one thread of {found['machine']['processor']}, PyTorch {found['machine']['torch']}"
    lines = [
        f"{height} x {width}, the networks of `configs/camvid-methods.yaml`, {BATCH} images a step; CPU time of the losses alone, "
        f"forward and backward, on {done_on}:",
        "",
    ]
    rows = []
    for method, one in found["methods"].items():
        against = [shown(one["studies"].get(name)) for name in STUDIES]
        rows.append([method, f"{one['bytes']:,}", f"{one['ms']:.0f}", ", ".join(one["needs"]) or "-", *against])
    return "\n".join([*lines, *table_lines(head, rows)])


def shown(against: Mapping | None) -> str:
    if against is None:
        return "-"
    return f"{against['mean']:+.1f} [{against['low']:+.1f}, {against['high']:+.1f}], {against['seeds']} seeds"


if __name__ == "__main__":
    main()
