"""Several networks of one architecture that answer together, as one teacher.

    network: {name: resnet101}                                    # the architecture of each member, with its own keys
    members: 3
    checkpoint: [a.safetensors, b.safetensors, c.safetensors]     # a key of every teacher: here one file for each member

Logits are the mean of the members', as in Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, and so are
existence logits. The features of a layer are the members' beside one another, as channels of networks that were trained apart do
not correspond: an energy map is then the mean of the members', and the cosines of an affinity graph weigh each member by the size
of its features. Targets that store features themselves grow with the members; all others do not.

B images, H W the input, C channels of one member.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.lookup import find_class
from pipeline.models._network import check_size
from pipeline.models.base import ModelBase, Output


class Model(ModelBase):
    layers = {"mid": "joined.mid", "high": "joined.high"}

    def __init__(
        self,
        num_classes: int,
        *,
        size: tuple[int, int],
        lanes: int = 0,
        network: Annotated[dict, Field(description="Architecture of each member: `name` of a network, and its keys beside it.")],
        members: Annotated[int, Field(ge=2, description="How many networks there are.")],
    ):
        super().__init__()
        check_size(self, size)
        model, args = member(network)
        try:
            self.members = nn.ModuleList(model(num_classes, size=size, lanes=lanes, **args) for _ in range(members))
        except TypeError as error:
            raise ConfigError(f"ensemble: network: {error}; correct its keys") from error
        first = self.members[0]
        assert isinstance(first, ModelBase)
        self.multiple, self.uses_labels = first.multiple, first.uses_labels
        self.joined = nn.ModuleDict({role: nn.Identity() for role in self.layers})

    def forward(self, images_B3HW: Tensor, labels_BHW: Tensor | None = None) -> Output:
        outputs: list[Output] = [network(images_B3HW, labels_BHW) for network in self.members]
        features = {
            role: self.joined[role](torch.cat([output.features[role] for output in outputs], dim=1)) for role in outputs[0].features
        }
        return Output(mean([output.logits for output in outputs]), features, mean([output.existence for output in outputs]))

    @classmethod
    def made_from(cls, args: Mapping[str, Any]) -> dict[str, Any]:
        """What the identity of one member's cache would say."""
        model, own = member(args["network"])
        return {"member": {"version": model.version_of(own), **model.made_from(own)}}

    @classmethod
    def code_outside(cls, args: Mapping[str, Any]) -> dict[str, str | None]:
        model, own = member(args["network"])
        return model.code_outside(own)


def member(network: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Class and keywords of a member. Raises ConfigError if `network` names none."""
    args = dict(network)
    name = args.pop("name", None)
    if not isinstance(name, str) or name == "ensemble":
        raise ConfigError("ensemble: network: names no network; write {name: resnet101}, with the keys of that network beside it")
    return find_class("models", name), args


def mean(values: list[Tensor | None]) -> Tensor | None:
    known = [value for value in values if value is not None]
    return torch.stack(known).mean(dim=0) if known else None
