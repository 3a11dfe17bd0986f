"""Difference of two proportions, and intervals of one.

Owns the pooled z-test, the chi-squared test without continuity correction, Wald's, Newcombe's and
Wilson's intervals. Refuses counts that are no counts. Fixed-sample results: valid at one look.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from control.stats.distributions import chi2_sf, normal_ppf, p_value
from control.stats.errors import (
    Alternative,
    BoolArray,
    FloatArray,
    check,
    check_alpha,
    check_alternative,
    check_shapes,
    require,
)


class Share(NamedTuple):
    """Events of trials: x of n, arrays of shapes that fit, 0 <= x <= n, n >= 1."""

    x: npt.ArrayLike
    n: npt.ArrayLike


class Interval(NamedTuple):
    """Both ends of an interval, arrays of one shape."""

    low: FloatArray
    high: FloatArray


class TwoProportions(NamedTuple):
    """Two proportions compared; all arrays of one shape.

    diff: p_treatment - p_control. z, p_value: Pooled z-test; NaN where `decided` is false.
    chi2, chi2_p: The same as chi-squared with 1 degree of freedom, always two-sided. wald,
    newcombe: Intervals of diff, always two-sided. wilson_control, wilson_treatment: Of each arm.
    """

    diff: FloatArray
    z: FloatArray
    p_value: FloatArray
    chi2: FloatArray
    chi2_p: FloatArray
    wald: Interval
    newcombe: Interval
    wilson_control: Interval
    wilson_treatment: Interval

    @property
    def decided(self) -> BoolArray:
        """Where there is a test: false with no event at all, or nothing but events."""
        return np.asarray(np.isfinite(self.p_value))[()]


def check_share(name: str, share: Share) -> tuple[FloatArray, FloatArray]:
    """The counts of an arm as float64.

    Raises:
        ValueError: Not whole, n < 1, or x outside 0..n.
    """
    x = check(f"{name}.x", share.x, ge=0, whole=True)
    n = check(f"{name}.n", share.n, ge=1, whole=True)
    check_shapes(**{f"{name}.x": x, f"{name}.n": n})
    require(f"{name}.x", x, x <= n, f"<= {name}.n")
    return x, n


def wilson(x: npt.ArrayLike, n: npt.ArrayLike, *, alpha: float = 0.05) -> Interval:
    """Wilson's score interval of one proportion; vectorised.

    Raises:
        ValueError: Not 0 <= x <= n, n < 1, or alpha outside (0, 1).

    Source: Wilson 1927, JASA 22. Checked against: two_proportions.json (statsmodels). O(1).
    """
    events, trials = check_share("share", Share(x, n))
    z = -normal_ppf(check_alpha(alpha) / 2)
    p, shrink = events / trials, 1 + z**2 / trials
    middle = (p + z**2 / (2 * trials)) / shrink
    half = z / shrink * np.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    # Exactly 0 and 1 at the edges, where the difference of equals leaves rounding.
    low = np.where(events == 0, 0.0, middle - half)
    return Interval(low[()], np.where(events == trials, 1.0, middle + half)[()])


def two_proportions(
    control: Share,
    treatment: Share,
    *,
    alpha: float = 0.05,
    alternative: Alternative = "two-sided",
) -> TwoProportions:
    """Compare two proportions at one look; vectorised.

    Args:
        control: Events and trials of the control.
        treatment: As control; the shapes must fit.
        alpha: Error probability of all intervals, in (0, 1).
        alternative: Of `p_value` alone.

    Raises:
        ValueError: Counts are not 0 <= x <= n with n >= 1, or an argument is outside its range.

    Source: pooled z = Pearson's chi-squared without correction; Newcombe 1998, Stat. Med. 17,
    method 10. Checked against: tests/vectors/statcases/two_proportions.json (statsmodels, scipy).
    O(1) per cell.
    """
    x_c, n_c = check_share("control", control)
    x_t, n_t = check_share("treatment", treatment)
    check_shapes(control=x_c + n_c, treatment=x_t + n_t)
    alternative = check_alternative(alternative)
    p_c, p_t = x_c / n_c, x_t / n_t
    diff = p_t - p_c
    variance = pooled_variance(x_c, n_c, x_t, n_t)
    z = diff / np.sqrt(np.where(variance > 0, variance, np.nan))
    half = -normal_ppf(check_alpha(alpha) / 2) * np.sqrt(wald_variance(x_c, n_c, x_t, n_t))
    own_c, own_t = wilson(x_c, n_c, alpha=alpha), wilson(x_t, n_t, alpha=alpha)
    below = np.hypot(p_t - own_t.low, own_c.high - p_c)
    above = np.hypot(own_t.high - p_t, p_c - own_c.low)
    return TwoProportions(
        diff=diff[()],
        z=z[()],
        p_value=p_value(z, np.inf, alternative),
        chi2=(z**2)[()],
        chi2_p=chi2_sf(z**2, 1),
        wald=Interval((diff - half)[()], (diff + half)[()]),
        newcombe=Interval((diff - below)[()], (diff + above)[()]),
        wilson_control=own_c,
        wilson_treatment=own_t,
    )


def pooled_variance(
    x_c: FloatArray, n_c: FloatArray, x_t: FloatArray, n_t: FloatArray
) -> FloatArray:
    """Variance of the difference under equal rates: p (1 - p) (1/n_c + 1/n_t)."""
    pooled = (x_c + x_t) / (n_c + n_t)
    return np.asarray(pooled * (1 - pooled) * (1 / n_c + 1 / n_t))


def wald_variance(x_c: FloatArray, n_c: FloatArray, x_t: FloatArray, n_t: FloatArray) -> FloatArray:
    """Variance of the difference with each arm's own rate."""
    p_c, p_t = x_c / n_c, x_t / n_t
    return np.asarray(p_c * (1 - p_c) / n_c + p_t * (1 - p_t) / n_t)
