"""A student at half the resolution of its teacher, through every command."""

import json

import pytest
import torch
from test_every_loss import TARGETS, every_term

from pipeline import weights
from pipeline.teacher import cache

NAMED = ("--student", "small", "--method", "intra", "--seed", "0")


@pytest.fixture
def scaled(experiment):
    experiment.change(students={"small": {"model": "erfnet", "width": 4, "input_scale": 0.5}})
    return experiment


def test_it_trains_is_scored_and_answers_pictures_and_the_report_shows_it(scaled):
    scaled.do("train-student", *NAMED)
    record = json.loads((scaled.folder / "runs/toy/small-intra-0/run.json").read_text())
    assert record["student"]["args"]["input_scale"] == 0.5
    state = weights.load_file(scaled.folder / "runs/toy/small-intra-0/weights.safetensors")
    full = scaled.load().students["erfnet"].build(num_classes=len(scaled.load().dataset.build().classes), size=(48, 128), lanes=0)
    assert {name: value.shape for name, value in full.state_dict().items()} == {name: value.shape for name, value in state.items()}
    scaled.do("evaluate", *NAMED)
    scaled.do("report")
    refused = scaled.run("evaluate", *NAMED, "--set", "students.small.input_scale=1")
    assert refused.exit_code == 1 and "student.args.input_scale: 0.5 here, nothing asked for" in refused.stderr


def test_its_onnx_file_takes_the_images_of_the_full_size(scaled, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    scaled.do("train-student", *NAMED)
    scaled.do("export", *NAMED, "--out", str(tmp_path / "small.onnx"))
    model = onnx.load(tmp_path / "small.onnx")
    taken, given = (part[0].type.tensor_type.shape.dim for part in (model.graph.input, model.graph.output))
    assert [axis.dim_value for axis in taken[1:]] == [44, 125, 3] and [axis.dim_value for axis in given[2:]] == [44, 125]


def test_stored_rows_give_it_the_losses_and_gradients_of_a_live_teacher(scaled):
    said = scaled.do("verify", "--recompute", "4")
    rows = [line for line in said.splitlines() if line.startswith("| small ")]
    assert len(rows) == 3


def test_it_learns_from_every_loss_at_once(scaled):
    scaled.change(targets=TARGETS, methods={"every": list(every_term())}, training={"steps": 4})
    scaled.do("cache-teacher")
    scaled.do("train-student", "--student", "small", "--method", "every", "--seed", "0")
    line = (scaled.folder / "runs/toy/small-every-0/norms.tsv").read_text().splitlines()[-1]
    assert all(float(value) >= 0 for value in line.split("\t"))


def test_a_coarser_student_is_told_regions_on_both_grids(scaled):
    """Each of its cells has the regions of the teacher's four cells that it covers."""
    cfg = scaled.load()
    target = cfg.targets["graph_high"].build()
    context = cache.context(cfg.teacher.model, cfg.dataset.build(), (48, 128))
    labels_1HW = torch.zeros(1, 48, 128, dtype=torch.uint8)
    labels_1HW[0, 20, 30:40] = 1
    found = target.graph(torch.rand(1, 4, 3, 8), labels_1HW, context)
    theirs = target.graph(torch.rand(1, 4, 6, 16), labels_1HW, context)
    region = context.regions.index(1)
    assert context.grids["high"] == (6, 16) and theirs["cells"][0, region] == 3  # rows 18 to 22, columns 28 to 41
    assert found["cells"][0, region] == 2
