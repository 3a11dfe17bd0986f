"""Welch's test agrees with scipy, at any magnitude, and says when it cannot say."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from scipy import stats

from control.stats.means import cautious_variance, estimate, welch
from control.stats.moments import Moments, moments, moments_from_summary


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_welch_agrees_with_scipy(alternative: Literal["two-sided", "greater", "less"]) -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        c, t = rng.normal(5, 1, rng.integers(2, 40)), rng.lognormal(1.5, 1, rng.integers(2, 40))
        r = welch(moments(c), moments(t), alternative=alternative, alpha=0.1)
        s = stats.ttest_ind(t, c, equal_var=False, alternative=alternative)
        ends = s.confidence_interval(0.9)
        got = [r.statistic, r.df, r.p_value, r.ci_low, r.ci_high]
        assert np.allclose(got, [s.statistic, s.df, s.pvalue, *ends], rtol=1e-10)


def test_welch_keeps_its_p_value_when_1e9_is_added_to_all_values() -> None:
    c, t = np.arange(40) % 7, np.arange(50) % 9
    plain, moved = welch(moments(c), moments(t)), welch(moments(c + 1e9), moments(t + 1e9))
    # The means themselves are rounded to 1.2e-7 at 1e9.
    assert moved.p_value == pytest.approx(float(plain.p_value), rel=1e-5)
    assert moved.se == pytest.approx(float(plain.se), rel=1e-12)


def test_welch_works_on_cells_when_given_arrays() -> None:
    n, rng = np.full((3, 4), 50.0), np.random.default_rng(3)
    c, t = (Moments(n, rng.normal(size=(3, 4)), 50 * rng.uniform(1, 2, (3, 4))) for _ in "ct")
    cells = welch(c, t)
    one = welch(Moments(*(f[1, 2] for f in c)), Moments(*(f[1, 2] for f in t)))
    assert cells.p_value.shape == (3, 4)
    assert float(cells.p_value[1, 2]) == float(one.p_value)


def test_welch_is_undecided_when_no_arm_has_spread() -> None:
    r = welch(moments([1.0, 1.0]), moments([2.0, 2.0]))
    assert not r.decided
    assert np.isnan([r.p_value, r.ci_low, r.ci_high, r.statistic]).all()
    assert welch(moments([1.0, 1.0]), moments([2.0, 3.0])).decided


def test_welch_decides_other_cells_when_one_has_no_spread() -> None:
    c = Moments(np.array([5.0, 5.0]), np.array([1.0, 1.0]), np.array([0.0, 4.0]))
    assert list(welch(c, c).decided) == [False, True]


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (moments([1.0]), "control.n == 1"),
        (moments([]), "control.n == 0"),
        (Moments(*np.array([5, np.nan, 1])), "control.mean == nan"),
        (Moments(*np.array([5, 1, -1])), "control.m2 == -1"),
    ],
)
def test_welch_refuses_arms_without_a_variance(arm: Moments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        welch(arm, moments([1.0, 2.0]))


def test_estimate_refuses_what_is_no_standard_error() -> None:
    with pytest.raises(ValueError, match=r"se == -1.0, must be >= 0 and finite"):
        estimate(1.0, -1.0)
    with pytest.raises(ValueError, match=r"alpha == 1.0"):
        estimate(1.0, 1.0, alpha=1.0)
    with pytest.raises(ValueError, match=r"df == 0.0"):
        estimate(1.0, 1.0, df=0.0)


def test_p_value_keeps_its_digits_when_tiny() -> None:
    r = welch(
        moments_from_summary(10**6, 0.0, variance=1.0),
        moments_from_summary(10**6, 0.05, variance=1.0),
    )
    assert 0 < r.p_value < 1e-250


def test_cautious_variance_lends_the_smaller_arm_the_spread_of_the_larger() -> None:
    # Per unit: 400 and 100; 900 and 100; the same arm sizes; no spread at all.
    v_c, n_c = np.array([4.0, 9.0, 4.0, 0.0]), np.array([100, 100, 100, 100])
    v_t, n_t = np.array([10.0, 10.0, 1.0, 0.0]), np.array([10, 1000, 100, 10])
    assert cautious_variance(v_c, n_c, v_t, n_t).tolist() == [4.0 + 40.0, 100.0 + 10.0, 5.0, 0.0]
    assert np.array_equal(
        cautious_variance(v_t, n_t, v_c, n_c), cautious_variance(v_c, n_c, v_t, n_t)
    )


def test_cautious_variance_is_welchs_when_the_smaller_arm_has_the_larger_spread() -> None:
    assert cautious_variance(1.0, 1000, 50.0, 30) == 51.0


@pytest.mark.parametrize(
    ("given", "message"),
    [((-1, 5, 1, 5), "variance_c"), ((1, 0, 1, 5), "n_c"), ((1, 5, np.nan, 5), "variance_t")],
)
def test_cautious_variance_refuses_what_is_no_variance(
    given: tuple[float, float, float, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cautious_variance(*given)
