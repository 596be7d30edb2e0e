"""Where the curves of a run go while it trains: DVCLive, TensorBoard, Weights & Biases or MLflow.

Each is an extra of the package and off by default (`--log NAME`, or the environment's PIPELINE_LOG). What a logger writes is no
part of the run: no record, identity or resume knows of it, and a logger that fails is left out for the rest of the training.

`LOGGERS` holds them by name. A logger is made with the run's folder, what is to be shown of its record, and the step that
training begins at; then it is told values by name and step, and is closed at the end.
"""

import importlib.util
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.config import weight_in_words
from pipeline.errors import ConfigError
from pipeline.files import write_text
from pipeline.lookup import did_you_mean
from pipeline.progress import say

Values = Mapping[str, float]
History = Sequence[tuple[int, Values]]  # by step


class Logger(Protocol):
    def log(self, step: int, values: Values) -> None: ...

    def close(self) -> None: ...


class DVCLive:
    """Files below dvclive/<config>/<run>, which `dvc metrics`, `dvc plots` and the VS Code extension read while they grow. DVC
    looks at no folder that Git ignores, as `runs` is."""

    def __init__(self, folder: Path, shown: Mapping[str, Any], begin: int, history: History):
        from dvclive import Live

        place = Path("dvclive") / folder.parent.name / folder.name
        # written anew from the checkpoint's curves, so that no step is there twice
        self.live = Live(str(place), resume=False, report=None, save_dvc_exp=False, dvcyaml=None)
        self.live.log_params(dict(shown))
        # DVCLive would add the same entries to a file below the top at each step
        write_text(place / "dvc.yaml", "params: [params.yaml]\nmetrics: [metrics.json]\nplots: [{plots/metrics: {x: step}}]\n")
        for step, values in history:
            self.log(step, values)

    def log(self, step: int, values: Values) -> None:
        self.live.step = step
        for name, value in values.items():
            self.live.log_metric(name, value)
        self.live.next_step()

    def close(self) -> None:
        self.live.end()


class TensorBoard:
    """Event files below <run>/tensorboard: `tensorboard --logdir runs`. Steps after the checkpoint are hidden and written again."""

    def __init__(self, folder: Path, shown: Mapping[str, Any], begin: int, history: History):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=begin + 1 if begin else None)
        if not begin:
            self.writer.add_text("settings", "\n".join(f"    {name}: {value}" for name, value in shown.items()))

    def log(self, step: int, values: Values) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of the project named like the configuration; WANDB_MODE=offline writes it to <run>/wandb alone."""

    def __init__(self, folder: Path, shown: Mapping[str, Any], begin: int, history: History):
        import wandb

        self.run = wandb.init(
            project=folder.parent.name,
            name=folder.name,
            id=kept_id(folder / "wandb.id", lambda: uuid.uuid4().hex[:12]),
            resume="allow",
            dir=str(folder),
            config=dict(shown),
            settings=wandb.Settings(console="off"),
        )

    def log(self, step: int, values: Values) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of the experiment named like the configuration, where MLFLOW_TRACKING_URI says."""

    def __init__(self, folder: Path, shown: Mapping[str, Any], begin: int, history: History):
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient()

        def begun() -> str:
            known = self.client.get_experiment_by_name(folder.parent.name)
            experiment = self.client.create_experiment(folder.parent.name) if known is None else known.experiment_id
            made: str = self.client.create_run(experiment, run_name=folder.name).info.run_id
            for name, value in shown.items():
                self.client.log_param(made, name, value)
            return made

        self.run_id = kept_id(folder / "mlflow.id", begun)
        self.client.update_run(self.run_id, status="RUNNING")

    def log(self, step: int, values: Values) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        named = {re.sub(r"[^\w\-. /]", "_", name): value for name, value in values.items()}  # the characters that it takes
        self.client.log_batch(self.run_id, [Metric(name, value, now, step) for name, value in named.items()])

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


LOGGERS: dict[str, tuple[Callable[[Path, Mapping[str, Any], int, History], Logger], str]] = {  # with the module it needs
    "dvclive": (DVCLive, "dvclive"),
    "tensorboard": (TensorBoard, "tensorboard"),
    "wandb": (WandB, "wandb"),
    "mlflow": (MLflow, "mlflow"),
}


def kept_id(path: Path, make: Callable[[], str]) -> str:
    """The name of a run elsewhere, so that a resumed training goes on there."""
    if not path.exists():
        path.write_text(make(), encoding="utf-8")
    return path.read_text(encoding="utf-8")


class Logs:
    """All loggers of a training. They begin with the first values: before, the run's folder may still be another run's."""

    def __init__(self, names: Sequence[str]):
        """Raises ConfigError on a name that is unknown, or whose package is not installed."""
        self.names = list(dict.fromkeys(names))
        self.open: dict[str, Logger] | None = None
        for name in self.names:
            if name not in LOGGERS:
                raise ConfigError(f"--log {name}: no such logger{did_you_mean(name, LOGGERS)}; there are {', '.join(LOGGERS)}")
            if importlib.util.find_spec(LOGGERS[name][1]) is None:
                raise ConfigError(
                    f"--log {name}: its package is not installed; run: pip install 'offline-distillation-pipeline[{name}]'"
                )

    def log(self, folder: Path, record: Mapping[str, Any], begin: int, history: History, step: int, values: Values) -> None:
        """`begin`: the step this process began at; `history`: what was logged up to there."""
        if self.open is None:
            found: dict[str, Logger] = {}
            for name in self.names:
                self._safely(name, lambda: found.update({name: LOGGERS[name][0](folder, settings(record), begin, history)}))
            self.open = found
        for name, logger in list(self.open.items()):
            self._safely(name, lambda: logger.log(step, values))

    def close(self) -> None:
        for name, logger in list((self.open or {}).items()):
            self._safely(name, logger.close)

    def _safely(self, name: str, work: Callable[[], Any]) -> None:
        try:
            work()
        except Exception as error:  # a network, a disk, a server: no reason to end a training
            said = " ".join(str(error).split())[:300]
            say(f"--log {name}: failed ({type(error).__name__}: {said}); the training goes on without it")
            if self.open is not None:
                self.open.pop(name, None)


def settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's record what people compare runs by: {"student": "erfnet", "training.lr": 0.01}."""
    found: dict[str, Any] = {
        name: called(record[name]) if isinstance(record[name], Mapping) else record[name]
        for name in ("teacher", "student", "seed")
        if name in record
    }
    if "method" in record:
        found["method"] = (
            ", ".join(f"{weight_in_words(term['weight'])} {term['loss']['name']}" for term in record["method"]) or "plain"
        )
    training = record.get("training", {})
    return found | {f"training.{name}": value for name, value in training.items() if not isinstance(value, (dict, list))}


def called(network: Mapping[str, Any]) -> str:
    """As Plugin.called of what a record holds."""
    factory = network["args"].get("factory") if network["name"] == "adapter" else None
    return network["name"] if factory is None else str(factory).rpartition(":")[2]
