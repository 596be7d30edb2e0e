"""Network weights as files, and their digest.

A file is safetensors, or what `torch.save` wrote of a state dict (bare, or under `state_dict` or `model`). It is read
with `weights_only=True`: nothing is unpickled but tensors and plain values. No code here downloads anything; ImageNet
weights are a file the user names, e.g. torchvision's resnet101-cd907fc2.pth.
"""

import hashlib
import os
import pickle
import sys
from pathlib import Path
from typing import Iterable, Mapping

import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models._published import renamed

NAMES_SHOWN = 3
CLASSIFIERS = {"fc", "classifier"}      # of torchvision's ImageNet networks


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, over name, dtype, shape and little-endian C-order bytes of each tensor in order of name.

    The same weights give the same digest from any file format, device, memory layout and order of names.
    """
    assert sys.byteorder == "little"
    sha = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        dtype = str(tensor.dtype).removeprefix("torch.")
        sha.update(f"{name}\n{dtype}\n{list(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def load_file(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a file, on the CPU, without the `module.` that data parallel training puts before each name.

    Raises ConfigError if the file is missing, unreadable, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such weights file; check the path in the config")
    try:
        if path.suffix == ".safetensors":
            found = safetensors.torch.load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(f"{path}: not a weights file, or holds objects besides tensors and plain values; "
                          f"save the state dict alone: torch.save(network.state_dict(), path)") from error
    except Exception as error:      # damaged bytes fail anywhere in the parsers: UnicodeDecodeError, KeyError, EOFError
        reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        raise ConfigError(f"{path}: cannot be read as weights ({reason}); copy or save the file again") from error

    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise ConfigError(f"{path}: holds no state dict, bare or under 'state_dict' or 'model'; "
                          f"save one: torch.save(network.state_dict(), path)")
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def save_file(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Writes safetensors; the name appears only when all of the file is on disk. Equal weights give equal bytes."""
    path = Path(path)
    data = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
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
    folder = os.open(path.parent, os.O_RDONLY)      # the rename itself is durable only with its folder
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_into(network: nn.Module, state: Mapping[str, Tensor], where: str | Path) -> None:
    """Puts `state` into the network; `where` names its file. Raises ConfigError unless names and shapes all agree."""
    own = network.state_dict()
    state = renamed(network, state, where)
    faults = differences(own, state)
    if faults and not own.keys() & state.keys():
        raise ConfigError(f"{where}: does not fit the network: {faults}; not one name is the network's: use another code's network "
                          f"through `adapter` (docs/models.md), with that code's weights as they are")
    if faults:
        raise ConfigError(f"{where}: does not fit the network: {faults}; name a file saved from this architecture with "
                          f"the same width, head, lanes, input size and number of classes")
    network.load_state_dict(state)


def load_backbone(network: nn.Module, path: str | Path) -> None:
    """Puts an ImageNet checkpoint of torchvision's names into the backbone and leaves the heads as they are.

    `fc.*` or `classifier.*`, its classifier, is ignored; batch counters may be missing (files older than torch 0.4.1 have
    none). Raises ConfigError if anything else is missing, unexpected or of another shape.
    """
    if not hasattr(network, "backbone"):
        kind = type(network).__module__.rpartition(".")[2]
        raise ConfigError(f"{path}: {kind} has no backbone to load; ImageNet weights are for the resnets, vgg16 and adapter")
    wanted = {name: tensor for name, tensor in network.state_dict().items()
              if name.partition(".")[0] in network.backbone}
    counters = {name: tensor for name, tensor in wanted.items() if name.endswith(".num_batches_tracked")}
    state = counters | {name: tensor for name, tensor in load_file(path).items() if name.partition(".")[0] not in CLASSIFIERS}
    faults = differences(wanted, state)
    if faults:
        raise ConfigError(f"{path}: does not fit the backbone: {faults}; name an ImageNet checkpoint of the same "
                          f"depth, with torchvision's names, and leave the width at 64")
    network.load_state_dict(state, strict=False)


def has_existence(state: Mapping[str, Tensor]) -> bool:
    """Whether a lane-existence head is among the weights; in published files it is called lane_exist."""
    return any({"existence", "lane_exist"} & set(name.split(".")) for name in state)


def differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What keeps one state dict from being loaded as another, in a few words; empty if nothing does."""
    misshaped = [f"{name} {list(found[name].shape)} instead of {list(tensor.shape)}"
                 for name, tensor in wanted.items() if name in found and found[name].shape != tensor.shape]
    groups = {"missing": wanted.keys() - found.keys(), "unexpected": found.keys() - wanted.keys(),
              "misshaped": misshaped}
    return "; ".join(f"{len(names)} {fault} ({shown(names)})" for fault, names in groups.items() if names)


def shown(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
