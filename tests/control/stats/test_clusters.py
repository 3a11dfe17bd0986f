"""Errors by user and by bucket; sums that no bucket may dominate."""

from __future__ import annotations

import numpy as np
import pytest

from control.stats.clusters import (
    Clusters,
    bucket_jackknife,
    bucket_jackknife_of,
    bucket_ratio,
    cluster_robust,
    jackknife_variance,
)


def test_request_level_error_is_too_small_when_users_differ() -> None:
    n = np.full(100, 50)
    y = np.where(np.arange(100) % 10 == 0, 50, 0)
    r = cluster_robust(Clusters(y, n), Clusters(y, n))
    assert r.se_cluster == pytest.approx(np.sqrt(50) * r.se_request_level)


def test_jackknife_of_a_mean_is_its_squared_standard_error() -> None:
    x = np.arange(12.0) ** 2
    leave_out = (x.sum() - x) / 11
    assert jackknife_variance(leave_out) == pytest.approx(np.var(x, ddof=1) / 12)


def test_bucket_ratio_is_the_jackknife_up_to_one_over_buckets() -> None:
    rng = np.random.default_rng(5)
    n = rng.poisson(1000, (3, 256))
    y = rng.binomial(n, 0.1)
    closed = bucket_ratio(y, n)
    exact = jackknife_variance((y.sum(-1, keepdims=True) - y) / (n.sum(-1, keepdims=True) - n))
    assert closed.variance.shape == (3,)
    assert np.allclose(closed.variance, exact, rtol=0.01)


def test_any_statistic_of_sums_has_a_jackknife_variance() -> None:
    rng = np.random.default_rng(6)
    sums = rng.poisson(50, (64, 2)).astype(float)
    value, variance = bucket_jackknife_of(lambda s: s[..., 0] / s[..., 1], sums)
    assert value == pytest.approx(sums[:, 0].sum() / sums[:, 1].sum())
    assert variance == pytest.approx(float(bucket_ratio(*sums.T).variance), rel=0.05)


@pytest.mark.parametrize(
    ("y", "n", "message"),
    [
        ([1], [2], "control.y has 1 values"),
        ([1, 2], [2, 2, 2], "control.n has 3 values"),
        ([0, 0], [0, 0], "sum of control.n == 0"),
        ([3, 0], [2, 2], "control.y == 3.0, must be <= control.n"),
        ([-1, 0], [2, 2], "control.y == -1"),
        ([0, 0], [-2, 3], "control.n == -2"),
        ([0, np.nan], [2, 2], "control.y == nan"),
    ],
)
def test_clusters_are_refused_when_they_are_no_counts(
    y: list[float], n: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cluster_robust(Clusters(y, n), Clusters([0, 1], [1, 1]))


def test_jackknife_refuses_a_bucket_that_holds_everything() -> None:
    good = Clusters([1, 1], [5, 5])
    with pytest.raises(ValueError, match=r"not all in one bucket"):
        bucket_jackknife(Clusters([1, 0], [5, 0]), good)
    with pytest.raises(ValueError, match=r"treatment has 3 buckets, must be 2"):
        bucket_jackknife(good, Clusters([1, 1, 1], [5, 5, 5]))
    with pytest.raises(ValueError, match=r"at least 2 buckets"):
        bucket_ratio([1.0], [1.0])
