"""`pipeline export` and `pipeline latency` on a trained network, and the lines of docs/deployment.md that read the file."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from pipeline.config import Evaluate, Prepare
from pipeline.data.frames import content_of, frame
from pipeline.datasets.base import DatasetBase
from pipeline.deployment import onnx as exporting
from pipeline.scoring import load as trained
from pipeline.scoring.predict import class_map, scores

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

PAGE = Path(__file__).parents[2] / "docs/deployment.md"


@pytest.fixture(scope="module")
def exported(cached_experiment, tmp_path_factory):
    """The toy teacher's file, and what was said."""
    out = tmp_path_factory.mktemp("exported") / "erfnet.onnx"
    return out, cached_experiment.do("export", "--teacher", "--out", str(out), "--images", "3")


def test_the_file_says_how_a_frame_becomes_an_input_and_what_made_it(exported, cached_experiment):
    out, said = exported
    cfg = cached_experiment.load()
    found = {key: json.loads(value) for key, value in onnxruntime.InferenceSession(out).get_modelmeta().custom_metadata_map.items()}
    assert found["frames"]["crop_top"] == 60 and found["frames"]["size"] == [44, 125]
    assert found["inside"]["padded_to"] == [48, 128] and found["classes"][1] == "lane 1" and found["background"] == 0
    digest = json.loads((cached_experiment.folder / "reports/teacher/toy.json").read_text())["weights"]
    assert found["weights"] == digest and found["model"]["name"] == cfg.teacher.model.name and len(found["identity"]) == 64
    assert "on 3 images largest difference of a logit" in said and "same class in 100.0000 % of pixels" in said


def test_the_lines_of_the_page_give_the_networks_answer_on_a_frame(exported, cached_experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(cached_experiment.folder)
    cfg = cached_experiment.load()
    source = cfg.dataset.build()
    image = source.image(source.ids("test")[0])
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("frame.png", image[:, :, ::-1])
    found = {}
    exec(lines_of_the_page().replace("erfnet.onnx", str(exported[0])).replace("frame.jpg", "frame.png"), found)
    monkeypatch.chdir(cached_experiment.folder)
    network = trained.load(cfg.teacher.model, source, cfg.prepare, None, Path("teachers/toy.safetensors"), "cpu")
    shown, _ = frame(image, None, source.crop_top, cfg.prepare.size)
    with torch.no_grad():
        logits, _ = scores(network, torch.from_numpy(shown).permute(2, 0, 1)[None].float(), cfg.prepare.size)
    theirs = found["model"].run(["logits"], {"images": found["small"][None]})[0]
    assert np.abs(theirs - logits.numpy()).max() < 1e-4 * np.abs(theirs).max()  # a pixel of crop would be 0.1
    full = class_map(logits[0], image.shape[:2], source)
    assert found["cut"] == 60 and found["classes"].shape == full[60:].shape and (found["classes"] == full[60:]).mean() > 0.999


@pytest.mark.parametrize("fit", ["stretch", "pad"])
@pytest.mark.parametrize(
    "crop", [{"crop_top": 17}, {"crop_top_share": 0.305}, {"crop_bottom_rows": 61}, {"crop_bottom_rows": 90}], ids=str
)
@pytest.mark.parametrize("shape, size", [((90, 150), (36, 60)), ((90, 150), (20, 60)), ((90, 50), (30, 100))])
def test_the_lines_of_the_page_hold_for_every_geometry(crop, fit, shape, size):
    """The keys as a file of that configuration has them; the input as `evaluate` makes it."""
    found = {}
    exec(lines_of_the_page().partition("def to_input")[0].splitlines()[0], found)
    exec("def to_input" + lines_of_the_page().partition("def to_input")[2].partition("\nimage = ")[0], found)
    source = SimpleNamespace(**{"crop_top": 0, "crop_top_share": None, "crop_bottom_rows": None} | crop)
    source.classes, source.colours, source.background = ("a",), ((0, 0, 0),), None
    network = SimpleNamespace(channels="rgb", mean=torch.zeros(3), std=torch.ones(3))
    prepare = Prepare(size=size, codec="raw", fit=fit)
    described = exporting.metadata(
        "any", source, SimpleNamespace(size=size, takes="uint8", network=network), {}, prepare, Evaluate(split="test")
    )
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    cut = DatasetBase.rows_cut(source, shape[0])
    expected, _ = frame(image, None, cut, size, fit)
    canvas, rows, content = found["to_input"](image, json.loads(json.dumps(described["frames"])))
    assert rows == cut and tuple(content) == content_of((shape[0] - cut, shape[1]), size, fit)
    assert (canvas == expected[: size[0], : size[1]]).all()


def lines_of_the_page():
    (lines,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return lines


def test_a_file_that_is_there_is_kept_unless_told_otherwise(exported, cached_experiment, monkeypatch):
    out, _ = exported
    before = out.read_bytes()
    result = cached_experiment.run("export", "--teacher", "--out", str(out))
    assert result.exit_code == 1 and "is there already" in result.stderr and out.read_bytes() == before
    monkeypatch.setattr(exporting, "to_onnx", lambda network, metadata: onnx.load(str(out)))  # tracing takes seconds
    cached_experiment.do("export", "--teacher", "--out", str(out), "--images", "1", "--force")
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_graph_that_answers_otherwise_leaves_no_file(exported, cached_experiment, tmp_path, monkeypatch):
    wrong = onnx.load(str(exported[0]))
    bias = next(one for one in wrong.graph.initializer if one.name.endswith("head.classifier.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(np.arange(5, dtype=np.float32)[::-1] * 9, bias.name))
    monkeypatch.setattr(exporting, "to_onnx", lambda network, metadata: wrong)
    result = cached_experiment.run("export", "--teacher", "--out", str(tmp_path / "wrong.onnx"), "--images", "2")
    assert result.exit_code == 1 and "not written: ONNX Runtime answers otherwise" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_latency_prints_both_runtimes_at_every_batch_and_names_the_machine(cached_experiment):
    said = cached_experiment.do("latency", "--teacher", "--runs", "3", "--threads", "1", "--batch", "1", "--batch", "3")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if line.startswith("| ")][1:]
    assert [row[:2] for row in rows] == [["torch", "1"], ["ONNX Runtime", "1"], ["torch", "3"], ["ONNX Runtime", "3"]]
    assert all(0 < float(median) <= float(p99) for _, _, median, p99, _ in rows)
    assert "resnet18, 44 x 125, 5 classes" in said and "1 thread;" in said and torch.__version__ in said
