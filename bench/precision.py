"""What storing a target in fewer bits costs: bytes a row against the error of rows, of losses and of their gradients.

    $ python -m bench.precision configs/demo.yaml --student erfnet --run erfnet-plain-0 --page docs/precision.md

Needs the config's prepared store and cache and the teacher's weights. The teacher answers again; its float32 answers
are encoded and decoded in every type that a target offers, so that nothing but the codec differs. A loss is compared
with the same loss on float32 rows, one target changed at a time, at a student: that of `--run`, or a fresh one. Errors
of rows are relative to the row's largest magnitude; a gradient's is the norm of the difference at the student's output
over its norm. All are the largest seen.
"""

import argparse
import dataclasses
import typing
from pathlib import Path

import torch

from bench.page import insert
from pipeline import cache, config, parity, plan, prepared, weights
from pipeline.loading import CachedTargets, Loader
from pipeline.models.base import set_precision
from pipeline.store import Reader, Store
from pipeline.targets.base import TargetType
from stages.verify import live_rows, tensors


def variants(target: TargetType) -> dict[str, TargetType]:
    """The target in every stored type it offers."""
    offered = typing.get_type_hints(type(target)).get("dtype")
    if offered is None:
        return {"as it is": target}
    return {dtype: dataclasses.replace(target, dtype=dtype) for dtype in typing.get_args(offered)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--student", default="erfnet")
    parser.add_argument("--run", help="a run's folder below runs/<config>/, of this student; fresh weights without it")
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--root", type=Path, default=Path("cache"))
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    text = measure(args)
    print(text)
    if args.page:
        insert(args.page, "bench/precision.py", text)


def measure(args) -> str:
    cfg, device = config.load(args.config), args.device
    source, weights_file = cfg.dataset.build(), Path("teachers") / f"{cfg.name}.safetensors"
    pixels, sample, images = prepared.open_whole(args.root, cfg.dataset, source, cfg.prepare, source.ids("train"))
    ids = [image.id for image in images]
    context = cache.context(cfg.teacher.model, source, cfg.prepare.size)
    named = cache.target_passes(cfg.targets, context)
    store = Store.find(args.root, "targets", cfg.dataset.name, cache.identity(
        source, cfg.prepare, cfg.views, cfg.teacher, cache.weights_digest(cfg.teacher, weights_file)))
    set_precision(cfg.teacher.precision)
    teacher = cache.build_teacher(cfg.teacher, source, cfg.prepare.size)
    weights.load_into(teacher, weights.load_file(weights_file), str(weights_file))
    answers = cache.Answers(teacher, source, context, cfg.prepare.size, precision=cfg.teacher.precision,
                            batch=cfg.training.batch, device=device)
    samples, reader = Reader(pixels, [sample], ids, 1), Reader(store, [cache.MATRIX], ids, cfg.views.count)
    plugin = cfg.student(args.student)
    torch.manual_seed(0)
    lanes = source.lanes if cfg.training.existence_weight else 0
    student = plugin.build(num_classes=len(source.classes), size=context.size, lanes=lanes).to(device).eval()
    if args.run:
        run = Path("runs") / cfg.name / args.run / "weights.safetensors"
        weights.load_into(student, weights.load_file(run), str(run))
    own = cache.context(plugin, source, cfg.prepare.size, lanes)
    losses = {}
    for method, terms in cfg.methods.items():
        for i, term in enumerate(terms):
            torch.manual_seed(0)
            reads = {name: named[name][0] for name in term.reads}
            built = term.loss.build(reads=reads, context=context, student=own).to(device)
            losses[f"{config.term_name(terms, i)} ({method})"] = term.reads, built
    loader = Loader(samples, sample, ids, dataset=source, content=cfg.prepare.size, views=cfg.views,
                    training=dataclasses.replace(cfg.training, fresh_views=False), seed=0, device=device,
                    cached=CachedTargets(reader, cache.MATRIX, {}))

    rows: dict[tuple, float] = {}                # (target, dtype) -> largest error of a row
    terms: dict[tuple, tuple[float, float]] = {}         # (target, dtype, loss) -> largest error of value, of gradient
    for step in range(args.batches):
        batch = loader.batch(step)
        positions, epochs = loader.positions(step)
        live = live_rows(answers, samples, sample, reader, named, positions, loader.views_at(positions, epochs))
        output = student(batch.images_B3HW)
        for name, (target, _) in named.items():
            for dtype, variant in variants(target).items():
                stored = variant.decode(tensors(variant.encode(live[name]), device))
                error = parity.row_error(name, variant, stored, live[name], context, cfg.teacher.precision).largest
                rows[name, dtype] = max(error, rows.get((name, dtype), 0.0))
                for loss, (reads, module) in losses.items():
                    if name in reads:
                        offline, online = batch.with_rows({**live, name: stored}), batch.with_rows(live)
                        found = parity.loss_error(loss, module, output, offline, online)
                        value, gradient = terms.get((name, dtype, loss), (0.0, 0.0))
                        terms[name, dtype, loss] = (max(value, found.difference),
                                                    max(gradient, found.gradient_difference))

    lines = ["| target | stored as | bytes a row | row | loss | its value | its gradient |", "|---" * 7 + "|"]
    for name, (target, pass_) in named.items():
        for dtype, variant in variants(target).items():
            size = sum(plan.field_bytes(field) for field in variant.fields(context).values())
            head = f"| {name} ({cfg.targets[name].name}) | {dtype} | {size} | {rows[name, dtype]:.1e} |"
            found = [f" {loss} | {value:.1e} | {gradient:.1e} |" for (n, d, loss), (value, gradient) in terms.items()
                     if (n, d) == (name, dtype)]
            lines += [head + cells for cells in found or [" - | - | - |"]]
    seen = args.batches * cfg.training.batch
    at = args.run or f"a fresh {args.student}"
    size = "x".join(map(str, context.size))
    return "\n".join([f"{seen} views of {cfg.name}, {size}, teacher {cfg.teacher.model.name}, student {at}, {device}:",
                      "", *lines])


if __name__ == "__main__":
    main()
