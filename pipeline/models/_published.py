"""Weight files of other people's code for networks that are here: their names of weights, by ours.

A model whose `published` is set takes such files as they are, and has the attribute `layout`. Names do not tell which pixels
the weights were trained on, and each of these repositories has pixels of its own; so the model's key `layout` must say whose
they are.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.errors import ConfigError

COUNTER = "num_batches_tracked"


class Published(NamedTuple):
    mark: str                               # one of the names, which no other layout has
    name: Callable[[str], str | None]       # one of their names -> ours; None: a weight that the network here has no use for
    layouts: dict[str, str]                 # values of `layout` whose weights have these names: whose they are, on which pixels


def renamed(model: Any, state: Mapping[str, Tensor], where: object = "") -> dict[str, Tensor]:
    """The state dict by the names of `model`, a network or its class, if it has those of a published layout; otherwise as it
    is. Batch counters, which files older than torch 0.4.1 lack, are 0. Raises ConfigError if the network is of another layout."""
    published: Published | None = getattr(model, "published", None)
    prefixes = [] if published is None else [name.removesuffix(published.mark) for name in state if name.endswith(published.mark)]
    if published is None or not prefixes:
        return dict(state)
    if not isinstance(model, type) and model.layout not in published.layouts:
        known = "; or ".join(f"`layout: {key}`, {whose}" for key, whose in published.layouts.items())
        raise ConfigError(f"{where}: has the names of a published {type(model).__module__.rpartition('.')[2]}; say whose it is: "
                          f"{known}; weights of that network for other pixels come in through `adapter`")
    found = {}
    for theirs, tensor in state.items():
        ours = published.name(theirs.removeprefix(prefixes[0]))
        if ours is not None:
            found[ours] = tensor
    for name in [name for name in found if name.endswith(".running_mean")]:
        found.setdefault(name.removesuffix("running_mean") + COUNTER, torch.tensor(0))
    return found
