"""The procedural road set: scenes drawn from a seed, rendered in bird's eye view, projected, written in public layouts."""
