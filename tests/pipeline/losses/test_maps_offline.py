"""Offline against online for the losses on maps, nodes and features: one live teacher, through the codec and around it.

The features are smooth in space and non-negative, as a network's are. Bounds are on relative differences of the loss
and of its gradient at the student's features, about twice what is measured here; a neighbour's row exceeds them
tenfold.
"""

import typing

import pytest
import torch
from torch.nn import functional as F

from pipeline.lookup import find_class
from pipeline.losses.base import Batch
from pipeline.models.base import Output
from pipeline.targets.base import Context
from pipeline.teacher.parity import loss_error

SIZE = (64, 96)
TEACHER = Context(
    num_classes=5,
    regions=tuple(range(5)),
    size=SIZE,
    channels={"mid": 32, "high": 64, "logits": 5},
    grids={"mid": (8, 12), "high": (8, 12), "logits": (8, 12)},
)
STUDENT = Context(
    num_classes=5,
    regions=tuple(range(5)),
    size=SIZE,
    channels={"mid": 8, "high": 16, "logits": 5},
    grids={"mid": (16, 24), "high": (8, 12), "logits": SIZE},
)

CASES = {
    "at": ("attention", {"reduction": "mean"}, "attention", {"layer": "high"}),
    "bifpn": ("bifpn", {}, "attention", {"layer": "high"}),
    "ifvd": ("ifvd", {}, "class_similarity", {"layer": "high"}),
    "skd_pairwise cosines": ("skd_pairwise", {}, "pairwise", {"layer": "high", "keeps": "cosines"}),
    "skd_pairwise nodes": ("skd_pairwise", {}, "pairwise", {"layer": "high", "keeps": "nodes"}),
    "fsp": ("fsp", {}, "gram", {"channels": 16}),
    "irg": ("irg", {}, "sketch", {"size": 256}),
    "fitnet": ("fitnet", {}, "features", {"layer": "high"}),
    "cwd_features": ("cwd_features", {"temperature": 4.0}, "features", {"layer": "high"}),
    "mgd": ("mgd", {}, "features", {"layer": "high"}),
    "af_dcd": ("af_dcd", {"pool": 2}, "features", {"layer": "high"}),
    "wavelet": ("wavelet", {}, "features", {"layer": "high"}),
    "attnfd": ("attnfd", {}, "features", {"layer": "high"}),
}
WIDER = {  # gradients by the signs of differences: the smallest ones turn
    ("wavelet", "float16"): 1e-2,
    ("wavelet", "uint8"): 5e-2,
    ("af_dcd", "uint8"): 6e-2,
}
BOUNDS = {"float32": 0, "float16": 1e-3, "int8": 2e-2, "uint8": 2e-2}


def network(context, seed):
    generator = torch.Generator().manual_seed(seed)
    features = {}
    for layer in ("mid", "high"):
        coarse = torch.randn(4, context.channels[layer], 4, 6, generator=generator)
        features[layer] = F.interpolate(coarse, context.grids[layer], mode="bilinear", align_corners=False).relu() * 3
    return Output(torch.randn(4, 5, *context.grids["logits"], generator=generator), features)


def variants():
    for title, (loss, keys, target, target_keys) in CASES.items():
        for dtype in typing.get_args(typing.get_type_hints(find_class("targets", target))["dtype"]):
            yield pytest.param(loss, keys, target, target_keys | {"dtype": dtype}, id=f"{title} {dtype}")


@pytest.mark.parametrize("loss, keys, target, target_keys", list(variants()))
def test_a_loss_from_stored_rows_is_the_loss_from_the_live_teacher(loss, keys, target, target_keys):
    torch.manual_seed(0)
    target = find_class("targets", target)(**target_keys)
    module = find_class("losses", loss)(reads={"read": target}, context=TEACHER, student=STUDENT, **keys)
    labels_BHW = torch.randint(0, 5, (4, 4, 6), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    labels_BHW = labels_BHW.repeat_interleave(16, 1).repeat_interleave(16, 2)
    live = target.compute(network(TEACHER, 0), labels_BHW, TEACHER)
    stored = target.decode({name: torch.from_numpy(array) for name, array in target.encode(live).items()})
    inside_BHW = torch.ones(labels_BHW.shape, dtype=torch.bool)
    inside_BHW[:, 60:] = False
    online = Batch(
        images_B3HW=torch.empty(0), labels_BHW=labels_BHW, inside_BHW=inside_BHW, existence_BL=None, rows={"read": live}, step=0
    )
    student = network(STUDENT, 1)
    for leaf in (student.logits, *student.features.values()):
        leaf.requires_grad_()
    error = loss_error(loss, module, student, online.with_rows({"read": stored}), online)
    bound = WIDER.get((loss, target.dtype), BOUNDS[target.dtype])
    assert error.online > 0 and error.difference <= bound and error.gradient_difference <= bound, error
    neighbour = {name: value.roll(1, 0) for name, value in stored.items()}
    wrong = loss_error(loss, module, student, online.with_rows({"read": neighbour}), online)
    assert wrong.gradient_difference > 10 * bound, wrong
