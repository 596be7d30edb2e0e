"""Network weights as files, and their digest.

A file is safetensors, or what `torch.save` wrote: a state dict, bare or in a container (CONTAINERS). It is read with
`weights_only=True`: nothing is unpickled but tensors, plain values and numpy's numbers. No code here downloads anything;
ImageNet weights are a file the user names, e.g. torchvision's resnet101-cd907fc2.pth.

What people's tools change on the way is undone: a prefix that all names of the network share (`model.` of Lightning,
`module.` of data parallel training, `_orig_mod.` of torch.compile) comes off, and tensors of another type (half precision,
float64) become the network's. `tell`, where a function here takes one, is called with a line for each such change that
was a choice.
"""

import hashlib
import io
import os
import pickle
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError

NAMES_SHOWN = 3
CLASSIFIERS = {"fc", "classifier"}  # of torchvision's ImageNet networks
CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "network",
    "net",
    "module",
    "weights",  # the first that is there
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
)
SEAL = b"sha256:"  # and 64 digits, as the comment at the end of a zip file

Tell = Callable[[str], None]


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, over name, dtype, shape and little-endian C-order bytes of each tensor in order of name.

    The same weights give the same digest from any file format, device, memory layout and order of names.
    """
    assert sys.byteorder == "little"
    sha = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        dtype = str(tensor.dtype).removeprefix("torch.")
        sha.update(f"{name}\n{dtype}\n{list(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def load_file(path: str | Path, tell: Tell | None = None) -> dict[str, Tensor]:
    """The state dict of a file, on the CPU, without the `module.` of data parallel training and the `_orig_mod.` of
    torch.compile. `tell` hears which of a container's state dicts was taken.

    Raises ConfigError if the file is missing, unreadable, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such weights file; check the path in the config")
    try:
        if path.suffix == ".safetensors":
            found = safetensors.torch.load_file(path)
        else:
            with torch.serialization.safe_globals(numpy_values()):
                found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{path}: not a weights file, or holds objects besides tensors and plain values; "
            f"save the state dict alone: torch.save(network.state_dict(), path)"
        ) from error
    except Exception as error:  # damaged bytes fail anywhere in the parsers: UnicodeDecodeError, KeyError, EOFError
        reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        raise ConfigError(f"{path}: cannot be read as weights ({reason}); copy or save the file again") from error
    if path.suffix != ".safetensors" and seal_of(path) is False:
        raise ConfigError(f"{path}: cannot be read as weights (damaged, its checksum does not fit); copy or save the file again")
    state = contained(found, path, tell)
    return {
        name.removeprefix("module.").replace("_orig_mod.", ""): tensor for name, tensor in state.items() if name != "n_averaged"
    }  # a counter of torch.optim.swa_utils.AveragedModel


def load_checkpoint(files: Path | Sequence[Path], tell: Tell | None = None) -> dict[str, Tensor]:
    """The state dict of a teacher's `checkpoint`: of one file, or of an ensemble whose members have a file each."""
    if isinstance(files, Path):
        return load_file(files, tell)
    members = (load_file(path, tell) for path in files)
    return {f"members.{place}.{name}": tensor for place, state in enumerate(members) for name, tensor in state.items()}


def contained(found: Any, path: Path, tell: Tell | None) -> Mapping[str, Tensor]:
    """The state dict in what a file holds. Raises ConfigError if there is none."""
    taken: list[str] = []
    while isinstance(found, dict) and not is_state(found):
        held = [key for key in CONTAINERS if isinstance(found.get(key), dict) and found[key]]
        if "optimiser" in found and isinstance(found.get("mean"), dict):  # a run's checkpoint: it leaves its running mean
            held.insert(0, "mean")
        if not held:
            break
        taken.append(held[0])
        if tell is not None and (len(held) > 1 or held[0] not in ("state_dict", "model")):
            others = (
                f", not those under {' or '.join(map(repr, held[1:]))}, which you can save as a file of their own"
                if held[1:]
                else ""
            )
            tell(f"{path}: takes the weights under {'.'.join(taken)!r}{others}")
        found = found[held[0]]
    if not is_state(found):
        raise ConfigError(
            f"{path}: holds no state dict, bare or under {', '.join(map(repr, CONTAINERS[:-1]))} or {CONTAINERS[-1]!r}; "
            f"save one: torch.save(network.state_dict(), path)"
        )
    return found


def is_state(found: Any) -> bool:
    return isinstance(found, dict) and bool(found) and all(isinstance(value, Tensor) for value in found.values())


def numpy_values() -> list[Any]:
    """What numpy's numbers and arrays are pickled by, e.g. a best score beside the weights; no objects in arrays."""
    makers: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]]
    named = [(maker, f"numpy.{core}.multiarray.{maker.__name__}") for maker in makers for core in ("core", "_core")]
    kinds = [getattr(np.dtypes, name) for name in np.dtypes.__all__ if name != "ObjectDType"]
    return [np.dtype, np.ndarray, *kinds, *named]


# Files that say whether they are whole


def seal(data: io.BytesIO) -> memoryview:
    """Puts into the comment of a zip file, as torch.save writes one, the SHA-256 of all that precedes the digits' own comment.
    Any zip reader reads it."""
    data.seek(-2, os.SEEK_END)  # the comment's length
    data.write((len(SEAL) + 64).to_bytes(2, "little"))
    data.write(SEAL + hashlib.sha256(data.getbuffer()).hexdigest().encode())
    return data.getbuffer()


def seal_of(path: Path) -> bool | None:
    """Whether the file has the bytes that were written; None if it has no seal."""
    size = len(SEAL) + 64
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        seal = file.read()
        if not seal.startswith(SEAL):
            return None
        file.seek(0)
        sha, left = hashlib.sha256(), path.stat().st_size - size
        while left and (part := file.read(min(left, 1 << 20))):
            sha.update(part)
            left -= len(part)
    return seal[len(SEAL) :] == sha.hexdigest().encode()


def save_file(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Writes safetensors; the name appears only when all of the file is on disk. Equal weights give equal bytes."""
    write_file(Path(path), safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}))


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Whole and lastingly, or not at all: after an error, e.g. a full disk, the old file stands there and nothing else."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself is durable only with its folder
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


COUNTER = "num_batches_tracked"


def renamed(model: Any, state: Mapping[str, Tensor], where: object = "") -> dict[str, Tensor]:
    """The state dict by the names of `model`, a network or its class, if it has those of a published layout; otherwise as it
    is. Batch counters, which files older than torch 0.4.1 lack, are 0. Raises ConfigError if the network is of another layout."""
    published = getattr(model, "published", None)
    prefixes = [] if published is None else [name.removesuffix(published.mark) for name in state if name.endswith(published.mark)]
    if published is None or not prefixes:
        return dict(state)
    if not isinstance(model, type) and model.layout not in published.layouts:
        known = "; or ".join(f"`layout: {key}`, {whose}" for key, whose in published.layouts.items())
        raise ConfigError(
            f"{where}: has the names of a published {type(model).__module__.rpartition('.')[2]}; say whose it is: "
            f"{known}; weights of that network for other pixels come in through `adapter`"
        )
    found = {}
    for key, tensor in state.items():
        name = published.name(key.removeprefix(prefixes[0]))
        if name is not None:
            found[name] = tensor
    for name in [name for name in found if name.endswith(".running_mean")]:
        found.setdefault(name.removesuffix("running_mean") + COUNTER, torch.tensor(0))
    return found


# Into a network


def load_into(network: nn.Module, state: Mapping[str, Tensor], where: str | Path, tell: Tell | None = None) -> None:
    """Puts `state` into the network; `where` names its file. `tell` hears of a prefix that came off and of integers.

    Raises ConfigError unless names and shapes all agree and all values are numbers."""
    own = network.state_dict()
    found = fitted(renamed(network, state, where), own, where, tell)
    faults = differences(own, found)
    if faults and not own.keys() & found.keys():
        raise ConfigError(
            f"{where}: does not fit the network: {faults}; not one name is the network's: use another code's network "
            f"through `adapter` (docs/models.md), with that code's weights as they are"
        )
    if faults:
        raise ConfigError(
            f"{where}: does not fit the network: {faults}; name a file saved from this architecture with "
            f"the same width, head, lanes, input size and number of classes"
        )
    refuse_values(found, own, where)
    network.load_state_dict(found)


def load_backbone(network: nn.Module, path: str | Path, tell: Tell | None = None) -> None:
    """Puts an ImageNet checkpoint of torchvision's names into the backbone and leaves the heads as they are.

    `fc.*` or `classifier.*`, its classifier, is ignored; batch counters may be missing (files older than torch 0.4.1 have
    none). Raises ConfigError if anything else is missing, unexpected or of another shape.
    """
    if not hasattr(network, "backbone"):
        kind = type(network).__module__.rpartition(".")[2]
        raise ConfigError(f"{path}: {kind} has no backbone to load; ImageNet weights are for the resnets, vgg16 and adapter")
    inside: Any = network.backbone
    wanted = {name: tensor for name, tensor in network.state_dict().items() if name.partition(".")[0] in inside}
    counters = {name: tensor for name, tensor in wanted.items() if name.endswith(".num_batches_tracked")}
    state = fitted(load_file(path, tell), wanted, path, tell)
    found = counters | {name: tensor for name, tensor in state.items() if name.partition(".")[0] not in CLASSIFIERS}
    faults = differences(wanted, found)
    if faults:
        raise ConfigError(
            f"{path}: does not fit the backbone: {faults}; name an ImageNet checkpoint of the same "
            f"depth, with torchvision's names, and leave the width at 64"
        )
    refuse_values(found, wanted, path)
    network.load_state_dict(found, strict=False)


def load_partly(network: nn.Module, path: str | Path, tell: Tell) -> None:
    """Puts those weights of a file into the network that fit by name and shape, and leaves the others as they are; `tell` hears
    of both. Raises ConfigError if none fits, or a value is no number."""
    own = network.state_dict()
    found = fitted(renamed(network, load_file(path, tell), path), own, path, tell)
    fits = {name: tensor for name, tensor in found.items() if name in own and tensor.shape == own[name].shape}
    if not any(not name.endswith(COUNTER) for name in fits):
        raise ConfigError(f"{path}: no weight fits the network: {differences(own, found)}; name a file of a network like it")
    refuse_values(fits, own, path)
    network.load_state_dict(fits, strict=False)
    reshaped = [name for name in own if name in found and name not in fits]
    left = {
        "of another shape": reshaped,
        "not in the file": [name for name in own if name not in found and not name.endswith(COUNTER)],
        "not of the network": [name for name in found if name not in own],
    }
    said = "".join(f"; {why}: {len(names)} ({shown(names)})" for why, names in left.items() if names)
    tell(f"{path}: takes {len(fits)} of {len(own)} weights{said}")


def fitted(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str | Path = "", tell: Tell | None = None
) -> dict[str, Tensor]:
    """The state dict by the names and in the dtypes of `wanted`: without the prefix under which more than half of these names
    stand, and then without what stands under none. Raises ConfigError if two prefixes fit equally well."""
    prefix = common_prefix(state, wanted, where)
    found = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if tell is not None and prefix:
        others = [name for name in state if not name.startswith(prefix)]
        tell(
            f"{where}: takes the weights whose names begin with {prefix!r}, without it"
            + (f"; leaves out {len(others)} others ({shown(others)})" if others else "")
        )
    integers = [
        name
        for name, tensor in found.items()
        if name in wanted and wanted[name].is_floating_point() and not (tensor.is_floating_point() or odd(tensor))
    ]
    if tell is not None and integers:
        kind = str(found[integers[0]].dtype).removeprefix("torch.")
        tell(
            f"{where}: {len(integers)} weights are whole numbers, {kind} ({shown(integers)}), and are taken as they are; if they "
            f"were quantised, save them dequantised"
        )
    return {name: tensor.to(wanted[name].dtype) if name in wanted and not odd(tensor) else tensor for name, tensor in found.items()}


def common_prefix(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str | Path) -> str:
    counts: Counter[str] = Counter()
    for name in state:
        starts = [0, *(place + 1 for place, sign in enumerate(name) if sign == ".")]
        counts.update(name[:start] for start in starts if name[start:] in wanted)
    most = max(counts.values(), default=0)
    best = [prefix for prefix, count in counts.items() if count == most and 2 * count > len(wanted)]
    if len(best) > 1 and "" not in best:
        raise ConfigError(
            f"{where}: the network's weights stand there under {' and under '.join(map(repr, sorted(best)))}; save "
            f"those you mean as a file of their own"
        )
    return best[0] if len(best) == 1 else ""


def odd(tensor: Tensor) -> bool:
    """Whether no cast makes weights of it."""
    return tensor.is_complex() or tensor.is_quantized or tensor.layout != torch.strided


def refuse_values(found: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str | Path) -> None:
    """Raises ConfigError at what is no number, except where the network's own buffers hold infinity (a mask)."""
    if strange := [name for name, tensor in found.items() if odd(tensor) and not odd(own[name])]:
        raise ConfigError(
            f"{where}: {len(strange)} weights are quantised, sparse or complex ({shown(strange)}); save them as dense "
            f"tensors of floats"
        )
    bad = [
        name
        for name, tensor in found.items()
        if tensor.is_floating_point()
        and not own[name].is_meta
        and bool((~tensor.isfinite() & own[name].to(tensor.device).isfinite()).any())
    ]
    if bad:
        raise ConfigError(
            f"{where}: {len(bad)} weights are not finite ({shown(bad)}); the training that made them diverged, or "
            f"the file is damaged: take an earlier checkpoint"
        )


def has_existence(state: Mapping[str, Tensor]) -> bool:
    """Whether a lane-existence head is among the weights; in published files it is called lane_exist."""
    return any({"existence", "lane_exist"} & set(name.split(".")) for name in state)


def differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What keeps one state dict from being loaded as another, in a few words; empty if nothing does."""
    misshaped = [
        f"{name} {list(found[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    groups = {"missing": wanted.keys() - found.keys(), "unexpected": found.keys() - wanted.keys(), "misshaped": misshaped}
    return "; ".join(f"{len(names)} {fault} ({shown(names)})" for fault, names in groups.items() if names)


def shown(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
