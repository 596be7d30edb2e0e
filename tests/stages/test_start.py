"""Students that start from something: all of a file, the part that fits, an ImageNet backbone; by name of optimiser and loss."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import records

RUN = "runs/toy/erfnet-plain-0"


@pytest.fixture
def network(experiment):
    torch.manual_seed(7)
    return experiment.load().student("erfnet").build(num_classes=5, size=(48, 128), lanes=0)


def start(experiment, *arguments):
    """The weights a run starts from: with a rate that moves nothing."""
    result = experiment.train("plain", "--set", "training.steps=1", "--set", "training.lr=1.0e-30", *arguments)
    assert result.exit_code == 0, result.output
    return load_file(experiment.folder / RUN / "weights.safetensors"), result.stderr


def test_a_student_starts_from_a_file_and_its_record_has_the_content(experiment, network):
    file = experiment.folder / "mine.pt"
    torch.save(network.state_dict(), file)
    experiment.change(students={"erfnet": {"width": 4, "init": str(file)}})
    found, said = start(experiment)
    expected = network.state_dict()
    changed = [name for name in expected if not torch.allclose(found[name], expected[name], rtol=0, atol=1e-20)]
    assert all("running" in name or "num_batches" in name for name in changed), changed
    assert f"takes {len(expected)} of {len(expected)} weights\n" in said
    made = records.read(experiment.folder / RUN / "run.json")
    assert len(made["start"]["init"]) == 64 and "init" not in made["student"]["args"]
    file.rename(experiment.folder / "elsewhere.pt")  # the same content at another place is the same run
    experiment.change(students={"erfnet": {"width": 4, "init": str(experiment.folder / "elsewhere.pt")}})
    _, said = start(experiment)
    assert "set aside" not in said


def test_what_fits_is_taken_and_the_rest_is_named(experiment, network):
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("classifier.")}
    first = next(name for name, tensor in state.items() if tensor.dim() == 4 and len(tensor) > 1)
    state[first] = state[first][:1].clone()
    save_file(state | {"extra.weight": torch.ones(2)}, experiment.folder / "part.safetensors")
    experiment.change(students={"erfnet": {"width": 4, "init": str(experiment.folder / "part.safetensors")}})
    found, said = start(experiment)
    (line,) = [line for line in said.splitlines() if "part.safetensors: takes" in line]
    assert f"of another shape: 1 ({first})" in line and "not of the network: 1 (extra.weight)" in line
    assert "not in the file: 2 (classifier." in line
    name = [name for name in state if state[name].dim() == 4 and name != first][-1]
    assert torch.equal(found[name], state[name])


def test_a_file_of_another_network_is_refused(experiment):
    save_file({"foo.weight": torch.ones(2)}, experiment.folder / "other.safetensors")
    experiment.change(students={"erfnet": {"width": 4, "init": str(experiment.folder / "other.safetensors")}})
    result = experiment.train("plain")
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 1 and "no weight fits the network" in line


def test_a_student_takes_an_imagenet_backbone_by_one_key(experiment):
    experiment.change(students={"erfnet": {"model": "resnet18", "width": 64, "head": "plain"}})
    cfg = experiment.load()
    torch.manual_seed(3)
    donor = cfg.student("erfnet").build(num_classes=5, size=(48, 128), lanes=0)
    state = {name: value for name, value in donor.state_dict().items() if name.partition(".")[0] in donor.backbone}
    save_file(state, experiment.folder / "imagenet.safetensors")
    entry = {"model": "resnet18", "width": 64, "head": "plain", "backbone": str(experiment.folder / "imagenet.safetensors")}
    experiment.change(students={"erfnet": entry})
    found, _ = start(experiment)
    assert all(torch.equal(found[name], state[name]) for name in state if name.endswith("conv1.weight"))


def test_a_run_by_names_resumes_to_the_same_bytes(experiment, power_cut):
    """Optimiser, schedule and losses that are not the default; none has a state outside of the checkpoint."""

    keys = dict(
        optimiser="RMSprop", optimiser_args={"alpha": 0.9}, lr=1e-3, schedule="one_cycle", label_loss="ohem", dice_weight=0.5
    )
    experiment.change(training=keys)
    folder = experiment.folder / RUN
    assert experiment.train("plain").exit_code == 0
    names = ("weights.safetensors", "curves.tsv", "norms.tsv")
    unbroken = {name: (folder / name).read_bytes() for name in names}
    assert "dice" in unbroken["curves.tsv"].decode().splitlines()[0]
    folder.rename(folder.with_name("unbroken"))
    with power_cut(7):
        assert experiment.train("plain").exit_code == 130
    assert experiment.train("plain").exit_code == 0
    assert {name: (folder / name).read_bytes() for name in names} == unbroken
    training = json.loads((folder / "run.json").read_text())["training"]
    assert training["optimiser_args"] == {"alpha": 0.9} and "label_smoothing" not in training
