"""Confidence sequences: intervals that stay valid however often and whenever one looks.

Owns the one boundary of all gates (two- and one-sided normal mixture, in its parametrisations:
asymptotic, mSPRT, t for small samples) and the exact one of a Bernoulli rate. Refuses to choose
tuning from the data: `tau`, `n_star`, `t_opt` and `g` are fixed before the first look.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from control.stats.distributions import log_beta, normal_log_cdf
from control.stats.errors import (
    SMALLEST,
    Alternative,
    BoolArray,
    FloatArray,
    check,
    check_alpha,
    check_alternative,
    check_scalar,
    check_shapes,
    require,
)
from control.stats.means import mean_variances
from control.stats.moments import Moments
from control.stats.roots import edge

_BISECTIONS: Final = 200  # more than a float64 has steps between 0 and any bound: ends by itself
_XTOL: Final = 1e-13
_VARIANCE_LEAST: Final = SMALLEST**2  # below there is no spread: quotients would overflow


class Sequence(NamedTuple):
    """A confidence sequence at one look; all arrays of one shape, NaN where `decided` is false.

    diff: Estimate, in the metric's unit. se: Its standard error. ci_low, ci_high: Ends that cover
    the effect at all looks at once with probability >= 1 - alpha; one is infinite when one-sided.
    half_width: Finite end's distance from diff. log_e: ln of the e-value against no effect
    (one-sided: -ln of the p-value). p_value: min(1, 1 / e) of this look; the minimum over looks
    is valid at any time.
    """

    diff: FloatArray
    se: FloatArray
    ci_low: FloatArray
    ci_high: FloatArray
    half_width: FloatArray
    log_e: FloatArray
    p_value: FloatArray

    @property
    def decided(self) -> BoolArray:
        """Where there is a sequence: false without spread (se == 0)."""
        return np.asarray(np.isfinite(self.half_width))[()]


class Ends(NamedTuple):
    """Both ends of a confidence sequence of one number."""

    low: float
    high: float


def best_rho(v_opt: npt.ArrayLike, *, alpha: float, one_sided: bool = False) -> FloatArray:
    """The mixture's rho that makes the boundary tightest near intrinsic time `v_opt`.

    Args:
        v_opt: Intrinsic time, > 0, any shape.
        alpha: In (0, 1), one-sided in (0, 0.5).
        one_sided: Tune at 2 alpha, for the one-sided mixture.

    Raises:
        ValueError: An argument is outside its range.

    Source: Howard et al. 2021 (arXiv 1810.08240), Proposition 3 and its approximation in confseq.
    """
    level = check_alpha(alpha, below=0.5 if one_sided else 1.0) * (2 if one_sided else 1)
    spent = 2 * np.log(1 / level)
    return np.asarray(check("v_opt", v_opt, gt=0) / (spent + np.log1p(spent)))[()]


def normal_log_mixture(
    s: npt.ArrayLike, v: npt.ArrayLike, *, rho: npt.ArrayLike, one_sided: bool = False
) -> FloatArray:
    """The ln of the normal mixture supermartingale: an e-value against a drift of 0.

    Args:
        s: Sum process, any shape.
        v: Its intrinsic time (variance), >= 0.
        rho: Tuning, > 0; see `best_rho`.
        one_sided: Against drifts above 0 alone.

    Raises:
        ValueError: An argument is outside its range.

    Source: Howard et al. 2021, Propositions 4 (one-sided) and 5 (two-sided). Checked against:
    normal_mixture.json (confseq). O(1) per cell.
    """
    total, time = check("s", s), check("v", v, ge=0)
    tuning = check("rho", rho, gt=0)
    check_shapes(s=s, v=v, rho=rho)
    log = np.log(tuning / (time + tuning)) / 2 + total**2 / (2 * (time + tuning))
    if one_sided:
        log = log + np.log(2) + normal_log_cdf(total / np.sqrt(time + tuning))
    return np.asarray(log)[()]


def normal_mixture_bound(
    v: npt.ArrayLike, *, alpha: float, rho: npt.ArrayLike, one_sided: bool = False
) -> FloatArray:
    """The boundary that |s| (one-sided: s) crosses at any time with probability <= alpha.

    Args:
        v: Intrinsic time, >= 0, any shape.
        alpha: Crossing probability in (0, 1).
        rho: Tuning, > 0, a shape that fits v.
        one_sided: Solved numerically, to 1e-13 of the bound.

    Raises:
        ValueError: An argument is outside its range.

    Source: Howard et al. 2021, eq. 14 (two-sided), Proposition 4 (one-sided). Checked against:
    normal_mixture.json (confseq).
    """
    time, tuning = check("v", v, ge=0), check("rho", rho, gt=0)
    check_shapes(v=v, rho=rho)
    level = check_alpha(alpha)
    two_sided = np.sqrt((time + tuning) * (np.log1p(time / tuning) + 2 * np.log(1 / level)))
    if not one_sided:
        return np.asarray(two_sided)[()]
    # In z = s / sqrt(v + rho) the mixture is increasing: ln 2 + z^2 / 2 + ln Phi(z) = threshold.
    threshold = np.log1p(time / tuning) / 2 - np.log(level)
    high = np.sqrt(2 * threshold) + 1.0
    low = np.full_like(high, -40.0)
    for _ in range(_BISECTIONS):
        z = (low + high) / 2
        above = np.log(2) + z**2 / 2 + normal_log_cdf(z) > threshold
        low, high = np.where(above, low, z), np.where(above, z, high)
        if np.all(high - low <= _XTOL * np.abs(high)):
            break
    return np.asarray((low + high) / 2 * np.sqrt(time + tuning))[()]


def normal_sequence(
    diff: npt.ArrayLike,
    variance: npt.ArrayLike,
    *,
    tau2: npt.ArrayLike,
    alpha: float = 0.05,
    null: npt.ArrayLike = 0.0,
) -> Sequence:
    """Two-sided normal-mixture confidence sequence of any estimate with a variance; vectorised.

    The common form: every estimator of this package gives diff and variance = se^2. Valid for
    gaussian estimates, asymptotically for others; the same tau2 at all looks.

    Args:
        diff: Estimate, any shape.
        variance: Its squared standard error, >= 0; 0 gives an undecided cell.
        tau2: Mixture variance in squared units of the effect, > 0; about the squared minimum
            effect worth finding.
        alpha: Crossing probability in (0, 1).
        null: The effect tested against.

    Raises:
        ValueError: An argument is outside its range.

    Source: Robbins 1970; Johari et al. 2022 (Oper. Res.), eq. 8, solved for the effect. O(1).
    """
    d, v = check("diff", diff), check("variance", variance, ge=0)
    t2, value = check("tau2", tau2, gt=0), check("null", null)
    check_shapes(diff=diff, variance=variance, tau2=tau2, null=null)
    level = check_alpha(alpha)
    v = np.where(v > _VARIANCE_LEAST, v, np.nan)
    # log1p, not ln((v + tau2) / v): late looks have v << tau2, early ones v >> tau2.
    growth = np.log1p(t2 / v)
    half = np.sqrt(v * (1 + v / t2) * (growth + 2 * np.log(1 / level)))
    log_e = (d - value) ** 2 / v / (1 + v / t2) / 2 - growth / 2
    return _sequence(d, v, half, log_e, "two-sided")


def sequence_rho(n_star: npt.ArrayLike, *, alpha: float, one_sided: bool = False) -> FloatArray:
    """The rho that makes the asymptotic sequence tightest near `n_star` units in all.

    Raises:
        ValueError: n_star <= 0, or alpha outside (0, 1), one-sided (0, 0.5).

    Source: Waudby-Smith et al. (arXiv 2103.06476v7), eq. 161; one-sided at 2 alpha.
    """
    return np.asarray(np.sqrt(1 / best_rho(n_star, alpha=alpha, one_sided=one_sided)))[()]


def asymptotic_sequence(
    diff: npt.ArrayLike,
    variance: npt.ArrayLike,
    *,
    n: npt.ArrayLike,
    n_star: npt.ArrayLike,
    alpha: float = 0.05,
    alternative: Alternative = "two-sided",
) -> Sequence:
    """Asymptotic confidence sequence of an estimate from n units, tuned at n_star; vectorised.

    Args:
        diff: Estimate, any shape.
        variance: Its squared standard error, >= 0; 0 gives an undecided cell.
        n: Units of both arms together, > 0.
        n_star: The n at which the sequence is tightest, > 0; fixed before the first look.
        alpha: Crossing probability in (0, 1), one-sided in (0, 0.5).
        alternative: "greater" bounds the effect from below, "less" from above.

    Raises:
        ValueError: An argument is outside its range.

    Source: Waudby-Smith et al. (arXiv 2103.06476v7), eq. 9 (two-sided), 134 (one-sided), 155, 161;
    the one-sided p-value is eq. 134 solved for alpha with rho fixed. Checked against:
    tests/vectors/statcases/cs_asymptotic.json (gbstats). O(1) per cell.
    """
    sided = check_alternative(alternative)
    d, v = check("diff", diff), check("variance", variance, ge=0)
    units = check("n", n, gt=0)
    check_shapes(diff=diff, variance=variance, n=n, n_star=n_star)
    rho = sequence_rho(n_star, alpha=alpha, one_sided=sided != "two-sided")
    if sided == "two-sided":
        safe = np.where(v > _VARIANCE_LEAST, v, 1.0)
        cells = normal_sequence(d, safe, tau2=rho**2 * safe * units, alpha=alpha)
        return _blank(cells, v > _VARIANCE_LEAST)
    v = np.where(v > _VARIANCE_LEAST, v, np.nan)
    time = units * rho**2
    log_root = np.log1p(time) / 2
    half = np.sqrt(v * 2 * (1 + 1 / time) * np.logaddexp(0, log_root - np.log(2 * alpha)))
    toward = np.maximum(d if sided == "greater" else -d, 0.0)
    score = toward**2 / (2 * v * (1 + 1 / time))
    with np.errstate(divide="ignore"):  # an effect of 0, or the other way, has e == 0
        log_e = np.log(2) + score + np.log(-np.expm1(-score)) - log_root
    return _sequence(d, v, half, log_e, sided)


def asymptotic_means(
    control: Moments,
    treatment: Moments,
    *,
    n_star: npt.ArrayLike,
    alpha: float = 0.05,
    alternative: Alternative = "two-sided",
) -> Sequence:
    """`asymptotic_sequence` for the difference of two means; n = n_c + n_t; vectorised.

    Raises:
        ValueError: An arm has fewer than 2 units, or an argument is outside its range.
    """
    variance_c, variance_t = mean_variances(control, treatment)
    return asymptotic_sequence(
        treatment.mean - control.mean,
        variance_c + variance_t,
        n=control.n + treatment.n,
        n_star=n_star,
        alpha=alpha,
        alternative=alternative,
    )


def msprt(
    diff: npt.ArrayLike,
    sigma: npt.ArrayLike,
    *,
    n_control: npt.ArrayLike,
    n_treatment: npt.ArrayLike,
    tau: npt.ArrayLike,
    alpha: float = 0.05,
    null: npt.ArrayLike = 0.0,
) -> Sequence:
    """Mixture sequential probability ratio test of a difference of means; vectorised.

    Args:
        diff: Treatment - control, in the metric's unit.
        sigma: Known standard deviation of a unit, > 0.
        n_control: Units, >= 1.
        n_treatment: Units, >= 1.
        tau: Standard deviation of the mixture over effects, > 0, in the metric's unit.
        alpha: Crossing probability in (0, 1).
        null: The difference tested against.

    Raises:
        ValueError: An argument is outside its range.

    Source: Johari et al. 2022 (arXiv 1512.04922), eq. 8 with V = sigma^2 (1/n_c + 1/n_t). Checked
    against: tests/vectors/statcases/msprt.json (experiment-toolkit). O(1) per cell.
    """
    n_c, n_t = check("n_control", n_control, ge=1), check("n_treatment", n_treatment, ge=1)
    spread, prior = check("sigma", sigma, gt=0), check("tau", tau, gt=0)
    check_shapes(diff=diff, sigma=sigma, n_control=n_control, n_treatment=n_treatment, tau=tau)
    variance = spread**2 * (1 / n_c + 1 / n_t)
    return normal_sequence(diff, variance, tau2=prior**2, alpha=alpha, null=null)


def t_radius(n: int, coefficients: int, *, alpha: float, g: float | None = None) -> float:
    """Anytime-valid t quantile: half-width in standard errors, exact for gaussian residuals.

    Args:
        n: Observations, > coefficients + 1.
        coefficients: Fitted ones, >= 1 (a difference of two means: 2).
        alpha: Crossing probability in (0, 1).
        g: Tuning, > 0, fixed beforehand; None takes the g >= 1 that is best at this n, which is
            right only for the n that was planned.

    Raises:
        ValueError: An argument is outside its range, or n is too small for any finite radius with
            this g and alpha.

    Source: Lindon et al. (arXiv 2210.08589), the t radius of package avlm: with T = g / (g + n),
    w = (T alpha^2)^(1 / (nu + 1)), radius^2 = nu (1 - w) / (w - T). Checked against: avlm_t.json.
    """
    p = int(check_scalar("coefficients", coefficients, ge=1, whole=True))
    units = check_scalar("n", n, gt=p + 1, whole=True)
    level = check_alpha(alpha)
    nu = units - p
    # w > T holds for g < n a / (1 - a), a = alpha^(2 / nu): larger g have no finite radius.
    log_limit = float(
        np.log(units) + 2 * np.log(level) / nu - np.log(-np.expm1(2 * np.log(level) / nu))
    )
    if g is not None:
        tuning = check_scalar("g", g, gt=0)
        return _t_radius(tuning, units, nu, level)
    from scipy import optimize  # slow to import, and only needed here

    best = optimize.minimize_scalar(
        lambda log_g: _t_radius(float(np.exp(log_g)), units, nu, level, strict=False),
        bounds=(0.0 if log_limit > 0 else log_limit - 10.0, log_limit),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return _t_radius(float(np.exp(best.x)), units, nu, level)


def t_sequence(
    estimate: float,
    std_error: float,
    *,
    n: int,
    coefficients: int,
    alpha: float = 0.05,
    g: float | None = None,
) -> Ends:
    """Confidence sequence of a regression coefficient with unknown variance, for small samples.

    Args:
        estimate: Of the coefficient.
        std_error: Its standard error by least squares, > 0.
        n: As of `t_radius`, like the rest.
        coefficients: Fitted coefficients.
        alpha: Crossing probability.
        g: Tuning.

    Raises:
        ValueError: An argument is outside its range.

    Source: as of `t_radius`.
    """
    middle = check_scalar("estimate", estimate)
    half = t_radius(n, coefficients, alpha=alpha, g=g) * check_scalar("std_error", std_error, gt=0)
    return Ends(middle - half, middle + half)


def bernoulli_sequence(
    successes: int, trials: int, *, alpha: float, t_opt: float, alpha_opt: float = 0.05
) -> Ends:
    """Exact confidence sequence of one Bernoulli rate by a beta-binomial mixture.

    Args:
        successes: 0 <= successes <= trials.
        trials: >= 0; 0 gives [0, 1].
        alpha: Crossing probability in (0, 1).
        t_opt: The number of trials at which it is tightest, > 0; fixed beforehand.
        alpha_opt: The alpha that the tuning is for, in (0, 1).

    Raises:
        ValueError: An argument is outside its range.

    Source: Howard et al. 2021, Proposition 7 with g = p, h = 1 - p. Checked against:
    tests/vectors/statcases/bernoulli_cs.json (confseq).
    """
    n = check_scalar("trials", trials, ge=0, whole=True)
    x = check_scalar("successes", successes, ge=0, whole=True)
    require("successes", x, x <= n, "<= trials")
    threshold = -np.log(check_alpha(alpha))
    tuned = float(best_rho(check_scalar("t_opt", t_opt, gt=0), alpha=alpha_opt))
    if n == 0:
        return Ends(0.0, 1.0)
    rate = x / n

    def outside(p: float) -> bool:
        return bool(beta_binomial_log_mixture(x, n, p=p, rho=tuned) > threshold)

    low = 0.0 if x == 0 else edge(rate, 0.0, outside)
    return Ends(low, 1.0 if x == n else edge(rate, 1.0, outside))


def beta_binomial_log_mixture(
    x: npt.ArrayLike, n: npt.ArrayLike, *, p: npt.ArrayLike, rho: float
) -> FloatArray:
    """The ln of the e-value of x successes in n trials against a rate of p; x may be fractional.

    Args:
        x: 0 <= x <= n.
        n: Trials.
        p: Rate under the null, in (0, 1).
        rho: `best_rho` of the number of trials to tune for: per p (1 - p).

    Source: Howard et al. 2021, Proposition 7: a beta prior of mean p and weight r / (p (1 - p)),
    r = max(rho - 1, 0.001) in these units, as confseq floors it. O(1) per cell.
    """
    k = np.asarray(x, dtype=np.float64)
    rate = np.asarray(p, dtype=np.float64)
    weight = max(rho - 1.0, 1e-3)
    a, b = weight * rate, weight * (1 - rate)
    misses = np.asarray(n) - k
    likelihood = k * np.log(rate) + misses * np.log1p(-rate)
    return np.asarray(log_beta(a + k, b + misses) - log_beta(a, b) - likelihood)[()]


def _t_radius(g: float, n: float, nu: float, alpha: float, *, strict: bool = True) -> float:
    share = g / (g + n)
    # w - T loses all digits for large nu unless taken as T (exp(x) - 1).
    log_share = -np.log1p(n / g)
    log_w = (log_share + 2 * np.log(alpha)) / (nu + 1)
    gap = share * np.expm1(log_w - log_share)
    if gap <= 0:
        if strict:
            raise ValueError(f"g == {g:g}, must be smaller: no finite radius at n == {n:g}")
        return float(np.finfo(np.float64).max)
    return float(np.sqrt(nu * -np.expm1(log_w) / gap))


def _sequence(
    d: FloatArray, v: FloatArray, half: FloatArray, log_e: FloatArray, sided: Alternative
) -> Sequence:
    low, high = d - half, d + half
    if sided != "two-sided":
        open_end = np.where(np.isnan(half), np.nan, np.inf)
        low, high = (low, open_end) if sided == "greater" else (-open_end, high)
    p = np.exp(-np.maximum(log_e, 0.0))
    arrays = np.broadcast_arrays(d, np.sqrt(v), low, high, half, log_e, p)
    return Sequence(*(array[()] for array in arrays))


def _blank(cells: Sequence, decided: npt.ArrayLike) -> Sequence:
    blanked = (np.where(decided, field, np.nan)[()] for field in cells[1:])
    return Sequence(cells.diff, *blanked)
