"""Curves sent to the loggers that people use. Each is tested with its package where it is installed."""

import importlib.util
import json

import pytest
import yaml

from pipeline.errors import ConfigError
from pipeline.training import loggers

RUN = "runs/toy/erfnet-plain-0"


def needs(package):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed (pip install '.[{package}]')")


@pytest.fixture
def training(experiment):
    experiment.change(training=dict(validate_every=4))
    return experiment


class Kept:
    """A logger that keeps what it is told."""

    made: list["Kept"] = []

    def __init__(self, folder, shown, begin, history):
        assert (folder / "run.json").exists()  # of this run: a folder of another one is set aside before
        self.shown, self.begin, self.told, self.closed = shown, begin, [*history], False
        self.made.append(self)

    def log(self, step, values):
        self.told.append((step, dict(values)))

    def close(self):
        self.closed = True


@pytest.fixture
def kept(monkeypatch):
    monkeypatch.setattr(Kept, "made", [])
    monkeypatch.setitem(loggers.LOGGERS, "kept", (Kept, "json"))
    return Kept.made


def test_loggers_are_told_all_curves_and_change_no_run(training, kept):
    assert training.train("plain").exit_code == 0
    folder = training.folder / RUN
    names = ("run.json", "weights.safetensors", "curves.tsv", "result.json")
    before = {name: (folder / name).read_bytes() for name in names}
    folder.rename(folder.with_name("without"))
    assert training.train("plain", "--log", "kept").exit_code == 0
    assert {name: (folder / name).read_bytes() for name in names} == before
    (one,) = kept
    assert one.closed and (one.shown["student"], one.shown["method"], one.shown["training.lr"]) == ("erfnet", "plain", 0.05)
    steps = dict(one.told)
    assert list(steps) == list(range(1, 13)) and set(steps[4]) == {
        "train/ce",
        "norm/ce",
        "lr",
        "val/mean_iou",
        "val/cross_entropy",
    }
    assert set(steps[5]) == {"train/ce", "lr"} and steps[1]["lr"] == 0.05
    line = (folder / "curves.tsv").read_text().splitlines()[5]
    assert line == f"5\t{steps[5]['train/ce']:.6g}"


def test_a_resumed_training_tells_a_logger_what_an_unbroken_one_does(training, kept, power_cut):
    assert training.train("plain", "--log", "kept").exit_code == 0
    folder = training.folder / RUN
    folder.rename(folder.with_name("unbroken"))
    with power_cut(7):
        assert training.train("plain", "--log", "kept").exit_code == 130
    assert training.train("plain", "--log", "kept").exit_code == 0
    unbroken, broken, resumed = kept
    assert resumed.begin == 4 and broken.closed
    without_lr = [
        [(step, {k: v for k, v in values.items() if k != "lr"}) for step, values in one.told] for one in (unbroken, resumed)
    ]
    assert without_lr[0] == without_lr[1]


def test_a_logger_that_fails_ends_no_training(training, kept, monkeypatch):
    def broken(self, step, values):
        raise OSError("no\nnetwork")

    monkeypatch.setattr(Kept, "log", broken)
    result = training.train("plain", "--log", "kept")
    assert result.exit_code == 0 and result.stderr.count("--log kept: failed (OSError: no network); the training goes on") == 1


def test_unknown_and_missing_loggers_are_one_line(monkeypatch):
    with pytest.raises(ConfigError, match="--log tensorbord: no such logger; did you mean 'tensorboard'"):
        loggers.Logs(["tensorbord"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in loggers.LOGGERS:
        with pytest.raises(ConfigError, match=rf"run: pip install 'offline-distillation-pipeline\[{name}\]'"):
            loggers.Logs([name])


def log(name, tmp_path):
    """Two processes: the second resumes at step 4."""
    folder, record = tmp_path / "toy" / "erfnet-intra-0", {"seed": 0, "training": {"lr": 0.1}}
    folder.mkdir(parents=True)
    rows = [(step, {"train/affinity(mid,high)": 1 / step, "val/mean_iou": 0.5}) for step in (2, 4, 6)]
    first = loggers.Logs([name])
    for step, values in rows:
        first.log(folder, record, 0, [], step, values)
    first.close()
    again = loggers.Logs([name])
    again.log(folder, record, 4, rows[:2], *rows[2])
    again.close()
    assert first.open and again.open  # none failed
    return folder


@needs("tensorboard")
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_shows_each_step_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(log("tensorboard", tmp_path) / "tensorboard"))
    found.Reload()
    assert [(event.step, pytest.approx(event.value)) for event in found.Scalars("train/affinity(mid,high)")] == [
        (2, 1 / 2),
        (4, 1 / 4),
        (6, 1 / 6),
    ]


@needs("dvclive")
@pytest.mark.filterwarnings("ignore")
def test_dvclive_writes_the_files_that_dvc_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log("dvclive", tmp_path)
    place = tmp_path / "dvclive/toy/erfnet-intra-0"
    assert json.loads((place / "metrics.json").read_text())["val"]["mean_iou"] == 0.5
    (curve,) = (place / "plots/metrics/val").glob("*.tsv")
    assert [line.split("\t")[0] for line in curve.read_text().splitlines()] == ["step", "2", "4", "6"]
    named = yaml.safe_load((place / "dvc.yaml").read_text())
    assert (place / named["metrics"][0]).exists() and "lr" in (place / named["params"][0]).read_text()
    assert (place / next(iter(named["plots"][0]))).is_dir()


@needs("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_goes_on_in_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    run_id = (log("mlflow", tmp_path) / "mlflow.id").read_text()
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    assert (run.info.run_id, run.info.status, run.data.params["training.lr"]) == (run_id, "FINISHED", "0.1")
    assert {metric.step for metric in client.get_metric_history(run_id, "train/affinity_mid_high_")} == {2, 4, 6}


@needs("wandb")
@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = log("wandb", tmp_path)
    name = (folder / "wandb.id").read_text()
    assert len(list((folder / "wandb").glob(f"offline-run-*-{name}"))) >= 1
    assert list((folder / "wandb").rglob(f"run-{name}.wandb"))
