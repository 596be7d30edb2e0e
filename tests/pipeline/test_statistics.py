import math

import numpy as np
import pytest
from scipy import stats

from pipeline.reporting.statistics import Difference, compare, gap_closed, spread


def drawn(count, mean, sd, seed):
    return (mean + sd * np.random.default_rng(seed).standard_normal(count)).tolist()


@pytest.mark.parametrize("counts", [(2, 2), (3, 8), (8, 5), (2, 30)])
def test_the_interval_is_welchs(counts):
    a, b = drawn(counts[0], 0.61, 0.01, 1), drawn(counts[1], 0.58, 0.04, 2)
    found = compare(a, b)
    va, vb = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    reach = stats.t.ppf(0.975, df) * math.sqrt(va + vb)
    assert found.mean == pytest.approx(np.mean(a) - np.mean(b))
    assert (found.low, found.high) == pytest.approx((found.mean - reach, found.mean + reach), rel=1e-9)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.mean) / math.sqrt(va + vb), df), rel=1e-9)


def test_welch_worked_by_hand():
    found = compare([1.0, 3.0], [0.0, 0.0, 3.0])  # variances 2 and 3: s^2 = 1 + 1, df = 4 / (1 / 1 + 1 / 2) = 8 / 3
    assert found.mean == 1.0
    assert found.high - 1 == pytest.approx(stats.t.ppf(0.975, 8 / 3) * math.sqrt(2), rel=1e-9)


def test_equal_seeds_are_not_paired():
    base = drawn(8, 0.5, 0.1, 5)
    mine = [value + 0.02 for value in base]
    assert compare(mine, base).low < 0 and compare(mine, base) == compare(mine[::-1], base)


@pytest.mark.parametrize("mine, theirs", [([0.5], [0.4]), ([0.5], [0.4, 0.3]), ([0.5, 0.5], [0.5, 0.5]), ([0.5, 0.5], [0.4, 0.4])])
def test_without_a_spread_there_is_a_difference_but_no_interval(mine, theirs):
    found = compare(mine, theirs)
    assert math.isnan(found.low) and math.isnan(found.high) and math.isnan(found.p)
    assert found.mean == pytest.approx(np.mean(mine) - np.mean(theirs))


def test_one_side_without_a_spread_leaves_the_others():
    found = compare([0.5, 0.5], [0.3, 0.4])
    assert found.low < found.mean < found.high and not math.isnan(found.p)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    rng, held = np.random.default_rng(0), 0
    for _ in range(500):
        found = compare((0.3 + 0.01 * rng.standard_normal(4)).tolist(), (0.2 + 0.05 * rng.standard_normal(9)).tolist())
        held += found.low <= 0.1 <= found.high
    assert 0.92 < held / 500 < 0.98


def test_the_spread_is_the_samples():
    assert spread([1.0, 2.0, 4.0]) == pytest.approx(np.std([1, 2, 4], ddof=1)) and math.isnan(spread([1.0]))


def test_the_gap_closed_is_undefined_where_the_teacher_is_hardly_better():
    assert gap_closed(0.55, 0.50, 0.70) == pytest.approx(0.25)
    assert gap_closed(0.45, 0.50, 0.70) == pytest.approx(-0.25)
    assert gap_closed(0.55, 0.50, 0.505) is None and gap_closed(0.55, 0.50, 0.3) is None and gap_closed(0.55, 0.5, None) is None


def test_a_p_value_is_never_said_to_be_zero():
    assert [Difference(1.0, 0.0, 2.0, p).p_text for p in (0.03449, 0.001, 0.0009, 1e-9)] == [
        "= 0.034",
        "= 0.001",
        "< 0.001",
        "< 0.001",
    ]
