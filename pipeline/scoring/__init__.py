"""Trained networks against labels: `load` one, `predict`, write a `submission`, and a dataset's own `scores`."""
