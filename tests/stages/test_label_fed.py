"""A teacher that is shown the labels, through the stages: trained, cached, scored, and refused at other labels."""

import json
import shutil

import cv2
import numpy as np
import pytest
import yaml

from pipeline import config
from pipeline.errors import ConfigError


@pytest.fixture
def label_fed(experiment):
    raw = yaml.safe_load(experiment.config.read_text())
    raw["teacher"] = dict(name="lgad", network="resnet18", width=8, checkpoint=None, backbone=None, precision="fp32")
    raw["teacher_training"]["steps"] = 20
    raw["targets"] = {"attention_high": dict(type="attention", layer="high"), "logits": dict(type="logits")}
    raw["methods"] = {"plain": [], "lgad": [dict(loss="attention", reads=["attention_high"], weight=0.1)]}
    experiment.config.write_text(yaml.safe_dump(raw))
    shutil.rmtree(experiment.store("targets"))
    for command in ("train-teacher", "cache-teacher"):
        experiment.do(command)
    return experiment


def test_it_teaches_and_its_cache_depends_on_labels(label_fed):
    said = label_fed.do("verify", "--recompute", "6")
    assert "erfnet lgad attention" in said
    assert label_fed.train("lgad").exit_code == 0
    label_fed.do("evaluate", "--student", "erfnet", "--method", "lgad", "--seed", "0")

    said = label_fed.do("evaluate", "--teacher")
    assert "a reconstruction of the labels it was shown, no prediction" in said
    scores = label_fed.folder / "reports/scores/toy"
    assert json.loads((scores / "teacher.json").read_text())["reconstruction"] is True
    assert "reconstruction" not in json.loads((scores / "erfnet-lgad-0.json").read_text())

    train = (label_fed.folder / "data/toy/list/train_gt.txt").read_text()
    path = label_fed.folder / "data/toy" / train.split()[1].lstrip("/")
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(path), np.where(label == 1, 0, label).astype(np.uint8) if (label == 1).any() else np.full_like(label, 1))
    shutil.rmtree(label_fed.store("prepared"))
    label_fed.do("prepare")
    for result in (label_fed.train("lgad"), label_fed.run("cache-teacher")):  # attention uses no labels, this teacher does
        assert result.exit_code == 1 and "the label of" in result.stderr and "attention-" in result.stderr


def test_it_can_be_no_student(experiment):
    experiment.change(students={"cheat": dict(model="lgad", width=4)})
    with pytest.raises(ConfigError, match="students.cheat: lgad answers from the labels it is shown"):
        config.load(experiment.config)
