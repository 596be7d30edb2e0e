"""Notes beside a prepared store, a line for each image: which were left out and why; the rule, sizes and times of the others'
files.

No checksum covers them: what they say is compared with the files, and a note that `prepare` cannot have written is a fault.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.identity import short
from pipeline.paths import id_fault

if TYPE_CHECKING:
    from pipeline.store.files import AnyPath
    from pipeline.store.store import Store

NOTES = ("skipped.tsv", "sources.tsv")  # beside a prepared store: the images left out; the files of all others
FILES = re.compile(r"((r\d+(-[0-9a-f]{8})? )?\d+:\d+( \d+:\d+)*)?")  # rule of reading, sizes and times, as `files_now` has them


def rows_of(path: AnyPath, head: int = 0) -> dict[str, str]:
    """What `table` wrote, below so many lines; the last line may have been cut off."""
    lines = path.read_bytes().decode("utf-8", "surrogateescape").split("\n")[head:] if path.exists() else []
    return dict(line.split("\t", 1) for line in lines if "\t" in line)


def table(notes: Mapping[str, str]) -> bytes:
    """A line for each image; its id is any text without tab and newline, and of bytes that are no UTF-8, too."""
    return "".join(f"{image_id}\t{note}\n" for image_id, note in sorted(notes.items())).encode("utf-8", "surrogateescape")


def without_times(notes: Mapping[str, str]) -> dict[str, str]:
    """Notes of sources.tsv for another machine: the times of its files say nothing there, and 0 stands for no time."""
    return {image_id: re.sub(r"\b(\d+):\d+", r"\1:0", note) for image_id, note in notes.items()}


def is_without_times(note: str) -> bool:
    return ":" in note and all(word.endswith(":0") for word in note.split() if ":" in word)


def note_faults(store: Store, name: str) -> list[str]:
    """What in sources.tsv or skipped.tsv is no note of `prepare`. No checksum vouches for what they say."""
    path = store.path(name)
    if not path.exists():
        return []
    head, lines = (["image\treason"], 1) if name == "skipped.tsv" else ([], 0)
    data = path.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    faults = [] if data[:lines] == head else [f"{path}: does not begin as `pipeline prepare` writes it"]
    for number, line in enumerate(data[lines:-1], lines + 1):  # the last one may have been cut off
        image_id, tab, note = line.partition("\t")
        if not tab or id_fault(image_id) or (name == "sources.tsv" and not FILES.fullmatch(note)):
            faults.append(
                f"{path}: line {number}: {short(line)} is no note about an image; remove the file, and run `pipeline prepare` again"
            )
    return faults
