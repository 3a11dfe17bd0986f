"""How many units a fixed-sample comparison needs.

Owns sample sizes for means and proportions. Refuses to plan for no effect. A sequential test needs
about twice the fixed number as its maximum, and on average 1.2 times at the effect planned for.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from control.stats.distributions import normal_ppf, normal_sf
from control.stats.errors import (
    Alternative,
    check_alpha,
    check_alternative,
    check_scalar,
)


class SampleSize(NamedTuple):
    """Units per arm as real numbers; round up."""

    n_control: float
    n_treatment: float


def power_means(
    delta: float,
    sd: float,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    ratio_treatment_to_control: float = 1.0,
    alternative: Alternative = "two-sided",
    use_t: bool = False,
) -> SampleSize:
    """Units to find a difference of means.

    Args:
        delta: Smallest difference to find, in the metric's unit, not 0; its sign must be that of a
            one-sided alternative.
        sd: Standard deviation of a unit in both arms, > 0.
        alpha: Error probability, in (0, 1).
        power: Probability to find delta, in (alpha, 1).
        ratio_treatment_to_control: n_t / n_c, > 0.
        alternative: Of the test planned.
        use_t: Student's t (noncentral t power) instead of z.

    Raises:
        ValueError: An argument is outside its range.

    Source: textbook power of z and t, both tails counted. Checked against: power_means.json
    (statsmodels NormalIndPower, TTestIndPower).
    """
    effect = check_scalar("delta", delta) / check_scalar("sd", sd, gt=0)
    if effect == 0:
        raise ValueError(f"delta == {delta}, must not be 0")
    sided = check_alternative(alternative)
    if (sided == "greater" and effect < 0) or (sided == "less" and effect > 0):
        raise ValueError(f"delta == {delta}, must have the sign of alternative {sided!r}")
    ratio = check_scalar("ratio_treatment_to_control", ratio_treatment_to_control, gt=0)
    level = check_alpha(alpha) / (2 if sided == "two-sided" else 1)
    wanted = check_scalar("power", power, gt=alpha, lt=1)
    size = abs(effect)
    from scipy import optimize, special, stats  # large, and only needed here

    def lacking(log_n: float) -> float:
        n = np.exp(log_n)
        noncentrality = size * np.sqrt(n * ratio / (1 + ratio))
        if use_t:
            df = n * (1 + ratio) - 2
            critical = stats.t.isf(level, df)
            reached = stats.nct.sf(critical, df, noncentrality)
            if sided == "two-sided":
                # The other tail; NaN where it is too small for scipy's series.
                reached = reached + np.nan_to_num(special.nctdtr(df, noncentrality, -critical))
        else:
            critical = -normal_ppf(level)
            reached = normal_sf(critical - noncentrality)
            if sided == "two-sided":
                reached = reached + normal_sf(critical + noncentrality)
        return float(reached - wanted)

    # The floor is a tenth of a degree of freedom: with less, quantiles of t overflow.
    low = np.log(2.1 / (1 + ratio)) if use_t else np.log(1e-12)
    if lacking(low) >= 0:
        n = float(np.exp(low))
    else:
        start = float(2 * (normal_ppf(1 - level) + normal_ppf(wanted)) ** 2 / size**2)
        high = np.log(max(4 * start * (1 + 1 / ratio), 100.0 * (1 + 1 / ratio)))
        n = float(np.exp(optimize.brentq(lacking, low, high, xtol=1e-12)))
    return SampleSize(n, n * ratio)


def power_proportions(
    p_control: float,
    p_treatment: float,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    ratio_treatment_to_control: float = 1.0,
    alternative: Alternative = "two-sided",
) -> SampleSize:
    """Units to tell two proportions apart by the pooled z-test.

    Args:
        p_control: In (0, 1).
        p_treatment: In (0, 1), not p_control.
        alpha: Error probability, in (0, 1).
        power: Probability to find the difference, in (alpha, 1).
        ratio_treatment_to_control: n_t / n_c, > 0.
        alternative: Two-sided plans one tail at alpha / 2.

    Raises:
        ValueError: An argument is outside its range, or the difference has the wrong sign.

    Source: Fleiss, Levin, Paik 2003, eq. 4.14: pooled variance under the null, each arm's own under
    the alternative. Checked against: power_props.json (statsmodels).
    """
    p_c = check_scalar("p_control", p_control, gt=0, lt=1)
    p_t = check_scalar("p_treatment", p_treatment, gt=0, lt=1)
    if p_c == p_t:
        raise ValueError(f"p_treatment == {p_t}, must not be p_control")
    sided = check_alternative(alternative)
    if (sided == "greater" and p_t < p_c) or (sided == "less" and p_t > p_c):
        raise ValueError(f"p_treatment == {p_t}, must be on the side of alternative {sided!r}")
    ratio = check_scalar("ratio_treatment_to_control", ratio_treatment_to_control, gt=0)
    level = check_alpha(alpha) / (2 if sided == "two-sided" else 1)
    wanted = check_scalar("power", power, gt=alpha, lt=1)
    pooled = (p_c + ratio * p_t) / (1 + ratio)
    null = np.sqrt(pooled * (1 - pooled) * (1 + 1 / ratio))
    other = np.sqrt(p_c * (1 - p_c) + p_t * (1 - p_t) / ratio)
    n = float(((-normal_ppf(level) * null + normal_ppf(wanted) * other) / (p_t - p_c)) ** 2)
    return SampleSize(n, n * ratio)
