"""What targets made of cosines share: cosines that are safe, and how they are stored.

B images, C channels, h w a grid, N M numbers of vectors.
"""

import numpy as np
import torch
from torch import Tensor

VANISHING = 1e-6  # a vector's length, in units of the image's largest value, to a power of two


def scaled(features_BChw: Tensor) -> Tensor:
    """Divided, image by image, by a power of two that brings the largest value to 0.5..1; zeros stay zeros.

    Cosines forget the unit, and no square leaves float32's range. Nothing is rounded.
    """
    peak_B111 = features_BChw.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
    exponent_B111 = peak_B111.frexp().exponent.clamp(min=-126)  # or the power leaves float32's range
    return features_BChw * torch.ones_like(peak_B111).ldexp(-exponent_B111)


def cosines(first_BNC: Tensor, second_BMC: Tensor, fixed_lengths: bool = False) -> Tensor:
    """[B, N, M]: of vectors in units of `scaled`. One that vanishes has cosine 0 and no gradient; NaN stays NaN.

    With `fixed_lengths` the lengths are constants: no gradient passes through them.
    """
    first_BN1, second_BM1 = (inverse_length(vectors.detach() if fixed_lengths else vectors) for vectors in (first_BNC, second_BMC))
    return first_BNC @ second_BMC.mT * first_BN1 * second_BM1.mT


def inverse_length(vectors_BNC: Tensor) -> Tensor:
    """[B, N, 1]: 0 where the vector vanishes."""
    squares_BN1 = vectors_BNC.square().sum(dim=2, keepdim=True)
    vanishing_BN1 = squares_BN1 < VANISHING**2
    return squares_BN1.masked_fill(vanishing_BN1, 1).rsqrt().masked_fill(vanishing_BN1, 0)


ERRORS = {
    "float32": {},
    "float16": {"relative_error": 2**-11, "absolute_error": 2**-24},
    "int8": {"absolute_error": 1 / 253},  # half a step of the largest magnitude's 127th part
}


def coded(name: str, values: Tensor, dtype: str, over: tuple[int, ...]) -> dict[str, np.ndarray]:
    """A field's arrays; int8 comes with its `scale`, the largest magnitude over these dimensions."""
    arrays = {name: values}
    if dtype == "int8":
        scale = values.abs().amax(dim=over, keepdim=True)
        arrays = {name: (values / torch.where(scale > 0, scale, 1) * 127).round(), "scale": scale.squeeze(over)}
    arrays[name] = arrays[name].to(getattr(torch, dtype))
    return {name: array.cpu().numpy() for name, array in arrays.items()}


def decoded(name: str, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    values = rows[name].float()
    if "scale" in rows:
        values = values * (rows["scale"] / 127).view(*rows["scale"].shape, *[1] * (values.dim() - rows["scale"].dim()))
    return {name: values}
