"""Which stores the configurations, studies and unfinished runs of a folder ask for.

What a configuration asks for follows from its values, the dataset's classes and the teacher's weights. Where one of these is not
here, the answer is "perhaps", and a store that is perhaps asked for counts as asked for.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline import records
from pipeline.config import Config, load
from pipeline.data import prepared
from pipeline.errors import PipelineError, StoreError
from pipeline.identity import diff
from pipeline.reporting import study
from pipeline.store import Store
from pipeline.store.files import AnyPath
from pipeline.store.store import folder_name
from pipeline.teacher import cache
from pipeline.teacher.experiment import Experiment

WEIGHTS = "teacher.weights: "  # of a difference
ASKING = (
    "dataset",
    "prepare",
    "views",
    "teacher",
    "teachers",
    "teacher_training",
)  # sections that decide which stores a configuration asks for


@dataclass(frozen=True)
class User:
    """A configuration, the arms of a study that ask for the same, or an unfinished run."""

    name: str
    stores: frozenset[str] = frozenset()  # names of folders: kind and identity
    any_weights: Mapping | None = None  # the cache's identity where the teacher's weights are not here
    dataset: str | None = None  # where nothing else is known: of this dataset's stores ("": of all) perhaps each
    why: str = ""  # of what is only perhaps asked for

    def asks(self, store: Store) -> bool:
        return store.folder.name in self.stores

    def may_ask(self, store: Store) -> bool:
        if self.any_weights is not None and store.kind == "targets":
            apart = diff(store.identity["record"], dict(self.any_weights))
            return all(difference.startswith(WEIGHTS) for difference in apart)
        return self.dataset is not None and self.dataset in ("", store.card.get("dataset"), store.folder.parent.name)


def users(configs: Path, runs: Path, root: AnyPath, datasets: Collection[str]) -> list[User]:
    """Of all configurations and studies below a folder that are about one of these datasets, and of all unfinished runs below
    another folder."""
    found = [
        user
        for path, raw in experiments(configs)
        if (about := dataset_of(raw)) in datasets or not about
        for user in of_file(path, raw, str(path.relative_to(configs).with_suffix("")), root)
    ]
    return [*found, *of_runs(runs)]


def experiments(configs: Path) -> Iterator[tuple[Path, dict | str]]:
    """Configurations and studies below a folder, as their YAML has them; of a file that cannot be read, why."""
    for path in sorted([*configs.rglob("*.yaml"), *configs.rglob("*.yml")]):
        try:
            raw = yaml.safe_load(path.read_bytes())
        except (OSError, ValueError, yaml.YAMLError) as error:
            yield path, f"{path}: {' '.join(str(error).split())}"
            continue
        if isinstance(raw, dict) and {"dataset", "arms"} & set(raw):
            yield path, raw


def of_file(path: Path, raw: dict | str, name: str, root: AnyPath) -> Iterator[User]:
    if isinstance(raw, str):
        yield User(name, dataset="", why=raw)
        return
    try:
        asking = [arm.config for arm in study.read(path).arms.values()] if "arms" in raw else [load(path)]
    except PipelineError as error:
        yield User(name, dataset=dataset_of(raw), why=str(error).splitlines()[0])
        return
    for config in {str([config.raw.get(section) for section in ASKING]): config for config in asking}.values():
        yield from of_config(name, config, root)


def dataset_of(raw: Any) -> str:
    """The name of a file's dataset, or of the file that a study names; empty if it can't be told."""
    if isinstance(raw, str):
        return ""
    try:
        if "arms" in raw:
            raw = yaml.safe_load(Path(raw["config"]).read_bytes())
        name = raw["dataset"]["name"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return ""
    return name if isinstance(name, str) else ""


def of_config(name: str, config: Config, root: AnyPath) -> Iterator[User]:
    whole = Experiment(config, root, Path("teachers") / f"{config.name}.safetensors")
    try:
        yield from (of_one(name, experiment) for experiment in whole.teachers.values())
    except (PipelineError, OSError) as error:
        yield User(name, dataset=config.dataset.name, why=str(error).splitlines()[0])


def of_one(name: str, experiment: Experiment) -> User:
    """What it asks for of one teacher."""
    config = experiment.config
    try:
        source = experiment.source
        pixels = folder_name("prepared", prepared.identity(source, config.prepare))
        unweighted = cache.identity(source, config.prepare, config.views, config.teacher, "")
    except (PipelineError, OSError) as error:
        return User(name, dataset=config.dataset.name, why=str(error).splitlines()[0])
    try:
        return User(name, frozenset({pixels, folder_name("targets", experiment.identity)}))
    except StoreError as error:
        return User(name, frozenset({pixels}), any_weights=unweighted, why=str(error).splitlines()[0])


def of_runs(runs: Path) -> Iterator[User]:
    for path in sorted(runs.glob("*/*/run.json")):
        if path.with_name("weights.safetensors").exists():
            continue
        name = str(path.parent)
        try:
            record = records.read(path)
            parts = [record, *record.get("teachers", {}).values()]
            stores = [(kind, part[key]["identity"]["record"]) for part in parts for key, kind in KINDS.items() if key in part]
            yield User(name, frozenset(folder_name(kind, identity) for kind, identity in stores))
        except (PipelineError, KeyError, TypeError) as error:
            yield User(name, dataset="", why=str(error))


KINDS = {"prepared": "prepared", "cache": "targets"}  # a run's record -> the kind of a store


def asked_by(store: Store, found: Sequence[User]) -> tuple[list[str], list[str]]:
    """Names of those who ask for a store, and of those who perhaps do."""
    sure = list(dict.fromkeys(user.name for user in found if user.asks(store)))
    return sure, list(dict.fromkeys(user.name for user in found if user.may_ask(store) and user.name not in sure))
