"""Trained networks against labels: `load` one, and `predict`; what a dataset's evaluator makes of it is in pipeline/metrics."""
