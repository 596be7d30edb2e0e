"""Small files, written whole or not at all."""

import dataclasses
import json
import os
import uuid
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.later import leave_out


def write_text(path: Path, text: str) -> None:
    """Atomically, also where several processes, on whatever hosts, write the same file: the last one's text stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path):
    """Raises PipelineError on a file that is empty or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PipelineError(f"{path}: cannot be read ({error}); move it away, and run the command that writes it again") from None


def write_tsv(path: Path, rows: list[dict]) -> None:
    names = list(dict.fromkeys(name for row in reversed(rows) for name in row)) or ["step"]
    lines = ["\t".join(names)] + ["\t".join(_cell(row.get(name, "")) for name in names) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def _cell(value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def plain(value):
    """Dataclasses, paths and tuples as JSON knows them, so that a record equals itself after a round trip; without later keys that
    have their old value (pipeline/later.py)."""
    return json.loads(json.dumps(value, default=_as_json))


def _as_json(value):
    if hasattr(value, "as_record"):
        return value.as_record()
    if not dataclasses.is_dataclass(value):
        return str(value)
    return leave_out({part.name: getattr(value, part.name) for part in dataclasses.fields(value)}, type(value))
