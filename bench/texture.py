"""What of SSTKD's texture a cache could hold, and how well: `python -m bench.texture`, for docs/methods-maps.md.

Ji et al., "Structural and Statistical Texture Knowledge Distillation for Semantic Segmentation", CVPR 2022, quantise the cosine of
each cell's features with the image's mean feature to some levels and count them, and compare bands of a Laplacian pyramid. Measured
on the teacher of configs/camvid-methods.yaml, whose stores `python -m bench.methods` makes, in layer `mid`: the part of the counts
that lies at another level, and the relative error (2-norms) of the finest band, where both are made from stored features, and where
the counts themselves are stored.

B images, C channels, h w the grid, P = h * w, N levels.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.machine import described as machine
from bench.opened import Opened
from bench.page import insert
from pipeline import config
from pipeline.progress import table_lines

DEFAULT = Path("configs/camvid-methods.yaml")
LEVELS, BATCHES = 128, 4
STORED: tuple[dict[str, object], ...] = ({}, {"dtype": "uint8"}, {"pool": 2})


def counts(features_BChw: Tensor) -> Tensor:
    """[B, N]: the share of each level. A cell counts for the level nearest to its cosine, by one minus their distance."""
    features_BCP = features_BChw.flatten(2)
    cosine_BP = F.cosine_similarity(features_BCP, features_BCP.mean(dim=2, keepdim=True), dim=1)
    least_B1, most_B1 = cosine_BP.amin(1, keepdim=True), cosine_BP.amax(1, keepdim=True)
    levels_BN = least_B1 + (2 * torch.arange(LEVELS) + 1) / (2 * LEVELS) * (most_B1 - least_B1)
    apart_BNP = (levels_BN[:, :, None] - cosine_BP[:, None]).abs()
    near_BNP = apart_BNP <= (most_B1 - least_B1)[:, :, None] / (2 * LEVELS)
    counts_BN = torch.where(near_BNP, 1 - apart_BNP, 0).sum(2)
    return counts_BN / counts_BN.sum(1, keepdim=True)


def finest(features_BChw: Tensor) -> Tensor:
    """[B, C, h, w]: what the next coarser level of the pyramid leaves out."""
    coarse = F.avg_pool2d(features_BChw, 2, ceil_mode=True)
    return features_BChw - F.interpolate(coarse, features_BChw.shape[-2:], mode="bilinear", align_corners=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, nargs="?", default=DEFAULT, help="with a target `features_mid`")
    parser.add_argument("--root", type=Path, default=Path("cache"))
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    opened = Opened(config.load(args.config), args.root, "cpu")
    loader, context = opened.loader(("features_mid",)), opened.experiment.context
    live = torch.cat([opened.online(loader, step, ("features_mid",))["features_mid"]["features"] for step in range(BATCHES)])
    rows = []
    for keys in STORED:
        target = config.plugin("targets", "features", {"layer": "mid", **keys}).build()
        kept = {"features": F.avg_pool2d(live, target.pool, ceil_mode=True) if target.pool > 1 else live}
        stored = target.encode(kept)
        found = target.decode({name: torch.from_numpy(values) for name, values in stored.items()})["features"]
        if target.pool > 1:
            found = F.interpolate(found, live.shape[-2:], mode="bilinear", align_corners=False)
        named = ", ".join(f"{key}: {value}" for key, value in keys.items()) or "float16"
        rows.append((f"`features` ({named})", sum(values[0].nbytes for values in stored.values()), found))
    wanted_BN, band = counts(live), finest(live)
    lines = [
        (name, f"{num_bytes:,}", share(counts(found), wanted_BN), f"{float((finest(found) - band).norm() / band.norm()):.1e}")
        for name, num_bytes, found in rows
    ]
    lines.append(
        (f"{LEVELS} counts and two limits, float16", f"{2 * LEVELS + 4:,}", share(wanted_BN.half().float(), wanted_BN), "-")
    )
    head = ["stored", "bytes a view", "counts at another level", "finest band off by"]
    here = machine("cpu")
    where = (
        f"{len(live)} views, {live.shape[1]} channels on {' x '.join(map(str, context.grids['mid']))} cells, on "
        f"{here['cores']} cores of {here['processor']}, PyTorch {here['torch']}:"
    )
    text = "\n".join([where, "", *table_lines(head, lines)])
    print(text)
    if args.page:
        insert(args.page, "bench/texture.py", text)


def share(found_BN: Tensor, wanted_BN: Tensor) -> str:
    return f"{100 * float((found_BN - wanted_BN).abs().sum(1).mean() / 2):.2g} %"


if __name__ == "__main__":
    main()
