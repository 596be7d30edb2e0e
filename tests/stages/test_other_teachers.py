"""Teachers and students of another kind, from training to scores: an adapter's, one without logits, one that looks twice, one
that says which lanes there are."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipeline import weights
from pipeline.config import Plugin
from pipeline.data import prepared
from pipeline.lookup import find_class
from pipeline.scoring import load as trained
from pipeline.scoring.predict import scores
from pipeline.store import Reader
from pipeline.teacher import cache

sys.path.append(str(Path(__file__).parents[1] / "pipeline" / "models"))
NETWORK = {
    "factory": "toy_networks:plain",
    "arguments": {"classes": 5},
    "layers": {"mid": "early", "high": "late"},
    "logits": "output:out",
    "mean": [120.0, 110.0, 100.0],
    "std": [60.0, 50.0, 40.0],
}
ADAPTER = {"name": "adapter", "checkpoint": None, "backbone": None, "precision": "fp32", **NETWORK}


def rewritten(experiment, **sections):
    """The experiment with other sections, prepared data kept, nothing else."""
    raw = yaml.safe_load(experiment.config.read_text()) | sections
    experiment.config.write_text(yaml.safe_dump(raw))
    shutil.rmtree(experiment.store("targets"))
    (experiment.folder / "teachers" / "toy.safetensors").unlink()
    shutil.rmtree(experiment.folder / "runs", ignore_errors=True)
    return raw


def short(training, **others):
    return training | {"steps": 4, "checkpoint_every": 100, "norm_every": 100} | others


def test_members_of_an_ensemble_teach_as_one_and_other_members_are_refused(experiment):
    torch.manual_seed(0)
    files = [experiment.folder / f"{name}.safetensors" for name in "abc"]
    for file in files:
        network = find_class("models", "erfnet")(5, size=(96, 160), width=4)
        weights.save_file(file, network.state_dict())
    teacher = {"name": "ensemble", "network": {"name": "erfnet", "width": 4}, "members": 2, "backbone": None, "precision": "fp32"}
    raw = rewritten(experiment, teacher=teacher | {"checkpoint": [str(file) for file in files[:2]]}, teacher_training=None)
    assert "a.safetensors, " in experiment.do("train-teacher")
    experiment.do("cache-teacher")
    experiment.do("verify", "--recompute", "2")
    raw["teacher"] = teacher | {"checkpoint": [str(file) for file in files[1:]]}
    experiment.config.write_text(yaml.safe_dump(raw))
    refused = experiment.run("verify")
    assert refused.exit_code and "b.safetensors, " in refused.output and "train-teacher" in refused.output


def test_an_adapters_teacher_teaches_an_adapters_student(experiment):
    raw = yaml.safe_load(experiment.config.read_text())
    rewritten(
        experiment,
        teacher=ADAPTER,
        students={"other": {"model": "adapter", **NETWORK}},
        teacher_training=short(raw["teacher_training"]),
        training=short(raw["training"]),
    )
    for command in ("train-teacher", "cache-teacher"):
        experiment.do(command)
    student = ("--student", "other", "--method", "intra", "--seed", "0")
    experiment.do("train-student", *student)
    assert "mean IoU" in experiment.do("evaluate", *student) and "mean IoU" in experiment.do("evaluate", "--teacher")
    assert "is allowed" in experiment.do("verify", "--recompute", "4")
    state = weights.load_file(experiment.folder / "teachers" / "toy.safetensors")
    assert {"stem.0.weight", "early.bias", "classify.weight"} < set(state)  # its own names

    experiment.change(teacher={"arguments": {"classes": 5, "width": 8}})
    refused = experiment.run("train-student", *student)
    assert refused.exit_code == 1 and "teacher.args.arguments.width" in refused.output


def test_a_frozen_backbone_teaches_by_its_features_and_needs_no_training(experiment):
    raw = yaml.safe_load(experiment.config.read_text())
    backbone = ADAPTER | {
        "factory": "toy_networks:Tokens",
        "arguments": {},
        "logits": None,
        "prefix_tokens": 2,
        "layers": {"mid": "patches", "high": "output:tokens"},
        "input_size": [96, 256],
    }
    rewritten(experiment, teacher=backbone, teacher_training=None, training=short(raw["training"]))
    refused = experiment.run("train-teacher")
    assert refused.exit_code == 1 and "targets.logits: is made from logits, and this teacher has none" in refused.output
    raw["targets"].pop("logits"), raw["methods"].pop("kd")
    experiment.config.write_text(
        yaml.safe_dump(yaml.safe_load(experiment.config.read_text()) | {"targets": raw["targets"], "methods": raw["methods"]})
    )
    assert "as its factory made it" in experiment.do("train-teacher")
    experiment.do("cache-teacher")
    assert experiment.train("intra").exit_code == 0
    refused = experiment.run("evaluate", "--teacher")
    assert refused.exit_code == 1 and "has no logits" in refused.output


def test_the_shipped_segformer_answers_as_its_config_says():
    pytest.importorskip("transformers")
    from pipeline import config

    cfg = config.load(Path(__file__).parents[2] / "configs" / "own-data-unlabelled.yaml")
    context = cache.described(cfg.teacher.model, 3, range(3), cfg.prepare.size)
    assert context.grids == {"mid": (48, 80), "high": (12, 20), "logits": (96, 160)}
    assert context.channels == {"mid": 128, "high": 512, "logits": 3}


def test_lane_existence_is_distilled_and_its_head_stays_with_the_weights(experiment):
    raw = yaml.safe_load(experiment.config.read_text())
    rewritten(
        experiment,
        teacher_training=short(raw["teacher_training"], existence_weight=0.1),
        training=short(raw["training"], existence_weight=0.1),
        targets={"lanes": {"type": "existence", "lanes": 4}},
        methods={"plain": [], "lanes": [{"loss": "existence_kd", "reads": ["lanes"], "weight": 1.0, "temperature": 2.0}]},
    )
    for command in ("train-teacher", "cache-teacher"):
        experiment.do(command)
    assert experiment.train("lanes").exit_code == 0
    assert "erfnet lanes existence_kd" in experiment.do("verify", "--recompute", "4")
    curves = json.loads((experiment.folder / "runs/toy/erfnet-lanes-0/curves.json").read_text())
    assert "existence_kd" in str(curves)
    own = experiment.folder / "own.safetensors"
    shutil.move(experiment.folder / "teachers" / "toy.safetensors", own)
    experiment.change(teacher={"checkpoint": str(own)})
    assert "copied from" in experiment.do("train-teacher")
    assert "mean IoU" in experiment.do("evaluate", "--teacher")
    assert weights.has_existence(weights.load_file(experiment.folder / "teachers" / "toy.safetensors"))

    experiment.change(training={"existence_weight": 0.0})
    refused = experiment.run("train-student", "--student", "erfnet", "--method", "lanes", "--seed", "1")
    assert refused.exit_code == 1 and "the student has no lane-existence head" in refused.output


def live(experiment, cfg):
    """The teacher that answers, the prepared rows of four images, and a plain matrix for each."""
    source = cfg.dataset.build()
    context = cache.context(cfg.teacher.model, source, cfg.prepare.size)
    model = cache.load_teacher(cfg.teacher, source, cfg.prepare.size, experiment.folder / "teachers" / "toy.safetensors")
    answers = cache.TeacherRunner(model, source, context, cfg.prepare.size, precision="fp32", batch=4, device="cpu")
    store, sample, images = prepared.open_whole(experiment.folder / "cache", cfg.dataset, source, cfg.prepare, source.ids("train"))
    rows = Reader(store, [sample], [image.id for image in images], 1).read(sample, np.arange(4), np.zeros(4, int))
    return source, context, answers, rows, np.repeat(np.array([[[1.0, 0, 0], [0, 1, 0]]]), 4, axis=0)


def test_a_flip_averaged_teacher_gives_the_means_that_two_passes_give_by_hand(experiment, monkeypatch):
    monkeypatch.chdir(experiment.folder)
    cfg = experiment.load()
    source, context, once, rows, matrices = live(experiment, cfg)
    experiment.change(teacher={"flip_average": True})
    twice = live(experiment, experiment.load())[2]
    targets = {name: plugin.build() for name, plugin in cfg.targets.items()}
    output, labels = twice.output(rows["image"], rows["label"], matrices)
    found = {name: cache.computed(target, output, labels, context) for name, target in targets.items()}

    plain, labels = once.output(rows["image"], rows["label"], matrices)
    turned_labels = torch.tensor([*source.mirror, *range(5, 256)], dtype=torch.uint8)[labels.flip(2).long()]
    with torch.no_grad():
        shown = torch.from_numpy(rows["image"]).permute(0, 3, 1, 2).float()
        turned = cache.as_float(once.model(shown.flip(3)))
    swap = torch.eye(5)[list(source.mirror)]
    assert not torch.equal(swap, torch.eye(5))
    for name in ("graph_mid", "graph_high"):
        here = targets[name].compute(plain, labels, context)["graph"]
        there = swap @ targets[name].compute(turned, turned_labels, context)["graph"] @ swap.T
        torch.testing.assert_close(found[name]["graph"], (here + there) / 2, rtol=0, atol=2e-4)
        assert (here - there).abs().max() > 0.05
    energy = targets["attention_high"].compute(plain, labels, context)["energy"] + targets["attention_high"].compute(
        turned, turned_labels, context
    )["energy"].flip(2)
    torch.testing.assert_close(found["attention_high"]["energy"], energy / 2, rtol=1e-4, atol=1e-5)
    logits = torch.einsum("ck,bkhw->bchw", swap, turned.logits.flip(3))
    torch.testing.assert_close(found["logits"]["logits"], (plain.logits + logits) / 2, rtol=1e-4, atol=1e-4)


def test_a_flip_averaged_teacher_has_a_cache_of_its_own_and_is_verified_as_it_answered(experiment):
    record = json.loads((experiment.store("targets") / "store.json").read_text())
    assert "flip_average" not in str(record)  # so that caches made before there was a choice stay good
    experiment.change(teacher={"flip_average": True})
    refused = experiment.train("intra")
    assert refused.exit_code == 1 and "teacher.flip_average" in refused.output
    experiment.do("cache-teacher")
    assert len(list((experiment.folder / "cache" / "roads").glob("targets-*"))) == 2
    assert "is allowed" in experiment.do("verify", "--recompute", "6")
    assert "mean IoU" in experiment.do("evaluate", "--teacher")


def test_scores_of_a_flip_averaged_teacher_are_of_its_mean_which_is_the_same_in_a_mirror(experiment):
    cfg = experiment.load()
    source, shown = cfg.dataset.build(), torch.rand(2, 3, 48, 128, generator=torch.Generator().manual_seed(0)) * 255
    for flip_average in (False, True):
        network = trained.load(
            cfg.teacher.model, source, cfg.prepare, None, experiment.folder / "teachers/toy.safetensors", "cpu", flip_average
        )
        with torch.no_grad():
            here, _ = scores(network, shown, cfg.prepare.size)
            there = network(shown.flip(3)).logits.flip(3)[:, list(source.mirror)]
            same = torch.allclose(network(shown).logits, there, atol=1e-4)
        assert here.shape == (2, 5, 44, 125) and same == flip_average


def test_a_dataset_without_a_permutation_refuses_flip_averaging():
    from pipeline.errors import ConfigError
    from pipeline.models._flipped import FlipAveraged

    network = Plugin(kind="models", name="erfnet", args={"width": 4}).build(num_classes=5, size=(32, 32))
    with pytest.raises(ConfigError, match="teacher.flip_average: this dataset has no class permutation"):
        FlipAveraged(network, None, None)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_a_checkpoint_of_any_float_type_teaches(experiment, kind):
    """train-teacher writes it in the network's type; every later command compares the two as the network has them."""
    own = experiment.folder / "own.pt"
    state = weights.load_file(experiment.folder / "teachers" / "toy.safetensors")
    cast = {f"model.{name}": value.to(kind) if value.is_floating_point() else value for name, value in state.items()}
    torch.save({"epoch": 3, "best": np.float64(0.5), "state_dict": cast}, own)
    experiment.change(teacher={"checkpoint": str(own)})
    result = experiment.run("train-teacher")
    assert "copied from" in result.stdout and "names begin with 'model.'" in result.stderr
    assert "blocks filled now" in experiment.do("cache-teacher") and "whole and undamaged" in experiment.do("verify")
    assert experiment.train("kd").exit_code == 0

    cast["model.conv1.weight"] = cast["model.conv1.weight"] * 1.5
    torch.save({"state_dict": cast}, own)
    refused = experiment.train("kd")
    assert refused.exit_code == 1 and "run `pipeline train-teacher` to copy it" in refused.stderr


def test_a_checkpoint_without_numbers_is_refused_and_one_of_integers_is_told(experiment):
    own, copy = experiment.folder / "own.pt", experiment.folder / "teachers" / "toy.safetensors"
    state, before = weights.load_file(copy), copy.read_bytes()
    experiment.change(teacher={"checkpoint": str(own)})
    torch.save(state | {"conv1.weight": state["conv1.weight"] * torch.nan}, own)
    refused = experiment.run("train-teacher")
    (line,) = refused.stderr.splitlines()
    assert refused.exit_code == 1 and "own.pt: 1 weights are not finite (conv1.weight)" in line and copy.read_bytes() == before

    torch.save(state | {"conv1.weight": (100 * state["conv1.weight"]).to(torch.int8)}, own)
    result = experiment.run("train-teacher")
    assert result.exit_code == 0 and "1 weights are whole numbers, int8 (conv1.weight)" in result.stderr
    assert "blocks filled now" in experiment.do("cache-teacher")
