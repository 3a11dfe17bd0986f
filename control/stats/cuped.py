"""Variance reduction by a covariate (CUPED), and relative lift.

Owns the pooled regression coefficient and the adjusted difference; the lift over the control's
mean with its delta-method error. Refuses covariates that the treatment can have changed only in
words: they must be measured before the experiment, which no number here can show.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from control.stats.errors import Alternative, BoolArray, FloatArray, check, require
from control.stats.means import Estimate, estimate, mean_variances, welch_df
from control.stats.moments import Moments, PairMoments, merge_pairs

# A control mean nearer to 0 than this many standard errors makes a ratio to it meaningless: its
# interval by the delta method would be a lie.
LIFT_STANDARD_ERRORS_MIN: Final = 3.0


class Cuped(NamedTuple):
    """theta: Coefficient of the covariate. adjusted: z-test of the adjusted difference.

    unadjusted: The same without the covariate. Arrays of one shape.
    """

    theta: FloatArray
    adjusted: Estimate
    unadjusted: Estimate


class Lift(NamedTuple):
    """Relative difference of means; all arrays of one shape, NaN where `decided` is false.

    lift: m_t / m_c - 1. se, df, p_value, ci_low, ci_high: As of `means.Estimate`, for the lift.
    """

    lift: FloatArray
    se: FloatArray
    df: FloatArray
    p_value: FloatArray
    ci_low: FloatArray
    ci_high: FloatArray

    @property
    def decided(self) -> BoolArray:
        """False without spread, or with |m_c| < 3 standard errors."""
        return np.asarray(np.isfinite(self.p_value))[()]


def cuped(
    control: PairMoments,
    treatment: PairMoments,
    *,
    alpha: float = 0.05,
    alternative: Alternative = "two-sided",
    theta: FloatArray | float | None = None,
) -> Cuped:
    """Difference of means adjusted for a covariate; vectorised.

    Args:
        control: Moments over users, y the metric, x the covariate; n >= 2.
        treatment: As control; the shapes must fit.
        alpha: Error probability of the intervals, in (0, 1).
        alternative: "greater" means that the treatment's mean is.
        theta: The coefficient; None estimates it from both arms around the grand means, which is
            asymptotically valid. Freeze it when looking repeatedly.

    Raises:
        ValueError: An argument is outside its range. A covariate without spread gives theta = 0.

    Source: Deng, Xu, Kohavi, Walker 2013 (WSDM). Checked against: cuped.json (tea-tasting,
    gbstats). O(1) per cell.
    """
    v_c, v_t = mean_variances(control.y, treatment.y)
    mean_variances(control.x, treatment.x)
    for name, arm in (("control", control), ("treatment", treatment)):
        c = check(f"{name}.c_yx", arm.c_yx)
        limit = np.sqrt(arm.m2_y * arm.m2_x) * (1 + 1e-9)
        require(f"{name}.c_yx", c, np.abs(c) <= limit, "within the variances")
    if theta is None:
        both = merge_pairs(control, treatment)
        spread = np.asarray(both.m2_x)
        coefficient = np.where(spread > 0, both.c_yx / np.where(spread > 0, spread, 1.0), 0.0)
    else:
        coefficient = check("theta", theta)
    shift = treatment.mean_x - control.mean_x
    plain = treatment.mean_y - control.mean_y
    variance = _residual(control, coefficient) + _residual(treatment, coefficient)
    return Cuped(
        theta=coefficient[()],
        adjusted=estimate(
            plain - coefficient * shift, np.sqrt(variance), alpha=alpha, alternative=alternative
        ),
        unadjusted=estimate(plain, np.sqrt(v_c + v_t), alpha=alpha, alternative=alternative),
    )


def relative_lift(
    control: Moments,
    treatment: Moments,
    *,
    alpha: float = 0.05,
    alternative: Alternative = "two-sided",
) -> Lift:
    """m_t / m_c - 1 with a t interval by the delta method and Welch's df; vectorised.

    Args:
        control: Moments with n >= 2; a mean within 3 standard errors of 0 is undecided (NaN).
        treatment: As control; the shapes must fit.
        alpha: Error probability in (0, 1).
        alternative: "greater" means a positive lift.

    Raises:
        ValueError: An arm has fewer than 2 units, or an argument is outside its range.

    Source: delta method on m_t / m_c, as gbstats: V_t / m_c^2 + V_c m_t^2 / m_c^4. Checked
    against: tests/vectors/statcases/relative_lift.json (gbstats). O(1) per cell.
    """
    v_c, v_t = mean_variances(control, treatment)
    base = np.asarray(control.mean, dtype=np.float64)
    far = (base != 0) & (np.abs(base) >= LIFT_STANDARD_ERRORS_MIN * np.sqrt(v_c))
    divisor = np.where(far, base, 1.0)
    ratio = treatment.mean / divisor
    se = np.where(far, np.sqrt(v_t / divisor**2 + v_c * ratio**2 / divisor**2), np.nan)
    df = welch_df(v_c, control.n, v_t, treatment.n)
    test = estimate(ratio - 1, se, df=df, alpha=alpha, alternative=alternative)
    lift = np.where(far, test.diff, np.nan)[()]
    return Lift(lift, test.se, test.df, test.p_value, test.ci_low, test.ci_high)


def _residual(arm: PairMoments, theta: FloatArray) -> FloatArray:
    left = arm.m2_y + theta**2 * arm.m2_x - 2 * theta * arm.c_yx
    # A covariate that explains everything leaves rounding of either sign.
    left = np.where(left <= 1e-14 * np.asarray(arm.m2_y), 0.0, left)
    return np.asarray(left / (arm.n - 1) / arm.n)
