"""U-Net on a ResNet-34 against a slow description, and on sizes that its strides do not divide."""

import safetensors.torch
import torch
import torch.nn.functional as F
from test_resnet import DEPTHS, count, on_meta, slow_resnet, torchvision_shapes, unlike_a_fresh_one

from pipeline.models.unet_resnet34 import Model
from pipeline.weights import load_backbone


def test_the_encoder_has_torchvisions_names_and_the_whole_the_usual_size():
    network = on_meta("unet_resnet34", 1)
    encoder = {name: tuple(value.shape) for name, value in network.state_dict().items() if name.startswith(Model.backbone)}
    assert encoder == torchvision_shapes(DEPTHS["resnet34"], expansion=1)
    assert count(network) == 24_436_369  # what segmentation_models_pytorch.Unet("resnet34", classes=1) is reported to have


def test_an_imagenet_file_fits_as_backbone(tmp_path):
    network = Model(5, size=(64, 96), width=4)
    own = {name: torch.full_like(value, 0.5) for name, value in network.state_dict().items() if name.startswith(Model.backbone)}
    file = tmp_path / "imagenet.safetensors"
    safetensors.torch.save_file(own | {"fc.weight": torch.zeros(3, 32), "fc.bias": torch.zeros(3)}, file)
    load_backbone(network, file)
    assert all((network.state_dict()[name] == value).all() for name, value in own.items())


def test_outputs_equal_a_slow_description():
    torch.manual_seed(0)
    network = unlike_a_fresh_one(Model(5, size=(64, 96), width=4))
    x, state = torch.randn(2, 3, 64, 96, dtype=torch.float64), network.state_dict()

    def norm(values, name):
        return F.batch_norm(values, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    with torch.no_grad():
        output = network(x * network.std + network.mean)
        stem = F.relu(norm(F.conv2d(x, state["conv1.weight"], stride=2, padding=3), "bn1"))
        first, second, third, y = slow_resnet(state, x, (1, 2, 2, 2), ((1, 1),) * 4, bottleneck=False)
        steps = []
        for index, skip in enumerate((third, second, first, stem, None)):
            y = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
            y = y if skip is None else torch.cat([y, skip], dim=1)
            for part in (0, 1):
                y = F.relu(norm(F.conv2d(y, state[f"decoder.{index}.{part}.0.weight"], padding=1), f"decoder.{index}.{part}.1"))
            steps.append(y)
        logits = F.conv2d(y, state["classifier.weight"], state["classifier.bias"], padding=1)
    for found, expected in ((output.logits, logits), (output.features["mid"], second), (output.features["high"], steps[1])):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_sizes_that_are_no_multiple_of_32_keep_their_grids():
    with torch.device("meta"):
        output = Model(5, size=(208, 976)).eval()(torch.empty(1, 3, 208, 976))
    assert output.logits.shape == (1, 5, 208, 976)
    assert output.features["mid"].shape == output.features["high"].shape == (1, 128, 26, 122)
