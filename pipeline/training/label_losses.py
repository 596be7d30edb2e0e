"""Losses on labels, by name (`training.label_loss`).

Logits are upsampled to the labels' grid; pixels of label 255 count nowhere; a batch without labelled pixels gives 0.

    cross_entropy   -log p of the label, with label smoothing (Szegedy et al., CVPR 2016) as torch defines it
    ohem            the same over hard pixels: those whose label has a probability below `ohem_threshold`, and in any case the
                    hardest `ohem_least` of the labelled ones (Shrivastava et al., CVPR 2016; the threshold as in BiSeNet)
    focal           (1 - p)^gamma times the cross-entropy (Lin et al., ICCV 2017, eq. 4)
    dice            1 - 2 sum(p g) / (sum(p) + sum(g)), over all pixels of a batch, mean over the classes that its labels have
                    (Milletari et al., 3DV 2016, eq. 2, without squares in the denominator, for several classes)

The first three are means weighted by the label's class weight; `dice` is a mean of classes weighted so. Where a batch runs in parts
or processes, cross-entropy and focal divide by the weight of all of it; ohem and dice are of each part by itself, averaged.

B images, H W the labels' grid, h w the logits', K classes, N labelled pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.datasets.base import IGNORE


def labelled_weight(labels_BHW: Tensor, weights_K: Tensor) -> Tensor:
    """Sum of the labelled pixels' weights."""
    return torch.cat([weights_K, weights_K.new_zeros(256 - len(weights_K))])[labels_BHW.int()].sum()


def upsampled(logits_BKhw: Tensor, size: torch.Size) -> Tensor:
    if logits_BKhw.shape[-2:] == size:
        return logits_BKhw
    return F.interpolate(logits_BKhw, size, mode="bilinear", align_corners=False)


def cross_entropy(
    logits_BKhw: Tensor, labels_BHW: Tensor, weights_K: Tensor, counted: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Weighted mean over labelled pixels. `counted` is what to divide by instead, where these images are a part of a batch."""
    logits_BKhw = upsampled(logits_BKhw, labels_BHW.shape[-2:])
    labels_BHW = labels_BHW.long()
    total = F.cross_entropy(logits_BKhw, labels_BHW, weights_K, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)
    counted = labelled_weight(labels_BHW, weights_K) if counted is None else counted
    return total / counted.clamp(min=1e-6)


def focal(logits_BKhw: Tensor, labels_BHW: Tensor, weights_K: Tensor, gamma: float, counted: Tensor | None = None) -> Tensor:
    losses_N, weights_N = _pixels(logits_BKhw, labels_BHW, weights_K)
    counted = weights_N.sum() if counted is None else counted
    # 1 - p as -expm1(-loss): p near 1 leaves no digits otherwise
    return (weights_N * (-torch.expm1(-losses_N)).clamp(min=1e-12) ** gamma * losses_N).sum() / counted.clamp(min=1e-6)


def ohem(logits_BKhw: Tensor, labels_BHW: Tensor, weights_K: Tensor, threshold: float, least: float) -> Tensor:
    losses_N, weights_N = _pixels(logits_BKhw, labels_BHW, weights_K)
    if not len(losses_N):
        return losses_N.sum()
    hardest = losses_N.detach().topk(max(1, math.ceil(least * len(losses_N)))).values[-1]
    kept_N = losses_N >= hardest.clamp(max=-math.log(threshold))
    return (weights_N * losses_N)[kept_N].sum() / weights_N[kept_N].sum().clamp(min=1e-6)


def dice(logits_BKhw: Tensor, labels_BHW: Tensor, weights_K: Tensor) -> Tensor:
    logits_BKHW, labels_BHW = upsampled(logits_BKhw, labels_BHW.shape[-2:]), labels_BHW.long()
    labelled_BHW = labels_BHW != IGNORE
    p_BKHW = logits_BKHW.softmax(1) * labelled_BHW[:, None]
    g_BHWK = F.one_hot(labels_BHW.where(labelled_BHW, 0), len(weights_K)) * labelled_BHW[..., None]
    g_BKHW = g_BHWK.permute(0, 3, 1, 2).to(p_BKHW.dtype)
    both_K, sum_K, true_K = (x.sum((0, 2, 3)) for x in (p_BKHW * g_BKHW, p_BKHW + g_BKHW, g_BKHW))
    losses_K, present_K = 1 - 2 * both_K / sum_K.clamp(min=1e-6), weights_K * (true_K > 0)
    return (present_K * losses_K).sum() / present_K.sum().clamp(min=1e-6)


def _pixels(logits_BKhw: Tensor, labels_BHW: Tensor, weights_K: Tensor) -> tuple[Tensor, Tensor]:
    """[N] -log p of each labelled pixel, and its class weight."""
    logits_BKHW = upsampled(logits_BKhw, labels_BHW.shape[-2:])
    losses_BHW = F.cross_entropy(logits_BKHW, labels_BHW.long(), ignore_index=IGNORE, reduction="none")
    labelled_BHW = labels_BHW != IGNORE
    return losses_BHW[labelled_BHW], weights_K[labels_BHW[labelled_BHW].long()]
