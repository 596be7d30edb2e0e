"""`pipeline layers`: the submodules of a network with what they put out, and which of them are in use."""

import pytest

from pipeline.models.base import shapes
from tests.conftest import EXPERIMENT
from tests.stages.test_own_code import TEACHER, place, run  # noqa: F401 (a fixture)


def rows(text):
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in found[1:]}


def listed(*arguments, **sections):
    return run("layers", *arguments, out=True, **sections)


def test_an_adapters_network_is_listed_by_its_own_names_also_where_a_layer_is_wrong(place):  # noqa: F811
    code, said = listed(teacher=TEACHER)
    assert code == 0 and rows(said)["early"] == ["Conv2d", "8 x 12 x 32", "4", "8", "224", "mid"]
    assert rows(said)["late"] == ["Conv2d", "8 x 6 x 16", "8", "8", "584", "high"]
    assert rows(said)["output"] == ["Net", "5 x 6 x 16", "8", "5", "853", "logits"]
    code, said = listed(teacher=TEACHER | {"layers": {"mid": "erly", "high": "late"}})
    assert code == 0 and "mid: no submodule 'erly'" in said and "early" in rows(said)
    code, said = run("plan", "--images", "4", teacher=TEACHER | {"layers": {"mid": "erly", "high": "late"}})
    assert code == 1 and "no submodule 'erly'; did you mean 'early'?" in said and "`pipeline layers` lists" in said


def test_a_students_shapes_are_those_that_its_maps_have(place):  # noqa: F811
    from pipeline import config

    code, said = listed("--student", "resnet18", "--depth", "1", students={"resnet18": {"width": 8}})
    assert code == 0, said
    cfg = config.load("toy.yaml")
    output = shapes(lambda: cfg.student("resnet18").build(num_classes=5, size=(48, 128), lanes=0), (48, 128))
    found = rows(said)
    for role, shape in output.features.items():
        (row,) = [row for row in found.values() if role in row[-1]]
        assert row[1] == " x ".join(map(str, shape.shape[1:])) and row[3] == str(shape.shape[1])
        assert row[2] == str(48 // shape.shape[2])
    assert "submodules lie deeper than --depth 1" in said and "layer1.0" not in found


@pytest.mark.parametrize("scale", [0.5])
def test_a_scaled_student_is_listed_as_it_sees_the_image(place, scale):  # noqa: F811
    students = {"erfnet": {"width": 4, "input_scale": scale}}
    code, said = listed("--student", "erfnet", students=students, prepare={**EXPERIMENT["prepare"], "size": [48, 128]})
    assert code == 0 and "input of 24 x 64" in said
