"""Quantiles: order statistics, clustered errors, sketches that merge."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from control.stats import quantiles as q


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_interval_agrees_with_scipy(alternative: Literal["two-sided", "greater", "less"]) -> None:
    rng = np.random.default_rng(9)
    for n, level in [(5, 0.5), (33, 0.3), (400, 0.99)]:
        x = rng.lognormal(size=n)
        r = q.quantile_interval(x, level, alternative=alternative)
        s = stats.quantile_test(x, p=level, alternative=alternative).confidence_interval(0.95)
        assert np.array_equal([r.ci_low, r.ci_high], [s.low, s.high], equal_nan=True)
        assert r.estimate == np.quantile(x, level)


def test_interval_has_no_end_when_the_sample_is_too_small() -> None:
    r = q.quantile_interval([1.0, 2.0], 0.5)
    assert np.isnan([r.ci_low, r.ci_high]).all()


VALUES = st.lists(
    st.floats(-1e9, 1e9).filter(lambda x: x == 0 or abs(x) > 1e-9), min_size=1, max_size=60
)


@given(VALUES, st.integers(0, 60), st.sampled_from([0.005, 0.01, 0.05]))
def test_sketch_is_within_its_accuracy_however_merged(
    values: list[float], cut: int, accuracy: float
) -> None:
    parts = [q.sketch(part, accuracy=accuracy) for part in (values[:cut], values[cut:])]
    merged = q.merge_sketches(parts)
    assert merged == q.merge_sketches(parts[::-1]) == q.sketch(values, accuracy=accuracy)
    levels = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    exact = np.sort(values)[np.floor(levels * (len(values) - 1)).astype(int)]
    got = q.sketch_quantiles(merged, levels)
    assert np.all(np.abs(got - exact) <= accuracy * np.abs(exact) * (1 + 1e-9))


def test_users_with_one_event_each_have_the_error_of_independent_events() -> None:
    below = 900
    sums = q.ClusterSums(1000, below, 1000, below, 1000, below)
    se = q.quantile_se_clustered(2.0, sums, q=0.9)
    assert se == pytest.approx(2.0 * np.sqrt(1000 / 999), rel=1e-12)


def test_error_doubles_when_each_event_comes_four_times() -> None:
    sums = q.ClusterSums(1000, 3600, 4000, 16 * 900, 16_000, 16 * 900)
    assert q.quantile_se_clustered(1.0, sums, q=0.9) == pytest.approx(2.0, rel=1e-3)


def test_quantiles_refuse_bad_input() -> None:
    with pytest.raises(ValueError, match=r"q == 0.0"):
        q.quantile_interval([1.0], 0.0)
    with pytest.raises(ValueError, match=r"values has 0"):
        q.quantile_interval([], 0.5)
    with pytest.raises(ValueError, match=r"upper == 1.0, must be >= 2"):
        q.quantile_se(2.0, 1.0, n=10)
    with pytest.raises(ValueError, match=r"n == 1.0"):
        q.quantile_se(1.0, 2.0, n=1)
    with pytest.raises(ValueError, match=r"sums.users == 1.0"):
        q.quantile_se_clustered(1.0, q.ClusterSums(1, 1, 1, 1, 1, 1), q=0.5)
    with pytest.raises(ValueError, match=r"sums.sum_sn == 9.0, must be within the squares"):
        q.quantile_se_clustered(1.0, q.ClusterSums(3, 2, 3, 2, 3, 9), q=0.5)
    with pytest.raises(ValueError, match=r"sketch.total == 0"):
        q.sketch_quantiles(q.sketch([]), 0.5)
    with pytest.raises(ValueError, match=r"accuracy == 0.02, must be 0.01"):
        q.merge_sketches([q.sketch([1.0]), q.sketch([1.0], accuracy=0.02)])
    with pytest.raises(ValueError, match=r"parts == \[\]"):
        q.merge_sketches([])
