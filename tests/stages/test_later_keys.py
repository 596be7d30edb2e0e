"""A key that comes later makes no cache, no pass and no run invalid; a value of it that changes something does."""

from dataclasses import dataclass
from typing import Annotated

import pydantic.dataclasses
import pytest

from pipeline import config
from pipeline.config import loading, schema
from pipeline.later import AddedLater
from pipeline.models import resnet18
from pipeline.targets import affinity


@dataclass(frozen=True, kw_only=True)
class Target(affinity.Target):
    centred: Annotated[bool, AddedLater(False)] = False


class Model(resnet18.Model):
    def __init__(
        self,
        num_classes,
        *,
        size,
        lanes=0,
        width: int = 64,
        head: str = "plain",
        dilation: str = "paper",
        extra: Annotated[bool, AddedLater(False)] = False,
    ):
        super().__init__(num_classes, size=size, lanes=lanes, width=width, head=head, dilation=dilation)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=schema.STRICT)
class Training(config.Training):
    label_smoothing: Annotated[float, AddedLater(0.0)] = 0.0


@pytest.fixture
def later(monkeypatch):
    """The keys come."""

    def come():
        monkeypatch.setattr("pipeline.targets.affinity.Target", Target)
        monkeypatch.setattr("pipeline.models.resnet18.Model", Model)
        monkeypatch.setitem(config.SECTIONS, "training", loading.values(Training))

    return come


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_key_that_came_later_leaves_caches_passes_and_runs_as_they_are(experiment, later):
    assert experiment.train().exit_code == 0
    store, run = experiment.store("targets"), experiment.folder / "runs/toy/erfnet-intra-0"
    cached, trained = content(store), content(run)
    later()
    cfg = experiment.load()
    assert cfg.training.label_smoothing == 0.0 and cfg.teacher.model.args["extra"] is False
    assert cfg.targets["graph_mid"].args["centred"] is False
    experiment.do("cache-teacher")
    assert experiment.store("targets") == store and content(store) == cached
    again = experiment.train()
    assert again.exit_code == 0 and "set aside" not in again.stderr
    assert content(run) == trained


@pytest.mark.parametrize(
    "change, words",
    [
        ("targets.graph_mid.centred=true", "never stored (nearest: centred: nothing here, True asked for)"),
        ("teacher.extra=true", "teacher.args.extra: nothing here, True asked for"),
    ],
)
def test_another_value_of_a_later_key_asks_for_another_cache(experiment, later, change, words):
    later()
    result = experiment.train("intra", "--set", change)
    assert result.exit_code == 1 and words in result.stderr


def test_another_value_of_a_later_key_is_another_run(experiment, later):
    assert experiment.train().exit_code == 0
    later()
    result = experiment.train("intra", "--set", "training.label_smoothing=0.1")
    assert result.exit_code == 0 and "training.label_smoothing: nothing here, 0.1 asked for" in result.stderr
