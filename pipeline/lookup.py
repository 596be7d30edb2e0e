"""The file name is the plug-in's name: `find("targets", "affinity")` is the module pipeline/targets/affinity.py.

Folders of one's own (`plugins` of a configuration, or the environment's PIPELINE_PLUGINS) join that search: the file
my_plugins/losses/edge.py is the module `pipeline.losses.edge`, as if it lay in this package. All that follows from a module's name
holds for it too: digests of code, pickling, imports of the files beside it.
"""

import difflib
import importlib
import importlib.util
import os
import pkgutil
import re
import sysconfig
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.errors import ConfigError

KINDS = {"datasets": "Dataset", "models": "Model", "targets": "Target", "losses": "Loss"}
CLASSES = {**KINDS, "metrics": "Metric"}  # a dataset names its metric; no configuration does
CONTRACTS = {
    "datasets": "DatasetBase",
    "models": "ModelBase",
    "targets": "TargetType",
    "losses": "LossModule",
    "metrics": "MetricBase",
}
SHARED = {kind: {"base"} for kind in KINDS} | {"metrics": {"base", "names", "segmentation"}}  # beside names with an underscore
VARIABLE = "PIPELINE_PLUGINS"  # folders of plug-ins, as PATH lists folders; processes that this one starts find them by it
NOT_SEARCHED = {"__pycache__", "__init__.py"}
MESSAGE_SHOWN = 400  # characters of other people's messages


def names(kind: str) -> list[str]:
    """The plug-ins of a kind, one's own among them."""
    found = (module.name for module in pkgutil.iter_modules(importlib.import_module(f"pipeline.{kind}").__path__))
    return sorted(name for name in found if name not in SHARED[kind] and not name.startswith("_"))


def find(kind: str, name: str) -> ModuleType:
    """The module of a plug-in. Raises ConfigError that lists the names on offer, or says where one's own file fails."""
    offered = names(kind)
    if name not in offered:
        raise ConfigError(f"{name!r} is not one of the {kind}: {', '.join(offered)}{did_you_mean(name, offered)}")
    own = own_file(kind, name)
    try:
        module = importlib.import_module(f"pipeline.{kind}.{name}")
    except Exception as error:
        if own is None:
            raise
        raise ConfigError(f"{failed_at(error, own)}; correct the file") from None
    if own is not None:
        require_contract(kind, own, getattr(module, CLASSES[kind], None))
    return module


def find_class(kind: str, name: str) -> type[Any]:
    """The class a plug-in offers, e.g. `Target` of pipeline/targets/affinity.py."""
    found: type[Any] = getattr(find(kind, name), CLASSES[kind])
    return found


def version_record(name: str, args: Mapping[str, Any]) -> dict[str, int]:
    """What a run's record says of a network's code: nothing at version 1, so that older records stay what they are."""
    version = find_class("models", name).version_of(args)
    return {"network_version": version} if version > 1 else {}


def did_you_mean(name: str, offered: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(offered), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


# --- plug-ins of one's own ------------------------------------------------------------------------------------------------


def own_folders() -> list[Path]:
    """Those of the environment, and of the configurations that this process has read."""
    return [absolute(folder) for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]


def add_plugins(folders: Sequence[str | os.PathLike[str]]) -> None:
    """Takes folders into the search, in this process and in those that it starts. Raises ConfigError on a folder that holds no
    plug-ins, and on a name that is there already."""
    wanted = list(dict.fromkeys([*own_folders(), *map(absolute, folders)]))
    taken = {kind: files_of(home(kind)) for kind in CLASSES}
    for folder in wanted:
        for kind, own in plugins_in(folder).items():
            for name, path in own.items():
                if name in taken[kind]:
                    there = taken[kind][name]
                    whose = f"pipeline/{kind}/{name}.py" if there.is_relative_to(home(kind)) else str(there)
                    raise ConfigError(f"{path}: {whose} has this name already; rename the file")
                taken[kind][name] = path
    extend_search(wanted)
    if wanted:
        os.environ[VARIABLE] = os.pathsep.join(map(str, wanted))


def extend_search(folders: Iterable[Path]) -> None:
    for folder in folders:
        for kind in CLASSES:
            search = importlib.import_module(f"pipeline.{kind}").__path__
            if (place := str(folder / kind)) not in search:
                search.append(place)
    importlib.invalidate_caches()


def own_file(kind: str, name: str) -> Path | None:
    """The file of a plug-in of one's own; None for one of this package."""
    for folder in own_folders():
        if (path := files_of(folder / kind).get(name)) is not None:
            return path
    return None


def is_own(module: str) -> bool:
    """Whether a module, `pipeline.losses.edge`, is a plug-in of one's own or lies beside one."""
    _, kind, name, *_ = [*module.split("."), "", ""]
    return module.startswith("pipeline.") and kind in CLASSES and own_file(kind, name) is not None


def plugins_in(folder: Path) -> dict[str, dict[str, Path]]:
    """kind -> name -> file. Raises ConfigError if there are none."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; correct 'plugins' (paths count from {Path.cwd()}) or {VARIABLE}")
    singular = {made.lower(): kind for kind, made in CLASSES.items()}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name.lower() in singular:
            raise ConfigError(f"{path}: is not searched; name the folder {singular[path.name.lower()]!r}")
    found = {kind: files_of(folder / kind) for kind in CLASSES}
    if not any(found.values()):
        kinds = ", ".join(f"{kind}/" for kind in CLASSES)
        raise ConfigError(f"{folder}: holds no <name>.py in any of {kinds}; put the files there")
    return found


def files_of(folder: Path) -> dict[str, Path]:
    """name -> file or package."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return {
        path.name.removesuffix(".py"): path
        for path in found
        if path.name not in NOT_SEARCHED and (path.suffix == ".py" or (path / "__init__.py").is_file())
    }


def home(kind: str) -> Path:
    return Path(__file__).parent / kind


def absolute(folder: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(folder))


def require_contract(kind: str, path: Path, made: Any) -> None:
    contract = getattr(importlib.import_module(f"pipeline.{kind}.base"), CONTRACTS[kind])
    if not (isinstance(made, type) and issubclass(made, contract)):
        what = "has no class" if made is None else "does not derive its class"
        raise ConfigError(
            f"{path}: {what} {CLASSES[kind]}; write `class {CLASSES[kind]}({CONTRACTS[kind]})`, with {CONTRACTS[kind]} from "
            f"pipeline.{kind}.base, which says what it must do"
        )


# --- errors of code that is not this package's -----------------------------------------------------------------------------


def failed_at(error: BaseException, path: Path | None = None) -> str:
    """File, line and message of an error that other people's code raised, on one line; `path` if no line of that code is known."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}: line {error.lineno}: {type(error).__name__}: {error.msg}"
    frame = where_raised(error)
    where = f"{frame.filename}: line {frame.lineno}: " if frame else f"{path}: " if path else ""
    said = " ".join(str(error).split())
    return f"{where}{type(error).__name__}: {said if len(said) <= MESSAGE_SHOWN else said[:MESSAGE_SHOWN] + ' ...'}"


def where_raised(error: BaseException) -> traceback.FrameSummary | None:
    """The innermost line on an error's way that is neither this package's, nor Python's, nor an installed package's; None if there
    is none. Of an error of another process, the line there."""
    frames = list(traceback.extract_tb(error.__traceback__))
    if type(error.__cause__).__name__ == "_RemoteTraceback":
        lines = re.findall(r'^  File "(.+)", line (\d+), in (.+)$', str(error.__cause__), re.MULTILINE)
        frames += [traceback.FrameSummary(file, int(number), name, lookup_line=False) for file, number, name in lines]
    return next((frame for frame in reversed(frames) if not _is_packaged(frame.filename)), None)


def _is_packaged(file: str) -> bool:
    if file.startswith("<") or {"site-packages", "dist-packages"} & set(Path(file).parts):
        return True
    here = Path(__file__).parent
    paths = sysconfig.get_paths()
    folders = {here, here.parent / "stages", Path(paths["stdlib"]), Path(paths["platstdlib"])}
    return any(Path(file).is_relative_to(folder) for folder in folders)
