"""A teacher that also looks at the mirrored image: its answers on both, laid on each other again.

Logits are averaged with the classes swapped back, existence logits with the lanes swapped back. Features are not: of a
mirrored image they are others in each channel, so both go on to the targets, which average what they make of them (an
affinity graph C becomes the mean of C and P C P^T, P the swap of the classes; an energy map is averaged position by
position). The whole canvas is mirrored, its padding too, so that every grid comes back cell by cell. Source of the
practice: test-time flipping in segmentation, e.g. Chen et al., "DeepLab", TPAMI 2018, section 4.

B images, H W the input, K classes, L lanes, h w a layer's grid.
"""

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models.base import ModelBase, Output


class FlipAveraged(ModelBase):
    """`classes` and `lanes` are the dataset's permutations for a mirrored image."""

    def __init__(self, network: ModelBase, classes: tuple[int, ...] | None, lanes: tuple[int, ...] | None):
        super().__init__()
        if classes is None:
            raise ConfigError("teacher.flip_average: this dataset has no class permutation for mirrored images; write false")
        self.network, self.multiple, self.uses_labels = network, network.multiple, network.uses_labels
        self.classes, self.lanes = list(classes), lanes

    def forward(self, images_B3HW: Tensor, labels_BHW: Tensor | None = None) -> Output:
        plain: Output = self.network(images_B3HW, labels_BHW)
        other: Output = self.network(images_B3HW.flip(-1), None if labels_BHW is None else self.mirrored(labels_BHW))
        logits = existence = None
        if plain.logits is not None and other.logits is not None:
            logits = (plain.logits + other.logits.flip(-1)[:, self.classes]) / 2
        if plain.existence is not None and other.existence is not None:
            existence = (plain.existence + other.existence[:, list(self.lanes or range(plain.existence.shape[1]))]) / 2
        turned_back = {role: map_BChw.flip(-1) for role, map_BChw in other.features.items()}
        return Output(logits, plain.features, existence, turned_back)

    def mirrored(self, labels_BHW: Tensor) -> Tensor:
        table = torch.arange(256, dtype=torch.uint8, device=labels_BHW.device)
        table[: len(self.classes)] = torch.tensor(self.classes, dtype=torch.uint8)
        return table[labels_BHW.flip(-1).long()]
