"""One table of an experiment: teacher and students, what they scored and what they cost."""

import json
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.files import write_text


def run(*, scores: Path, out: Path) -> str:
    """Reads every score under the folder `scores`; writes a Markdown table with the difference to `plain` of the same student
    and seed, and returns it."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(scores.glob("*.json"))}
    if not found:
        raise PipelineError(f"{scores}: no scores yet; run `pipeline evaluate` (or `dvc repro`) first")
    lines = ["| run | mean IoU | against plain | images |", "|---|---|---|---|"]
    for name in sorted(found, key=lambda name: (name != "teacher", name)):
        score = found[name]["mean_iou"]
        base = found.get(plain_of(name))
        against = "" if base is None or name == plain_of(name) else f"{100 * (score - base['mean_iou']):+.2f}"
        lines.append(f"| {name} | {100 * score:.2f} | {against} | {found[name]['images']} |")
    table = "\n".join(lines)
    write_text(out, table + "\n")
    return table


def plain_of(run_name: str) -> str:
    """`erfnet-intra-0` -> `erfnet-plain-0`: the run with the same student and seed and no distillation."""
    student, _, rest = run_name.partition("-")
    method, _, seed = rest.rpartition("-")
    return f"{student}-plain-{seed}"
