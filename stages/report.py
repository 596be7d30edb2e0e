"""One table of an experiment: teacher and students, and what they scored."""

import json
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.files import write_text


def run(*, scores: Path, out: Path) -> str:
    """Reads every score under the folder `scores`; writes a Markdown table with the difference to `plain` of the same student
    and seed, in points of the dataset's own metric, and returns it."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(scores.glob("*.json"))}
    if not found:
        raise PipelineError(f"{scores}: no scores yet; run `pipeline evaluate` (or `dvc repro`) first")
    metric = next(iter(found.values()))["metric"]
    others = ["mean_iou"] if metric != "mean_iou" else []
    lines = [f"| run | {metric} | against plain |" + "".join(f" {name} |" for name in others) + " images |",
             "|---|---|---|" + "---|" * len(others) + "---|"]
    for name in sorted(found, key=lambda name: (name != "teacher", name)):
        score, base = found[name], found.get(plain_of(name))
        difference = ""
        if base is not None and base is not score and None not in (base[metric], score[metric]):
            difference = f"{100 * (score[metric] - base[metric]):+.2f}"
        lines.append(f"| {name} | {points(score[metric])} | {difference} |"
                     + "".join(f" {points(score[other])} |" for other in others) + f" {score['images']} |")
    table = "\n".join(lines)
    write_text(out, table + "\n")
    return table


def points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def plain_of(run_name: str) -> str:
    """`erfnet-intra-0` -> `erfnet-plain-0`: the run with the same student and seed and no distillation."""
    student, _, rest = run_name.partition("-")
    method, _, seed = rest.rpartition("-")
    return f"{student}-plain-{seed}"
