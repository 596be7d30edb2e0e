"""Power sums of masked features, all regions in one pass, forward and backward: Triton kernels for CUDA.

The same numbers as `PowerMeans` in affinity.py, which is the reference: float64 throughout, since central moments are
differences of these. A pass of torch's operations writes the features out in float64 and reads them again for each
power; here a tile of them is read once in each direction and stays in registers while the regions take turns, and
nothing of its size is written but the gradient. A region that does not touch a tile costs a look at its mask. Sums by
products of matrices would be fewer instructions, but Triton 3.6 cannot make them of float64.

Imported only where it is chosen (`MOMENTS` in affinity.py), as triton is at hand only with PyTorch's CUDA builds. With
TRITON_INTERPRET=1 it runs on the CPU, for tests.

B images, K regions, C channels, P positions, S slices of the positions, each one program's.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# channels and positions of a tile; threads / 32
SUMS = {"CHANNELS": 4, "POSITIONS": 1024, "num_warps": 8}
SLOPES = {"CHANNELS": 8, "POSITIONS": 256, "num_warps": 4}


def power_means(features_BCP: Tensor, masks_BKP: Tensor, shift_BC1: Tensor) -> Tensor:
    """[B, 3, K, C] float64: means of (F - shift)^p over each mask, p = 1, 2, 3; 0 where a mask is empty."""
    means: Tensor = PowerMeans.apply(features_BCP, masks_BKP, shift_BC1)
    return means


class PowerMeans(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features_BCP, masks_BKP, shift_BC1):
        (B, C, P), K = features_BCP.shape, masks_BKP.shape[1]
        masks_BKP, shift_BC = masks_BKP.to(torch.uint8).contiguous(), shift_BC1.double().reshape(B, C).contiguous()
        slices = triton.cdiv(P, SUMS["POSITIONS"])
        sums_SB3KC = torch.empty((slices, B, 3, K, C), dtype=torch.float64, device=features_BCP.device)
        grid = B * triton.cdiv(C, SUMS["CHANNELS"]), slices
        sums_kernel[grid](features_BCP, masks_BKP, shift_BC, sums_SB3KC, *features_BCP.stride(), B, C, P, K, **SUMS)
        counts_BK = masks_BKP.sum(dim=2).clamp(min=1).double()
        ctx.save_for_backward(features_BCP, masks_BKP, shift_BC, counts_BK)
        return sums_SB3KC.sum(dim=0) / counts_BK[:, None, :, None]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slopes_B3KC):
        features_BCP, masks_BKP, shift_BC, counts_BK = ctx.saved_tensors
        (B, C, P), K = features_BCP.shape, masks_BKP.shape[1]
        slopes_B3KC = (slopes_B3KC / counts_BK[:, None, :, None]).contiguous()
        found_BCP = torch.empty_like(features_BCP)
        grid = B * triton.cdiv(C, SLOPES["CHANNELS"]), triton.cdiv(P, SLOPES["POSITIONS"])
        slopes_kernel[grid](
            features_BCP,
            masks_BKP,
            shift_BC,
            slopes_B3KC,
            found_BCP,
            *features_BCP.stride(),
            *found_BCP.stride(),
            C,
            P,
            K,
            **SLOPES,
        )
        return found_BCP, None, None


@triton.jit
def tile(features, shift, stride_b, stride_c, stride_p, C, P, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr):
    """Of this program: its image, channels, positions, which of them exist, and the features there less their shift, which
    are 0 elsewhere."""
    tiles = tl.cdiv(C, CHANNELS)
    b = (tl.program_id(0) // tiles).to(tl.int64)
    c = tl.program_id(0) % tiles * CHANNELS + tl.arange(0, CHANNELS)
    p = tl.program_id(1) * POSITIONS + tl.arange(0, POSITIONS)
    inside = (c < C)[:, None] & (p < P)[None, :]
    x = tl.load(features + b * stride_b + c[:, None] * stride_c + p[None, :] * stride_p, mask=inside, other=0.0)
    x = tl.where(inside, x.to(tl.float64) - tl.load(shift + b * C + c, mask=c < C, other=0.0)[:, None], 0.0)
    return b, c, p, inside, x


@triton.jit
def sums_kernel(
    features, masks, shift, sums, stride_b, stride_c, stride_p, B, C, P, K, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr
):
    """A tile's three sums, region after region."""
    b, c, p, inside, x = tile(features, shift, stride_b, stride_c, stride_p, C, P, CHANNELS, POSITIONS)
    square = x * x
    cube = square * x
    out = sums + (tl.program_id(1) * B + b) * 3 * K * C + c
    for k in range(K):
        mask = tl.load(masks + (b * K + k) * P + p, mask=p < P, other=0)
        if tl.max(mask, axis=0) > 0:
            here = (mask > 0)[None, :]
            tl.store(out + k * C, tl.sum(tl.where(here, x, 0.0), axis=1), mask=c < C)
            tl.store(out + (K + k) * C, tl.sum(tl.where(here, square, 0.0), axis=1), mask=c < C)
            tl.store(out + (2 * K + k) * C, tl.sum(tl.where(here, cube, 0.0), axis=1), mask=c < C)
        else:
            nothing = tl.zeros((CHANNELS,), tl.float64)
            tl.store(out + k * C, nothing, mask=c < C)
            tl.store(out + (K + k) * C, nothing, mask=c < C)
            tl.store(out + (2 * K + k) * C, nothing, mask=c < C)


@triton.jit
def slopes_kernel(
    features,
    masks,
    shift,
    slopes,
    found,
    stride_b,
    stride_c,
    stride_p,
    found_b,
    found_c,
    found_p,
    C,
    P,
    K,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """A tile of the features' gradient: of each mask that covers a position, slope_1 + 2 x slope_2 + 3 x^2 slope_3."""
    b, c, p, inside, x = tile(features, shift, stride_b, stride_c, stride_p, C, P, CHANNELS, POSITIONS)
    total = tl.zeros((CHANNELS, POSITIONS), tl.float64)
    place = slopes + b * 3 * K * C + c
    for k in range(K):
        mask = tl.load(masks + (b * K + k) * P + p, mask=p < P, other=0)
        if tl.max(mask, axis=0) > 0:
            first = tl.load(place + k * C, mask=c < C, other=0.0)[:, None]
            second = tl.load(place + (K + k) * C, mask=c < C, other=0.0)[:, None]
            third = tl.load(place + (2 * K + k) * C, mask=c < C, other=0.0)[:, None]
            total += tl.where((mask > 0)[None, :], (3 * third * x + 2 * second) * x + first, 0.0)
    tl.store(found + b * found_b + c[:, None] * found_c + p[None, :] * found_p, total.to(found.dtype.element_ty), mask=inside)
