"""What a network costs: its parameters, and the multiply-accumulates of one image."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def cost_of(network: nn.Module, size: tuple[int, int], device: torch.device | str = "cpu") -> dict[str, float]:
    """{"parameters": their number, "gmacs": 1e9 multiply-accumulates of one image of `size` (height, width)}.

    Convolutions and matrix products count, as in torch.utils.flop_counter (one multiplication with its addition is one MAC);
    normalisation, activations and upsampling don't. The network stays in its mode; it is run once, on a black image.
    """
    images_B3HW = torch.zeros(1, 3, *size, device=device)
    labels_BHW = torch.zeros(1, *size, dtype=torch.uint8, device=device)
    given = (images_B3HW, labels_BHW) if getattr(network, "uses_labels", False) else (images_B3HW,)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*given)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"parameters": parameters, "gmacs": round(counter.get_total_flops() / 2e9, 4)}
