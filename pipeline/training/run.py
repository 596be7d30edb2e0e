"""A run's folder: what it was made from, checkpoints to resume from, curves, and the trained weights.

run.json                what the run was made from; a folder with another record is set aside, never overwritten
config.yaml             the experiment's file with its --set overrides, for people
checkpoint.pt           model, optimiser, losses and the curves so far, with a checksum; replaced atomically
curves.tsv .json .png   each term's mean over a window of steps
curves/<term>.tsv       the same, a file a term, as `dvc plots` draws them
history.jsonl           the time each stretch of steps took, and on what; outside every comparison
held_out.tsv            each term on the images kept from training (training.held_out), at each checkpoint
validation.tsv          scores of the split val (training.validate_every)
norms.tsv               each weighted term's gradient norm at the network's features
weights.safetensors     the end of the run, or its best validation (training.keep)
result.json             digest of that file, the steps made, the best validation, the weights that terms ended with where they
                        are shares of a gradient
"""

import fcntl
import io
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline import records, weights
from pipeline.config import LABEL_TERMS, TERM_WORDS, Training
from pipeline.errors import PipelineError
from pipeline.files import write_json, write_text, write_tsv
from pipeline.identity import diff, identity_digest, join_names, sha256
from pipeline.progress import Progress, say
from pipeline.stopping import Stopped, in_order
from pipeline.training import distributed
from pipeline.training.loading import Loader, ahead
from pipeline.training.optimisers import learning_rate
from pipeline.training.step import LABELLED, Step

if TYPE_CHECKING:
    from pipeline.training.loggers import Logs

Validate = Callable[[nn.Module], dict[str, float]]
SPLIT = "val"  # which validations score
OWN = "own"  # the dataset's own metric, among the scores of a validation
FROM_LABELS = (*LABEL_TERMS.values(), "dice", "existence")  # terms that are 0 in a batch without a label
POINTS = 400  # of a curve, whatever the number of steps


class Run:
    def __init__(self, folder: Path, record: dict, settings: str = ""):
        """`settings` is the experiment as it was asked for, kept for people; only `record` is compared. Nothing is written or
        moved before `open`. Raises PipelineError if the record that is there can't be read."""
        self.folder, self.record, self.settings = Path(folder), records.recorded(record), settings
        self.curves: list[dict] = []
        self.norms: list[dict] = []
        self.held_out: list[dict] = []
        self.validations: list[dict] = []
        self.best: dict[str, Tensor] = {}  # weights of the best validation, where they are to be kept
        self.pending: list[tuple[int, dict]] = []  # steps that the curves have no point for yet, with their terms
        self.opened = False
        self._locks: list[int] = []
        self.compare()

    def compare(self) -> None:
        """Notes in `apart` where the run that is there was made from something else."""
        path = self.folder / "run.json"
        if path.exists():
            self.apart = diff(records.read(path), self.record)
        else:
            self.apart = ["run.json: nothing here"] if (self.folder / "checkpoint.pt").exists() else []

    def open(self) -> None:
        """Sets aside what was made from something else, and writes the record. A training does so once it has made a step that
        went well: a value that is refused before leaves a finished run where it is."""
        if self.opened or not distributed.is_main_process():
            return
        if self.apart:
            aside = _free_name(self.folder)
            os.rename(self.folder, aside)
            say(
                f"{self.folder}: was made from something else ({join_names(self.apart)}); "
                f"set aside as {aside.name}, starting afresh"
            )
            if self._locks:
                self._locks.append(self._lock())
                if (self.folder / "run.json").exists():
                    raise PipelineError(
                        f"{self.folder}: another process began this run at the same moment; run the same command "
                        f"again when it has ended"
                    )
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob("*.tmp"):  # of a process that was killed, perhaps by a full disk
            leftover.unlink(missing_ok=True)
        write_text(self.folder / "run.json", json.dumps(self.record, indent=1) + "\n")
        write_text(self.folder / "config.yaml", self.settings)
        self.opened = True

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Waits for another process that trains in this folder, and compares anew. A file system without locks is taken at its
        word."""
        try:
            self._locks.append(self._lock())
            self.compare()
            yield
        finally:
            while self._locks:
                os.close(self._locks.pop())

    def _lock(self) -> int:
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"{self.folder}: another process trains here; waiting for its end")
                fcntl.flock(folder, fcntl.LOCK_EX)
            except OSError:
                pass
            if self.folder.exists() and os.path.samestat(os.fstat(folder), os.stat(self.folder)):
                return folder
            os.close(folder)  # whoever held it has set it aside

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    def resume(self, step: Step) -> int:
        """Loads the last checkpoint, if there is one of this run, and returns the number of steps already made. Raises
        PipelineError if the file is not, bit for bit, what was written."""
        path = self.folder / "checkpoint.pt"
        if self.apart or not path.exists():
            return 0
        try:
            if not weights.seal_of(path):
                raise ValueError("damaged or cut short: its checksum does not fit")
            state = torch.load(path, map_location="cpu", weights_only=True)
            step.load_state(state)
            self.curves, self.norms, self.held_out, self.pending = (
                state[name] for name in ("curves", "norms", "held_out", "pending")
            )
            self.validations, self.best = state.get("validations", []), state.get("best", {})
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # damaged bytes fail anywhere in the parser
            why = f"{error}".strip().partition("\n")[0]
            raise PipelineError(
                f"{path}: cannot be read ({why}); bring back a copy, or delete it to start this run afresh"
            ) from error
        return state["steps"]

    def save(self, step: Step, steps: int) -> None:
        """Raises PipelineError instead if the weights are not finite: the loss was, but a step on its gradient was too much. Also
        if there is no room; the last checkpoint is kept then."""
        self._refuse_infinite(step, steps)
        if not distributed.is_main_process():
            return
        state = {
            **step.state(),
            "steps": steps,
            "curves": self.curves,
            "norms": self.norms,
            "held_out": self.held_out,
            "pending": [(number, {name: float(value) for name, value in values.items()}) for number, values in self.pending],
        }
        if self.validations:
            state |= {"validations": self.validations, "best": self.best}
        data, path = io.BytesIO(), self.folder / "checkpoint.pt"
        torch.save(state, data)  # not to the file: on a full disk, torch.save reports its own position there
        try:
            weights.write_file(path, weights.seal(data))
            self._write_curves()
        except OSError as error:
            kept = "the last checkpoint is kept" if path.exists() else "there is no checkpoint yet"
            raise PipelineError(
                f"{error.filename or path}: {error.strerror} at step {steps}; make room or give the right to write, "
                f"and run the same command again ({kept})"
            ) from error

    def _refuse_infinite(self, step: Step, steps: int) -> None:
        if not step.finite():
            raise PipelineError(
                f"{self.folder}: step {steps - 1}: the weights are not finite any more; lower the learning rate "
                f"(the last checkpoint is from before)"
            )

    def validate(self, step: Step, steps: int, validation: Validate) -> None:
        """Scores what the run would leave after so many steps, and keeps it if it is the best and the best is to be kept."""
        self._refuse_infinite(step, steps)
        before = best_of(self.validations)
        with step.leaving() as network:
            self.validations.append({"step": steps, **validation(network)})
        if step.training.keep == "best" and best_of(self.validations) is not before:
            self.best = {name: tensor.detach().to("cpu", copy=True) for name, tensor in step.weights().items()}

    def kept(self, step: Step) -> Mapping[str, Tensor]:
        """The weights that the run leaves."""
        return self.best or step.weights()

    def _write_curves(self):
        write_tsv(self.folder / "curves.tsv", self.curves)
        write_tsv(self.folder / "norms.tsv", self.norms)
        if self.held_out:
            write_tsv(self.folder / "held_out.tsv", self.held_out)
        if self.validations:
            write_tsv(self.folder / "validation.tsv", self.validations)

    def note(self, first: int, last: int, seconds: float, device: torch.device) -> None:
        """Steps first..last-1 took so long, and are kept: a checkpoint holds them."""
        if not distributed.is_main_process():
            return
        line = {
            "first": first,
            "last": last,
            "seconds": round(seconds, 3),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "torch": torch.__version__,
        }
        with open(self.folder / "history.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def finish(self, step: Step, steps: int) -> None:
        """Writes what a run leaves after its last step, the `steps`-th."""
        if not distributed.is_main_process():
            return
        self._write_curves()  # again: DVC deletes a stage's outs before it runs a finished one
        shutil.rmtree(self.folder / "curves", ignore_errors=True)
        for name in _names(self.curves):
            if name != "step":
                known = [{"step": row["step"], name: row[name]} for row in self.curves if name in row]
                write_tsv(self.folder / "curves" / f"{name}.tsv", known)
        if self.validations:
            scores = [{"step": row["step"], "val_mean_iou": row["mean_iou"]} for row in self.validations]
            write_tsv(self.folder / "curves" / "val_mean_iou.tsv", scores)
            if OWN in self.validations[-1]:
                own = [{"step": row["step"], "val_own": row[OWN]} for row in self.validations]
                write_tsv(self.folder / "curves" / "val_own.tsv", own)
        write_text(self.folder / "curves.json", json.dumps(self.curves) + "\n")
        draw_curves(self.folder / "curves.png", self.curves, self.validations)
        weights.save_file(self.weights, self.kept(step))
        result = {"weights": sha256(self.weights.read_bytes()), "steps": steps, "record": identity_digest(self.record)}
        if step.balance.terms:
            result["term_weights"] = step.balance.weights()
        write_json(self.folder / "result.json", result | self.outcome(step.training))

    def outcome(self, training: Training) -> dict[str, Any]:
        """What validations found; empty without any."""
        best = best_of(self.validations)
        if best is None:
            return {}
        last = self.validations[-1]["step"]
        kept = best["step"] if training.keep == "best" else last
        return {"split": SPLIT, "best": best, "kept_step": kept, "ended_early": last < training.steps}

    def told(self, steps: int) -> dict[str, float]:
        """What loggers are told after so many steps, if it is the last of a point of the curves, a norm or a validation."""
        rows = {"train": self.curves, "norm": self.norms, SPLIT: self.validations}
        return _named({kind: found[-1] for kind, found in rows.items() if found}, steps)

    def history(self) -> list[tuple[int, dict[str, float]]]:
        """The same of every step so far."""
        found: dict[int, dict[str, float]] = {}
        for kind, rows in (("train", self.curves), ("norm", self.norms), (SPLIT, self.validations)):
            for row in rows:
                steps = row["step"] + (kind == "norm")
                found.setdefault(steps, {}).update(_named({kind: row}, steps))
        return sorted(found.items())

    def in_words(self, training: Training) -> str:
        """What came of a run that has ended."""
        last = self.curves[-1]
        if not self.validations:
            said = ", ".join(f"{TERM_WORDS.get(name, name)} {value:.4g}" for name, value in last.items() if name != "step")
            return f"{last['step']} steps, {said}"
        found = self.outcome(training)
        best, kept = found["best"], "kept" if found["kept_step"] == found["best"]["step"] else "not kept"
        return f"{last['step']} steps, best {SPLIT} {score_in_words(best, '.4f')} at step {best['step']} ({kept})"


def _named(rows: Mapping[str, Mapping[str, float]], steps: int) -> dict[str, float]:
    """{"train/ce": 0.3} of the rows that belong to this number of steps; a norm is noted at the step before."""
    return {
        f"{kind}/{name}": value
        for kind, row in rows.items()
        if row["step"] + (kind == "norm") == steps
        for name, value in row.items()
        if name != "step"
    }


def fit(run: Run, step: Step, loader: Loader, what: str, validation: Validate | None = None, logs: "Logs | None" = None) -> None:
    """Train from the last checkpoint to the last step, or until no validation is better for long enough. A non-finite loss raises
    PipelineError naming step and term.

    SIGTERM and Ctrl-C, where they are `stoppable`, raise Stopped with the last step kept; not so among several processes, which
    would have to agree on a step: those go on from the last checkpoint.
    """
    alone: AbstractContextManager[None] = run.alone()
    signals: AbstractContextManager[list[int]] = in_order()
    if distributed.rank_and_world_size()[1] > 1:
        alone, signals = nullcontext(), nullcontext([])
    try:
        with alone:
            _fit(run, step, loader, what, validation, logs, signals)
    finally:
        if logs is not None:
            logs.close()


def _fit(run: Run, step: Step, loader: Loader, what: str, validation: Validate | None, logs: "Logs | None", signals: Any) -> None:
    training = step.training
    every = training.validate_every if validation is not None else 0
    begin = run.resume(step)
    history = run.history() if logs is not None else []
    if not run.apart:
        run.open()
    window = max(1, training.steps // POINTS)
    saved, since = begin, time.perf_counter()
    with Progress(what, training.steps, "steps", begin) as progress, signals as asked:
        made = begin
        steps = range(begin, training.steps)
        if out_of_patience(run.validations, training.patience):
            steps = steps[:0]  # it had ended already
        for number, batch in zip(steps, ahead(loader, steps)):
            values, norms = step(batch)
            if not run.opened and distributed.is_main_process():
                _refuse_step(run, step, number, values)
                run.open()
            run.pending.append((number, values))  # they stay on the device until a window ends: reading one waits for it
            if norms:
                run.norms.append({"step": number, **norms})
            made, last = number + 1, number + 1 == training.steps
            if every and (made % every == 0 or last):
                assert validation is not None
                run.validate(step, made, validation)
                if out_of_patience(run.validations, training.patience) and not last:
                    last = True
                    if distributed.is_main_process():
                        say(
                            f"{run.folder}: no better score on {SPLIT} for {training.patience} validations; ends after {made} steps"
                        )
            saves = (number + 1) % training.checkpoint_every == 0 or last
            stops = bool(asked) and not last
            if (number + 1) % window == 0 or saves:  # a checkpoint ends a window: a resumed run writes equal curves
                run.curves.append(_window(run.pending, run.folder))
                run.pending = []
            if logs is not None and distributed.is_main_process():
                if told := run.told(made):
                    logs.log(run.folder, run.record, begin, history, made, told | {"lr": learning_rate(training, number)})
            if saves or stops:
                if saves and training.held_out:
                    run.held_out.append({"step": number + 1, **step.held_out(loader.held_out_batches(number))})
                run.save(step, number + 1)
                now = time.perf_counter()
                run.note(saved, number + 1, now - since, step.weights_K.device)
                saved, since = number + 1, now
            if stops:
                raise Stopped(asked[0], f"{number + 1} of {training.steps} steps are kept")
            shown = run.curves[-1].get(step.label_term, math.nan) if run.curves else math.nan
            scored = f", {SPLIT} {score_in_words(run.validations[-1], '.3f')}" if run.validations else ""
            progress.advance(1, f"{TERM_WORDS.get(step.label_term, step.label_term)} {shown:.3f}{scored}")
            if last:
                break
    run.finish(step, made)
    if asked:
        raise Stopped(asked[0], f"all {made} steps are kept")


def _refuse_step(run: Run, step: Step, number: int, values) -> None:
    """Raises PipelineError if a first step came to nothing, so that it moves no finished run away."""
    _window([(number, values)], run.folder)
    if not step.finite():
        raise PipelineError(
            f"{run.folder}: step {number}: the weights are not finite; lower the learning rate (the run that is there stays)"
        )


def _window(pending, folder) -> dict:
    """Each term's mean over these steps; of what is learned from labels, over the steps that showed one."""
    found: dict[str, list[float]] = {}  # a term that has not begun yet has no values
    for number, values in pending:
        unlabelled = float(values.get(LABELLED, 1.0)) == 0
        for name, value in values.items():
            if not math.isfinite(value := float(value)):
                raise PipelineError(
                    f"{folder}: step {number}: the term {name!r} is {value}; lower its weight or the "
                    f"learning rate (the last checkpoint is from before)"
                )
            if not (unlabelled and name in FROM_LABELS):
                found.setdefault(name, []).append(value)
    return {"step": pending[-1][0] + 1, **{name: sum(values) / len(values) for name, values in found.items()}}


def _names(curves: list[dict]) -> list[str]:
    """The columns, in the order of the last row; a window without a label has no cross-entropy."""
    return list(dict.fromkeys(name for row in reversed(curves) for name in row))


def draw_curves(path: Path, curves: list[dict], validations: Sequence[dict] = ()) -> None:
    """One small panel a term, so that terms of very different size can all be read."""
    from matplotlib.figure import Figure

    names = [name for name in _names(curves) if name != "step"]
    if validations:
        shown = {"val mean IoU": "mean_iou"} | ({"val own metric": OWN} if OWN in validations[-1] else {})
        names += shown
        curves = [*curves, *({"step": row["step"], **{name: row[key] for name, key in shown.items()}} for row in validations)]
    figure = Figure(figsize=(3.2 * len(names), 2.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        known = [row for row in curves if name in row]
        axes.plot([row["step"] for row in known], [row[name] for row in known], linewidth=1)
        axes.set_title(TERM_WORDS.get(name, name), fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def best_of(validations: list[dict]) -> dict | None:
    """The validation of the greatest score, the first of equals: the dataset's own if it was asked for, else the mean IoU."""
    return max(validations, key=lambda row: row.get(OWN, row["mean_iou"]), default=None)


def score_in_words(validation: Mapping[str, float], form: str) -> str:
    own = f"own metric {validation[OWN]:{form}}, " if OWN in validation else ""
    return f"{own}mean IoU {validation['mean_iou']:{form}}"


def out_of_patience(validations: list[dict], patience: int) -> bool:
    """Whether the last `patience` validations were no better than one before them."""
    best = best_of(validations)
    return bool(patience) and best is not None and len(validations) - 1 - validations.index(best) >= patience


def _free_name(folder: Path) -> Path:
    number = 1
    while (candidate := folder.with_name(f"{folder.name}.before-{number}")).exists():
        number += 1
    return candidate
