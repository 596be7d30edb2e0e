"""What every shipped configuration's stores and runs are made from, pinned: a change of a digest makes stores and runs that exist
invalid, so it is a decision. WRITE_GOLDEN=1 writes the file anew."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import config
from pipeline.data import prepared
from pipeline.datasets.folder import EXAMPLE
from pipeline.files import plain
from pipeline.identity import identity_digest
from pipeline.teacher import cache

CONFIGS = Path(__file__).parents[1] / "configs"
GOLDEN = Path(__file__).parent / "golden" / "identities.json"


def dataset_of(cfg, root):
    """The config's dataset, with no more on disk than it needs to say what it is."""
    if cfg.dataset.name == "folder":
        (root / "classes.yaml").write_text(EXAMPLE)
    if cfg.dataset.name == "culane":  # its crop is a share of its frames' height
        (root / "list").mkdir()
        (root / "list" / "train.txt").write_text("/clip/00000.jpg\n")
        (root / "clip").mkdir()
        Image.fromarray(np.zeros((590, 1640, 3), np.uint8)).save(root / "clip" / "00000.jpg")
    return config.load(cfg.path, [f"dataset.root={root}"]).dataset.build()


def digests(cfg, root) -> dict[str, str]:
    """12 digits of each record that the configuration decides."""
    dataset, records = dataset_of(cfg, root), {}
    records["prepared"] = prepared.identity(dataset, cfg.prepare)
    if cfg.teacher.model.name != "adapter":  # whose network, and its version, is another package's
        records["cache"] = cache.identity(dataset, cfg.prepare, cfg.views, cfg.teacher, "0" * 64)
    records["teacher's run"] = {
        "teacher": cfg.teacher.model,
        "training": cfg.teacher_training,
        "views": cfg.views,
        "dataset": prepared.meaning(dataset),
    }
    for name, target in cfg.targets.items():
        records[f"target {name}"] = target.build().record(target.name)
        records[f"live target {name}"] = {"targets": {name: target}}
    for name, student in cfg.students.items():
        records[f"run of {name}"] = {
            "student": student,
            "training": cfg.training,
            "views": cfg.views,
            "dataset": prepared.meaning(dataset),
        }
        records[f"exported {name}"] = {"model": student, "weights": "0" * 64}
    for name, method in cfg.methods.items():
        records[f"run with {name}"] = {"method": method}
    found = {name: identity_digest(plain(record))[:12] for name, record in records.items()}
    if "cache" in records:
        context = cache.context(cfg.teacher.model, dataset, cfg.prepare.size)
        found |= {f"pass {name}": pass_.folder for name, (_, pass_) in cache.target_passes(cfg.targets, context).items()}
    return found


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_no_digest_of_a_shipped_configuration_changes(path, tmp_path):
    found = digests(config.load(path), tmp_path)
    if os.environ.get("WRITE_GOLDEN"):
        known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.write_text(json.dumps(dict(sorted((known | {path.stem: found}).items())), indent=1) + "\n")
    assert found == json.loads(GOLDEN.read_text())[path.stem]


def test_the_pinned_digests_are_of_shipped_configurations():
    assert set(json.loads(GOLDEN.read_text())) == {path.stem for path in CONFIGS.glob("*.yaml")}
