"""The procedural road set: scenes drawn from a seed, painted in bird's-eye view, projected, written as CULane is."""
