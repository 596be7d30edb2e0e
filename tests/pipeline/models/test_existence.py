"""Lane existence heads against a slow description."""

import torch

from pipeline.lookup import find_class
from pipeline.models._existence import EncoderExistence, Existence
from pipeline.models.base import shapes


def test_flags_are_two_linear_layers_on_pooled_probabilities():
    torch.manual_seed(0)
    head = Existence(maps=3, lanes=2, grid=(5, 6), hidden=7).double()
    scores = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    probabilities = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
    pooled = torch.stack(
        [probabilities[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].amax(dim=(2, 3)) for i in range(2) for j in range(3)], dim=2
    )  # the fifth row has no partner
    hidden = (pooled.flatten(1) @ head.hidden.weight.T + head.hidden.bias).clamp(min=0)
    torch.testing.assert_close(head(scores), hidden @ head.lanes.weight.T + head.lanes.bias)


def test_the_encoder_branch_has_the_published_sizes():
    with torch.device("meta"):
        branch = EncoderExistence(128, lanes=4, grid=(26, 122))
    shape = {name: tuple(parameter.shape) for name, parameter in branch.named_parameters()}
    assert shape["0.weight"] == (32, 128, 3, 3) and branch[0].dilation == (4, 4)
    assert shape["4.weight"] == (5, 32, 1, 1)
    assert shape["5.hidden.weight"] == (128, 3965)
    assert shape["5.lanes.weight"] == (4, 128)


def test_the_teachers_flags_come_from_its_logits():
    with torch.device("meta"):
        network = find_class("models", "resnet101")(5, size=(368, 640), lanes=4, head="fcn")
    assert network.existence.hidden.in_features == 4600
    assert shapes(lambda: network, (368, 640)).existence.shape == (1, 4)
