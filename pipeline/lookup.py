"""The file name is the plug-in's name: `find("targets", "affinity")` is the module pipeline/targets/affinity.py."""

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from pipeline.errors import ConfigError

KINDS = {"datasets": "Dataset", "models": "Model", "targets": "Target", "losses": "Loss"}


def names(kind: str) -> list[str]:
    """The plug-ins of a kind; `base` and names that begin with an underscore are shared code and not offered."""
    package = importlib.import_module(f"pipeline.{kind}")
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in found if name != "base" and not name.startswith("_"))


def find(kind: str, name: str) -> ModuleType:
    """The module of a plug-in. Raises ConfigError that lists the names on offer."""
    offered = names(kind)
    if name not in offered:
        raise ConfigError(f"{name!r} is not one of the {kind}: {', '.join(offered)}{did_you_mean(name, offered)}")
    return importlib.import_module(f"pipeline.{kind}.{name}")


def find_class(kind: str, name: str) -> type[Any]:
    """The class a plug-in offers, e.g. `Target` of pipeline/targets/affinity.py."""
    found: type[Any] = getattr(find(kind, name), KINDS[kind])
    return found


def version_record(name: str, args: Mapping[str, Any]) -> dict[str, int]:
    """What a run's record says of a network's code: nothing at version 1, so that older records stay what they are."""
    version = find_class("models", name).version_of(args)
    return {"network_version": version} if version > 1 else {}


def did_you_mean(name: str, offered: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(offered), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
