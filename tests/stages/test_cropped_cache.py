"""A cache of cropped views: filled, verified against the teacher again, learned from, and scored on whole frames."""

import json
import shutil

import numpy as np
import pytest
import torch

import pipeline
from pipeline.data import views as geometry
from pipeline.store import Reader
from pipeline.teacher import cache
from pipeline.teacher.experiment import Experiment
from pipeline.training.loading import CachedTargets, Loader

CROP = (32, 64)  # of 48 x 128


@pytest.fixture(scope="module")
def cropped(cached_experiment, tmp_path_factory):
    """The same images and teacher; another cache."""
    folder = tmp_path_factory.mktemp("crops") / "experiment"
    shutil.copytree(cached_experiment.folder, folder)
    shutil.rmtree(type(cached_experiment)(folder).store("targets"))
    experiment = type(cached_experiment)(folder)
    experiment.change(views=dict(crop=list(CROP), scale=[0.5, 2.0], shift=0.0))
    experiment.do("cache-teacher")
    return experiment


def opened(experiment) -> Experiment:
    found = Experiment(experiment.load(), experiment.folder / "cache", experiment.folder / "teachers/toy.safetensors")
    found.config.dataset.args["root"] = str(experiment.folder / "data/toy")
    return found


def test_stored_rows_are_the_teachers_on_the_same_crops(cropped):
    said = cropped.do("verify", "--recompute", "32")
    assert "13 images x 3 views" in said
    identity = json.loads((cropped.store("targets") / "store.json").read_text())["identity"]["record"]
    assert identity["views"]["crop"] == list(CROP) and "[32, 64]" in cropped.do("inspect")


def test_crops_of_padded_frames_are_masked_and_alike_online_and_offline(cached_experiment, tmp_path):
    """Frames of 88 x 410 below the cut fill 27 rows of the 44; crops of 16 rows show the frame, not its padding."""
    experiment = type(cached_experiment)(tmp_path / "padded")
    shutil.copytree(cached_experiment.folder, experiment.folder)
    shutil.rmtree(experiment.folder / "cache")
    experiment.change(prepare=dict(fit="pad"), views=dict(crop=[16, 64], shift=0.0, rotate_deg=0.0, scale=[0.5, 1.5]))
    experiment.change(evaluate=dict(window=[16, 64]))
    for command in (["prepare"], ["cache-teacher"], ["verify", "--recompute", "13"], ["evaluate", "--teacher"]):
        experiment.do(*command)
    found = opened(experiment)
    store, passes = found.open_cache(found.targets)
    stored = CachedTargets(Reader(store, passes, found.ids, found.config.views.count), cache.MATRIX, found.targets)
    live = found.online_targets(list(found.config.targets), found.samples(), batch=4, device="cpu")
    loaders = [
        Loader.of(found, found.samples(), found.config.training, seed=0, device="cpu", cached=cached)
        for cached in (stored, live, None)
    ]
    for step in range(4):
        offline, online, drawn = (loader.batch(step) for loader in loaders)
        for other in (online, drawn):
            assert torch.equal(offline.images_B3HW, other.images_B3HW) and torch.equal(offline.labels_BHW, other.labels_BHW)
            assert torch.equal(offline.inside_BHW, other.inside_BHW)
        for name, rows in offline.rows.items():
            for field, values in rows.items():
                torch.testing.assert_close(values.float(), online.rows[name][field].float(), rtol=2e-2, atol=2e-2)
        assert (offline.labels_BHW[~offline.inside_BHW] == 255).all()
        assert (offline.inside_BHW.float().mean((1, 2)) > 0.8).all()  # at 0.5, 13 of the 16 rows


def test_identities_without_a_crop_do_not_name_it(cached_experiment):
    identity = json.loads((cached_experiment.store("targets") / "store.json").read_text())["identity"]["record"]
    assert "crop" not in identity["views"]


def test_grids_and_sizes_follow_the_crop(cropped, cached_experiment):
    found, whole = opened(cropped), opened(cached_experiment)
    assert found.context.size == CROP and found.context.grids["logits"] == (4, 8)
    assert found.targets["logits"][1].fields["logits"].shape[1:] == (4, 8)
    assert whole.targets["logits"][1].fields["logits"].shape[1:] == (6, 16)
    assert "| logits | 324 |" in cropped.do("plan")


def test_students_see_the_crops_of_the_teacher_online_and_offline_alike(cropped):
    """The images, labels and rows of a batch from the cache are those with the teacher in the loop."""
    found = opened(cropped)
    names = list(found.config.targets)
    store, passes = found.open_cache(found.targets)
    stored = CachedTargets(Reader(store, passes, found.ids, found.config.views.count), cache.MATRIX, found.targets)
    live = found.online_targets(names, found.samples(), batch=4, device="cpu")
    batches = [
        Loader.of(found, found.samples(), found.config.training, seed=0, device="cpu", cached=cached).batch(5)
        for cached in (stored, live)
    ]
    offline, online = batches
    assert offline.images_B3HW.shape[-2:] == CROP
    assert torch.equal(offline.images_B3HW, online.images_B3HW) and torch.equal(offline.labels_BHW, online.labels_BHW)
    for name in names:
        for field, values in offline.rows[name].items():
            torch.testing.assert_close(values.float(), online.rows[name][field].float(), rtol=2e-2, atol=2e-2)


def test_a_student_learns_from_crops_and_is_scored_on_whole_frames(cropped):
    result = cropped.train("intra", "--set", "training.steps=2")
    assert result.exit_code == 0, result.output
    result = cropped.train("plain", "--set", "training.steps=2", "--set", "training.fresh_views=true")
    assert result.exit_code == 0, result.output
    cropped.do("evaluate", "--student", "erfnet", "--method", "plain", "--seed", "0", "--set", "training.fresh_views=true")


def test_a_teacher_is_trained_on_crops(cropped, monkeypatch):
    from pipeline.models.base import ModelBase

    seen = set()
    normalise = ModelBase.normalise
    monkeypatch.setattr(ModelBase, "normalise", lambda self, images: seen.add(tuple(images.shape[-2:])) or normalise(self, images))
    cropped.do("train-teacher", "--set", "teacher_training.steps=1", "--set", "views.seed=7", "--set", "teacher_training.batch=2")
    assert seen == {CROP}


def test_a_cache_opened_in_python_shows_crops(cropped):
    opened_cache = pipeline.open_cache(cropped.store("targets"))
    record = opened_cache[opened_cache.ids[0], 1]
    assert opened_cache.size == opened_cache.context.size == CROP
    assert record.image_3HW.shape == (3, *CROP) and record.label_HW.shape == record.inside_HW.shape == CROP
    assert np.array_equal(record.matrix_23.numpy(), geometry.draw(cropped.load().views, record.id, 1, (48, 128)))
