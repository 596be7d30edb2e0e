"""Pixels, labels and geometry: `prepared` images, `frames` and canvas, `views`; `doctor` looks at a dataset."""
