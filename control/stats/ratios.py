"""Ratios of sums over users: requests that failed of requests made, when users are assigned.

Owns the delta-method variance. Refuses request-level variances: with sticky users those call a
difference in half of all A/A tests. Fixed-sample results: `confseq` takes `diff` and `se` on.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from control.stats.errors import Alternative, BoolArray, FloatArray, check, require
from control.stats.means import estimate
from control.stats.moments import PairMoments


class RatioTest(NamedTuple):
    """Two ratios compared; all arrays of one shape, NaN where `decided` is false.

    ratio_control, ratio_treatment: sum(y) / sum(x). diff, se: Their difference, its standard
    error. p_value, ci_low, ci_high: By the normal. rel_diff, rel_se: diff / ratio_control and its
    standard error; NaN where the control's ratio is 0.
    """

    ratio_control: FloatArray
    ratio_treatment: FloatArray
    diff: FloatArray
    se: FloatArray
    p_value: FloatArray
    ci_low: FloatArray
    ci_high: FloatArray
    rel_diff: FloatArray
    rel_se: FloatArray

    @property
    def decided(self) -> BoolArray:
        """Where there is a test: false without any spread."""
        return np.asarray(np.isfinite(self.p_value))[()]


def ratio_variance(arm: PairMoments, *, name: str = "arm") -> tuple[FloatArray, FloatArray]:
    """A ratio of sums and its delta-method variance.

    Args:
        arm: Moments over users, y the numerator, x the denominator; n >= 2, mean_x > 0.
        name: What to call the arm when it is refused.

    Returns:
        Ratio and variance, of the arm's shape; units of y / x, and squared.

    Raises:
        ValueError: Fewer than 2 users, a denominator's mean <= 0, or a number is not finite.

    Source: Deng, Knoblich, Lu 2018 (KDD), eq. 3. O(1) per cell.
    """
    n = check(f"{name}.n", arm.n, ge=2, whole=True)
    check(f"{name}.mean_y", arm.mean_y)
    mean_x = check(f"{name}.mean_x", arm.mean_x, gt=0)
    for field, value in (("m2_y", arm.m2_y), ("m2_x", arm.m2_x)):
        check(f"{name}.{field}", value, ge=0)
    check(f"{name}.c_yx", arm.c_yx)
    ratio = np.asarray(arm.mean_y / mean_x)
    residual = arm.m2_y - 2 * ratio * arm.c_yx + ratio**2 * arm.m2_x
    scale = arm.m2_y + ratio**2 * arm.m2_x
    require(f"{name}.c_yx", arm.c_yx, residual >= -1e-9 * scale, "within the variances")
    # y a multiple of x: what is left of equals is rounding, not spread.
    residual = np.where(residual <= 1e-14 * scale, 0.0, residual)
    return ratio[()], (residual / (n - 1) / (mean_x**2 * n))[()]


def ratio_delta(
    control: PairMoments,
    treatment: PairMoments,
    *,
    alpha: float = 0.05,
    alternative: Alternative = "two-sided",
) -> RatioTest:
    """Compare two ratios of sums by the delta method; vectorised.

    Args:
        control: Moments over users, y numerator, x denominator; n >= 2, mean of x > 0.
        treatment: As control; the shapes must fit.
        alpha: Error probability of the interval, in (0, 1).
        alternative: "greater" means that the treatment's ratio is.

    Raises:
        ValueError: An argument is outside its range. No spread is not an error: undecided (NaN).

    Source: Deng, Knoblich, Lu 2018 (KDD); relative: delta method on R_t / R_c - 1. Checked
    against: tests/vectors/statcases/ratio_delta.json (tea-tasting, gbstats). O(1) per cell.
    """
    r_c, v_c = ratio_variance(control, name="control")
    r_t, v_t = ratio_variance(treatment, name="treatment")
    test = estimate(r_t - r_c, np.sqrt(v_c + v_t), alpha=alpha, alternative=alternative)
    base = np.where(np.asarray(r_c) == 0, np.nan, r_c)
    return RatioTest(
        ratio_control=r_c,
        ratio_treatment=r_t,
        diff=test.diff,
        se=test.se,
        p_value=test.p_value,
        ci_low=test.ci_low,
        ci_high=test.ci_high,
        rel_diff=(test.diff / base)[()],
        rel_se=np.sqrt(v_t / base**2 + v_c * r_t**2 / base**4)[()],
    )
