"""Run a study's cells (arm x seed), each trained and scored in a process of its own, and write its table.

Seeds come one after the other, each in all arms, so that a study that is stopped early has compared what it ran. A stage
knows no other: the command line hands in those that train and score.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from pipeline.config import Config, Evaluate, Plugin, Training
from pipeline.errors import ConfigError, PipelineError
from pipeline.files import read_json, write_json, write_text, write_tsv
from pipeline.identity import join_names, sha256
from pipeline.progress import Progress
from pipeline.reporting.study import Arm, Study, asked, otherwise, remarks, table, verdict
from pipeline.stopping import Stopped, stoppable
from pipeline.store import plan
from pipeline.teacher.experiment import Experiment
from pipeline.teacher.fill import every_pass


@dataclass(frozen=True, kw_only=True)
class Cells:
    """What every cell needs; it travels to the processes."""

    study: Study
    train: Callable  # stages.train_student.run
    evaluate: Callable  # stages.evaluate.run
    root: Path
    weights_file: Path  # of the section `teacher`
    runs: Path  # a folder a study
    scores: Path  # likewise
    device: str
    log: Sequence[str] = ()  # loggers of each cell's training

    def run(self, arm: Arm, seed: int) -> None:
        """In a process of the pool. One that is told to stop keeps its last step and ends: the pool would give it the next cell."""
        try:
            with stoppable():
                self.train_and_score(arm, seed)
        except Stopped as stopped:
            os._exit(stopped.exit_code)

    def train_and_score(self, arm: Arm, seed: int) -> None:
        """One arm with one seed, on one CPU thread."""
        import torch

        torch.set_num_threads(1)
        config, folder, student = arm.config, self.runs / arm.study / f"{arm.name}-{seed}", arm.config.student(self.study.student)
        resumed, worked = (folder / "checkpoint.pt").exists(), time.process_time()
        self.train(
            self.experiment(config),
            student=self.study.student,
            method=arm.method,
            seed=seed,
            folder=folder,
            device=self.device,
            online_targets=arm.live,
            log=self.log,
        )
        cost = {
            "cpu_seconds": time.process_time() - worked,
            "resumed": resumed,  # of the steps, whenever they were made:
            "seconds": sum(
                json.loads(line)["seconds"] for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
            ),
        }
        found = self.scored(config, student, config.training, folder / "weights.safetensors", folder)
        write_json(
            self.scores / arm.study / f"{folder.name}.json",
            {"scores": found, **cost, "device": self.device, "asked": asked(self.study, arm, seed)},
        )

    def experiment(self, config: Config) -> Experiment:
        return Experiment(config, self.root, self.weights_file)

    def teacher(self) -> None:
        """Scores the teacher, of several the first, once. Raises ConfigError if another one was scored."""
        file = self.scores / self.study.name / "teacher.json"
        first = next(iter(self.experiment(self.study.config).teachers.values()))
        if not first.weights_file.exists():
            return
        if file.exists():
            scores, digest = read_json(file)["scores"], sha256(first.weights_file.read_bytes())[:16]
            if any(found.get("weights", digest) != digest for found in scores.values()):
                raise ConfigError(
                    f"{file}: scores a teacher other than {first.weights_file}, and the cells beside it learned from "
                    f"that one; move {file.parent} and {self.runs / self.study.name} away"
                )
            return
        config = self.study.config
        found = self.scored(config, config.teacher.model, None, first.weights_file, self.runs / self.study.name / "teacher")
        primary = self.study.arms.get(self.study.primary) if self.study.primary is not None else None
        write_json(file, {"scores": found, "pass_s": self.pass_s(primary) if primary and reads(primary) else None})

    def pass_s(self, arm: Arm) -> float:
        """Seconds that the teacher's pass takes for what the arm reads: those of a batch, times the number of batches. On the CPU
        seconds of work."""
        import torch

        experiment, clock = self.experiment(arm.config), time.process_time if self.device == "cpu" else time.monotonic
        config, images = experiment.config, experiment.images
        some = experiment.ids[: config.training.batch]
        samples = experiment.samples(some)
        targets = [
            one.online_targets(names, samples, batch=len(some), device=self.device)
            for one, names in experiment.reading(reads(arm)).values()
        ]
        for _ in range(2):  # the first makes ready
            began = clock()
            for one in targets:
                one.rows(np.arange(len(some)), np.zeros(len(some), int), torch.from_numpy)
            if self.device != "cpu":
                torch.cuda.synchronize()
        return (clock() - began) / len(some) * len(images) * config.views.count

    def scored(self, config: Config, model: Plugin, training: Training | None, weights_file: Path, folder: Path) -> dict:
        """A network's scores on every split of the study."""
        found = {}
        for split in self.study.splits:
            report = folder / "scores" / f"{split.replace('/', '-')}.json"
            self.evaluate(
                dataset=config.dataset,
                prepare=config.prepare,
                training=training,
                evaluate=Evaluate(split=split),
                model=model,
                weights_file=weights_file,
                report=report,
                picture=report.with_suffix(".png"),
                predictions=folder / "predictions",
                device=self.device,
                batch=8,
                workers=1,
            )
            found[split] = {name: value for name, value in read_json(report).items() if name != "confusion"}
        return found


def run(
    *,
    study: Study,
    root: Path,
    weights_file: Path,
    runs: Path,
    report: Path,
    jobs: int,
    device: str,
    train: Callable,
    evaluate: Callable,
    log: Sequence[str] = (),
) -> str:
    """Does what is left of the study; the teacher and its cache must be there. Returns the table and the verdict."""
    cells, scores = [(arm, seed) for seed in study.seeds for arm in study.arms.values()], report.parent
    left = [(arm, seed) for arm, seed in cells if answered(study, scores, arm, seed) is None]
    stored = {name: stored_bytes(arm) for name, arm in study.arms.items()}
    work = Cells(
        study=study,
        train=train,
        evaluate=evaluate,
        root=root,
        weights_file=weights_file,
        runs=runs,
        scores=scores,
        device=device,
        log=log,
    )
    if log:
        from pipeline.training.loggers import Logs

        Logs(log)  # refused here, once, not by every cell
    work.teacher()
    stop = get_context("spawn").Event()
    with (
        ProcessPoolExecutor(jobs, get_context("spawn"), initializer=leave_with_parent, initargs=(os.getpid(), stop)) as pool,
        Progress(study.name, len(cells), "cells", len(cells) - len(left)) as progress,
    ):
        futures = [pool.submit(work.run, arm, seed) for arm, seed in left]
        try:
            for future in as_completed(futures):
                future.result()
                progress.advance()
                write(study, scores, report, stored)
        except Stopped as stopped:
            stop.set()
            stopped.said = f"{progress.done} of {len(cells)} cells are done, and every step of those begun is kept"
            raise
        except BrokenProcessPool:
            raise PipelineError(
                f"{study.name}: a cell's process was killed, perhaps for want of memory; run the same command "
                f"again, with fewer --jobs than {jobs} if it was that"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
    return write(study, scores, report, stored)


def reads(arm: Arm) -> list[str]:
    return list(dict.fromkeys(name for term in arm.config.method(arm.method) for name in term.reads))


def stored_bytes(arm: Arm) -> int:
    """Of one image's rows, in all views, that the arm reads from the cache."""
    if arm.live or not reads(arm):
        return 0
    experiment = Experiment(arm.config, Path(), Path("teacher"))  # no store, no weights
    passes = [pass_ for one, names in experiment.reading(reads(arm)).values() for pass_ in every_pass(one.some_targets(names))]
    return arm.config.views.count * sum(plan.row_bytes(pass_) for pass_ in passes)


def leave_with_parent(parent: int, stop: Event) -> None:
    """A process that lost its parent, killed perhaps, would train to the end of its cell beside the one started again."""

    def watch():
        while not stop.wait(1) and os.getppid() == parent:
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def answered(study: Study, scores: Path, arm: Arm, seed: int) -> dict | None:
    """What a cell scored, if it was trained and scored for what the study asks for now. Raises ConfigError if it is another
    study's and was scored for something else there."""
    path = scores / arm.study / f"{arm.name}-{seed}.json"
    cell = read_json(path) if path.exists() else None
    if cell is None or not (found := otherwise(cell, asked(study, arm, seed))):
        return cell
    if arm.study != study.name:
        raise ConfigError(
            f"{path}: was scored for something else than {study.name} asks of its arm {arm.name!r}: {join_names(found)}; "
            f"take `study: {arm.study}` out of the arm"
        )
    return None


def write(study: Study, scores: Path, report: Path, stored: dict[str, int]) -> str:
    file = scores / study.name / "teacher.json"
    teacher = read_json(file) if file.exists() else None
    by_seed = {
        name: {seed: cell for seed in study.seeds if (cell := answered(study, scores, arm, seed))}
        for name, arm in study.arms.items()
    }
    write_tsv(report.with_suffix(".tsv"), every_cell(study, teacher, by_seed))
    cells = {name: [*found.values()] for name, found in by_seed.items()}
    seconds = {
        arm: [took(cell) for cell in found if not cell.get("resumed")] or [took(cell) for cell in found]
        for arm, found in cells.items()
    }  # one that was stopped did part of its work in another process
    lines = []
    for split in study.splits:
        values = {arm: [headline(cell, split) for cell in found] for arm, found in cells.items()}
        score = teacher and headline(teacher, split)
        lines += [f"Scored on `{split}`:", "", *table(study, score, values, seconds, stored), ""]
        if split == study.splits[0]:
            said = [*verdict(study, score, values), *remarks(study, score, seconds, (teacher or {}).get("pass_s"))]
            lines += [text for line in said for text in (line, "")]
    text = "\n".join(lines).rstrip()
    write_text(report, text + "\n")
    return text


def every_cell(study: Study, teacher: dict | None, by_seed: dict[str, dict[int, dict]]) -> list[dict]:
    """For plots and tests of one's own: points on every split, and seconds."""

    def row(arm, seed, cell, seconds):
        return {
            "arm": arm,
            "seed": seed,
            **{split: round(100 * headline(cell, split), 3) for split in study.splits},
            "seconds": seconds,
        }

    rows = [row("teacher", "", teacher, "")] if teacher else []
    return rows + [row(arm, seed, cell, round(took(cell))) for arm, found in by_seed.items() for seed, cell in found.items()]


def took(cell: dict) -> float:
    """Seconds of its steps; on the CPU of work, which other processes do not lengthen."""
    return cell["cpu_seconds"] if cell.get("device", "cpu") == "cpu" else cell["seconds"]


def headline(cell: dict, split: str) -> float:
    score = cell["scores"][split]
    return score[score["metric"]]
