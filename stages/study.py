"""Run a study's cells (arm x seed), each trained and scored in a process of its own, and write its table.

Seeds come one after the other, each in all arms, so that a study that is stopped early has compared what it ran. A stage
knows no other: the command line hands in those that train and score.
"""

import json
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Callable

from pipeline.config import Config, Evaluate, Plugin, Training
from pipeline.files import write_json, write_text
from pipeline.identity import difference
from pipeline.progress import Progress
from pipeline.study import Arm, Study, asked, table, verdict


@dataclass(frozen=True, kw_only=True)
class Cells:
    """What every cell needs; it travels to the processes."""

    study: Study
    train: Callable                             # stages.train_student.run
    evaluate: Callable                          # stages.evaluate.run
    root: Path
    weights_file: Path                          # the teacher's
    runs: Path
    scores: Path
    device: str

    def run(self, arm: Arm, seed: int) -> None:
        """Trains and scores one arm with one seed, on one CPU thread."""
        import torch

        torch.set_num_threads(1)
        config, folder, student = arm.config, self.runs / f"{arm.name}-{seed}", arm.config.student(self.study.student)
        began, worked = time.monotonic(), time.process_time()
        self.train(dataset=config.dataset, prepare=config.prepare, views=config.views, teacher=config.teacher,
                   targets=config.targets, training=config.training, student=student, method=config.method(arm.method),
                   seed=seed, root=self.root, folder=folder, weights_file=self.weights_file, config=config.path,
                   settings=config.text, device=self.device)
        cost = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - worked}
        found = self.scored(config, student, config.training, folder / "weights.safetensors", folder)
        write_json(self.scores / f"{folder.name}.json", {"scores": found, **cost, "asked": asked(self.study, arm, seed)})

    def scored(self, config: Config, model: Plugin, training: Training | None, weights_file: Path, folder: Path) -> dict:
        """A network's scores on every split of the study."""
        found = {}
        for split in self.study.splits:
            report = folder / "scores" / f"{split.replace('/', '-')}.json"
            self.evaluate(dataset=config.dataset, prepare=config.prepare, training=training, evaluate=Evaluate(split=split),
                          model=model, weights_file=weights_file, report=report, picture=report.with_suffix(".png"),
                          predictions=folder / "predictions", device=self.device, batch=8, workers=1)
            found[split] = json.loads(report.read_text())
        return found


def run(*, study: Study, root: Path, weights_file: Path, runs: Path, report: Path, jobs: int, device: str,
        train: Callable, evaluate: Callable) -> str:
    """Does what is left of the study; the teacher and its cache must be there. Returns the table and the verdict."""
    cells, scores = [(arm, seed) for seed in study.seeds for arm in study.arms.values()], report.with_suffix("")
    left = [(arm, seed) for arm, seed in cells if answered(study, scores, arm, seed) is None]
    work = Cells(study=study, train=train, evaluate=evaluate, root=root, weights_file=weights_file, runs=runs / study.name,
                 scores=scores, device=device)
    if weights_file.exists() and not (scores / "teacher.json").exists():
        model = study.config.teacher.model
        write_json(scores / "teacher.json", {"scores": work.scored(study.config, model, None, weights_file, work.runs / "teacher")})
    with ProcessPoolExecutor(jobs, get_context("spawn"), leave_with_parent, [os.getpid()]) as pool, \
            Progress(study.name, len(cells), "cells", len(cells) - len(left)) as progress:
        futures = [pool.submit(work.run, arm, seed) for arm, seed in left]
        try:
            for future in as_completed(futures):
                future.result()
                progress.advance()
                write(study, scores, report)
        finally:
            pool.shutdown(cancel_futures=True)
    return write(study, scores, report)


def leave_with_parent(parent: int) -> None:
    """A process that lost its parent, killed perhaps, would train to the end of its cell beside the one started again."""
    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def answered(study: Study, scores: Path, arm: Arm, seed: int) -> dict | None:
    """What a cell scored, if it was trained and scored for what the study asks for now."""
    path = scores / f"{arm.name}-{seed}.json"
    cell = json.loads(path.read_text()) if path.exists() else None
    return cell if cell and not difference(cell["asked"], asked(study, arm, seed)) else None


def write(study: Study, scores: Path, report: Path) -> str:
    teacher = json.loads((scores / "teacher.json").read_text()) if (scores / "teacher.json").exists() else None
    cells = {name: [cell for seed in study.seeds if (cell := answered(study, scores, arm, seed))]
             for name, arm in study.arms.items()}
    seconds = {arm: [cell["cpu_seconds"] for cell in found] for arm, found in cells.items()}
    lines = []
    for split in study.splits:
        values = {arm: [headline(cell, split) for cell in found] for arm, found in cells.items()}
        score = teacher and headline(teacher, split)
        lines += [f"Scored on `{split}`:", "", *table(study, score, values, seconds), ""]
        if split == study.splits[0]:
            lines += [*verdict(study, score, values), ""]
    text = "\n".join(lines).rstrip()
    write_text(report, text + "\n")
    return text


def headline(cell: dict, split: str) -> float:
    score = cell["scores"][split]
    return score[score["metric"]]
