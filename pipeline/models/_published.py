"""Weight files of other people's code for networks that are here: their names of weights, by ours.

A model whose `published` is set takes such files as they are, and has the attribute `layout`. Names do not tell which pixels
the weights were trained on, and each of these repositories has pixels of its own; so the model's key `layout` must say whose
they are.
"""

from collections.abc import Callable
from typing import NamedTuple


class Published(NamedTuple):
    mark: str  # one of the names, which no other layout has
    name: Callable[[str], str | None]  # one of their names -> ours; None: a weight that the network here has no use for
    layouts: dict[str, str]  # values of `layout` whose weights have these names: whose they are, on which pixels
