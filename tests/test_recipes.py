"""The recipes in configs/ are the published ones where they say so, and their comments are true.

Paper: Hou et al., "Inter-Region Affinity Distillation for Road Marking Segmentation", CVPR 2020, section 4 (crop, size,
batch, learning rate, iterations, background, alphas). Existence weight, momentum, decay, schedule: the authors' code.
"""

import re
from collections import Counter
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline import config
from pipeline.data import prepared
from pipeline.datasets.folder import EXAMPLE
from pipeline.store import plan
from pipeline.teacher import cache

CONFIGS = Path(__file__).parents[1] / "configs"
PAPER = {  # train_images: the paper's Table 1; positions: of the teacher's stride-8 maps
    "culane": dict(
        crop=240,
        size=(208, 976),
        batch=12,
        steps=80_000,
        lr=0.01,
        background=0.4,
        existence=0.1,
        train_images=88_880,
        epochs=10.8,
        positions=26 * 122,
        outputs=5,
        nodes=5,
    ),
    "llamas": dict(
        crop=333,
        size=(288, 960),
        batch=12,
        steps=80_000,
        lr=0.01,
        background=0.4,
        existence=0.1,
        train_images=58_269,
        epochs=16.5,
        positions=36 * 120,
        outputs=5,
        nodes=5,
    ),
    "apolloscape": dict(
        crop=1700,
        size=(505, 1692),
        batch=8,
        steps=180_000,
        lr=0.01,
        background=0.05,
        existence=0.0,
        train_images=103_653,
        epochs=13.9,
        positions=64 * 212,
        outputs=36,
        nodes=36,
    ),
}
MODERN_EPOCHS = {"culane": 12, "llamas": 18}
PREPARED = ("culane", "llamas", "apolloscape", "cityscapes")
ALL = [*PREPARED, *(f"{name}-modern" for name in PREPARED), "own-data"]


def loaded(name, *overrides):
    return config.load(CONFIGS / f"{name}.yaml", overrides)


def comment(name):
    """The lines above the first section, without their `# `."""
    lines = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    return [line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]


def dataset_of(cfg, tmp_path):
    """The config's dataset, with no more on disk than it needs to say what it is."""
    root = tmp_path / cfg.name
    root.mkdir()
    if cfg.dataset.name == "folder":
        (root / "classes.yaml").write_text(EXAMPLE)
    if cfg.dataset.name == "culane":  # its crop is a share of its frames' height
        (root / "list").mkdir()
        (root / "list" / "train.txt").write_text("/clip/00000.jpg\n")
        (root / "clip").mkdir()
        Image.fromarray(np.zeros((590, 1640, 3), np.uint8)).save(root / "clip" / "00000.jpg")
    return loaded(cfg.name, f"dataset.root={root}").dataset.build()


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_numbers_stand_in_its_configs(name):
    paper, cfg = PAPER[name], loaded(name)
    training = cfg.training
    assert cfg.prepare.size == paper["size"]
    assert (training.batch, training.steps, training.lr) == (paper["batch"], paper["steps"], paper["lr"])
    assert (training.background_weight, training.existence_weight) == (paper["background"], paper["existence"])
    assert (training.momentum, training.weight_decay, training.power) == (0.9, 1e-4, 0.9)
    assert set(asdict(training.photometric).values()) == {0.0} and not cfg.views.mirror
    assert cfg.teacher.model.name == "resnet101" and cfg.teacher.model.args["head"] == "pyramid"
    assert list(cfg.students) == ["erfnet", "enet", "resnet18"] + ["resnet34"] * (name == "culane")  # SAD's row


@pytest.mark.parametrize("name", [*PREPARED, *(f"{name}-modern" for name in PREPARED)])
def test_both_alphas_are_the_papers_on_both_layers(name):
    cfg = loaded(name)
    terms = {term.loss.name: term for term in cfg.method("intra")}
    assert set(terms) == {"affinity", "attention"}
    for loss, term in terms.items():
        read = [cfg.targets[target] for target in term.reads]
        assert term.weight == 0.1 and term.start == term.ramp == 0
        assert [(target.name, target.args["layer"]) for target in read] == [(loss, "mid"), (loss, "high")]


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_rows_are_cut_and_its_grid_is_reached(name, tmp_path):
    paper, cfg = PAPER[name], loaded(name)
    dataset = dataset_of(cfg, tmp_path)
    assert dataset.crop_top == paper["crop"]
    assert len(dataset.classes) == paper["outputs"] and dataset.background == 0
    context = cache.context(cfg.teacher.model, dataset, cfg.prepare.size)
    assert len(context.regions) == paper["nodes"]
    assert all(h * w == paper["positions"] for h, w in context.grids.values())


@pytest.mark.parametrize("name", PAPER)
def test_steps_come_to_the_papers_epochs(name):
    paper, training = PAPER[name], loaded(name).training
    assert round(training.steps * training.batch / paper["train_images"], 1) == paper["epochs"]
    assert f"({paper['epochs']} epochs" in " ".join(comment(name))


@pytest.mark.parametrize("name", MODERN_EPOCHS)
def test_modern_steps_are_whole_epochs(name):
    cfg = loaded(f"{name}-modern")
    for training in (cfg.training, cfg.teacher_training):
        images = MODERN_EPOCHS[name] * PAPER[name]["train_images"]
        assert 0 <= training.steps * training.batch - images < training.batch
        assert f"{MODERN_EPOCHS[name]} epochs of batch {training.batch}" in " ".join(comment(f"{name}-modern"))


def test_the_cityscapes_recipe_is_cirkds():
    training, teacher = loaded("cityscapes").training, loaded("cityscapes").teacher_training
    assert loaded("cityscapes").prepare.size == (512, 1024)
    assert (training.batch, training.steps, training.lr) == (16, 40_000, 0.02)
    assert (teacher.batch, teacher.steps, teacher.lr) == (8, 80_000, 0.01)
    whole_frames, crops = loaded("cityscapes-modern").training, 8 * 80_000  # of a quarter of a frame
    assert whole_frames.batch * whole_frames.steps * 4 == crops


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_dataset_lies_at_the_name_of_its_config(path):
    assert yaml.safe_load(path.read_text())["dataset"]["root"] == f"data/{path.stem}"


@pytest.mark.parametrize("name", ALL)
def test_views_are_mirrored_only_where_the_dataset_says_how(name, tmp_path):
    cfg = loaded(name)
    cache.check_views(cfg.views, dataset_of(cfg, tmp_path), name)


@pytest.mark.parametrize("name", ALL)
def test_a_background_is_weighted_only_where_there_is_one(name, tmp_path):
    from pipeline.training.step import class_weights

    cfg = loaded(name)
    dataset = dataset_of(cfg, tmp_path)
    for training in (cfg.training, cfg.teacher_training):
        assert len(class_weights(dataset, training, "cpu")) == len(dataset.classes)


def settings(name):
    """{"section.key": value} of a file; targets, methods and the root as a whole, since a comment names them so."""
    raw = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    flat = {section: raw.pop(section) for section in ("targets", "methods")}
    del raw["dataset"]["root"]
    return flat | {f"{section}.{key}": value for section, values in raw.items() for key, value in values.items()}


@pytest.mark.parametrize("name", PREPARED)
def test_a_modern_recipe_differs_where_its_comment_says(name):
    mine, paper = settings(f"{name}-modern"), settings(name)
    different = {key for key in mine.keys() | paper.keys() if mine.get(key, ...) != paper.get(key, ...)}
    lines = comment(f"{name}-modern")
    listed = []
    for line in lines[lines.index(f"Differs from {name}.yaml in") + 1 :]:
        if not line.startswith("  "):
            break
        if not line.startswith("    "):  # deeper lines go on with the reason
            listed += line.split(":")[0].strip().split(", ")
    assert sorted(listed) == sorted(different)


def test_the_papers_methods_are_one_table():
    tables = [settings(name) for name in PAPER]
    for name, method in tables[0]["methods"].items():
        if name != "sad":  # starts at another step of a longer training
            assert all(table["methods"][name] == method for table in tables)
    assert all(set(table["targets"]) == set(tables[0]["targets"]) for table in tables)


KINDS = {"affinity": "graphs", "attention": "attention", "logits": "logits"}


@pytest.mark.parametrize("name", ALL)
def test_the_comment_gives_the_bytes_that_the_fields_come_to(name, tmp_path):
    cfg = loaded(name)
    dataset = dataset_of(cfg, tmp_path)
    context = cache.context(cfg.teacher.model, dataset, cfg.prepare.size)
    passes = {target: pass_ for target, (_, pass_) in cache.target_passes(cfg.targets, context).items()}
    kinds = {"matrix": "matrix"} | {target: KINDS.get(cfg.targets[target].name, "others") for target in passes}

    text = " ".join(comment(name)).replace(",", "")
    total, parts, images, views, gigabytes, store = re.search(
        r"Cache[^:]*: (\d+) bytes an image and view \((.*?)\); (\d+) images x (\d+) views: ([\d.]+) GB.*"
        r"Prepared store: ([\d.]+) GB",
        text,
    ).groups()
    sizes = plan.sizes(int(images), int(views), passes, cache.MATRIX, context)
    found = Counter()
    for target, size in sizes.target_bytes.items():
        found[kinds[target]] += size
    assert {kind: int(size) for kind, size in zip(*[iter(parts.split())] * 2)} == found
    assert int(total) == sizes.row_bytes and int(views) == cfg.views.count
    assert float(gigabytes) == round(sizes.total_bytes / 1e9, 1)
    sample = prepared.sample_pass(cfg.prepare.size, dataset.lanes)
    assert float(store) == round(plan.row_bytes(sample) * int(images) / 1e9, 1)


# --- docs/datasets.md -------------------------------------------------------------------------------------------------

PAGE = (CONFIGS.parent / "docs" / "datasets.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_names_every_config():
    named = set(re.findall(r"`([\w-]+)`", " ".join(line for line in PAGE.splitlines() if line.startswith("| ["))))
    assert named == {path.stem for path in CONFIGS.glob("*.yaml")} - {"demo", "ablation"}


def test_the_page_s_classes_yaml_is_the_one_that_errors_show():
    assert blocks("yaml") == [EXAMPLE]


def test_the_page_scores_culane_predictions(tmp_path, monkeypatch, capsys):
    """Two frames: one lane found and one missed; a false lane on a crossroad."""
    (block,) = blocks("python")
    lane, other = "400 589 420 489 440 389\n", "1100 589 1000 489 900 389\n"
    files = {
        "data/culane/clip/0.lines.txt": lane + other,
        "data/culane/clip/1.lines.txt": "",
        "predictions/clip/0.lines.txt": lane,
        "predictions/clip/1.lines.txt": other,
        "data/culane/list/test_split/test0_normal.txt": "/clip/0.jpg\n",
        "data/culane/list/test_split/test7_cross.txt": "/clip/1.jpg\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # no processes for two frames
    exec(block, {"__name__": "__main__"})
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert printed == {"normal": f"{2 / 3} 0", "cross": "None 1", "total": "0.5 1"}
