"""Variance when requests come in clusters: users, or buckets of hashed users.

Owns cluster-robust errors and the bucket jackknife, for sums that sidecars can merge. Refuses the
request as a unit when the user is assigned: `se_request_level` is shown to be compared, not used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from control.stats.errors import (
    SMALLEST,
    FloatArray,
    check,
    check_shapes,
    check_vector,
    require,
)


class ClusterTest(NamedTuple):
    """diff: Treatment's rate - control's. se_cluster: CR0, right when users repeat.

    se_request_level: HC0, as if each request were a unit of its own; wrong when users repeat.
    """

    diff: float
    se_cluster: float
    se_request_level: float


class BucketRatio(NamedTuple):
    """ratio: sum y / sum n over the last axis. variance: Of it. df: Buckets - 1."""

    ratio: FloatArray
    variance: FloatArray
    df: int


class Jackknife(NamedTuple):
    """Ratios per arm, their standard errors, their difference and its, buckets paired over arms."""

    ratio_control: float
    se_control: float
    ratio_treatment: float
    se_treatment: float
    diff: float
    se_diff: float


class Clusters(NamedTuple):
    """Sums per cluster of one arm: y of n, arrays of shape (clusters,), n >= 0, not all 0."""

    y: npt.ArrayLike
    n: npt.ArrayLike


def cluster_robust(control: Clusters, treatment: Clusters) -> ClusterTest:
    """Difference of success rates of requests, clustered by user.

    Args:
        control: Per user successes y of requests n, whole, 0 <= y <= n.
        treatment: As control.

    Raises:
        ValueError: Counts are no counts, an arm has fewer than 2 users, or no requests.

    Source: Liang, Zeger 1986, CR0 (no small-sample factor): sum (y - R n)^2 / (sum n)^2 per arm.
    Checked against: tests/vectors/statcases/cluster_robust.json (statsmodels). O(users).
    """
    rates, clustered, plain = [], 0.0, 0.0
    for name, arm in (("control", control), ("treatment", treatment)):
        y, n = _sums(name, arm, least=2)
        require(f"{name}.y", y, (y >= 0) & (y == np.floor(y)), "whole and >= 0")
        require(f"{name}.y", y, y <= n, f"<= {name}.n")
        rate = y.sum() / n.sum()
        rates.append(rate)
        clustered += np.sum((y - rate * n) ** 2) / n.sum() ** 2
        plain += rate * (1 - rate) / n.sum()
    return ClusterTest(float(rates[1] - rates[0]), float(np.sqrt(clustered)), float(np.sqrt(plain)))


def bucket_ratio(y: npt.ArrayLike, n: npt.ArrayLike) -> BucketRatio:
    """Ratio of sums over hash buckets with its variance; vectorised over leading axes.

    Args:
        y: Sums per bucket, shape (..., buckets), at least 2 buckets.
        n: Denominators per bucket, >= 0, a shape that fits, not all 0.

    Raises:
        ValueError: Too few buckets, a negative denominator, or no units at all.

    Source: the linearised jackknife, B / (B - 1) sum (y - R n)^2 / (sum n)^2. O(buckets).
    """
    top, bottom = check("y", y), check("n", n, ge=0)
    shape = check_shapes(y=y, n=n)
    if not shape or shape[-1] < 2:
        raise ValueError(f"y has shape {shape}, must end in at least 2 buckets")
    units = np.sum(np.broadcast_to(bottom, shape), axis=-1)
    require("sum of n", units, units >= SMALLEST, ">= 1e-60")
    ratio = np.sum(np.broadcast_to(top, shape), axis=-1) / units
    left = np.sum((top - ratio[..., None] * bottom) ** 2, axis=-1)
    buckets = shape[-1]
    return BucketRatio(ratio[()], (buckets / (buckets - 1) * left / units**2)[()], buckets - 1)


def jackknife_variance(leave_one_out: npt.ArrayLike) -> FloatArray:
    """Variance of a statistic from its values without each bucket, shape (..., buckets).

    Raises:
        ValueError: Fewer than 2 buckets, or a value is not finite.

    Source: Tukey 1958; (B - 1) / B sum (g_b - mean)^2, as google/meterstick. O(buckets).
    """
    values = check("leave_one_out", leave_one_out)
    if values.ndim == 0 or values.shape[-1] < 2:
        raise ValueError(f"leave_one_out has shape {values.shape}, must have at least 2 buckets")
    buckets = values.shape[-1]
    spread = values - np.mean(values, axis=-1, keepdims=True)
    return np.asarray((buckets - 1) / buckets * np.sum(spread**2, axis=-1))[()]


def bucket_jackknife(control: Clusters, treatment: Clusters) -> Jackknife:
    """Difference of two ratios of sums; each bucket is left out of both arms at once.

    Args:
        control: Sums y and n per bucket; no bucket may hold all of n.
        treatment: As control, the same buckets in the same order.

    Raises:
        ValueError: Different or too few buckets, or a denominator that is 0 without one bucket.

    Source: leave-one-bucket-out jackknife. Checked against:
    tests/vectors/statcases/bucket_jackknife.json (meterstick). O(buckets).
    """
    kept: list[FloatArray] = []
    ratios: list[float] = []
    for name, arm in (("control", control), ("treatment", treatment)):
        y, n = _sums(name, arm, least=2)
        without = n.sum() - n
        require(f"{name}.n", n, without > 0, "not all in one bucket")
        kept.append((y.sum() - y) / without)
        ratios.append(float(y.sum() / n.sum()))
    if kept[0].shape != kept[1].shape:
        raise ValueError(f"treatment has {len(kept[1])} buckets, must be {len(kept[0])}")
    errors = [float(np.sqrt(jackknife_variance(g))) for g in (*kept, kept[1] - kept[0])]
    return Jackknife(ratios[0], errors[0], ratios[1], errors[1], ratios[1] - ratios[0], errors[2])


def bucket_jackknife_of(
    statistic: Callable[[FloatArray], FloatArray], sums: npt.ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Any statistic of sums over buckets (F1, lift, AUC) with its jackknife variance.

    Args:
        statistic: From sums of shape (..., sums) to values of shape (...).
        sums: Per bucket, shape (buckets, sums), at least 2 buckets.

    Returns:
        Value and variance.

    Raises:
        ValueError: Too few buckets, or the statistic is not finite without one of them.

    Source: as of `jackknife_variance`. O(buckets x sums).
    """
    per_bucket = check("sums", sums)
    if per_bucket.ndim != 2 or not per_bucket.shape[1]:
        raise ValueError(f"sums has shape {per_bucket.shape}, must be (buckets, at least 1 sum)")
    total = per_bucket.sum(axis=0)
    return statistic(total), jackknife_variance(statistic(total - per_bucket))


def _sums(name: str, arm: Clusters, *, least: int) -> tuple[FloatArray, FloatArray]:
    y = check_vector(f"{name}.y", arm.y, least=least)
    n = check_vector(f"{name}.n", arm.n, least=least, ge=0)
    if len(y) != len(n):
        raise ValueError(f"{name}.n has {len(n)} values, must be {len(y)} as y")
    require(f"sum of {name}.n", n.sum(), n.sum() > 0, "> 0")
    return y, n
