"""What a thing was made from: records (plain JSON values), their digests, and where two of them differ."""

import hashlib
import json
from collections.abc import Iterator

import numpy as np

ABSENT = object()


def identity_digest(record: dict) -> str:
    """SHA-256 of the record as canonical JSON."""
    return sha256(canonical(record))


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest_array(array: np.ndarray | None) -> str:
    """16 digits over dtype, shape and bytes; "-" for None."""
    if array is None:
        return "-"
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return sha256(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())[:16]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def diff(here: dict, asked: dict) -> list[str]:
    """Where two records differ: ["teacher.weights: '1a2b' here, '9f8e' asked for"]. A tuple is a list, as in JSON."""

    def compare(here: object, wanted: object, path: list[str]) -> Iterator[str]:
        if isinstance(here, dict) and isinstance(wanted, dict):
            for key in [*here, *(key for key in wanted if key not in here)]:
                yield from compare(here.get(key, ABSENT), wanted.get(key, ABSENT), [*path, str(key)])
        elif here != wanted:
            yield f"{'.'.join(path)}: {short(here)} here, {short(wanted)} asked for"

    return list(compare(here, json.loads(json.dumps(asked)), []))


def short(value: object) -> str:
    text = "nothing" if value is ABSENT else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def join_names(items: list[str]) -> str:
    """The first three, and how many more."""
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")
