"""The keys of a class: the fields of a section, or the keywords of a plug-in; pydantic checks values against their annotations.

Every fault says where it is, what is wrong and, where it helps, what to do.
"""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Required

import annotated_types
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict

from pipeline.config.schema import LENIENT, STRICT
from pipeline.errors import ConfigError
from pipeline.lookup import did_you_mean

REQUIRED = inspect.Parameter.empty
WORDS = {
    float: "a number",
    int: "a whole number",
    str: "a text",
    bool: "true or false",
    Path: "a path",
    dict: "a mapping",
    list: "a list",
    tuple: "a list",
    type(None): "null",
    Any: "any value",
}
RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "multiple_of"}


class Faults(list[str]):
    """All faults of a file, one a line."""

    def __init__(self, path: Path | str):
        super().__init__()
        self.path = path

    def add(self, where: str, what: str) -> None:
        self.append(f"{self.path}: {where}: {what}")

    def stop(self) -> None:
        if self:
            raise ConfigError("\n".join(self))


@dataclass(frozen=True)
class Key:
    name: str
    kind: Any  # the annotation, with what is Annotated
    default: Any

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


def keys_of(made: Callable[..., Any], without: frozenset[str] = frozenset()) -> Mapping[str, Key]:
    """The keywords of a class in their order, without those that somebody else hands in."""
    call = made.__init__ if inspect.isclass(made) and not dataclasses.is_dataclass(made) else made
    hints = typing.get_type_hints(call, include_extras=True)
    return {
        name: Key(name, lenient(hints.get(name, Any)), parameter.default)
        for name, parameter in inspect.signature(made).parameters.items()
        if name not in {*without, "self"}
    }


def lenient(kind: Any) -> Any:
    """The type with a list for each tuple and a text for each path, as YAML has no others."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return Annotated[(lenient(inner[0]), *inner[1:])]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(lenient, inner))]  # noqa: UP007
    if origin is tuple:
        parts = tuple(part if part is Ellipsis else lenient(part) for part in inner)
        return Annotated[tuple.__class_getitem__(parts), LENIENT]
    if kind in (tuple, Path):
        return Annotated[kind, LENIENT]
    return kind


# --- checks -------------------------------------------------------------------------------------------------------------


@functools.cache
def adapter(made: type, without: frozenset[str] = frozenset()) -> TypeAdapter[dict[str, Any]]:
    """For the keywords of a plug-in."""
    keys = keys_of(made, without)
    types_by_name = {name: Required[key.kind] if key.required else NotRequired[key.kind] for name, key in keys.items()}
    form = TypedDict("Keys", types_by_name)  # type: ignore[misc]
    form.__pydantic_config__ = ConfigDict(**STRICT, arbitrary_types_allowed=True)  # type: ignore[attr-defined]
    return TypeAdapter(form)  # type: ignore[arg-type]


def keywords(
    made: type, mapping: Any, where: str, faults: Faults, without: frozenset[str] = frozenset(), others: Collection[str] = ()
) -> dict[str, Any] | None:
    """The mapping as keywords of a plug-in, or None and faults. `others` are keys that stand beside them, and may be meant."""
    keys = keys_of(made, without)
    found: dict[str, Any] | None = _checked(adapter(made, without).validate_python, keys, mapping, where, faults, others=others)
    return found


def section(made: type, mapping: Any, where: str, faults: Faults, **given: Any) -> Any:
    """A section's value from a mapping, or None and faults; `given` are fields that have been read already."""
    mapping = {} if mapping is None else mapping
    keys, nested = keys_of(made, frozenset(given)), {}
    if isinstance(mapping, dict):
        nested = {
            name: section(bare(key.kind), mapping[name], f"{where}.{name}", faults)
            for name, key in keys.items()
            if name in mapping and dataclasses.is_dataclass(bare(key.kind))
        }
        mapping = {**mapping, **nested}
    broken = {name for name, value in nested.items() if value is None}
    return _checked(lambda own: made(**own, **given), keys, mapping, where, faults, broken)


def _checked(
    make: Callable[[dict[str, Any]], Any],
    keys: Mapping[str, Key],
    mapping: Any,
    where: str,
    faults: Faults,
    broken: Collection[str] = (),
    others: Collection[str] = (),
) -> Any:
    """What `make` makes of the mapping, or None and faults; those of the keys in `broken` have been told."""
    mapping = {} if mapping is None else mapping
    if not isinstance(mapping, dict):
        faults.add(where, f"expected a mapping, got {shown(mapping)}")
        return None
    strange = [name for name in mapping if name not in keys]
    for name in strange:
        faults.add(
            f"{where}.{name}", f"no such key{did_you_mean(str(name), [*keys, *others]) or '; there are: ' + ', '.join(keys)}"
        )
    before = len(faults)
    try:
        value = make({name: value for name, value in mapping.items() if name not in strange})
    except ValidationError as error:
        told = dict.fromkeys(
            fault(detail, keys, mapping) for detail in error.errors(include_url=False) if detail["loc"][0] not in broken
        )
        for found in filter(None, told):
            faults.add(f"{where}.{found[0]}", found[1])
        if len(faults) == before and not strange and not broken:
            raise  # a fault that no message tells
        return None
    return value if len(faults) == before and not strange else None


def fault(detail: ErrorDetails, keys: Mapping[str, Key], mapping: dict[str, Any]) -> tuple[str, str] | None:
    """Where below the mapping a value is wrong, and what is wrong with it; None if another fault says it."""
    name = str(detail["loc"][0])
    if name not in mapping:
        return name, f"this key is missing ({words(keys[name].kind)})"
    found = located(keys[name].kind, mapping[name], detail["loc"][1:], name)
    if found is None:
        return None
    place, kind, value = found
    if detail["type"] == "too_short" and len(value) >= limits_of(kind).get("min_length", 0):
        return None  # pydantic counts the items that are right
    return place, what_is_wrong(detail, kind, value)


def located(kind: Any, value: Any, steps: tuple[int | str, ...], place: str) -> tuple[str, Any, Any] | None:
    """The place, type and value that an error is about. Its steps are indices, keys, and the options of unions that were tried;
    None where the value was not meant as that option."""
    options = [option for option in options_of(kind) if option is not type(None)]
    if len(options) > 1:
        lists = [option for option in options if typing.get_origin(bare(option)) is tuple]
        if not steps or not isinstance(value, list) or len(lists) != 1:
            return place, kind, value
        return located(lists[0], value, steps[1:], place) if "tuple[" in str(steps[0]) else None
    inner = [part for part in typing.get_args(bare(options[0])) if part is not Ellipsis]
    if inner and steps and isinstance(value, (list, tuple)) and isinstance(steps[0], int) and steps[0] < len(value):
        return located(inner[min(steps[0], len(inner) - 1)], value[steps[0]], steps[1:], f"{place}[{steps[0]}]")
    if inner and steps and isinstance(value, dict) and steps[0] in value:
        return located(inner[-1], value[steps[0]], steps[1:], f"{place}.{steps[0]}")
    return place, kind, value


def what_is_wrong(detail: ErrorDetails, kind: Any, value: Any) -> str:
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    if detail["type"] == "finite_number":
        return f"expected a finite number, got {shown(value)}"
    if detail["type"] in RANGE:
        limits = limits_of(kind)
        positive = limits in ({"gt": 0}, {"ge": 1})
        return f"{'must be positive' if positive else f'expected {range_of(kind)}'}, got {shown(value)}"
    if detail["type"] in ("too_short", "too_long", "missing"):
        inner = typing.get_args(bare(kind))
        wanted = f"{limits_of(kind).get('min_length', 0)} or more values" if Ellipsis in inner else f"{len(inner)} values"
        return f"expected {wanted}, got {len(value)}"
    if detail["type"] == "string_too_short":
        return "is empty; write a text"
    if detail["type"] == "literal_error" and len(options_of(kind)) == 1:
        return f"expected one of {', '.join(map(str, typing.get_args(bare(kind))))}; got {shown(value)}"
    return f"expected {words(kind)}, got {shown(value)}"


def shown(value: Any) -> str:
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return f"the text {short(value)}"
        return f"the text {value!r} (YAML reads it as text; write a number with a point, as in 1.0e-4)"
    return short(value)


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


# --- types in words -----------------------------------------------------------------------------------------------------


def bare(kind: Any) -> Any:
    """The type without what is Annotated."""
    return kind.__origin__ if typing.get_origin(kind) is Annotated else kind


def options_of(kind: Any) -> list[Any]:
    """Of a union; any other type is its only option."""
    unbound = bare(kind)
    return list(typing.get_args(unbound)) if typing.get_origin(unbound) in (typing.Union, types.UnionType) else [kind]


def words(kind: Any) -> str:
    """What a value must be, without its range."""
    options = options_of(kind)
    if len(options) > 1:
        return " or ".join(map(words, options))
    kind = bare(kind)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (tuple, list):
        count = "" if origin is list or Ellipsis in inner else f"{len(inner)} "
        return f"a list of {count}{plural(words(inner[0]))}"
    if origin is dict or dataclasses.is_dataclass(kind):
        return "a mapping"
    return WORDS.get(kind, str(kind))


def plural(phrase: str) -> str:
    article, _, rest = phrase.partition(" ")
    if article != "a":
        return f"values, each {phrase}"
    noun, _, of = rest.partition(" of ")
    return f"{noun}s of {of}" if of else f"{noun}s"


def marks_of(kind: Any) -> Iterator[Any]:
    """What is Annotated, with the constraints that pydantic's Field holds."""
    for mark in getattr(kind, "__metadata__", ()):
        yield mark
        if isinstance(mark, FieldInfo):
            yield from mark.metadata


def limits_of(kind: Any) -> dict[str, Any]:
    """{"ge": 0, "lt": 1}: of a number, of each number of a list, or the least length of a list."""
    names = {
        annotated_types.Ge: "ge",
        annotated_types.Gt: "gt",
        annotated_types.Le: "le",
        annotated_types.Lt: "lt",
        annotated_types.MultipleOf: "multiple_of",
        annotated_types.MinLen: "min_length",
    }
    return {name: getattr(mark, name) for mark in marks_of(kind) for of, name in names.items() if isinstance(mark, of)}


def range_of(kind: Any) -> str:
    """In words: "0 or more and less than 1"; empty where there is none."""
    limits = limits_of(kind)
    if {"ge", "le"} <= limits.keys():
        return f"{limits['ge']:g} to {limits['le']:g}"
    parts = [f"above {limits['gt']:g}"] if "gt" in limits else [f"{limits['ge']:g} or more"] if "ge" in limits else []
    parts += [f"less than {limits['lt']:g}"] if "lt" in limits else [f"at most {limits['le']:g}"] if "le" in limits else []
    parts += [f"a multiple of {limits['multiple_of']:g}"] if "multiple_of" in limits else []
    return " and ".join(parts)


def sentence_of(kind: Any) -> str:
    """What the annotation says about the key."""
    return next(
        (mark.description for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, FieldInfo) and mark.description), ""
    )
