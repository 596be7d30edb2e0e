"""A difference of means over seeds, with its 95 % interval: one rule for reports and studies.

The interval and p are Welch's, for two independent samples of unequal variance (`scipy.stats.ttest_ind(equal_var=False)`).
Nothing is paired, though both sides may have run the same seeds: a seed's number fixes other draws in each method, since a loss
with parameters, another network or another number of steps takes other random numbers, so what two runs of one seed share is
not known.

Source: Welch, "The generalization of 'Student's' problem when several different population variances are involved", Biometrika
34, 1947. Intervals are not widened for the number of methods that are looked at; a claim wants one contrast named beforehand.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    mean: float
    low: float  # of the interval; NaN where there is none: one seed on a side, or no spread
    high: float
    p: float  # two-sided, of no difference

    @property
    def p_text(self) -> str:
        """With its sign of comparison: `= 0.034`, or `< 0.001`."""
        return "< 0.001" if self.p < 0.001 else f"= {self.p:.3f}"


def compare(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """values - baseline, a value for each seed."""
    mean = math.fsum(values) / len(values) - math.fsum(baseline) / len(baseline)
    if min(len(values), len(baseline)) < 2 or not spread(values) + spread(baseline) > 0:
        return Difference(mean, math.nan, math.nan, math.nan)
    from scipy import stats  # a second of work, which only these comparisons need

    with warnings.catch_warnings():  # one side without a spread is no reason to doubt the other's
        warnings.simplefilter("ignore", RuntimeWarning)
        found = stats.ttest_ind(values, baseline, equal_var=False)
        interval = found.confidence_interval(CONFIDENCE)
    return Difference(mean, float(interval.low), float(interval.high), float(found.pvalue))


def spread(values: Sequence[float]) -> float:
    """The sample standard deviation (n - 1); NaN of one value."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else math.nan


LEAST_GAP = 0.01  # one point: a share of less is noise divided by next to nothing


def gap_closed(score: float, plain: float, teacher: float | None) -> float | None:
    """The share of the way from the plain student to the teacher; None where the teacher is not at least a point better, or has
    no score."""
    return (score - plain) / (teacher - plain) if teacher is not None and teacher - plain >= LEAST_GAP else None
