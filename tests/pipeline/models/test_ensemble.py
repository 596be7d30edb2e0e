"""Several networks that answer as one teacher."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.config import Teacher
from pipeline.config.checks import check_students, check_teacher
from pipeline.config.schema import Plugin
from pipeline.errors import ConfigError
from pipeline.lookup import find_class
from pipeline.models.ensemble import Model
from pipeline.targets.attention import Target
from pipeline.targets.base import Context

SIZE = (32, 48)
ERFNET = {"name": "erfnet", "width": 4}


def made(network=ERFNET, members=3):
    torch.manual_seed(0)
    return Model(5, size=SIZE, lanes=2, network=network, members=members).eval()


def test_logits_are_the_mean_and_features_stand_beside_one_another():
    ensemble, images = made(), torch.rand(2, 3, *SIZE) * 255
    with torch.no_grad():
        found, outputs = ensemble(images), [network(images) for network in ensemble.members]
    torch.testing.assert_close(found.logits, sum(output.logits for output in outputs) / 3)
    torch.testing.assert_close(found.existence, sum(output.existence for output in outputs) / 3)
    for role, map_BChw in found.features.items():
        assert torch.equal(map_BChw, torch.cat([output.features[role] for output in outputs], dim=1))


def test_its_attention_map_is_the_mean_of_its_members():
    ensemble, images = made(), torch.rand(2, 3, *SIZE) * 255
    with torch.no_grad():
        found, outputs = ensemble(images), [network(images) for network in ensemble.members]
    grid = tuple(found.features["high"].shape[-2:])
    context = Context(num_classes=5, regions=(0, 1), size=SIZE, grids={"high": grid})
    energy, *others = (Target(layer="high").compute(output, None, context)["energy"] for output in (found, *outputs))
    torch.testing.assert_close(energy, sum(others) / 3)


def test_its_identity_says_what_its_members_are():
    said = Model.made_from({"network": ERFNET, "members": 3})
    own = find_class("models", "erfnet")
    assert said == {"member": {"version": own.version, "layers": own.layers}}


@pytest.mark.parametrize(
    "network, message",
    [
        ({"width": 4}, "network: names no network"),
        ({"name": "ensemble"}, "network: names no network"),
        ({"name": "erfnett"}, "did you mean 'erfnet'"),
        ({"name": "erfnet", "wide": 4}, "network: .*'wide'; correct its keys"),
    ],
)
def test_a_member_that_cannot_be_is_refused(network, message):
    with pytest.raises(ConfigError, match=message):
        made(network)


def test_an_ensemble_is_no_student():
    student = Plugin(kind="models", name="ensemble", args={"network": ERFNET, "members": 3})
    assert "can only teach" in dict(check_students({"many": student}, SimpleNamespace(size=SIZE)))["students.many"]


@pytest.mark.parametrize(
    "name, files, training, message",
    [
        ("ensemble", None, object(), "trained one by one"),
        ("ensemble", ("a", "b"), None, "2 files for 3 members"),
        ("erfnet", ("a", "b"), None, "several files are for an ensemble"),
        ("ensemble", ("a", "b", "c"), None, None),
    ],
)
def test_files_and_members_must_agree(name, files, training, message, tmp_path):
    args = {"network": ERFNET, "members": 3} if name == "ensemble" else {}
    paths = None if files is None else tuple(tmp_path / file for file in files)
    teacher = Teacher(model=Plugin(kind="models", name=name, args=args), checkpoint=paths, backbone=None, precision="fp32")
    faults = [text for _, text in check_teacher(teacher, training)]
    assert (not faults) if message is None else (len(faults) == 1 and message in faults[0])
