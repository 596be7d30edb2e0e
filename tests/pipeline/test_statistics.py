import math

import numpy as np
import pytest
from scipy import stats

from pipeline.reporting.statistics import compare, gap_closed, paired, spread, welch


def drawn(count, mean, sd, seed):
    return (mean + sd * np.random.default_rng(seed).standard_normal(count)).tolist()


@pytest.mark.parametrize("counts", [(2, 2), (3, 8), (8, 5), (2, 30)])
def test_welch_is_scipys(counts):
    a, b = drawn(counts[0], 0.61, 0.01, 1), drawn(counts[1], 0.58, 0.04, 2)
    found, reference = welch(a, b), stats.ttest_ind(a, b, equal_var=False)
    assert found.mean == pytest.approx(np.mean(a) - np.mean(b))
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval(0.95)), rel=1e-9)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-9) and found.test == "Welch"


@pytest.mark.parametrize("count", [2, 3, 8])
def test_paired_is_scipys(count):
    a, b = drawn(count, 0.61, 0.02, 3), drawn(count, 0.60, 0.02, 4)
    found, reference = paired([x - y for x, y in zip(a, b)]), stats.ttest_rel(a, b)
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval(0.95)), rel=1e-9)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-9) and found.test == "paired"


def test_welch_worked_by_hand():
    found = welch([1.0, 3.0], [0.0, 0.0, 3.0])          # variances 2 and 3: s^2 = 1 + 1, df = 4 / (1 / 1 + 1 / 2) = 8 / 3
    assert found.mean == 1.0
    assert found.high - 1 == pytest.approx(stats.t.ppf(0.975, 8 / 3) * math.sqrt(2), rel=1e-9)


def test_equal_seeds_are_paired_and_others_are_not():
    mine = {0: 0.52, 1: 0.61, 2: 0.58}
    assert compare(mine, {2: 0.57, 0: 0.50, 1: 0.60}).test == "paired"
    assert compare(mine, {2: 0.57, 0: 0.50, 1: 0.60}).mean == pytest.approx((0.02 + 0.01 + 0.01) / 3)
    unequal = compare(mine, {0: 0.50, 1: 0.60, 2: 0.57, 3: 0.55})
    assert unequal == welch([0.52, 0.61, 0.58], [0.50, 0.60, 0.57, 0.55]) and unequal.test == "Welch"


def test_pairing_takes_out_what_a_seed_brings_to_both():
    base = dict(enumerate(drawn(8, 0.5, 0.1, 5)))
    mine = {seed: value + 0.02 + 0.001 * (seed % 2) for seed, value in base.items()}
    assert compare(mine, base).low > 0.019
    assert welch(list(mine.values()), list(base.values())).low < 0


@pytest.mark.parametrize("mine, theirs", [({0: 0.5}, {0: 0.4}), ({0: 0.5}, {1: 0.4, 2: 0.3}), ({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5}),
                                          ({0: 0.5, 1: 0.5}, {2: 0.4, 3: 0.4})])
def test_without_a_spread_there_is_a_difference_but_no_interval(mine, theirs):
    found = compare(mine, theirs)
    assert found.test == "none" and math.isnan(found.low) and math.isnan(found.high) and math.isnan(found.p)
    assert found.mean == pytest.approx(np.mean(list(mine.values())) - np.mean(list(theirs.values())))


def test_an_interval_holds_the_truth_as_often_as_it_says():
    rng, held = np.random.default_rng(0), 0
    for _ in range(2000):
        found = welch((0.3 + 0.01 * rng.standard_normal(4)).tolist(), (0.2 + 0.05 * rng.standard_normal(9)).tolist())
        held += found.low <= 0.1 <= found.high
    assert 0.93 < held / 2000 < 0.97


def test_the_spread_is_the_samples():
    assert spread([1.0, 2.0, 4.0]) == pytest.approx(np.std([1, 2, 4], ddof=1)) and math.isnan(spread([1.0]))


def test_the_gap_closed_is_undefined_where_the_teacher_is_hardly_better():
    assert gap_closed(0.55, 0.50, 0.70) == pytest.approx(0.25)
    assert gap_closed(0.45, 0.50, 0.70) == pytest.approx(-0.25)
    assert gap_closed(0.55, 0.50, 0.505) is None and gap_closed(0.55, 0.50, 0.3) is None and gap_closed(0.55, 0.5, None) is None
