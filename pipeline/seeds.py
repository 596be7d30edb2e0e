"""Numbers that follow from a seed, a step or an image's id: what every draw and every order begins with."""

import hashlib


def text_digest(text: str, num_bytes: int) -> bytes:
    """For draws and orders that follow from a seed or from an image's id, which may be a file's name that is no UTF-8."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=num_bytes).digest()
