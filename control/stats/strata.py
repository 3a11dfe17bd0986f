"""Evidence in strata: epochs of a ramp, segments, new and returning users.

Owns the stratified difference, tests of heterogeneity and the check for Simpson's paradox. Refuses
to pool raw counts over a ramp, except to show what that would have said.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from control.stats.distributions import chi2_sf
from control.stats.errors import FloatArray, check, check_shapes, require
from control.stats.proportions import Share, check_share, wald_variance

Weighting = Literal["population", "precision"]


class Stratified(NamedTuple):
    """diff, variance: Of the weighted effect. weights: Used, sum 1 over the last axis.

    q, q_df, q_p: Cochran's heterogeneity of the strata around their precision-weighted mean, over
    strata with variance > 0. Arrays of the leading shape.
    """

    diff: FloatArray
    variance: FloatArray
    weights: FloatArray
    q: FloatArray
    q_df: FloatArray
    q_p: FloatArray


class StratifiedProportions(NamedTuple):
    """pooled_diff: Of all counts together, biased if shares differ. diffs: Per stratum.

    precision, population: Stratified by either weight. mh_odds_ratio: Mantel-Haenszel; NaN without
    discordance. cmh, cmh_p: Cochran-Mantel-Haenszel without correction, 1 degree of freedom;
    NaN where nothing varies. sign_reversal: The pooled difference points the other way than the
    precision-weighted one (Simpson's paradox).
    """

    pooled_diff: float
    diffs: FloatArray
    precision: Stratified
    population: Stratified
    mh_odds_ratio: float
    cmh: float
    cmh_p: float
    sign_reversal: bool


def stratified(
    diffs: npt.ArrayLike,
    variances: npt.ArrayLike,
    *,
    weighting: Weighting = "population",
    units: npt.ArrayLike | None = None,
) -> Stratified:
    """Combine the effects of strata; vectorised over leading axes.

    Args:
        diffs: Effect per stratum, shape (..., strata), at least one.
        variances: Its squared standard error, >= 0; > 0 throughout for weighting by precision.
        weighting: "population" (shares of units: the effect on everybody) or "precision" (1 / V:
            the least error if the effect is the same everywhere).
        units: Per stratum, >= 0, not all 0; needed for "population".

    Raises:
        ValueError: An argument is outside its range.

    Source: Cochran 1954; Q ~ chi-squared with strata - 1. Checked against: stratified.json
    (statsmodels). O(strata) per cell.
    """
    d, v = check("diffs", diffs), check("variances", variances, ge=0)
    shape = check_shapes(diffs=diffs, variances=variances)
    if not shape or not shape[-1]:
        raise ValueError(f"diffs has shape {shape}, must end in at least one stratum")
    known = v > 0
    precision = np.where(known, 1 / np.where(known, v, 1.0), 0.0)
    if weighting == "precision":
        require("variances", v, known, "> 0 when weighted by precision")
        raw = precision
    elif weighting == "population":
        if units is None:
            raise ValueError("units == None, must be given for weighting by population")
        raw = np.broadcast_to(check("units", units, ge=0), shape)
        require("sum of units", raw.sum(axis=-1), raw.sum(axis=-1) > 0, "> 0")
    else:
        raise ValueError(f"weighting == {weighting!r}, must be 'population' or 'precision'")
    weights = raw / raw.sum(axis=-1, keepdims=True)
    total = precision.sum(axis=-1, keepdims=True)
    mean = np.sum(precision * d, axis=-1, keepdims=True) / np.where(total > 0, total, 1.0)
    q, df = np.sum(precision * (d - mean) ** 2, axis=-1), np.sum(known, axis=-1) - 1
    q_p = np.where(df > 0, chi2_sf(q, np.maximum(df, 1)), np.nan)
    return Stratified(
        diff=np.sum(weights * d, axis=-1)[()],
        variance=np.sum(weights**2 * v, axis=-1)[()],
        weights=weights,
        q=q[()],
        q_df=np.maximum(df, 0)[()],
        q_p=q_p[()],
    )


def stratified_proportions(control: Share, treatment: Share) -> StratifiedProportions:
    """Compare proportions over strata.

    Args:
        control: Events and trials per stratum, shapes (strata,), n >= 1 in each.
        treatment: As control, the same strata in the same order.

    A stratum in which both arms have no events, or nothing else, says nothing of the difference:
    by precision it has weight 0, as studies without events have in a meta-analysis.

    Raises:
        ValueError: Counts that are no counts, different strata, a stratum whose arms have no event
            and nothing else (a difference without any error), or no stratum with spread.

    Source: Mantel, Haenszel 1959; Cochran 1954; strata without events: Cochrane Handbook 10.4.4.1.
    Checked against: tests/vectors/statcases/stratified.json (statsmodels). O(strata).
    """
    x_c, n_c = check_share("control", control)
    x_t, n_t = check_share("treatment", treatment)
    if x_c.ndim != 1 or {x_c.shape, n_c.shape, x_t.shape, n_t.shape} != {x_c.shape}:
        raise ValueError(f"treatment has shape {x_t.shape}, must be (strata,) as control")
    diffs = x_t / n_t - x_c / n_c
    variances, units = wald_variance(x_c, n_c, x_t, n_t), n_c + n_t
    precision = _by_precision(diffs, variances)
    pooled = float(x_t.sum() / n_t.sum() - x_c.sum() / n_c.sum())
    agree = float(np.sum(x_t * (n_c - x_c) / units))
    differ = float(np.sum(x_c * (n_t - x_t) / units))
    events = x_c + x_t
    excess = float(np.sum(x_t - n_t * events / units))
    law = n_t * n_c * events * (units - events) / (units**2 * np.maximum(units - 1, 1))
    spread = float(np.sum(law))
    cmh = excess**2 / spread if spread > 0 else float("nan")
    return StratifiedProportions(
        pooled_diff=pooled,
        diffs=diffs,
        precision=precision,
        population=stratified(diffs, variances, units=units),
        mh_odds_ratio=agree / differ if differ > 0 else float("nan"),
        cmh=cmh,
        cmh_p=float(chi2_sf(cmh, 1)),
        sign_reversal=bool(pooled * float(precision.diff) < 0),
    )


def _by_precision(diffs: FloatArray, variances: FloatArray) -> Stratified:
    """Without strata that say nothing; their weight is 0."""
    telling = (variances > 0) | (diffs != 0)
    if not telling.any():
        raise ValueError("no stratum has spread: every arm has no events, or nothing else")
    found = stratified(diffs[telling], variances[telling], weighting="precision")
    weights = np.zeros(diffs.shape)
    weights[telling] = found.weights
    return found._replace(weights=weights)
