"""A teacher that is shown the label map and learns to give it back; where it looks as it does, the student is to look.

Source: Liu and Zhu, "Label-guided Attention Distillation for Lane Segmentation", Neurocomputing 438, 2021, of which
only the abstract was at hand: a teacher consumes the label map as its input, replicates it as its output, and its
attention maps supervise the student's. All else is ours: the teacher is the student's own kind of network (`network`),
so that layers and grids agree; a learnt 1x1 convolution paints the one-hot label map in three channels, an ignored
pixel in none, which takes the normalised picture's place. The picture itself is not looked at.

The teacher sees the label of a view, so every row of its cache depends on labels, whatever the target (`uses_labels`).

B images, H W the input, K classes.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models._network import check_size
from pipeline.models.base import ModelBase, Output, Width
from pipeline.models.enet import Model as ENet
from pipeline.models.erfnet import Model as ERFNet
from pipeline.models.resnet18 import Model as ResNet18

NETWORKS: dict[str, Callable[..., ModelBase]] = {"enet": ENet, "erfnet": ERFNet, "resnet18": ResNet18}


class Model(ModelBase):
    """`network` names another model of this folder, `width` is its width."""

    version = 1  # counts changes of the networks, too
    uses_labels = True
    layers = {role: f"network.{layer}" for role, layer in ERFNet.layers.items()}

    def __init__(
        self,
        num_classes: int,
        *,
        size: tuple[int, int],
        lanes: int = 0,
        network: Annotated[
            Literal["enet", "erfnet", "resnet18"], Field(description="The model that looks at the painted labels.")
        ] = "erfnet",
        width: Annotated[Width, Field(ge=4)] = 16,
    ):
        super().__init__()
        check_size(self, size)
        self.network = NETWORKS[network](num_classes, size=size, lanes=lanes, width=width)
        self.layers = {role: f"network.{layer}" for role, layer in self.network.layers.items()}
        self.colours = nn.Conv2d(num_classes, 3, 1, bias=False)
        nn.init.normal_(self.colours.weight)

    def forward(self, images_B3HW: Tensor, labels_BHW: Tensor | None = None) -> Output:
        if labels_BHW is None:
            raise ConfigError("lgad: is shown labels, and here are none; it teaches others and can predict nothing")
        classes_K11 = torch.arange(self.colours.in_channels, device=labels_BHW.device)[:, None, None]
        painted_B3HW = self.colours((labels_BHW[:, None] == classes_K11).to(images_B3HW))
        output: Output = self.network(painted_B3HW * self.network.std + self.network.mean)  # which it takes off again
        return output
