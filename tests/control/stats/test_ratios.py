"""Ratios of sums have the variance of the users, not of the requests."""

from __future__ import annotations

import numpy as np
import pytest

from control.stats.clusters import Clusters, bucket_ratio, cluster_robust
from control.stats.moments import PairMoments, pair_moments
from control.stats.ratios import ratio_delta, ratio_variance


def users(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    requests = rng.integers(1, 20, size)
    return rng.binomial(requests, rng.beta(1, 9, size)), requests


def test_delta_method_is_cluster_robust_error_but_for_its_degree_of_freedom() -> None:
    (y_c, n_c), (y_t, n_t) = users(1, 60), users(2, 60)
    delta = ratio_delta(pair_moments(y_c, n_c), pair_moments(y_t, n_t))
    robust = cluster_robust(Clusters(y_c, n_c), Clusters(y_t, n_t))
    assert delta.se * np.sqrt(59 / 60) == pytest.approx(robust.se_cluster, rel=1e-12)
    assert delta.diff == pytest.approx(robust.diff, rel=1e-12)


def test_delta_method_is_the_bucket_variance_when_each_user_is_a_bucket() -> None:
    y, n = users(3, 50)
    ratio, variance = ratio_variance(pair_moments(y, n))
    buckets = bucket_ratio(y, n)
    assert float(ratio) == pytest.approx(float(buckets.ratio), rel=1e-14)
    assert float(variance) == pytest.approx(float(buckets.variance), rel=1e-12)


def test_ratio_is_undecided_when_every_user_has_the_same_ratio() -> None:
    n = np.array([1.0, 2.0, 3.0, 7.0])
    r = ratio_delta(pair_moments(n / 2, n), pair_moments(n / 3, n))
    assert not r.decided
    assert np.isnan(r.p_value)


def test_relative_difference_is_nan_when_the_control_has_no_events() -> None:
    n = np.array([1.0, 2.0, 3.0])
    r = ratio_delta(pair_moments(0 * n, n), pair_moments([0.0, 1.0, 1.0], n))
    assert np.isnan(r.rel_diff)
    assert r.decided


def test_ratios_work_on_cells_when_given_arrays() -> None:
    y, n = users(4, 40)
    arm = pair_moments(np.stack([y, n - y]), np.stack([n, n]))
    assert ratio_delta(arm, arm).diff.shape == (2,)


def test_ratio_refuses_denominators_that_are_not_above_0() -> None:
    zeros = pair_moments([0.0, 0.0], [0.0, 0.0])
    with pytest.raises(ValueError, match=r"control.mean_x == 0.0, must be > 0"):
        ratio_delta(zeros, zeros)
    one = pair_moments([1.0], [1.0])
    with pytest.raises(ValueError, match=r"control.n == 1.0, must be >= 2"):
        ratio_delta(one, one)
    broken = PairMoments(*np.array([3.0, 1.0, 1.0, 1.0, 1.0, 9.0]))
    with pytest.raises(ValueError, match=r"c_yx == 9.0, must be within the variances"):
        ratio_delta(broken, broken)
