"""What storing a target in fewer bits costs: bytes a row against the error of rows, of losses and of their gradients.

    $ python -m bench.precision configs/demo.yaml --student erfnet --run erfnet-plain-0 --page docs/precision.md

Needs the config's prepared store and cache and the teacher's weights. The teacher answers again; its float32 answers
are encoded and decoded in every type that a target offers, so that nothing but the codec differs. A loss is compared
with the same loss on float32 rows, one target changed at a time, at a student: that of `--run`, or a fresh one. Errors
of rows are relative to the row's largest magnitude; a gradient's is the norm of the difference at the student's output
over its norm. All are the largest seen. A loss on `top_classes` is compared with the same loss on the logits
themselves, if the file has such a target, so that what the tail has lost shows.
"""

import argparse
import dataclasses
import typing
from pathlib import Path

import torch

from bench.opened import Opened
from bench.page import insert
from pipeline import config, weights
from pipeline.progress import table_lines
from pipeline.store import plan
from pipeline.targets.base import TargetType
from pipeline.teacher import parity


def variants(target: TargetType) -> dict[str, TargetType]:
    """The target in every stored type it offers."""
    offered = typing.get_type_hints(type(target)).get("dtype")
    if offered is None:
        return {"as it is": target}
    keys: list[dict[str, typing.Any]] = [{"dtype": dtype} for dtype in typing.get_args(offered)]
    return {key["dtype"]: dataclasses.replace(target, **key) for key in keys}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--targets", nargs="+", help="these alone; the cache needs to hold none of them")
    parser.add_argument("--methods", nargs="+", help="the losses of these alone")
    parser.add_argument("--student", default="erfnet")
    parser.add_argument("--run", help="a run's folder below runs/<config>/, of this student; fresh weights without it")
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--root", type=Path, default=Path("cache"))
    parser.add_argument("--page", type=Path)
    parser.add_argument("--table", default="bench/precision.py", help="the table's name in the page")
    args = parser.parse_args()
    text = measure(args)
    print(text)
    if args.page:
        insert(args.page, args.table, text)


def measure(args) -> str:
    cfg = config.load(args.config, args.overrides)
    opened = Opened(cfg, args.root, args.device)
    context, plugin = opened.experiment.context, cfg.student(args.student)
    named = {name: opened.experiment.targets[name] for name in args.targets or opened.experiment.targets}
    whole = next((name for name in opened.experiment.targets if cfg.targets[name].name == "logits"), None)
    student = opened.student(plugin).eval()
    if args.run:
        run = Path("runs") / cfg.name / args.run / "weights.safetensors"
        weights.load_into(student, weights.load_file(run), str(run))
    loader, every = opened.loader(), tuple(dict.fromkeys([*named, *([whole] if whole else [])]))
    losses = {
        f"{config.term_name(terms, i)} ({method})": (term.reads, opened.loss(term, plugin))
        for method, terms in cfg.methods.items()
        if method in (args.methods or cfg.methods)
        for i, term in enumerate(terms)
        if set(term.reads) <= set(every)
    }

    rows: dict[tuple, float] = {}  # (target, dtype) -> largest error of a row
    terms: dict[tuple, tuple[float, float]] = {}  # (target, dtype, loss) -> largest error of value, of gradient
    for step in range(args.batches):
        batch, computed = loader.batch(step), opened.online(loader, step, every)
        output = student(batch.images_B3HW)
        for name, (target, _) in named.items():
            truth = {**computed, name: computed[whole]} if whole and cfg.targets[name].name == "top_classes" else computed
            for dtype, variant in variants(target).items():
                arrays = variant.encode(computed[name])
                stored = variant.decode({field: torch.from_numpy(array).to(args.device) for field, array in arrays.items()})
                error = parity.row_error(name, variant, stored, computed[name], context, cfg.teacher.precision).largest
                rows[name, dtype] = max(error, rows.get((name, dtype), 0.0))
                for loss, (reads, module) in losses.items():
                    if name in reads:
                        offline, online = batch.with_rows({**computed, name: stored}), batch.with_rows(truth)
                        apart = parity.loss_error(loss, module, output, offline, online)
                        value, gradient = terms.get((name, dtype, loss), (0.0, 0.0))
                        terms[name, dtype, loss] = (max(value, apart.difference), max(gradient, apart.gradient_difference))

    table: list[list[object]] = []
    for name, (target, _) in named.items():
        for dtype, variant in variants(target).items():
            num_bytes = sum(plan.field_bytes(field) for field in variant.fields(context).values())
            head = [f"{name} ({cfg.targets[name].name})", dtype, num_bytes, f"{rows[name, dtype]:.1e}"]
            found = [
                [loss, f"{value:.1e}", f"{gradient:.1e}"]
                for (n, d, loss), (value, gradient) in terms.items()
                if (n, d) == (name, dtype)
            ]
            table += [[*head, *cells] for cells in found or [["-"] * 3]]
    seen = args.batches * cfg.training.batch
    at = args.run or f"a fresh {args.student}"
    size = "x".join(map(str, context.size))
    lines = table_lines(["target", "stored as", "bytes a row", "row", "loss", "its value", "its gradient"], table)
    return "\n".join(
        [f"{seen} views of {cfg.name}, {size}, teacher {cfg.teacher.model.name}, student {at}, {args.device}:", "", *lines]
    )


if __name__ == "__main__":
    main()
