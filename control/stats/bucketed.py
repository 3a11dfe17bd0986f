"""Two arms' ratios of sums compared over strata, from sums by hash bucket of units.

Owns the difference that a ramp, sticky units and segments leave valid: within each stratum (epoch x
segment) only, combined by Mantel and Haenszel's weights, with one variance over buckets. Refuses to
pool raw counts over strata.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from control.stats.errors import FloatArray, check


class BucketedDifference(NamedTuple):
    """Treatment - control of a ratio; NaN where no stratum has both arms.

    diff, variance: Of the difference. control, treatment: Each arm's ratio in the same weights, so
    that they differ by diff. effective: 4 sum n_c n_t / (n_c + n_t), the number of trials at 50:50
    that tells as much; 1 / variance grows with it. strata: Those that had both arms.
    """

    diff: float
    variance: float
    control: float
    treatment: float
    effective: float
    strata: int


NOTHING = BucketedDifference(float("nan"), float("nan"), float("nan"), float("nan"), 0.0, 0)


# Which strata: in a row (copies nothing), or by number.
Rows = slice | npt.NDArray[np.intp]


class BucketSums(NamedTuple):
    """One arm's sums by bucket and stratum, and what follows from them stratum by stratum.

    Whoever asks about the whole and about parts of it computes this once, and takes rows of it.

    n: Denominators, shape (strata, buckets). y_total, n_total: Numerators and denominators over the
    buckets. rates: y_total / n_total, 0 without a denominator. left: y - rate x n by bucket.
    """

    n: FloatArray
    y_total: FloatArray
    n_total: FloatArray
    rates: FloatArray
    left: FloatArray

    def of(self, strata: Rows) -> BucketSums:
        """Some of the strata."""
        n, y_total, n_total, rates, left = self
        return BucketSums(n[strata], y_total[strata], n_total[strata], rates[strata], left[strata])

    def minus(self, control: BucketSums) -> BucketedDifference:
        """`bucketed_difference` of this arm and `control`, of the same strata and buckets."""
        return _difference(control, self)

    def design_effect(self) -> float | None:
        """`design_effect` when the numerators count events, 0 <= y <= n."""
        return _design_effect(self)


def bucketed_difference(
    control_y: npt.ArrayLike,
    control_n: npt.ArrayLike,
    treatment_y: npt.ArrayLike,
    treatment_n: npt.ArrayLike,
) -> BucketedDifference:
    """Stratified difference of two ratios of sums, with a variance over hash buckets.

    Weights n_c n_t / (n_c + n_t) make weight x difference a sum of increments whose variance adds
    up, whatever the split: what a confidence sequence over a ramp needs. The variance is of each
    bucket's whole influence, over all strata and both arms at once: a unit that comes back in
    another stratum, or moves between the arms as a ramp grows, is one cluster.

    The smaller arm counts with at least the spread that the larger arm's units would have in its
    place. 150 units of which 1 % always fail are often none: an arm that has yet to meet its rare
    bad units underrates its rate and its own variance together. With own variances alone 28 % of
    A/A experiments in that world called the candidate better (5 % canary, 50 looks at .05).

    Args:
        control_y: Numerators, shape (strata, buckets), at least 2 buckets.
        control_n: Denominators, >= 0, the same shape.
        treatment_y: As control_y, the same strata and buckets.
        treatment_n: As control_n.

    Returns:
        NOTHING when no stratum has a denominator in both arms.

    Raises:
        ValueError: Shapes differ, too few buckets, or a negative or not finite number.

    Source: Mantel, Haenszel 1959 (weights); linearised jackknife leaving a bucket out of both arms
    (Tukey 1958; google/meterstick): B / (B - 1) sum_b (sum_s w_s (e_tsb / N_ts - e_csb / N_cs))^2,
    e = y - R n. O(strata x buckets).
    """
    control = _sums("control_y", control_y, "control_n", control_n)
    treatment = _sums("treatment_y", treatment_y, "treatment_n", treatment_n)
    if treatment.n.shape != control.n.shape:
        raise ValueError(f"treatment_n has shape {treatment.n.shape}, must be {control.n.shape}")
    return treatment.minus(control)


def bucket_sums(y: npt.ArrayLike, n: npt.ArrayLike) -> BucketSums:
    """One arm's sums, checked once for all questions about them.

    Args:
        y: Numerators, shape (strata, buckets), at least 2 buckets.
        n: Denominators, >= 0, the same shape.

    Raises:
        ValueError: Another shape, or a negative or not finite number.
    """
    return _sums("y", y, "n", n)


def _sums(y_name: str, y: npt.ArrayLike, n_name: str, n: npt.ArrayLike) -> BucketSums:
    numerators, trials = check(y_name, y), check(n_name, n, ge=0)
    if numerators.ndim != 2 or numerators.shape[1] < 2 or trials.shape != numerators.shape:
        raise ValueError(f"{n_name} has shape {trials.shape}, must be (strata, >= 2 buckets)")
    y_total, n_total = numerators.sum(axis=1), trials.sum(axis=1)
    rates = y_total / np.where(n_total > 0, n_total, 1.0)
    left = rates[:, None] * trials
    np.subtract(numerators, left, out=left)  # fresh memory costs more than the subtraction
    return BucketSums(trials, y_total, n_total, rates, left)


def _difference(control: BucketSums, treatment: BucketSums) -> BucketedDifference:
    both = (control.n_total > 0) & (treatment.n_total > 0)
    if not both.any():
        return NOTHING
    if not both.all():
        control, treatment = (arm.of(np.flatnonzero(both)) for arm in (control, treatment))
    total_c, total_t = control.n_total, treatment.n_total
    harmonic = total_c * total_t / (total_c + total_t)
    weights = harmonic / harmonic.sum()
    influence_c, influence_t = weights / total_c @ control.left, weights / total_t @ treatment.left
    spread = float(np.sum((influence_t - influence_c) ** 2))
    if total_t.sum() < total_c.sum():
        spread += max(0.0, _lent(control.left, total_c, total_t, weights) - _square(influence_t))
    elif total_c.sum() < total_t.sum():
        spread += max(0.0, _lent(treatment.left, total_t, total_c, weights) - _square(influence_c))
    buckets = control.left.shape[1]
    mean_c, mean_t = float(weights @ control.rates), float(weights @ treatment.rates)
    return BucketedDifference(
        mean_t - mean_c,
        buckets / (buckets - 1) * spread,
        mean_c,
        mean_t,
        4.0 * float(harmonic.sum()),
        len(weights),
    )


def _lent(
    left: FloatArray, total: FloatArray, total_smaller: FloatArray, weights: FloatArray
) -> float:
    """The spread that the smaller arm would have if its units were as the larger arm's.

    left: The larger arm's residuals. Of its units, those in the smaller arm are as many as its
    share f against the larger's g; of two strata, as a ramp nests them, the lesser of both.
    """
    f = total_smaller / (total + total_smaller)
    nested = np.minimum.outer(f, f) / np.minimum.outer(1 - f, 1 - f)
    scale = weights / total_smaller
    return float(scale @ (left @ left.T * nested) @ scale)


def _square(influence: FloatArray) -> float:
    return float(influence @ influence)


def design_effect(y: npt.ArrayLike, n: npt.ArrayLike) -> float | None:
    """How many times larger the variance of a share is than if trials were independent, >= 1.

    Args:
        y: Events, shape (strata, buckets) or (buckets,), 0 <= y <= n.
        n: Trials, the same shape.

    Returns:
        None where it cannot be said: fewer than 10 events or non-events.

    Raises:
        ValueError: Shapes differ, or a negative or not finite number.

    Source: Kish 1965, deff = V_clustered / (p (1 - p) / n), at least 1. O(strata x buckets).
    """
    events = np.atleast_2d(check("y", y, ge=0))
    trials = np.atleast_2d(check("n", n, ge=0))
    if events.shape != trials.shape or events.shape[1] < 2:
        raise ValueError(f"n has shape {trials.shape}, must be {events.shape}, >= 2 buckets")
    return _sums("y", events, "n", trials).design_effect()


def _design_effect(arm: BucketSums) -> float | None:
    x = float(arm.y_total.sum())
    if min(x, float(arm.n_total.sum()) - x) < 10:
        return None
    kept = arm.n_total > 0
    per, rates, left = arm.n_total, arm.rates, arm.left
    if not kept.all():
        per, rates, left = per[kept], rates[kept], left[kept]
    influence = left.sum(axis=0)
    buckets = len(influence)
    clustered = buckets / (buckets - 1) * float(influence @ influence)
    plain = float(np.sum(per * rates * (1 - rates)))
    return max(1.0, clustered / plain) if plain > 0 else None
