"""The ResNet-101 that comes with the project: it has seen none of the scenes that others draw, and the demo's configuration
takes it."""

from pathlib import Path

import pytest

from pipeline import config, weights
from pipeline.data.frames import canvas

ROOT = Path(__file__).parents[1]
FILE = ROOT / "configs/teachers/roads-resnet101.safetensors"


def drawn(name):
    """The scenes of a configuration: seed, split and number decide what is drawn (pipeline/synth/sampling.py)."""
    args = config.load(ROOT / f"configs/{name}.yaml").dataset.args
    return {(args["seed"], split, index) for split in ("train", "val", "test") for index in range(args[split])}


@pytest.mark.parametrize("name", ["demo", "roads-study", "roads-tenth", "markings-study"])
def test_the_teacher_has_seen_no_scene_of(name):
    assert drawn("roads-teacher") and drawn(name) and not drawn("roads-teacher") & drawn(name)


def test_the_demo_takes_the_packed_weights_and_the_recipes_network():
    demo, recipe = (config.load(ROOT / f"configs/{name}.yaml") for name in ("demo", "roads-teacher"))
    assert demo.teacher.checkpoint == FILE.relative_to(ROOT) and FILE.stat().st_size < 10e6
    assert demo.teacher.model == recipe.teacher.model and demo.teacher.model.name == "resnet101"
    assert demo.prepare.size == recipe.prepare.size
    network = demo.teacher.model.build(num_classes=5, size=canvas(demo.prepare.size), lanes=0)
    weights.load_into(network, weights.load_file(FILE), FILE)
    assert all(value.isfinite().all() for value in network.state_dict().values())
