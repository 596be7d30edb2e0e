"""Keys that came later than records that were written without them.

    label_smoothing: Annotated[float, Field(ge=0, lt=1), AddedLater(0.0)] = 0.0

says: whatever was made before this key existed was made as with 0.0. A record leaves the key out while it has that value, so a new
key makes no store and no run invalid; with any other value the key is in the record. The annotation stands on a field of a section
or of a target, or on a keyword of a model or a loss. It keeps its value if the default changes one day.
"""

import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any


@dataclass(frozen=True)
class AddedLater:
    """In a key's Annotated type: `as_if` is the value that says what was done before the key existed."""

    as_if: Any


@functools.cache
def added_later(made: type) -> Mapping[str, Any]:
    """The later keys of a section, a target, a model or a loss, with the values that records leave out."""
    hints = typing.get_type_hints(made if is_dataclass(made) else made.__init__, include_extras=True)  # type: ignore[misc]
    return {
        name: mark.as_if
        for name, hint in hints.items()
        for mark in getattr(hint, "__metadata__", ())
        if isinstance(mark, AddedLater)
    }


def leave_out(args: Mapping[str, Any], made: type) -> dict[str, Any]:
    """These keywords as a record holds them: without later keys that have their old value."""
    later = added_later(made)
    return {name: value for name, value in args.items() if name not in later or value != later[name]}


def fill_in(args: Mapping[str, Any], made: type) -> dict[str, Any]:
    """The keywords that a record stands for."""
    return {**added_later(made), **args}
