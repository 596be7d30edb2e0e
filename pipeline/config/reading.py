"""A YAML file's content, and `--set` overrides of it. What no one writes on purpose is refused before it is built: a key that comes
twice, nesting without end, and aliases that unfold to more than any file needs."""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError

MAX_DEPTH = 50
MAX_NODES = 100_000  # of a file with its aliases unfolded


class _Loader(yaml.SafeLoader):
    """A key that comes twice is a fault, as in YAML's specification; PyYAML would take the last. A date is a text."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                fault = f"the key {key.value!r} comes twice"
                raise yaml.constructor.ConstructorError(None, None, fault, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path, examples: str) -> Any:
    """What the file says, not checked. Raises ConfigError if it is no readable YAML or says a key twice; `examples` tells whom it
    is missing where to look."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file, seen from {Path.cwd()}; {examples}") from None
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read ({why}); name a YAML file") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number of 5,000 digits, a date of month 13
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def parse(text: str) -> Any:
    """The value of a YAML text. Raises yaml.YAMLError or ValueError."""
    return _unfolded(_parsed(text))  # a copy


@functools.lru_cache(maxsize=64)  # a study reads one file for each of its arms
def _parsed(text: str) -> Any:
    _refuse_bombs(yaml.parse(text, _Loader))
    return yaml.load(text, _Loader)


def _unfolded(value: Any) -> Any:
    """Each alias as a value of its own, so that `--set` changes one place."""
    if isinstance(value, dict):
        return {name: _unfolded(part) for name, part in value.items()}
    return [_unfolded(part) for part in value] if isinstance(value, list) else value


def _refuse_bombs(events: Iterable[Any]) -> None:
    """Sizes are counted as the events come, so that nothing is built."""
    opened: list[tuple[str | None, list[int]]] = [(None, [0, 0])]  # anchor, [values, depth] of what is open
    anchors: dict[str, list[int]] = {}
    for event in events:
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, [1, 0]))
            size = [0, 0]
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, (values, depth) = opened.pop()
            size = [values, depth + 1]
            anchors |= {anchor: size} if anchor is not None else {}
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in opened):
                raise yaml.YAMLError(f"line {line}: *{event.anchor} stands within itself")
            size = anchors.get(event.anchor or "", [1, 0])
        else:
            size = [int(isinstance(event, yaml.ScalarEvent)), 0]
            anchors |= {event.anchor: size} if getattr(event, "anchor", None) is not None else {}
        around = opened[-1][1]
        around[0], around[1] = around[0] + size[0], max(around[1], size[1])
        if len(opened) - 1 + size[1] > MAX_DEPTH:
            raise yaml.YAMLError(f"line {line}: nested more than {MAX_DEPTH} deep")
        if around[0] > MAX_NODES:
            raise yaml.YAMLError(f"line {line}: more than {MAX_NODES:,} values, with its aliases unfolded")


def override(raw: dict[str, Any], text: str) -> None:
    """Puts `section.key=value` into the sections. Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: expected section.key=value, e.g. training.lr=0.02")
    *parents, last = key.split(".")
    section: Any = raw
    for parent in parents:
        section = section.get(parent) if isinstance(section, dict) else None
    if not isinstance(section, dict) or not parents:
        raise ConfigError(f"--set {text}: there is no section {'.'.join(parents) or key!r} in the file")
    try:
        section[last] = parse(value)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"--set {text}: {value!r} is not a YAML value") from None
