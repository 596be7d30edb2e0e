"""A few real frames of each official layout, from `doctor` to a student's score from files in the official format."""

import json
import os
from pathlib import Path

import pytest
import yaml

from tests.conftest import EXPERIMENT, Experiment


def linked(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(source.resolve())


def cityscapes(root: Path) -> dict:
    """The one frame there is, to train and to score on, at its reduced size."""
    real, name = Path(os.environ["SAMPLES_ROOT"]) / "cityscapes", "frankfurt/frankfurt_000000_000294"
    for split in ("train", "val"):
        for file in (f"leftImg8bit/{{}}/{name}_leftImg8bit.png", f"gtFine/{{}}/{name}_gtFine_labelIds.png"):
            linked(real / file.format("val"), root / file.format(split))
    return dict(
        dataset=dict(name="cityscapes", root=str(root), size=[128, 256]),
        prepare=dict(size=[128, 256], codec="raw"),
        views=dict(count=2, seed=0, scale=[0.5, 2.0], rotate_deg=0.0, shift=0.0, mirror=True, crop=[64, 128]),
        evaluate=dict(split="val", window=[64, 128]),
    )


def apolloscape(root: Path) -> dict:
    """Two frames of each of two roads, with grey labels and labels with a palette; the edition without the sky."""
    from PIL import Image

    real, modes = Path(os.environ["APOLLOSCAPE_ROOT"]), set()
    for road in ("road02", "road04"):
        for label in sorted(real.glob(f"Labels_{road}/Label/*/*/*_bin.png"))[:2]:
            name = label.relative_to(real / f"Labels_{road}/Label")
            image = Path(f"ColorImage_{road}/ColorImage") / name.parent / f"{name.name.removesuffix('_bin.png')}.jpg"
            linked(label, root / label.relative_to(real))
            linked(real / image, root / image)
            with Image.open(label) as opened:
                modes.add(opened.mode)
    assert modes == {"L", "P"}
    return dict(
        dataset=dict(
            name="apolloscape", root=str(root), roads=["road02", "road04"], val=["road04"], ignored=255, crop_bottom_rows=1010
        ),
        prepare=dict(size=[84, 284], codec="raw"),
        views=dict(count=2, seed=0, scale=[0.8, 1.25], rotate_deg=0.0, shift=0.05, mirror=True),
        evaluate=dict(split="val"),
    )


def culane(root: Path) -> dict:
    """Two frames to train on and two to score."""
    real = Path(os.environ["CULANE_ROOT"])
    lists = {name: (real / f"list/{name}.txt").read_text().split("\n") for name in ("train_gt", "val_gt", "test")}
    (root / "list").mkdir(parents=True)
    for name, lines in lists.items():
        some = [line for line in lines if line][:2]
        (root / f"list/{name}.txt").write_text("\n".join(some) + "\n")
    for folder in real.iterdir():
        if folder.is_dir() and folder.name != "list":
            (root / folder.name).symlink_to(folder.resolve())
    (root / "list/train.txt").write_text("".join(f"{line.split()[0]}\n" for line in lists["train_gt"][:2]))
    (root / "list/val.txt").write_text("".join(f"{line.split()[0]}\n" for line in lists["val_gt"][:2]))
    return dict(
        dataset=dict(name="culane", root=str(root)),
        prepare=dict(size=[56, 256], codec="raw"),
        views=dict(count=2, seed=0, scale=[0.8, 1.25], rotate_deg=3.0, shift=0.05, mirror=False),
        evaluate=dict(split="test"),
    )


# the variable, what is written of it, the name of the official score, and how files in the official format are scored
SETS = {
    "cityscapes": ("SAMPLES_ROOT", cityscapes, "cityscapes_miou", ("segmentation", "toy.yaml")),
    "apolloscape": ("APOLLOSCAPE_ROOT", apolloscape, "apolloscape_miou", ("segmentation", "toy.yaml")),
    "culane": ("CULANE_ROOT", culane, "culane_f1", ("culane", "data/toy", "--list", "data/toy/list/test.txt")),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.skipif(variable not in os.environ, reason=f"{variable} names no real frames of {name}")
        )
        for name, (variable, *_) in SETS.items()
    ],
)
def test_real_frames_go_from_the_doctor_to_a_score_of_official_files(name, tmp_path):
    _, write, headline, scored = SETS[name]
    experiment = Experiment(tmp_path)
    sections = write(tmp_path / "data/toy")
    sections["dataset"]["root"] = "data/toy"
    weight = 1.0 if name == "cityscapes" else 0.1
    raw = {**EXPERIMENT, **sections}
    raw["teacher_training"] = {**raw["teacher_training"], "steps": 2, "batch": 2, "background_weight": weight}
    raw["training"] = {**raw["training"], "steps": 2, "batch": 2, "background_weight": weight, "norm_every": 2}
    experiment.config.write_text(yaml.safe_dump(raw))
    doctor = experiment.run("doctor")
    faults = [line for line in doctor.stderr.splitlines() if line.startswith("Error: ")]
    missing = ("officially", "holds no", "has the pixels of", f" in {name} (")  # it is a part of the set, one frame twice
    assert all(any(word in line for word in missing) for line in faults), doctor.stderr
    assert "frames by width x height" in doctor.output
    experiment.do("prepare")
    experiment.do("train-teacher")
    experiment.do("evaluate", "--teacher")
    experiment.do("cache-teacher")
    assert "is allowed" in experiment.do("verify", "--recompute", "2")
    assert experiment.train("intra").exit_code == 0
    student = ("--student", "erfnet", "--method", "intra", "--seed", "0")
    experiment.do("evaluate", *student)
    split = sections["evaluate"]["split"]
    found = json.loads((tmp_path / "reports/scores/toy/erfnet-intra-0.json").read_text())
    assert found["metric"] == headline and found["images"] == (1 if name == "cityscapes" else 2)

    from click.testing import CliRunner

    from pipeline.cli import main

    command, *rest = scored
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        result = CliRunner().invoke(
            main, ["score", command, f"runs/toy/erfnet-intra-0/predictions/{split}", *rest, "--json"], catch_exceptions=False
        )
    finally:
        os.chdir(before)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["total"]["f1"] if name == "culane" else said[headline]) == pytest.approx(found[headline])
