"""Every method of a file trained from one cache, and one table of what each of them stores, does and costs.

    $ python -m bench.methods configs/camvid-methods.yaml --page docs/methods.md

Does what is not done yet: prepares, trains the teacher, fills the cache, trains and scores a student with each method.
Broken off, it goes on where it stopped; a run that is finished is not made again. With every term of a method stand
- the bytes of the targets it reads, for one image and view;
- its value, unweighted, over the first and the last tenth of its steps;
- its value at the trained student, and in brackets at the plain one: less says that something was learnt which labels
  don't give;
- offline against online at the trained student: the relative difference between stored rows and the teacher's answers
  now, of the loss and (2-norms) of its gradient; and the largest error of a row as a share of what its target declares;
- its weighted gradient at the student's features against the cross-entropy's: median over the run, and largest.
"""

import argparse
import contextlib
import csv
import json
import statistics
import sys
from pathlib import Path

import torch
from torch import nn

from bench.opened import Opened
from bench.page import insert
from pipeline import config, lookup, weights
from pipeline.cli import main as pipeline_command
from pipeline.config import Term, term_name
from pipeline.files import write_json
from pipeline.progress import table_lines, table_row
from pipeline.store import plan
from pipeline.teacher import parity

SEED = 0
DEFAULT = Path(__file__).parents[1] / "configs" / "camvid-methods.yaml"
ELSEWHERE = {  # losses that this file cannot show -> why
    "existence_kd": "reads whether each lane is there, and CamVid has no lanes; for CULane and its like",
    "pseudo_labels": "stands for labels that are missing, and here every image has one; see few-labels.md",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, nargs="?", default=DEFAULT)
    parser.add_argument("--student", help="an entry of the file's `students`; the first without it")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="these methods (and plain)")
    parser.add_argument("--batches", type=int, default=4, help="on which offline and online are compared")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--root", type=Path, default=Path("cache"))
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    cfg = config.load(args.config)
    student = args.student or next(iter(cfg.students))
    methods = ["plain", *(name for name in args.only or cfg.methods if name != "plain")]
    place = ["--root", str(args.root)]
    for command in ("prepare", "train-teacher", "cache-teacher"):
        device = [] if command == "prepare" else ["--device", args.device]
        do(command, str(args.config), *place, *device)
    opened, found = Opened(cfg, args.root, args.device), {}
    for method in methods:
        found[method] = measured(args, opened, student, method, place)
        print(*rows(method, found[method]), sep="\n", file=sys.stderr, flush=True)
    text = page(opened, student, args, found)
    print(text)
    if args.page:
        insert(args.page, "bench/methods.py", text)


def do(*arguments: str) -> None:
    """A `pipeline` command; its error ends the program. What it prints is no result here."""
    with contextlib.redirect_stdout(sys.stderr):
        code = pipeline_command.main(list(arguments), standalone_mode=False)
    if code:
        sys.exit(code)


def measured(args, opened: Opened, student: str, method: str, place: list[str]) -> dict:
    """The method's run and scores made where they are missing, and what is read off them."""
    cfg, experiment, name = opened.cfg, opened.experiment, f"{student}-{method}-{SEED}"
    run, report = Path("runs") / cfg.name / name, Path("reports/bench/methods") / cfg.name / f"{name}.json"
    which = [str(args.config), "--student", student, "--method", method, "--seed", str(SEED), "--device", args.device]
    do("train-student", *which, *place)
    if report.exists() and report.stat().st_mtime > (run / "checkpoint.pt").stat().st_mtime:
        return json.loads(report.read_text())
    do("evaluate", *which)
    score = json.loads((Path("reports/scores") / cfg.name / f"{name}.json").read_text())
    terms = cfg.method(method)
    found = {"mean_iou": score["mean_iou"], "terms": {}}
    curves, norms = table(run / "curves.tsv"), table(run / "norms.tsv")
    for i, term in enumerate(terms):
        key = term_name(terms, i)
        curve = [value for row in curves if (value := row.get(key)) is not None]
        tenth = max(1, len(curve) // 10)
        shares = [norm / ce for row in norms if (norm := row.get(key)) is not None and (ce := row["ce"])]
        found["terms"][key] = {
            "loss": term.loss.name,
            "reads": {read: cfg.targets[read].name for read in term.reads},
            "weight": term.weight,
            "bytes": sum(
                plan.field_bytes(field)
                for read in term.reads
                for field in experiment.targets[read][0].fields(experiment.context).values()
            ),
            "first": statistics.fmean(curve[:tenth]),
            "last": statistics.fmean(curve[-tenth:]),
            "share": statistics.median(shares),
            "largest_share": max(shares),
        }
    for key, values in compared(opened, student, terms, run, args.batches).items():
        found["terms"][key] |= values
    write_json(report, found)
    return found


def table(path: Path) -> list[dict[str, float | None]]:
    with open(path) as file:
        return [
            {key: float(value) if value else None for key, value in row.items()} for row in csv.DictReader(file, delimiter="\t")
        ]


def compared(opened: Opened, student: str, terms: tuple[Term, ...], run: Path, batches: int) -> dict[str, dict]:
    """Each term of the trained student and of the plain one, with stored rows and with the teacher's."""
    cfg, experiment, plugin = opened.cfg, opened.experiment, opened.cfg.student(student)
    reads = tuple({read: None for term in terms for read in term.reads})
    losses = nn.ModuleList(opened.loss(term, plugin) for term in terms)
    loader = opened.loader(reads)
    losses.load_state_dict(torch.load(run / "checkpoint.pt", map_location=opened.device, weights_only=True)["losses"])
    networks = []
    for name in (run.name, f"{student}-plain-{SEED}"):
        network = opened.student(plugin)
        weights.load_into(network, weights.load_file(run.parent / name / "weights.safetensors"), name)
        networks.append(network.eval())
    losses.eval()
    keys = [term_name(terms, i) for i in range(len(terms))]
    nothing = {"value": 0.0, "plain": None, "loss_error": 0.0, "gradient_error": 0.0, "of_declared": 0.0}
    found: dict[str, dict] = {key: dict(nothing) for key in keys}
    for step in range(batches):
        offline = loader.batch(step)
        online = offline.with_rows(opened.online(loader, step, reads))
        excess = {
            read: parity.row_error(
                read,
                experiment.targets[read][0],
                offline.rows[read],
                online.rows[read],
                experiment.context,
                cfg.teacher.precision,
            ).excess
            for read in reads
        }
        output = networks[0](offline.images_B3HW)
        with torch.no_grad():
            plain = networks[1](offline.images_B3HW)
        for key, term, loss in zip(keys, terms, losses):
            values = found[key]
            error = parity.loss_error(key, loss, output, offline, online)
            values["value"] += error.online / batches
            if not list(loss.parameters()):  # or they were learnt beside the other student: they say nothing
                values["plain"] = (values["plain"] or 0.0) + float(loss(plain, online).detach()) / batches
            values["loss_error"] = max(values["loss_error"], error.difference)
            values["gradient_error"] = max(values["gradient_error"], error.gradient_difference)
            values["of_declared"] = max([values["of_declared"], *(excess[read] for read in term.reads)])
    return found


HEAD = (
    "method",
    "mIoU",
    "loss",
    "reads",
    "bytes",
    "weight",
    "first",
    "last",
    "trained (plain)",
    "loss off by",
    "gradient off by",
    "of declared",
    "gradient / CE",
)


def rows(method: str, found: dict) -> list[str]:
    """Lines of the table, one a term."""
    score, lines = f"{100 * found['mean_iou']:.1f}", []
    for values in found["terms"].values():
        plain = "" if values["plain"] is None else f" ({values['plain']:.3g})"
        reads = values["reads"]
        cells = [
            method,
            score,
            f"`{values['loss']}`",
            ", ".join(dict.fromkeys(reads.values())) or "-",
            f"{values['bytes']:,}",
            f"{values['weight']:g}",
            f"{values['first']:.3g}",
            f"{values['last']:.3g}",
            f"{values['value']:.3g}{plain}",
        ]
        errors = [f"{values['loss_error']:.0e}", f"{values['gradient_error']:.0e}", f"{values['of_declared']:.2f}"]
        cells += errors if reads else ["-"] * len(errors)
        lines.append(table_row([*cells, f"{values['share']:.2g} ({values['largest_share']:.2g})"]))
        method = score = ""
    return lines or [table_row([method, score, *["-"] * (len(HEAD) - 2)])]


def page(opened: Opened, student: str, args, found: dict[str, dict]) -> str:
    cfg = opened.cfg
    size, teacher, training = " x ".join(map(str, opened.experiment.context.size)), cfg.teacher.model, cfg.training
    lines = [
        f"{cfg.name}: {size}, teacher {teacher.name} of width {teacher.args.get('width')}, student {student} of width "
        f"{cfg.student(student).args.get('width')}, {training.steps} steps of {training.batch} images, seed {SEED}, "
        f"{args.device}; mIoU on `{cfg.evaluate.split}`; compared on {args.batches * training.batch} views:",
        "",
        *table_lines(HEAD, []),
    ]
    for method, values in found.items():
        lines += rows(method, values)
    shown = {values["loss"] for method in found.values() for values in method["terms"].values()}
    if left := [loss for loss in lookup.names("losses") if loss not in shown]:
        lines += ["", "Not in the table:", ""]
        lines += [f"- `{loss}`: {ELSEWHERE.get(loss, 'no method that was run here uses it')}" for loss in left]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
