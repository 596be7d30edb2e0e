"""A network as ONNX answers as in torch, whatever the batch; a graph that does not is noticed."""

import copy
import sys

import numpy as np
import pytest
import torch

from pipeline.data.frames import canvas, frame
from pipeline.deployment import onnx as exporting
from pipeline.errors import PipelineError
from pipeline.lookup import find_class

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

SIZE = (44, 125)  # no multiples of 8: padded inside to 48 x 128
NETWORKS = {  # the deeper teachers are made of the same blocks as resnet18
    "erfnet": dict(width=4, lanes=4),
    "enet": dict(width=4, lanes=4),
    "resnet18": dict(width=8, head="pyramid"),
}
RNG = np.random.default_rng(0)


def deployed(name, takes="uint8", size=SIZE, **keys):
    """Of statistics that its input gave, as after training: initial batch norms let the logits grow into the millions."""
    torch.manual_seed(0)
    network = find_class("models", name)(5, size=canvas(size), **keys)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(torch.rand(4, 3, *canvas(size)) * 255)
    return exporting.Deployed(network, size, takes).eval()


def frames(count, size=SIZE):
    return RNG.integers(0, 256, (count, *size, 3), np.uint8)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_answers_as_in_torch_on_batches_of_any_size(name):
    network = deployed(name, **NETWORKS[name])
    model = exporting.to_onnx(network, {}).SerializeToString()
    found = exporting.compared(model, network, [frames(1), frames(3)])
    exporting.refuse_disagreement(found, "here")
    assert found.images == 4 and (found.existence is not None) == ("lanes" in NETWORKS[name])


def slow_logits(network, image):
    """Of one image, a step a line."""
    padded, _ = frame(image, None, 0, SIZE)
    images = torch.from_numpy(padded).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        logits = network(images).logits
    return torch.nn.functional.interpolate(logits, canvas(SIZE), mode="bilinear", align_corners=False)[0, :, :44, :125].numpy()


@pytest.fixture(scope="module", params=["uint8", "float32"])
def light(request):
    """A network with an existence head, and its graph."""
    network = deployed("resnet18", request.param, width=8, head="plain", lanes=4)
    return network, exporting.to_onnx(network, {"frames": {"crop_top": 7}}).SerializeToString()


def test_the_graph_pads_normalises_and_upsamples_as_evaluate_does(light):
    network, model = light
    session = exporting.session(model)
    images = frames(2)
    fed = images if network.takes == "uint8" else images.transpose(0, 3, 1, 2).astype(np.float32)
    logits, existence = session.run(["logits", "existence"], {"images": fed})
    for image, mine in zip(images, logits):
        assert np.abs(mine - slow_logits(network.network, image)).max() < 1e-4 * np.abs(logits).max()
    assert existence.shape == (2, 4) and (existence >= 0).all() and (existence <= 1).all()
    assert session.get_modelmeta().custom_metadata_map["frames"] == '{"crop_top": 7}'


@pytest.mark.parametrize("fault", ["other mean", "BGR", "batch ignored", "padded with black", "existence"])
def test_a_graph_that_answers_otherwise_is_refused(light, fault):
    network, model = light
    other = copy.deepcopy(network)
    if fault == "other mean":
        other.network.mean += 8
    elif fault == "BGR":
        other.network.conv1.weight.data = other.network.conv1.weight.data.flip(1)
    elif fault == "batch ignored":
        other.network.register_forward_pre_hook(lambda module, given: (given[0][:1].expand_as(given[0]),))
    elif fault == "padded with black":
        other.fill.zero_()
    else:
        other.network.existence.lanes.bias.data += 0.1
    found = exporting.compared(model, other, [frames(1), frames(3)])
    with pytest.raises(PipelineError, match="not written: ONNX Runtime answers otherwise"):
        exporting.refuse_disagreement(found, "model.onnx")
    exporting.refuse_disagreement(exporting.compared(model, network, [frames(1), frames(3)]), "model.onnx")


def test_no_number_is_no_agreement():
    with pytest.raises(PipelineError, match="answers otherwise"):
        exporting.refuse_disagreement(exporting.Agreement(1, float("nan"), float("nan"), 1.0, None), "model.onnx")


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(PipelineError, match=r"pip install 'offline-distillation-pipeline\[export\]'"):
        exporting.session(b"")
