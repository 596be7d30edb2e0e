"""List files and id lists: every entry remembers where it came from, so that a complaint can name file and line."""

import contextlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from pipeline.errors import DatasetError
from pipeline.lookup import did_you_mean
from pipeline.paths import id_fault, path_fault

Parsed = TypeVar("Parsed")
_found: ContextVar[list[DatasetError] | None] = ContextVar("found", default=None)


@contextlib.contextmanager
def collecting() -> Iterator[list[DatasetError]]:
    """Faults of a layout that are told here do not end the reading: what is faulty is left out, and the rest is looked at, too."""
    found: list[DatasetError] = []
    token = _found.set(found)
    try:
        yield found
    finally:
        _found.reset(token)


def tell(error: DatasetError) -> None:
    """Raises the error, unless somebody collects."""
    if (found := _found.get()) is None:
        raise error
    found.append(error)


def parsed(lines: Iterable[tuple[str, str]], parse: Callable[[str, str], Parsed]) -> Iterator[tuple[str, str, Parsed]]:
    """(where, text, what `parse` makes of both) of every line that it can read."""
    for where, text in lines:
        try:
            made = parse(where, text)
        except DatasetError as error:
            tell(error)
        else:
            yield where, text, made


def read_list(path: Path) -> list[tuple[str, str]]:
    """(where, text) of every line that is not blank; `where` reads `val.txt: line 3`."""
    if not path.parent.is_dir():
        raise DatasetError(f"{path.parent}: no such folder; put or link the dataset there, or correct 'root'")
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows writes a byte-order mark
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); write the list, or correct its name") from None
    except UnicodeDecodeError:
        raise DatasetError(f"{path}: is not UTF-8 text; save the list as UTF-8") from None
    lines = ((f"{path}: line {number}", line.strip()) for number, line in enumerate(text.splitlines(), 1))
    if not (filled := [(where, line) for where, line in lines if line]):
        raise DatasetError(f"{path}: is empty; write one image a line, or remove the list")
    return filled


def nfc(name: str) -> str:
    """One spelling of names that look alike: macOS stores an accent as a character of its own."""
    return unicodedata.normalize("NFC", name)


def spelt(root: Path, name: str) -> Path:
    """The file of that name below `root`, in whichever Unicode form it and each folder on the way are stored."""
    path = root / name
    if name.isascii() or path.exists():
        return path
    found = root
    for part in Path(name).parts:
        forms = (found / unicodedata.normalize(form, part) for form in ("NFC", "NFD"))
        found = next((other for other in forms if other.exists()), found / part)
    return found if found.exists() else path


def by_id(entries: Iterable[tuple[str, str]]) -> dict[str, str]:
    """id -> where, in order, from (where, id). Raises DatasetError on an id that comes twice, with both places, and on one that
    leads out of a folder: files are read and written under it."""
    found: dict[str, str] = {}
    for where, image_id in entries:
        if fault := id_fault(image_id):  # any other name that a file may have is an image's, too
            tell(DatasetError(f"{where}: {image_id!r} {fault}; correct it, or leave it out"))
        elif image_id in found:
            tell(DatasetError(f"{where}: {image_id!r} a second time, first at {found[image_id]}; keep one of them"))
        else:
            found[image_id] = where
    return found


def require_path(where: str, text: str) -> str:
    """The text, of a list or a file's name, if it is a path below a folder. Raises DatasetError with its place otherwise."""
    if fault := path_fault(text):
        raise DatasetError(f"{where}: {text!r} {fault}; correct it, or leave it out")
    return text


def part_of(ids: list[str], part: float, seed: int = 0) -> list[str]:
    """This part of them, one at least, in their order: those with the lowest hashes, whatever the others are called."""
    start = f"{seed}/" if seed else ""
    by_hash = sorted(ids, key=lambda name: blake2b(f"{start}{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest())
    lowest = set(by_hash[: max(1, round(part * len(ids)))])
    return [image_id for image_id in ids if image_id in lowest]


def listed_labels(path: Path, labelled: list[str], ids: list[str]) -> list[str]:
    """The ids that a list names, each of which must be among `labelled`; `ids` are all that it may be confused with. Raises
    DatasetError that names those that are not."""
    known = {nfc(image_id): image_id for image_id in labelled}
    listed = by_id((where, known.get(nfc(text), text)) for where, text in read_list(path))
    usable = set(labelled)
    if missing := [image_id for image_id in listed if image_id not in usable]:
        others = {nfc(image_id) for image_id in ids}
        what = "has no label" if nfc(missing[0]) in others else f"is no training image{did_you_mean(missing[0], ids)}"
        more = (
            f" (as {len(missing)} of {len(listed)} lines: {', '.join(missing[:3])}{', ...' * (len(missing) > 3)})"
            if len(missing) > 1
            else ""
        )
        raise DatasetError(f"{listed[missing[0]]}: {missing[0]!r} {what}{more}; write ids of labelled training images, one a line")
    return list(listed)


def require_split(split: str, splits: tuple[str, ...], root: Path) -> None:
    if split not in splits:
        raise DatasetError(f"{root}: there is no split {split!r}; there are {', '.join(splits)}")


def found_files(folder: Path, pattern: str) -> list[Path]:
    """Sorted paths below `folder`. Raises DatasetError if there is none: a missing archive would be an empty split; and on a
    name with a backslash or control characters."""
    paths = sorted(folder.glob(pattern))
    for path in paths:
        require_path(str(folder), path.relative_to(folder).as_posix())
    if not paths:
        raise DatasetError(f"{folder}: holds no {pattern}; unpack the archive there, or correct 'root'")
    return paths
