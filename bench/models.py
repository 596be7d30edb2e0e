"""Parameters, arithmetic and layers of the networks here, beside what was published of them: `python -m bench.models`.

On CULane's input, 208 x 976, 5 classes and, where it says so, 4 lanes. Nothing is run: shapes and multiplications are those of
meta tensors, as torch counts them (convolutions and matrix products; a multiplication and its addition are one MAC). The table
goes to stdout and into docs/models.md. Takes seconds.
"""

import argparse
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.page import insert
from pipeline.lookup import find_class
from pipeline.progress import table_lines

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
SIZE, CLASSES, LANES = (208, 976), 5, 4
NETWORKS = [  # what to call it, its name here, its keywords, with an existence head, millions of parameters as published
    ("ENet", "enet", {}, False, "0.37 (its paper)"),
    ("ENet, existence", "enet", {}, True, "0.98 (SAD)"),
    ("ERFNet", "erfnet", {}, False, "2.1 (its paper)"),
    ("ERFNet, existence", "erfnet", {}, True, "2.49 (IntRA-KD, a Torch7 network)"),
    ("ResNet-18", "resnet18", {}, False, "-"),
    ("ResNet-18, existence", "resnet18", {}, True, "12.41 (SAD)"),
    ("ResNet-34", "resnet34", {}, False, "-"),
    ("ResNet-34, existence", "resnet34", {}, True, "22.72 (SAD)"),
    ("U-Net on ResNet-34", "unet_resnet34", {}, False, "24.44 (segmentation_models.pytorch, 1 class)"),
    ("Wide-ResNet-38", "wide_resnet38", {}, False, "105.07 (its trunk, in public code)"),
    ("ResNet-50, pyramid pooling", "resnet50", {}, False, "-"),
    ("ResNet-101, `head: fcn`, existence", "resnet101", {"head": "fcn"}, True, "52.53 (IntRA-KD)"),
    ("ResNet-101, pyramid pooling", "resnet101", {}, False, "65.58 (IntRA-KD's code)"),
    ("ResNet-101, `head: scnn`, existence", "resnet101", {"head": "scnn"}, True, "-"),
    ("SCNN on VGG-16, existence", "vgg16", {}, True, "20.72 (IntRA-KD)"),
]


def row(title: str, name: str, keywords: dict, existence: bool, published: str) -> list[str]:
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = find_class("models", name)(CLASSES, size=SIZE, lanes=LANES if existence else 0, **keywords).eval()
        output = network(torch.empty(1, 3, *SIZE))
    parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    layers = [
        f"`{network.layers[role]}`, {map_BChw.shape[1]}, {SIZE[0] // map_BChw.shape[2]}"
        for role, map_BChw in output.features.items()
    ]
    return [
        title,
        f"{parameters:.2f}",
        published,
        f"{counter.get_total_flops() / 2e9:.1f}",
        *layers,
        f"{SIZE[0] // output.logits.shape[2]}",
        f"{network.multiple}",
    ]


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    head = ["network", "M parameters", "published", "G MAC", "mid: layer, channels, stride", "high", "stride of logits", "multiple"]
    table = "\n".join(table_lines(head, (row(*network) for network in NETWORKS)))
    print(table)
    insert(PAGE, "models", table)


if __name__ == "__main__":
    main()
