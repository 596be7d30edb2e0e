"""The demo's students under other arithmetic, as other machines would train them: does the verdict hold?

    $ make demo                    # or: dvc repro cache-teacher@demo
    $ python -m bench.demo

Threads, PyTorch's vector instructions and oneDNN's change the last bits of every sum, and a training of a thousand steps turns
these into other weights. Each setting trains every arm with the same seeds in a process of its own, scored on the demo's test
split:

    plain    no targets
    intra    IntRA-KD from the cache
    long     plain, for the time that `intra` and the teacher's pass over the data take together; in the first setting only

A cell that is done is not done again. The table goes to docs/demo.md, the scores to docs/results/demo-arithmetic.json. The exit
status is 1 unless in every setting the mean of `intra` is above the mean of `plain`, over all settings by more than twice the
standard error, and no run collapsed to one class.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pipeline.progress import table_lines

CONFIG = Path("configs/demo.yaml")
SETTINGS = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "two threads": {"OMP_NUM_THREADS": "2"},
    "PyTorch without vector instructions": {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default"},
    "oneDNN with SSE 4.1": {"OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "oneDNN with AVX": {"OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "AVX", "ATEN_CPU_CAPABILITY": "avx2"},
}
ARMS = {"plain": ("plain", []), "intra": ("intra", []), "long": ("plain", ["training.steps={long}"])}
STUDENT = "erfnet"


def arms(setting: str) -> list[str]:
    return [arm for arm in ARMS if arm != "long" or setting == next(iter(SETTINGS))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells of one thread at a time")
    parser.add_argument("--long", type=int, help="steps of `long`; measured from the first cells if left out")
    parser.add_argument("--folder", type=Path, default=Path("runs/demo-arithmetic"))
    parser.add_argument("--page", type=Path, default=Path("docs/demo.md"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/demo-arithmetic.json"))
    parser.add_argument("--cell", nargs=3, metavar=("SETTING", "ARM", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        return train_and_score(args.folder, args.cell[0], args.cell[1], int(args.cell[2]), args.long)
    long = args.long or steps_of_equal_time(args.folder)
    cells = [(setting, arm, seed) for seed in range(args.seeds) for setting in SETTINGS for arm in arms(setting)]
    single = [cell for cell in cells if SETTINGS[cell[0]]["OMP_NUM_THREADS"] == "1"]

    def done(cell: tuple[str, str, int]) -> None:
        in_a_process(args.folder, *cell, long)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(done, single))
    for cell in cells:
        done(cell)
    found = summary(args.folder, args.seeds, long)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    write_table(found, args.page)
    print(table(found))
    sys.exit(not all(found["verdict"].values()))


def in_a_process(folder: Path, setting: str, arm: str, seed: int, long: int | None) -> dict:
    """The cell's scores; trains and scores it first where that is not done."""
    file = cell_folder(folder, setting, arm, seed) / "cell.json"
    if not file.exists():
        command = [sys.executable, "-m", "bench.demo", "--folder", folder, "--cell", setting, arm, seed]
        command += ["--long", long] if long else []
        subprocess.run(list(map(str, command)), env=os.environ | SETTINGS[setting], check=True)
    return json.loads(file.read_text())


def cell_folder(folder: Path, setting: str, arm: str, seed: int) -> Path:
    return folder / setting.replace(" ", "-").lower() / f"{arm}-{seed}"


def train_and_score(folder: Path, setting: str, arm: str, seed: int, long: int | None) -> None:
    """One cell, in a process that has the setting's environment."""
    from pipeline import config
    from pipeline.teacher.experiment import Experiment
    from stages import evaluate, train_student

    method, changes = ARMS[arm]
    cfg = config.load(CONFIG, [change.format(long=long) for change in changes])
    own, student = cell_folder(folder, setting, arm, seed), cfg.student(STUDENT)
    began = time.process_time()
    train_student.run(
        Experiment(cfg, Path("cache"), Path(f"teachers/{CONFIG.stem}.safetensors")),
        student=STUDENT,
        method=method,
        seed=seed,
        folder=own,
        device="cpu",
    )
    seconds = time.process_time() - began
    report = own / "scores.json"
    evaluate.run(
        dataset=cfg.dataset,
        prepare=cfg.prepare,
        training=cfg.training,
        evaluate=cfg.evaluate,
        model=student,
        weights_file=own / "weights.safetensors",
        report=report,
        picture=report.with_suffix(".png"),
        predictions=own / "predictions",
        device="cpu",
        batch=8,
        workers=1,
    )
    scores = json.loads(report.read_text())
    (own / "cell.json").write_text(
        json.dumps(
            {"f1": scores["culane_f1"], "mean_iou": scores["mean_iou"], "one_class": scores["one_class"], "cpu_seconds": seconds}
        )
        + "\n"
    )


def steps_of_equal_time(folder: Path) -> int:
    """Steps of plain training that take as long as a run of `intra` and the teacher's pass, by CPU seconds of the first cells."""
    from pipeline import config

    plain, intra = (in_a_process(folder, "one thread", arm, 0, None)["cpu_seconds"] for arm in ("plain", "intra"))
    steps = config.load(CONFIG).training.steps
    return round(steps * (intra + teacher_pass_seconds()) / plain / 10) * 10


def teacher_pass_seconds() -> float:
    """CPU seconds of the teacher's pass over the stored views: of one batch, times their number."""
    import torch

    from pipeline import config
    from pipeline.teacher import cache

    torch.set_num_threads(1)
    cfg = config.load(CONFIG)
    source = cfg.dataset.build()
    network = cache.load_teacher(cfg.teacher, source, cfg.prepare.size, Path(f"teachers/{CONFIG.stem}.safetensors"))
    batch = torch.rand(8, 3, *cfg.prepare.size) * 255
    seconds = []
    with torch.no_grad():
        for _ in range(4):
            began = time.process_time()
            network(batch)
            seconds.append(time.process_time() - began)
    return min(seconds) / len(batch) * len(source.ids("train")) * cfg.views.count


def summary(folder: Path, seeds: int, long: int) -> dict:
    from bench.machine import described

    scores = {
        setting: {arm: [in_a_process(folder, setting, arm, seed, long) for seed in range(seeds)] for arm in arms(setting)}
        for setting in SETTINGS
    }
    teacher = json.loads(Path(f"reports/scores/{CONFIG.stem}/teacher.json").read_text())["culane_f1"]
    f1 = {setting: {arm: [cell["f1"] for cell in cells] for arm, cells in found.items()} for setting, found in scores.items()}
    pairs = np.array([np.mean(found["intra"]) - np.mean(found["plain"]) for found in f1.values()])
    differences = np.array([a - b for found in f1.values() for a, b in zip(found["intra"], found["plain"])])
    error = differences.std(ddof=1) / len(differences) ** 0.5
    collapsed = [
        f"{setting}, {arm}, seed {seed}"
        for setting, found in scores.items()
        for arm, cells in found.items()
        for seed, cell in enumerate(cells)
        if cell["one_class"]
    ]
    return {
        "machine": described("cpu"),
        "seeds": seeds,
        "long_steps": long,
        "teacher": teacher,
        "f1": f1,
        "collapsed": collapsed,
        "seconds": {arm: float(np.median([c["cpu_seconds"] for s in scores.values() for c in s.get(arm, [])])) for arm in ARMS},
        "gain": float(differences.mean()),
        "standard_error": float(error),
        "verdict": {
            "intra above plain in every setting": bool((pairs > 0).all()),
            "over all by more than two standard errors": bool(differences.mean() > 2 * error),
            "no run collapsed": not collapsed,
        },
    }


def table(found: dict) -> str:
    """F1 in points, mean and standard deviation over seeds, a row each setting."""

    def cell(values):
        return f"{100 * np.mean(values):.1f} ({100 * np.std(values, ddof=1):.1f})" if values else ""

    head, rows = ["arithmetic", "plain", "plain, equal time", "IntRA-KD", "IntRA-KD - plain", "gap closed"], []
    all_settings = {arm: [f1 for row in found["f1"].values() for f1 in row[arm]] for arm in ("plain", "intra")}
    for setting, row in {**found["f1"], "all settings": all_settings}.items():
        gain = np.mean(row["intra"]) - np.mean(row["plain"])
        gap = gain / (found["teacher"] - np.mean(row["plain"]))
        cells = (cell(row.get(arm)) for arm in ("plain", "long", "intra"))
        rows.append((setting, *cells, f"{100 * gain:+.1f}", f"{100 * gap:.0f} %"))
    machine = found["machine"]
    words = "; ".join(f"{name}: {'yes' if held else 'NO'}" for name, held in found["verdict"].items())
    return "\n".join(
        [
            *table_lines(head, rows),
            "",
            f"F1 in points on the demo's 40 test frames, mean (standard deviation) over {found['seeds']} seeds; the teacher "
            f"has {100 * found['teacher']:.1f}. IntRA-KD gains {100 * found['gain']:.1f} points over all runs, standard error "
            f'{100 * found["standard_error"]:.1f}. "Equal time" is plain training for {found["long_steps"]} steps. {words}. '
            f"Machine: {machine['processor']}, {machine['cores']} cores, PyTorch {machine['torch']}.",
        ]
    )


def write_table(found: dict, page: Path) -> None:
    from bench.page import insert

    insert(page, "demo-arithmetic", table(found))


if __name__ == "__main__":
    main()
