"""What an experiment's runs left on disk: scores, curves, time, and what each was made from."""

import csv
import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline import records
from pipeline.config import Plugin
from pipeline.errors import PipelineError
from pipeline.files import read_json
from pipeline.identity import diff, sha256
from pipeline.paths import below, name_fault

RECIPE = ("student", "training", "views", "dataset", "prepared", "labelled")  # of run.json: what two runs must share to be compared
LOGGING = ("checkpoint_every", "norm_every")
VALIDATED = "val mean_iou"  # among a run's curves
OWN_VALIDATED = "val own metric"  # likewise, the dataset's
FORMERLY = {"labels": "ce"}  # terms of runs of earlier versions


@dataclass(frozen=True, kw_only=True)
class Time:
    """Of the steps that are in the last checkpoint."""

    steps: int
    seconds: float
    machine: str  # device and CPU threads; several if the run moved


@dataclass(frozen=True, kw_only=True)
class Run:
    student: str
    method: str
    seed: int
    score: dict  # as `pipeline evaluate` writes it
    recipe: dict | None  # None: the run's folder is not here
    curves: list[dict[str, float]]
    time: Time | None
    best: dict | None = None  # the validation with the highest score: step, mean_iou, and whether its weights are kept

    @property
    def name(self) -> str:
        return f"{self.student}-{self.method}-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Results:
    runs: list[Run]  # in the file's order of students and methods, then by seed
    teacher: dict | None  # its score; of several teachers, that of the best
    teacher_time: Time | None
    strays: list[str]  # scores of runs that the file has no student or method for
    stale: list[str]  # runs whose weights are not those that were scored
    teacher_best: dict | None = None  # as a run's
    not_runs: Mapping[str, str] = field(default_factory=dict)  # scores of files that no run left, and why; they count nowhere
    teachers: Mapping[str, dict] = field(default_factory=dict)  # scores by the name of a row: "teacher", "teacher-a", ...
    teacher_labels: Mapping[str, Any] | None = None  # which it was trained on here, as records have it; {}: all; None: not known

    @property
    def metric(self) -> str:
        """The name of the dataset's own score."""
        return self._any["metric"]

    @property
    def images(self) -> int:
        return self._any["images"]

    @property
    def _any(self) -> dict:
        found = self.runs[0].score if self.runs else self.teacher
        assert found is not None
        return found

    def groups(self) -> dict[tuple[str, str], list[Run]]:
        """The seeds of each student and method."""
        found: dict[tuple[str, str], list[Run]] = {}
        for run in self.runs:
            found.setdefault((run.student, run.method), []).append(run)
        return found


def read(scores: Path, runs: Path, teacher_weights: Mapping[str, Path], students: Iterable[str], methods: Iterable[str]) -> Results:
    """Every score in the folder `scores`, with its run's folder below `runs`; of teachers, those whose weights are named, by what
    their scores and runs are called ("teacher"). Raises PipelineError if there is none."""
    files = {path.stem: path for path in sorted(scores.glob("*.json"))}
    if not files:
        raise PipelineError(f"{scores}: no scores yet; run `pipeline evaluate` (or `dvc repro`) first")
    teachers, found = {name: _score(files.pop(name)) for name in teacher_weights if name in files}, []
    best = max(teachers, key=lambda name: teachers[name].get(teachers[name]["metric"]) or 0, default=next(iter(teacher_weights)))
    teacher = teachers.get(best)
    for student in students:
        for method in methods:
            start = f"{student}-{method}-"
            seeds = [int(name[len(start) :]) for name in files if name.startswith(start) and name[len(start) :].isdecimal()]
            found += [_run(student, method, seed, files.pop(f"{start}{seed}"), runs) for seed in sorted(seeds)]
    not_runs = {}
    for run in found:
        weights = runs / run.name / "weights.safetensors"
        if weights.exists() and (fault := records.not_left_by_a_run(weights)):
            not_runs[run.name] = fault
    found = [run for run in found if run.name not in not_runs]
    if teacher is None and not found and not_runs:
        raise PipelineError(
            f"{scores}: no score there is of a run ({runs / next(iter(not_runs))}/weights.safetensors: "
            f"{next(iter(not_runs.values()))}); train with `pipeline train-student`"
        )
    if teacher is None and not found:
        raise PipelineError(
            f"{scores}: the scores there ({', '.join(files)}) are of no student and method of this file; "
            "score its runs with `pipeline evaluate`"
        )
    scored = {run.name: (run.score, runs / run.name / "weights.safetensors") for run in found}
    scored |= {name: (score, teacher_weights[name]) for name, score in teachers.items()}
    stale = [
        name
        for name, (score, weights) in scored.items()
        if "weights" in score and weights.exists() and score["weights"] != sha256(weights.read_bytes())[:16]
    ]
    return Results(
        runs=found,
        teacher=teacher,
        teachers=teachers,
        teacher_time=time_of(runs / best),
        strays=sorted(files),
        stale=stale,
        teacher_best=best_of(runs / best),
        not_runs=not_runs,
        teacher_labels=_labels_of(runs / best / "run.json"),
    )


def _labels_of(record: Path) -> dict[str, Any] | None:
    return records.read(record).get("labelled", {}) if record.exists() else None


def _run(student: str, method: str, seed: int, score: Path, runs: Path) -> Run:
    folder, record = runs / score.stem, None
    if (folder / "run.json").exists():
        made = records.read(folder / "run.json")
        record = {name: made[name] for name in RECIPE if name in made}
        changes_nothing = LOGGING if {"keep", "patience"} & record["training"].keys() else (*LOGGING, "validate_every")
        record |= {name: made for name, made in _score(score).items() if name in ("window", "stride")}
        record["training"] = {key: value for key, value in record["training"].items() if key not in changes_nothing}
    return Run(
        student=student,
        method=method,
        seed=seed,
        score=_score(score),
        recipe=record,
        curves=_curves(folder / "curves.tsv")
        + [
            {"step": row["step"], VALIDATED: row["mean_iou"], **({OWN_VALIDATED: row["own"]} if "own" in row else {})}
            for row in _curves(folder / "validation.tsv")
        ],
        time=time_of(folder),
        best=best_of(folder),
    )


def best_of(folder: Path) -> dict | None:
    """A run's best validation; None without any."""
    path = folder / "result.json"
    found = read_json(path) if path.exists() else {}
    return {**found["best"], "kept": found["kept_step"] == found["best"]["step"]} if "best" in found else None


def _score(path: Path) -> dict:
    score = read_json(path)
    if "metric" not in score:
        raise PipelineError(f"{path}: was written by an older version; run `pipeline evaluate` again")
    return score


def _curves(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return [{FORMERLY.get(name, name): float(value) for name, value in row.items() if value} for row in rows]


def time_of(folder: Path) -> Time | None:
    """From a run's history. Steps that were made twice, since the run was begun afresh, count once: the last time."""
    path = folder / "history.jsonl"
    kept: list[dict] = []
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines() if path.exists() else []):
        kept = [one for one in kept if one["first"] < line["first"]] + [line]
    if not kept:
        return None
    machines = dict.fromkeys(
        f"{one['device']}, {one['threads']} thread{'s' * (one['threads'] > 1)}" if one["device"] == "cpu" else one["device"]
        for one in kept
    )
    return Time(steps=kept[-1]["last"] - kept[0]["first"], seconds=sum(one["seconds"] for one in kept), machine="; ".join(machines))


@dataclass(frozen=True, kw_only=True)
class Latency:
    """What `pipeline latency` measured of one network, for one image."""

    milliseconds: float  # median
    runtime: str
    machine: str


def latencies(folder: Path, networks: Mapping[str, Plugin], size: tuple[int, int]) -> dict[str, Latency]:
    """By network ("teacher", or a student): medians of one image, in ONNX Runtime where all have it, else in
    torch. Those of another network or size than the file's now, or of another machine than the newest one's, are left out."""
    files = {name: folder / f"{name}.json" for name in networks if (folder / f"{name}.json").exists()}
    found = {}
    for name in sorted(files, key=lambda name: files[name].stat().st_mtime, reverse=True):
        said = read_json(files[name])
        if said.get("model") != records.recorded(networks[name]) or said.get("size") != list(size):
            continue
        found[name] = said
    machines = [said["machine"] for said in found.values()]
    times = {
        name: {one["runtime"]: one["median_ms"] for one in said["times"] if one["batch"] == 1}
        for name, said in found.items()
        if said["machine"] == machines[0]
    }
    times = {name: measured for name, measured in times.items() if measured}
    both = [runtime for runtime in ("ONNX Runtime", "torch") if all(runtime in measured for measured in times.values())]
    return {
        name: Latency(milliseconds=measured[both[0]], runtime=both[0], machine=machines[0])
        for name, measured in times.items()
        if both
    }


@dataclass(frozen=True, kw_only=True)
class Cached:
    """What the cache costs on disk."""

    images: int
    views: int
    num_bytes: Mapping[str, int]  # by target, all views; targets of one pass share it
    passes: Mapping[str, str]  # target -> its pass
    seconds: float | None  # from the store's creation to its last completion, breaks included

    def bytes_of(self, targets: Iterable[str]) -> int:
        return sum({self.passes[name]: self.num_bytes[name] for name in targets if name in self.passes}.values())


def all_cached(reports: Iterable[Path], root: Path, dataset: str) -> Cached | None:
    """The same of the caches of several teachers, as one; a target of several counts in each."""
    found = [one for report in reports if (one := cached(report, root, dataset)) is not None]
    if len(found) < 2:
        return found[0] if found else None
    return dataclasses.replace(
        found[0],
        passes={name: name for one in found for name in one.passes},
        num_bytes={name: sum(one.num_bytes.get(name, 0) for one in found) for one in found for name in one.passes},
        seconds=None,
    )


def cached(report: Path, root: Path, dataset: str) -> Cached | None:
    """What `pipeline cache-teacher` reported, weighed in the store below `root`; None if the store is not on this machine."""
    if not report.exists() or not isinstance(root, Path):
        return None
    said = read_json(report)
    store = below(root / dataset, f"targets-{said['identity']['digest'][:12]}", PipelineError)
    if not store.exists():
        return None
    passes = {name: target["pass"] for name, target in said["targets"].items()}
    for folder in passes.values():
        if fault := name_fault(folder):
            raise PipelineError(f"{report}: the pass {folder!r} {fault}; run `pipeline cache-teacher` again")
    weights = {
        folder: sum(
            file.stat().st_size for place in store.glob(f"targets.zarr/v*/{folder}") for file in place.rglob("*") if file.is_file()
        )
        for folder in set(passes.values())
    }
    seconds = _filled_in(below(store, "history.jsonl", PipelineError))
    return Cached(
        images=said["images"],
        views=said["views"],
        passes=passes,
        seconds=seconds,
        num_bytes={name: weights[folder] for name, folder in passes.items()},
    )


def _filled_in(history: Path) -> float | None:
    """Seconds; None where a store's history doesn't say: nothing is lost with it."""
    try:
        lines = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
        times = {line["action"]: datetime.fromisoformat(line["time"]) for line in lines if line["action"] != "grow"}
        return (times["finalise"] - times["create"]).total_seconds()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def apart(recipe: dict | None, baseline: dict | None) -> list[str]:
    """The settings in which two recipes differ, by name; none where one is not known."""
    found = [line.split(":")[0] for line in diff(recipe, baseline)] if recipe and baseline else []
    noted = all("order" in (one or {}).get("prepared", {}) for one in (recipe, baseline))
    return [name for name in found if noted or name != "prepared.order"]  # runs from before it was noted have none
