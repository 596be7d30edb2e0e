"""Cityscapes: mean IoU of 19 classes, and of categories."""

from pipeline.metrics._classes import ClassMetric


class Metric(ClassMetric):
    headline = "cityscapes_miou"
