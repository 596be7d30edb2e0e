"""Text from elsewhere that becomes a path: one rule for all of it.

A *name* (of a method, a student, a pass, a field) is one file or folder. A *path* (an image id, a line of a list, a file that a
mark names) has parts between slashes. Neither can lead out of the folder it is put below: no part is `..`, nothing begins with
`/` or a drive, there are no backslashes and no control characters. `below` also looks at what is on disk: a link inside a
store that came from elsewhere leads nowhere else.
"""

import os
import re
import stat
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import PipelineError, StoreError

Place = TypeVar("Place", bound=Any)  # a Path, or one of object storage
NAME = re.compile(r"\w[\w .,+=()-]*")  # letters and digits of any script
NAME_BYTES = 100  # two names and a seed fit into the 255 bytes of a file's name
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
DRIVE = re.compile(r"[A-Za-z]:")


def name_fault(text: object) -> str | None:
    """Why the text is no name, in words that follow it; None if it is one."""
    if not isinstance(text, str) or not NAME.fullmatch(text) or text[-1] in " .":
        return (
            "is no name: letters, digits, blanks and _ - + = . , ( ) make one, the first a letter, a digit or _, the last no "
            "blank and no ."
        )
    if len(text.encode()) > NAME_BYTES:
        return f"is longer than the {NAME_BYTES} bytes that a name may have"
    return None


def id_fault(text: str) -> str | None:
    """Why an image id that a store lists would lead out of a folder; None if it doesn't. Format 1 leaves ids all other characters
    but tab and newline, since a store compares them and makes no path of them."""
    if not text or "\0" in text:
        return "is empty" if not text else "has a NUL"
    if text[0] == "/" or DRIVE.match(text):
        return "is absolute, and should be a path below its folder"
    if ".." in text and ".." in text.replace("\\", "/").split("/"):
        return "has the part '..', which no path below a folder has"
    return None


def path_fault(text: object) -> str | None:
    """Why the text is no path below a folder, in words that follow it; None if it is one. Blanks, dots, letters of any script and
    bytes that are no UTF-8 may stand in it."""
    if not isinstance(text, str):
        return "is no path"
    if fault := id_fault(text):
        return fault
    if CONTROL.search(text):
        return "has a control character"
    if "\\" in text:
        return "has a backslash"
    for part in text.split("/"):
        if part in ("", "."):
            return "has an empty part between its slashes" if not part else "has the part '.', which says nothing"
    return None


def below(top: Place, text: str, error: type[PipelineError] = StoreError) -> Place:
    """`top/text`. Raises `error` if that is, or on disk leads, anywhere but below `top`; which may itself be a link."""
    if fault := path_fault(text):
        raise error(f"{top}: the path {text!r} {fault}; nothing is read or written there")
    if isinstance(top, Path):
        _refuse_way_out(top, text, error)
    return top / text


def _refuse_way_out(top: Path, text: str, error: type[PipelineError]) -> None:
    here = str(top)
    for part in text.split("/"):
        here = f"{here}/{part}"
        try:
            mode = os.lstat(here).st_mode
        except OSError:  # not there, or nobody may look: what opens it will say so
            return
        if stat.S_ISLNK(mode):
            ground, found = os.path.realpath(top), os.path.realpath(f"{top}/{text}")
            if not found.startswith(f"{ground.rstrip('/')}/"):
                raise error(f"{here}: is a link that leads out of {top}; nothing is read or written there")
            mode = os.stat(here).st_mode if os.path.exists(here) else stat.S_IFREG
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise error(f"{here}: is neither a file nor a folder; remove it")


def unreadable(path: Path) -> Path | None:
    """The part of a path that this user may not read or enter; None if there is none."""
    for part in reversed(path.absolute().parents):
        if os.path.lexists(part) and not os.access(part, os.X_OK):
            return part
    mode = os.R_OK | os.X_OK if path.is_dir() else os.R_OK
    return path if os.path.lexists(path) and not os.access(path, mode) else None


def to_open(closed: Path) -> str:
    """What to do about a file or folder that another user closed."""
    return f"this user may not read it; ask its owner for `chmod -R a+rX {closed}`, and to write shared files under `umask 022`"


def default_root() -> str:
    """Where stores lie that nobody names: PIPELINE_CACHE_ROOT, or the folder `cache`; of an experiment's own checkout, those of the
    checkout that it was started in."""
    text = os.environ.get("PIPELINE_CACHE_ROOT") or "cache"
    started = started_in()
    return text if started is None or "://" in text else str(started / text)


def started_in() -> Path | None:
    """`dvc exp run --temp` and `--queue` run in a checkout of their own, below .dvc/tmp. Then the folder of this place in the
    checkout that the experiment was started in, which DVC names; None anywhere else."""
    main, here = os.environ.get("DVC_ROOT"), Path.cwd()
    top = next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), None)
    if not main or top is None or os.path.realpath(main) == os.path.realpath(top):
        return None
    return Path(main, here.relative_to(top))


def if_done_for_dvc(stage: str) -> str:
    """Under `dvc repro`, the end of a message that a store is missing. DVC restores the report of a stage from its own cache and
    takes the stage for done, whether or not the store is still there."""
    if "DVC_STAGE" not in os.environ:
        return ""
    return f"; where DVC takes that stage for done, `dvc repro --force --single-item {stage}@CONFIG`"


def no_link(path: str, flags: int) -> int:
    """For `open(..., opener=no_link)`: a file to be written that may not be a link, or a pipe that waits for a reader."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
