"""Not worse by more than a margin; equal within a margin.

Owns the fixed-sample tests for means and proportions. Refuses margins that are not positive. At any
time: non-inferior when a confidence sequence's bound stays inside the margin.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from control.stats.distributions import p_value
from control.stats.errors import (
    BoolArray,
    Direction,
    FloatArray,
    check,
    check_alpha,
    check_direction,
)
from control.stats.means import Estimate, estimate, welch
from control.stats.moments import Moments
from control.stats.proportions import Share, check_share, wald_variance


class NonInferiority(NamedTuple):
    """A fixed-sample result; all arrays of one shape, NaN where nothing has spread.

    diff, se, df: Treatment - control, its standard error, degrees of freedom (inf for z).
    statistic, p_non_inferior: Of the test against the margin. bound: One-sided end of diff at
    1 - alpha on the harmful side: the lower if higher is better, else the upper. p_equivalent:
    Two one-sided tests within (-margin, margin). non_inferior: p_non_inferior < alpha; false where
    undecided.
    """

    diff: FloatArray
    se: FloatArray
    df: FloatArray
    statistic: FloatArray
    p_non_inferior: FloatArray
    bound: FloatArray
    p_equivalent: FloatArray
    non_inferior: BoolArray


def non_inferior_means(
    control: Moments,
    treatment: Moments,
    *,
    margin: float,
    direction: Direction = "higher_is_better",
    alpha: float = 0.05,
) -> NonInferiority:
    """Welch test of "the treatment's mean is worse by margin or more"; vectorised.

    Args:
        control: Moments with n >= 2.
        treatment: As control; the shapes must fit.
        margin: Tolerated loss, > 0, in the metric's unit.
        direction: Which way is better.
        alpha: One-sided error probability, in (0, 1).

    Raises:
        ValueError: An argument is outside its range.

    Source: Schuirmann 1987 (two one-sided tests); Welch. Checked against:
    tests/vectors/statcases/non_inferiority.json (statsmodels). O(1) per cell.
    """
    plain = welch(control, treatment, alpha=alpha)
    return _against(plain, margin, direction, alpha)


def non_inferior_proportions(
    control: Share,
    treatment: Share,
    *,
    margin: float,
    direction: Direction = "higher_is_better",
    alpha: float = 0.05,
) -> NonInferiority:
    """Wald test of "the treatment's proportion is worse by margin or more"; vectorised.

    Args:
        control: Events of trials.
        treatment: As control; the shapes must fit.
        margin: Tolerated loss, > 0, as a difference of proportions.
        direction: Whether the events are good.
        alpha: One-sided error probability, in (0, 1).

    Raises:
        ValueError: An argument is outside its range.

    Source: Wald statistic with each arm's own variance. Checked against:
    tests/vectors/statcases/non_inferiority_props.json (statsmodels). O(1) per cell.
    """
    x_c, n_c = check_share("control", control)
    x_t, n_t = check_share("treatment", treatment)
    se = np.sqrt(wald_variance(x_c, n_c, x_t, n_t))
    return _against(estimate(x_t / n_t - x_c / n_c, se, alpha=alpha), margin, direction, alpha)


def _against(plain: Estimate, margin: float, direction: str, alpha: float) -> NonInferiority:
    tolerated = check("margin", margin, gt=0)
    level = check_alpha(alpha)
    up = check_direction(direction) == "higher_is_better"
    above = (plain.diff + tolerated) / plain.se
    below = (plain.diff - tolerated) / plain.se
    p_above, p_below = p_value(above, plain.df, "greater"), p_value(below, plain.df, "less")
    one_sided = estimate(
        plain.diff,
        plain.se,
        df=plain.df,
        alpha=level,
        alternative="greater" if up else "less",
    )
    p = p_above if up else p_below
    return NonInferiority(
        diff=plain.diff,
        se=plain.se,
        df=plain.df,
        statistic=np.asarray(above if up else below)[()],
        p_non_inferior=p,
        bound=one_sided.ci_low if up else one_sided.ci_high,
        p_equivalent=np.maximum(p_above, p_below)[()],
        non_inferior=np.asarray(p < level)[()],
    )
