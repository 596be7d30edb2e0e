"""What a loss draws at random follows from its seed and the number of the step, so that offline and online draw the same."""

import torch

ODD = 0x9E3779B1  # spreads seeds over 32 bits, which is all that torch's generator of the CPU takes of a seed


def generator_of(seed: int, draw: int) -> torch.Generator:
    """On the CPU, whose numbers are the same everywhere. At seed 0 it is the one that `draw` alone gives."""
    return torch.Generator().manual_seed((seed * ODD + draw) % 2**32)
