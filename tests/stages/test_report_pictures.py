"""`pipeline report --pictures` on trained networks, and the arithmetic behind it against slow versions."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_evaluate import left_by_a_run

from pipeline.errors import PipelineError
from pipeline.reporting import feature_pictures, results


@pytest.fixture(scope="module")
def trained(cached_experiment, tmp_path_factory):
    import shutil

    from conftest import Experiment

    folder = tmp_path_factory.mktemp("pictures") / "experiment"
    shutil.copytree(cached_experiment.folder, folder)
    experiment = Experiment(folder)
    for method in ("plain", "intra"):
        assert experiment.train(method).exit_code == 0
        experiment.do("evaluate", "--student", "erfnet", "--method", method, "--seed", "0", "--workers", "1")
    experiment.do("evaluate", "--teacher", "--workers", "1")
    return experiment


def test_the_page_shows_the_same_frames_graphs_and_features_of_every_network(trained):
    out = trained.do("report", "--pictures", "--device", "cpu")
    page = (trained.folder / "reports/toy-pictures.html").read_text()
    assert out.endswith("reports/toy-pictures.html\n") and not (trained.folder / "reports/toy.html").exists()
    assert page.count("data:image/jpeg;base64,") == 3 * 5  # three test frames: image, truth, three networks
    assert page.count(" in the mean") >= 2 * 2 and page.count("% between classes") == 3
    assert "layer mid" in page and "layer high" in page
    assert "The cache holds 13 images in 3 views" in page


def test_scores_know_their_weights(trained):
    assert "were scored" not in trained.do("report")
    path = trained.folder / "runs/toy/erfnet-plain-0/weights.safetensors"
    before = {file: file.read_bytes() for file in (path, path.with_name("result.json"))}
    left_by_a_run(path, {name: value + 1 for name, value in load_file(path).items()})  # trained again
    assert "erfnet-plain-0: its weights are not those that were scored" in trained.do("report")
    for file, content in before.items():
        file.write_bytes(content)
    (trained.folder / "reports/toy.html").unlink()


def test_a_run_notes_its_time_outside_of_its_record(trained):
    run = trained.folder / "runs/toy/erfnet-intra-0"
    assert results.time_of(run).steps == 12 and results.time_of(run).seconds > 0
    assert "seconds" not in (run / "run.json").read_text()
    assert [json.loads(line)["last"] for line in (run / "history.jsonl").read_text().splitlines()] == [4, 8, 12]
    assert sorted(path.name for path in (run / "curves").iterdir()) == ["affinity.tsv", "attention.tsv", "ce.tsv"]
    assert (run / "curves/affinity.tsv").read_text().splitlines()[0] == "step\taffinity"


def test_the_cache_is_weighed_by_its_files(trained):
    cfg = trained.load()
    found = results.cached(trained.folder / "reports/cache/toy.json", trained.folder / "cache", cfg.dataset.name)
    files = [path for path in trained.store("targets").rglob("c.*") if "/attention-" in str(path)]
    assert 0 <= found.bytes_of(["attention_high"]) - sum(path.stat().st_size for path in files) < 20_000  # and metadata
    assert found.bytes_of(["graph_mid", "graph_mid"]) == found.num_bytes["graph_mid"]
    assert (found.images, found.views) == (13, 3) and found.seconds >= 0
    assert results.cached(trained.folder / "reports/cache/toy.json", trained.folder / "elsewhere", cfg.dataset.name) is None


def test_missing_weights_are_named(trained):
    weights = trained.folder / "runs/toy/erfnet-plain-0/weights.safetensors"
    weights.rename(weights.with_suffix(".away"))
    result = trained.run("report", "--pictures", "--device", "cpu")
    weights.with_suffix(".away").rename(weights)
    assert result.exit_code == 1 and "erfnet-plain-0/weights.safetensors" in result.stderr and "train-student" in result.stderr


def test_the_share_between_classes_is_what_their_means_explain():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 60).astype(np.uint8)
    features = rng.normal(size=(60, 5)) + 2 * labels[:, None]
    predicted = np.stack([features[labels == label].mean(axis=0) for label in labels])
    slow = 1 - ((features - predicted) ** 2).sum() / ((features - features.mean(axis=0)) ** 2).sum()
    assert feature_pictures.between_classes(features, labels) == pytest.approx(slow)
    assert feature_pictures.between_classes(predicted, labels) == pytest.approx(1)


def test_components_are_the_covariances_greatest_eigenvectors():
    features = np.random.default_rng(1).normal(size=(50, 6)) * [5, 1, 3, 0.5, 0.1, 2]
    values, vectors = np.linalg.eigh(np.cov(features.T))
    slow = (features - features.mean(axis=0)) @ vectors[:, [-1, -2]]
    found = feature_pictures.components(features)
    np.testing.assert_allclose(np.abs(found), np.abs(slow), atol=1e-9)
    assert (found[np.abs(found).argmax(axis=0), [0, 1]] > 0).all()


def test_t_sne_keeps_groups_apart_and_comes_out_equal():
    pytest.importorskip("sklearn", reason="t-SNE needs the extra `tsne`: pip install 'offline-distillation-pipeline[tsne]'")
    groups = np.repeat([0, 1], 20)
    features = np.random.default_rng(2).normal(size=(40, 6)) + 20 * groups[:, None]
    found = feature_pictures.neighbours(features)
    distances = np.linalg.norm(found[:, None] - found, axis=2) + np.diag(np.full(40, np.inf))
    assert (groups[distances.argmin(axis=1)] == groups).all()
    np.testing.assert_array_equal(found, feature_pictures.neighbours(features))


def test_t_sne_without_its_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(PipelineError, match=r"t-SNE needs scikit-learn: pip install .*\[tsne\]"):
        feature_pictures.neighbours(np.zeros((9, 3)))


def test_cells_carry_the_label_at_their_centre():
    labels = torch.full((1, 16, 24), 255, dtype=torch.uint8)
    labels[0, 4, 4], labels[0, 12, 20] = 1, 3  # the centres of the first and the last of 2 x 3 cells
    features = torch.arange(6.0).view(1, 1, 2, 3)
    found, known = feature_pictures._cells([(features, labels)])
    assert found.ravel().tolist() == [0.0, 5.0] and known.tolist() == [1, 3]


def test_no_class_has_more_cells_than_any_other_may():
    labels = torch.zeros(1, 160, 160, dtype=torch.uint8)
    labels[0, :8] = 2
    found, known = feature_pictures._cells([(torch.randn(1, 4, 20, 20), labels)])
    assert np.bincount(known).tolist() == [feature_pictures.CELLS, 0, 20] and found.shape == (120, 4)
