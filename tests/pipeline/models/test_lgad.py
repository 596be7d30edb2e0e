"""The label-fed teacher: what it is shown, what it is built of."""

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.models.lgad import NETWORKS, Model

SIZE = (32, 48)


def labels(seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 4, (2, 2, 3), generator=generator, dtype=torch.uint8)
    return coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)


def network(**keys):
    torch.manual_seed(0)
    return Model(4, size=SIZE, **{"width": 4} | keys)


def test_the_picture_is_not_looked_at_and_the_labels_are():
    teacher, black, white = network().eval(), torch.zeros(2, 3, *SIZE), torch.full((2, 3, *SIZE), 255.0)
    with torch.no_grad():
        first, again, other = teacher(black, labels()), teacher(white, labels()), teacher(black, labels(1))
    assert torch.equal(first.logits, again.logits) and torch.equal(first.features["mid"], again.features["mid"])
    assert not torch.allclose(first.features["mid"], other.features["mid"])


def test_each_class_has_a_colour_and_what_is_ignored_has_none():
    teacher, seen = network().eval(), []
    teacher.network.register_forward_pre_hook(lambda _, inputs: seen.append(teacher.network.normalise(inputs[0])))
    labels_BHW = labels()
    labels_BHW[:, :8] = 255
    with torch.no_grad():
        teacher(torch.zeros(2, 3, *SIZE), labels_BHW)
    for k in range(4):
        painted = seen[0].permute(0, 2, 3, 1)[labels_BHW == k]
        assert torch.allclose(painted, teacher.colours.weight[:, k, 0, 0].expand_as(painted), atol=1e-5)
    assert torch.allclose(seen[0][:, :, :8], torch.zeros(()), atol=1e-5)


def test_it_learns_to_give_back_labels_it_has_not_seen():
    teacher = network(network="resnet18", width=8)
    optimiser = torch.optim.Adam(teacher.parameters(), lr=0.003)

    def logits(labels_BHW):
        coarse = teacher(torch.zeros(2, 3, *SIZE), labels_BHW).logits
        return torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear", align_corners=False)

    for step in range(100):
        loss = torch.nn.functional.cross_entropy(logits(labels(step)), labels(step).long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    teacher.eval()
    with torch.no_grad():
        assert (logits(labels(1000)).argmax(dim=1) == labels(1000)).float().mean() > 0.5  # by chance a quarter


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_and_shapes_are_those_of_the_network_it_is_made_of(name):
    teacher, student = network(network=name, width=8), NETWORKS[name](4, size=SIZE, width=8)
    images = torch.zeros(1, 3, *SIZE)
    mine, theirs = teacher.eval()(images, labels()[:1]), student.eval()(images)
    assert mine.logits.shape == theirs.logits.shape
    for role, layer in teacher.layers.items():
        assert mine.features[role].shape == theirs.features[role].shape
        assert teacher.get_submodule(layer) is teacher.network.get_submodule(student.layers[role])


def test_a_new_version_of_a_network_asks_for_a_new_version_here():
    assert {name: cls.version for name, cls in NETWORKS.items()} == {"enet": 1, "erfnet": 1, "resnet18": 1}, (
        "raise lgad's version with theirs, then this"
    )
    assert Model.version == 1


def test_without_labels_and_at_odd_sizes_it_says_so():
    with pytest.raises(ConfigError, match="is shown labels, and here are none"):
        network()(torch.zeros(2, 3, *SIZE))
    with pytest.raises(ConfigError, match="lgad: input of 30 x 48"):
        Model(4, size=(30, 48))
