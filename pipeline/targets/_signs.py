"""Random signs from which projections are made: the same on every machine, device and version of any library.

Philox's raw stream is fixed by its definition, which the normal deviates of numpy and torch are not. A matrix of signs
keeps lengths and distances as a matrix of normal deviates does, with no larger spread: Achlioptas, "Database-friendly
random projections", Journal of Computer and System Sciences, 2003.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=16)  # the largest, of a map of 2048 channels, is 20 to 70 MB
def signs(seed: int, stream: int, count: int, device: torch.device) -> Tensor:
    """[count] of -1 and 1, float32: the first bits of a stream, so that a longer one begins with a shorter one."""
    words = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(-(-count // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")[:count]
    return torch.from_numpy(bits).to(device).float() * 2 - 1
