"""Drift alarms have a law; distances agree with scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.spatial import distance

from control.stats.drift import binned_drift, kolmogorov_smirnov


def test_distances_agree_with_scipy_with_empty_bins_too() -> None:
    a, b = np.array([100, 0, 200, 5, 0]), np.array([90, 3, 210, 0, 0])
    r = binned_drift(a, b)
    used = a + b > 0
    s = stats.chi2_contingency([a[used], b[used]])
    assert (r.chi2, r.p_value, r.df) == pytest.approx((s.statistic, s.pvalue, 3), rel=1e-10)
    assert r.js_distance == pytest.approx(distance.jensenshannon(a, b, base=2), rel=1e-10)


def test_psi_fills_empty_bins_with_a_ten_thousandth() -> None:
    r = binned_drift([50, 50, 0], [50, 40, 10])
    p, q = np.array([0.5, 0.5, 1e-4]), np.array([0.5, 0.4, 0.1])
    assert r.psi == pytest.approx(np.sum((p - q) * np.log(p / q)), rel=1e-12)


def test_psi_of_equal_distributions_follows_its_law() -> None:
    # 2,000 pairs of 500 and 300 over 10 bins at .01: more than 48 alarms has P < 1e-6.
    rng = np.random.default_rng(10)
    a, b = (rng.multinomial(n, [0.1] * 10, 2000) for n in (500, 300))
    alarms = sum(
        binned_drift(x, y, alpha=0.01, psi_least=0.0).alarm for x, y in zip(a, b, strict=True)
    )
    assert alarms <= 48


def test_alarm_needs_the_least_drift_however_large_the_samples() -> None:
    r = binned_drift([5 * 10**8, 5 * 10**8], [51 * 10**7, 49 * 10**7])
    assert r.p_value == 0
    assert not r.alarm
    assert binned_drift([500, 500], [900, 100]).alarm


def test_kolmogorov_smirnov_leaves_the_exact_law_out_when_it_is_too_large() -> None:
    x = np.arange(10_001.0)
    r = kolmogorov_smirnov(x, x + 100)
    assert np.isnan(r.p_exact)
    assert 0 < r.p_asymptotic < 1


def test_kolmogorov_smirnov_has_no_limit_law_for_one_value_a_side() -> None:
    r = kolmogorov_smirnov([1.0], [1.0])
    assert (r.statistic, r.p_exact) == (0.0, 1.0)
    assert np.isnan(r.p_asymptotic)


def test_drift_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match=r"sum of current == 0"):
        binned_drift([1, 1], [0, 0])
    with pytest.raises(ValueError, match=r"current has 3 bins, must be 2"):
        binned_drift([1, 1], [1, 1, 1])
    with pytest.raises(ValueError, match=r"bins in use == 1"):
        binned_drift([1, 0], [1, 0])
    with pytest.raises(ValueError, match=r"reference == -1"):
        binned_drift([-1, 1], [1, 1])
    with pytest.raises(ValueError, match=r"reference has 0 values"):
        kolmogorov_smirnov([], [1.0])
