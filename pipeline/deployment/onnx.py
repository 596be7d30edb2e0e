"""A trained network as ONNX: normalisation, padding and upsampling inside, what is left to the user in its metadata.

Input `images`, B of them, of the size that the network sees (`prepare.size`, after the crop and without padding, or
`evaluate.window`):

    uint8        [B, h, w, 3] RGB, as Pillow gives a picture
    float32      [B, 3, h, w] RGB in 0..255

Outputs: `logits` [B, K, h, w] float32, and `existence` [B, lanes] probabilities where the network has such a head. B is
free, h and w are fixed. The metadata hold JSON, a key each: `frames` says how a full frame becomes an input.
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import __version__
from pipeline.config import Evaluate, Prepare
from pipeline.data.frames import canvas, crop_record
from pipeline.data.views import FILL
from pipeline.datasets.base import DatasetBase
from pipeline.errors import PipelineError
from pipeline.models.base import ModelBase
from pipeline.scoring.predict import scores

Input = Literal["uint8", "float32"]
OPSET = 18  # old enough for runtimes of 2023
# Two libraries add in other orders: 1e-6 of the greatest logit apart on trained networks, 7e-4 on a random ResNet-101. A wrong
# axis or constant is off by a tenth and more.
MOST_APART = 5e-3
LEAST_EQUAL = 0.999


class Deployed(nn.Module):
    """The network with what `evaluate` does around it at the network's own size."""

    fill: Tensor  # [1, 3, 1, 1]

    def __init__(self, network: ModelBase, size: tuple[int, int], takes: Input):
        super().__init__()
        self.network, self.size, self.takes = network, size, takes
        self.register_buffer("fill", torch.tensor(FILL, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        images_B3hw = images if self.takes == "float32" else images.permute(0, 3, 1, 2).float()
        (h, w), (H, W) = self.size, canvas(self.size)
        B = images_B3hw.shape[0]
        if W > w:
            images_B3hw = torch.cat([images_B3hw, self.fill.expand(B, 3, h, W - w)], dim=3)
        if H > h:
            images_B3hw = torch.cat([images_B3hw, self.fill.expand(B, 3, H - h, W)], dim=2)
        logits, existence = scores(self.network, images_B3hw, self.size)
        return (logits,) if existence is None else (logits, existence)

    def shown(self, frames_BhwC: np.ndarray) -> np.ndarray:
        """uint8 [B, h, w, 3] as the input it takes."""
        if self.takes == "uint8":
            return np.ascontiguousarray(frames_BhwC)
        return np.ascontiguousarray(frames_BhwC.transpose(0, 3, 1, 2), np.float32)


def to_onnx(network: Deployed, metadata: dict):
    """The ModelProto. Raises PipelineError where the extra `export` is not installed."""
    onnx = required("onnx")
    required("onnxscript")
    example = torch.from_numpy(network.shown(np.zeros((2, *network.size, 3), np.uint8))).to(network.fill.device)
    with quiet(), torch.no_grad():
        names = ["logits", "existence"][: len(network(example))]
        program: Any = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            input_names=["images"],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in metadata.items()})
    proto.producer_name, proto.producer_version = "offline-distillation-pipeline", __version__
    onnx.checker.check_model(proto)
    return proto


def metadata(
    dataset_name: str, dataset: DatasetBase, network: Deployed, record: dict, prepare: Prepare, evaluate: Evaluate
) -> dict:
    """What a user of the file must know, and what it was made from (`record`)."""
    return {
        "frames": {
            **crop_record(dataset),
            "size": list(prepare.size),
            **evaluate.windows,
            **({"fit": "pad", "fill": list(FILL), "place": "upper left corner"} if prepare.fit == "pad" else {}),
            "resize": "area where both axes shrink to less than half, else bilinear (half-pixel centres)",
        },
        "input": {
            "layout": "NHWC" if network.takes == "uint8" else "NCHW",
            "dtype": network.takes,
            "channels": "RGB",
            "range": [0, 255],
        },
        "inside": {
            "channels": network.network.channels.upper(),
            "mean": network.network.mean.flatten().tolist(),
            "std": network.network.std.flatten().tolist(),
            "padded_to": list(canvas(network.size)),
            "fill": list(FILL),
        },
        "classes": list(dataset.classes),
        "colours": [list(colour) for colour in dataset.colours],
        "background": dataset.background,
        "dataset": dataset_name,
        **record,
    }


class Agreement(NamedTuple):
    """Of ONNX Runtime with torch."""

    images: int
    apart: float  # the largest difference of a logit,
    relative: float  # by the greatest logit
    equal: float  # share of pixels of the same class
    existence: float | None  # the largest difference of a probability


def compared(model: bytes, network: Deployed, batches: Iterable[np.ndarray]) -> Agreement:
    """Both on the same uint8 frames [B, h, w, 3], in batches of any size."""
    run = session(model)
    images, apart, greatest, equal, pixels, flags = 0, 0.0, 0.0, 0, 0, None
    for frames in batches:
        found = run.run(None, {"images": network.shown(frames)})
        with torch.no_grad():
            shown = torch.from_numpy(network.shown(frames)).to(network.fill.device)
            expected = [tensor.cpu().numpy() for tensor in network(shown)]
        images += len(frames)
        apart = max(apart, float(np.abs(expected[0] - found[0]).max()))
        greatest = max(greatest, float(np.abs(expected[0]).max()))
        same = expected[0].argmax(1) == found[0].argmax(1)
        equal, pixels = equal + int(same.sum()), pixels + same.size
        if len(expected) > 1:
            flags = max(flags or 0.0, float(np.abs(expected[1] - found[1]).max()))
    return Agreement(images, apart, apart / greatest, equal / pixels, flags)


def refuse_disagreement(found: Agreement, where: Path) -> None:
    """Raises PipelineError if the two answer differently; NaN counts as different."""
    if not (found.relative <= MOST_APART and found.equal >= LEAST_EQUAL and (found.existence or 0.0) <= MOST_APART):
        raise PipelineError(
            f"{where}: not written: ONNX Runtime answers otherwise than torch on {found.images} images "
            f"({in_words(found)}); try other versions of torch, onnxscript and onnxruntime"
        )


def in_words(found: Agreement) -> str:
    flags = "" if found.existence is None else f", of existence {found.existence:.1e}"
    return (
        f"largest difference of a logit {found.apart:.1e} ({found.relative:.1e} of the greatest){flags}, same class in "
        f"{100 * found.equal:.4f} % of pixels"
    )


def session(model: bytes | str, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)):
    """An onnxruntime session; 0 threads: as many as cores."""
    runtime = required("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads would disturb whoever comes next
    return runtime.InferenceSession(model, options, providers=list(providers))


def required(name: str):
    """A module of the extra `export`."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise PipelineError(f"{name} is not installed; `pip install 'offline-distillation-pipeline[export]'`") from None


@contextlib.contextmanager
def quiet():
    """Without the exporter's remarks on libraries that are not there and on its own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
