"""A difference of means over seeds, with its 95 % interval.

Where both sides ran the same seeds, the differences seed by seed are one sample and Student's t of it gives the interval (paired:
a seed fixes initial weights and order of both runs, so what it brings to both cancels). Where the seeds differ, Welch's t for two
independent samples of unequal variance does, with the degrees of freedom of Welch and Satterthwaite:

    t = d / s,   s^2 = s_a^2 / n_a + s_b^2 / n_b,   df = s^4 / ((s_a^2 / n_a)^2 / (n_a - 1) + (s_b^2 / n_b)^2 / (n_b - 1))

Source: Welch, "The generalization of 'Student's' problem when several different population variances are involved", Biometrika
34, 1947. Intervals are not widened for the number of methods that are looked at; a claim wants one contrast named beforehand.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    mean: float
    low: float                                  # of the interval; NaN where there is none
    high: float
    p: float                                    # two-sided, of no difference
    test: Literal["paired", "Welch", "none"]    # none: one seed, or no spread at all


def compare(mine: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
    """mine - theirs, both by seed."""
    if set(mine) == set(theirs):
        return paired([mine[seed] - theirs[seed] for seed in sorted(mine)])
    return welch([mine[seed] for seed in sorted(mine)], [theirs[seed] for seed in sorted(theirs)])


def paired(differences: Sequence[float]) -> Difference:
    n, mean = len(differences), math.fsum(differences) / len(differences)
    error = spread(differences) / math.sqrt(n)
    return _interval(mean, error, n - 1, "paired")


def welch(mine: Sequence[float], theirs: Sequence[float]) -> Difference:
    mean = math.fsum(mine) / len(mine) - math.fsum(theirs) / len(theirs)
    a, b = spread(mine) ** 2 / len(mine), spread(theirs) ** 2 / len(theirs)
    if not a + b > 0:
        return _interval(mean, math.nan, 0, "Welch")
    return _interval(mean, math.sqrt(a + b), (a + b) ** 2 / (a**2 / (len(mine) - 1) + b**2 / (len(theirs) - 1)), "Welch")


def spread(values: Sequence[float]) -> float:
    """The sample standard deviation (n - 1); NaN of one value."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else math.nan


LEAST_GAP = 0.01                                # one point: a share of less is noise divided by next to nothing


def gap_closed(mine: float, plain: float, teacher: float | None) -> float | None:
    """The share of the way from the plain student to the teacher; None where the teacher is not at least a point better, or has
    no score."""
    return (mine - plain) / (teacher - plain) if teacher is not None and teacher - plain >= LEAST_GAP else None


def _interval(mean: float, error: float, df: float, test: Literal["paired", "Welch"]) -> Difference:
    from scipy.special import stdtr, stdtrit    # the distribution and its inverse, without the second that scipy.stats takes

    if not error > 0:
        return Difference(mean, math.nan, math.nan, math.nan, "none")
    reach = float(stdtrit(df, (1 + CONFIDENCE) / 2)) * error
    return Difference(mean, mean - reach, mean + reach, float(2 * stdtr(df, -abs(mean) / error)), test)
