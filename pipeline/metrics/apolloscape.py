"""ApolloScape: mean IoU of the 18 evaluated classes, and of categories."""

from pipeline.metrics._classes import ClassMetric


class Metric(ClassMetric):
    headline = "apolloscape_miou"
