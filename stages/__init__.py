"""What `dvc repro` does: one module a stage, paths in, files out. Each is `run(*, <config sections>, <paths>)`."""
