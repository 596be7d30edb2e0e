"""Patterns that every scene samples from: periodic noise, tree crowns, house fronts, sensor noise.

All are made once per process from fixed seeds. Noise is 8-bit around 128 with a standard deviation of 40.
"""

from functools import cache

import cv2
import numpy as np

from pipeline.synth.streams import stream

SIDE = 512
CROWN = 256  # pixels of a tree crown's side
FAINT = 0.08  # contrast below which noise is left out: 3 grey values


@cache
def noise_tile() -> np.ndarray:
    """[SIDE, SIDE] uint8, periodic, with a wavelength of about four texels."""
    white = stream("noise tile").standard_normal((SIDE, SIDE)).astype(np.float32)
    smooth = cv2.GaussianBlur(np.pad(white, 8, mode="wrap"), (0, 0), 1.1)[8:-8, 8:-8]
    return np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def sample_noise(shape, x0: float, dx: float, y0: float, dy: float, texel: float, amplitude: float) -> np.ndarray:
    """[h, w] uint8 noise at coordinates (x0 + j dx, y0 + i dy) in a world where a texel has this size.

    Where the raster is coarser than the noise, texels are as large as its pixels and contrast falls as a mean's would.
    """
    texel_x, texel_y = max(texel, dx), max(texel, dy)
    contrast = amplitude * texel / np.sqrt(texel_x * texel_y)
    if contrast < FAINT:
        return np.full(shape, 128, np.uint8)
    height, width = shape
    j0, i0 = int(np.floor(x0 / texel_x)) - 1, int(np.floor(y0 / texel_y)) - 1
    columns = np.arange(j0, int(np.ceil((x0 + width * dx) / texel_x)) + 2) % SIDE
    rows = np.arange(i0, int(np.ceil((y0 + height * dy) / texel_y)) + 2) % SIDE
    patch = noise_tile()[np.ix_(rows, columns)]
    patch = cv2.convertScaleAbs(patch, alpha=contrast, beta=128 * (1 - contrast))
    to_patch = np.array([[dx / texel_x, 0, x0 / texel_x - j0], [0, dy / texel_y, y0 / texel_y - i0]])
    return cv2.warpAffine(
        patch, to_patch, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )


def fractal(shape, x0: float, dx: float, y0: float, dy: float, texels: tuple[float, ...]) -> np.ndarray:
    """[h, w] uint8: the mean of noise at several texel sizes, stretched back to a standard deviation near 40."""
    total = sample_noise(shape, x0, dx, y0, dy, texels[0], 1.0)
    for k, texel in enumerate(texels[1:], start=2):
        layer = sample_noise(shape, x0 + 37 * k * texel, dx, y0 + 91 * k * texel, dy, texel, 1.0)
        total = cv2.addWeighted(total, 1 - 1 / k, layer, 1 / k, 0)
    gain = np.sqrt(len(texels))
    return cv2.addWeighted(total, gain, total, 0, 128 * (1 - gain))


@cache
def crowns() -> list[tuple[np.ndarray, np.ndarray]]:
    """Tree crowns: [CROWN, CROWN] uint8 brightness (128 = mean leaf) and mask, six shapes."""
    made = []
    ys, xs = np.meshgrid(*[np.linspace(-1, 1, CROWN, dtype=np.float32)] * 2, indexing="ij")
    for k in range(6):
        rng = stream("crown", k)
        height = np.full((CROWN, CROWN), -1.0, np.float32)
        for _ in range(14):
            angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.55)
            cx, cy, radius = reach * np.cos(angle), reach * np.sin(angle) * 0.9, rng.uniform(0.25, 0.42)
            height = np.maximum(height, 1 - ((xs - cx) ** 2 + (ys - cy) ** 2) / radius**2)
        rough = fractal((CROWN, CROWN), rng.uniform(0, 5000), 1, rng.uniform(0, 5000), 1, (2, 5, 14)) - np.float32(128)
        mask = np.where(height + rough / 170 > 0.2, 255, 0).astype(np.uint8)
        shade = 118 + 0.75 * rough + 34 * np.clip(height, 0, 1) - 45 * ys
        made.append((np.clip(shade, 12, 255).astype(np.uint8), mask))
    return made


@cache
def facades() -> list[np.ndarray]:
    """House fronts, [256, 256, 3] uint8 for 16 m x 16 m: walls with rows of windows, eight styles."""
    made = []
    for k in range(8):
        rng = stream("facade", k)
        wall = np.array(
            [
                (196, 188, 174),
                (170, 160, 150),
                (150, 118, 100),
                (205, 205, 200),
                (120, 132, 142),
                (182, 150, 120),
                (140, 140, 138),
                (222, 214, 196),
            ][k],
            np.float32,
        )
        front = np.broadcast_to(wall, (256, 256, 3)).astype(np.float32).copy()
        floors, bays = int(rng.integers(4, 6)), int(rng.integers(3, 7))
        tall, wide = rng.uniform(0.4, 0.75), rng.uniform(0.45, 0.9)
        for i in range(floors):
            for j in range(bays):
                y0, x0 = 256 * (i + (1 - tall) / 2) / floors, 256 * (j + (1 - wide) / 2) / bays
                y1, x1 = y0 + 256 * tall / floors, x0 + 256 * wide / bays
                glass = np.array([62, 76, 90]) * rng.uniform(0.5, 1.5) + rng.uniform(0, 25)
                front[int(y0) : int(y1), int(x0) : int(x1)] = glass
                front[int(y1) : int(y1) + 2, int(x0) : int(x1)] *= 0.75
        front[:: 256 // floors] *= 0.82
        grain = sample_noise((256, 256), 71 * k, 1, 13 * k, 1, 9, 1.0).astype(np.float32)
        made.append(np.clip(front * (0.85 + 0.15 * grain / 128)[..., None], 0, 255).astype(np.uint8))
    return made


@cache
def sensor_noise() -> np.ndarray:
    """[1024, 2048, 3] uint8: 128 with a standard deviation of 16, slightly blurred as after demosaicing."""
    white = stream("sensor noise").standard_normal((1024, 2048, 3), np.float32)
    smooth = cv2.GaussianBlur(white, (3, 3), 0.6)
    grey = smooth.mean(axis=2, keepdims=True) * 1.3
    mixed = 0.6 * grey + 0.4 * smooth
    return np.clip(128 + 16 * mixed / mixed.std(), 0, 255).astype(np.uint8)
