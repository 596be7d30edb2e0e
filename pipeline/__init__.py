"""Offline distillation for semantic segmentation: run the teacher once, train students from its cached answers."""

__version__ = "0.1.0"
