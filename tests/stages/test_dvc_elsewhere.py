"""`dvc exp run --temp` and `--queue`: a checkout of their own below .dvc/tmp, with data drawn again and no stores."""

import shutil

import numpy as np
import pytest
from conftest import Experiment
from PIL import Image


@pytest.fixture
def elsewhere(experiment, monkeypatch):
    folder = experiment.folder / ".dvc/tmp/exps/tmp1"
    (folder / ".dvc").mkdir(parents=True)
    shutil.copy(experiment.config, folder)
    for name in ("data", "teachers"):
        shutil.copytree(experiment.folder / name, folder / name, copy_function=shutil.copyfile)  # with times of their own
    monkeypatch.setenv("DVC_ROOT", str(experiment.folder))
    monkeypatch.delenv("PIPELINE_CACHE_ROOT", raising=False)
    return Experiment(folder)


def test_it_trains_from_the_stores_of_the_checkout_that_it_was_started_in_and_leaves_their_notes(experiment, elsewhere):
    notes = experiment.store("prepared") / "sources.tsv"
    before = notes.read_bytes()
    result = elsewhere.train("intra")
    assert result.exit_code == 0 and "comparing the content of 13 images whose files were touched" in result.stderr
    assert notes.read_bytes() == before and not (elsewhere.folder / "cache").exists()
    assert (elsewhere.folder / "runs/toy/erfnet-intra-0/weights.safetensors").exists()


def test_it_refuses_stores_of_other_pixels(elsewhere):
    path = next((elsewhere.folder / "data/toy").rglob("*.jpg"))
    Image.fromarray(255 - np.array(Image.open(path))).save(path)
    result = elsewhere.train("plain")
    assert result.exit_code == 1 and "the files of 1 images were touched since" in result.stderr
