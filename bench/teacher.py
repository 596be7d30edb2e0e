"""Make the ResNet-101 that the demo learns from: draw its scenes, train it, score it, and pack it as float16.

    $ python -m bench.teacher            # or: make teacher. Resumable; on two CPU cores it takes hours

Writes configs/teachers/roads-resnet101.safetensors, docs/results/teacher.json, and the table of docs/roads-teacher.md. The
packed file is what is scored, on the test split of configs/roads-teacher.yaml and on the demo's.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from bench.machine import described
from bench.page import insert
from pipeline import config, weights
from pipeline.progress import table_lines
from stages import evaluate

CONFIG, DEMO = Path("configs/roads-teacher.yaml"), Path("configs/demo.yaml")
PACKED = Path("configs/teachers/roads-resnet101.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--score-only", action="store_true", help="the packed file is there; score it and write the table")
    parser.add_argument("--out", type=Path, default=Path("docs/results/teacher.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/roads-teacher.md"))
    args = parser.parse_args()
    if not args.score_only:
        for command in ("synth", "prepare", "train-teacher"):
            subprocess.run([sys.executable, "-m", "pipeline.cli", command, str(CONFIG)], check=True)
        pack(Path(f"teachers/{CONFIG.stem}.safetensors"))
    subprocess.run([sys.executable, "-m", "pipeline.cli", "synth", str(DEMO)], check=True)
    cfg = config.load(CONFIG)
    training = cfg.teacher_training
    assert training, f"{CONFIG}: no teacher_training"
    history = Path(f"runs/{CONFIG.stem}/teacher/history.jsonl")
    spent = [json.loads(line) for line in history.read_text().splitlines()] if history.exists() else []
    before = json.loads(args.out.read_text()) if args.out.exists() else {}
    found = {
        "machine": described("cpu"),
        "bytes": PACKED.stat().st_size,
        "parameters": sum(value.numel() for value in weights.load_file(PACKED).values() if value.is_floating_point()),
        "images": cfg.dataset.args["train"],
        "steps": training.steps,
        "batch": training.batch,
        "training_seconds": sum(line["seconds"] for line in spent) or before.get("training_seconds"),
        "scores": {"roads-teacher test": scored(CONFIG, "test"), "demo test": scored(DEMO, "test")},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    insert(args.page, "teacher", table(found))
    print(table(found))


def pack(path: Path) -> None:
    """Float16 for all that is a float; counters as they are."""
    state = weights.load_file(path)
    PACKED.parent.mkdir(parents=True, exist_ok=True)
    weights.save_file(PACKED, {name: value.half() if value.is_floating_point() else value for name, value in state.items()})


def scored(path: Path, split: str) -> dict:
    cfg = config.load(path, [f"teacher.checkpoint={PACKED}", f"evaluate.split={split}"])
    report = Path("reports/bench/teacher") / f"{path.stem}-{split}.json"
    torch.set_num_threads(os.cpu_count() or 1)
    evaluate.run(
        dataset=cfg.dataset,
        prepare=cfg.prepare,
        training=None,
        evaluate=cfg.evaluate,
        model=cfg.teacher.model,
        weights_file=PACKED,
        report=report,
        picture=report.with_suffix(".png"),
        predictions=report.with_suffix(""),
        device="cpu",
        batch=8,
        workers=os.cpu_count() or 1,
    )
    scores = json.loads(report.read_text())
    return {name: scores[name] for name in ("images", "culane_f1", "mean_iou")}


def table(found: dict) -> str:
    rows = [(name, s["images"], f"{100 * s['culane_f1']:.2f}", f"{100 * s['mean_iou']:.2f}") for name, s in found["scores"].items()]
    seconds, machine = found["training_seconds"], found["machine"]
    hours = f"{seconds / 3600:.1f} hours" if seconds else "-"
    return "\n".join(
        [
            *table_lines(["scored on", "frames", "CULane F1", "mean IoU"], rows),
            "",
            f"{found['parameters'] / 1e6:.2f} M parameters, {found['bytes'] / 1e6:.1f} MB in float16; {found['steps']:,} steps of "
            f"{found['batch']} on {found['images']:,} scenes took {hours} on {machine['processor']}, one thread.",
        ]
    )


if __name__ == "__main__":
    main()
