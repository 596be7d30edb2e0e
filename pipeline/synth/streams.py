"""Random streams by name: the same key gives the same numbers in any order, worker or process."""

import hashlib

import numpy as np


def stream(*key) -> np.random.Generator:
    """A counter-based generator whose 128-bit key is a hash of the parts of `key`."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
