"""Datasets as they lie on disk: one file each, `class Dataset` inside, contract in base.py."""
