"""Bayesian readings of a comparison, to be shown: chance to beat, expected loss.

Owns Beta posteriors of proportions and Gaussian ones of means. Refuses to be a gate: posterior
thresholds do not bound how often a peeked A/A test is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
from scipy import special

from control.stats.distributions import normal_cdf, normal_pdf, normal_ppf, normal_sf
from control.stats.errors import FloatArray, check_alpha, check_scalar, require
from control.stats.means import mean_variances
from control.stats.moments import Moments

# Where the panels of the integration meet, as tail probabilities of every distribution involved.
_TAILS: Final = (1e-16, 1e-12, 1e-9, 1e-6, 1e-4, 1e-2, 0.1, 0.3)
_NODES: Final = 48
# Below, nearly all mass is at 0 or 1 alone; above, a posterior is narrower than float64's steps.
PRIOR_LEAST: Final = 0.1
POSTERIOR_MOST: Final = 1e15


class BetaPosterior(NamedTuple):
    """Beta(a, b), the posterior of a rate."""

    a: float
    b: float


class BetaComparison(NamedTuple):
    """p_beat: P(treatment's rate > control's).

    loss_treatment: E[max(c - t, 0)], what choosing the treatment loses on average. loss_control:
    E[max(t - c, 0)].
    """

    p_beat: float
    loss_treatment: float
    loss_control: float


class GaussPrior(NamedTuple):
    """A normal prior of the difference, in the metric's unit and squared unit."""

    mean: float
    variance: float


class GaussComparison(NamedTuple):
    """p_beat: P(difference > 0). mean, sd: Of the posterior. ci_low, ci_high: Credible interval.

    loss_treatment: E[max(-difference, 0)]; loss_control: E[max(difference, 0)].
    """

    p_beat: float
    mean: float
    sd: float
    ci_low: float
    ci_high: float
    loss_treatment: float
    loss_control: float


def beta_posterior(
    successes: int, trials: int, *, prior_a: float = 1.0, prior_b: float = 1.0, name: str = "arm"
) -> BetaPosterior:
    """The posterior of a rate after x of n under a Beta(a, b) prior.

    Raises:
        ValueError: Not 0 <= successes <= trials, not whole, or a prior < 0.1.
    """
    n = check_scalar(f"{name}.trials", trials, ge=0, whole=True)
    x = check_scalar(f"{name}.successes", successes, ge=0, whole=True)
    require(f"{name}.successes", x, x <= n, f"<= {name}.trials")
    a = check_scalar("prior_a", prior_a, ge=PRIOR_LEAST)
    b = check_scalar("prior_b", prior_b, ge=PRIOR_LEAST)
    return BetaPosterior(a + x, b + n - x)


def check_posterior(name: str, arm: BetaPosterior) -> None:
    """Refuse parameters that cannot be integrated over.

    Raises:
        ValueError: One is outside [0.1, 1e15].
    """
    for field, value in (("a", arm.a), ("b", arm.b)):
        check_scalar(f"{name}.{field}", value, ge=PRIOR_LEAST, le=POSTERIOR_MOST)


def compare_betas(control: BetaPosterior, treatment: BetaPosterior) -> BetaComparison:
    """Chance to beat and expected losses of two independent Beta posteriors.

    Raises:
        ValueError: A parameter is outside [0.1, 1e15].

    Source: P = int f_t F_c; loss = int (1 - F_c) F_t. Panelled Gauss-Legendre, relative error
    about 1e-10. Checked against: tests/vectors/statcases/bayes_beta.json (scipy). O(1).
    """
    for name, arm in (("control", control), ("treatment", treatment)):
        check_posterior(name, arm)
    arms = (control, treatment)
    x, weights = panels([beta_quantiles(arm) for arm in arms])
    cdf_c, cdf_t = (special.betainc(arm.a, arm.b, x) for arm in arms)
    sf_c, sf_t = (special.betaincc(arm.a, arm.b, x) for arm in arms)
    density = beta_density(treatment, x)
    return BetaComparison(
        p_beat=float(np.clip(np.sum(weights * density * cdf_c), 0.0, 1.0)),
        loss_treatment=float(np.sum(weights * sf_c * cdf_t)),
        loss_control=float(np.sum(weights * sf_t * cdf_c)),
    )


def compare_gauss(
    control: Moments,
    treatment: Moments,
    *,
    prior: GaussPrior | None = None,
    alpha: float = 0.05,
) -> GaussComparison:
    """Gaussian posterior of a difference of means, of one cell.

    Args:
        control: Moments with n >= 2, single cell.
        treatment: As control; some spread in one of them.
        prior: None is flat.
        alpha: 1 - the credible interval's probability, in (0, 1).

    Raises:
        ValueError: An argument is outside its range, or no spread in both arms.

    Source: conjugate normal; loss = -mu Phi(-mu/s) + s phi(mu/s). Checked against:
    tests/vectors/statcases/bayes_gauss.json (gbstats). O(1).
    """
    v_c, v_t = mean_variances(control, treatment)
    variance = _single("variance of the difference", v_c + v_t, gt=0)
    mean = _single("difference", treatment.mean - control.mean)
    if prior is not None:
        own = check_scalar("prior.variance", prior.variance, gt=0)
        centre = check_scalar("prior.mean", prior.mean)
        share = variance / (variance + own)
        mean, variance = share * centre + (1 - share) * mean, own * share
    sd = float(np.sqrt(variance))
    half = float(-normal_ppf(check_alpha(alpha) / 2)) * sd
    return GaussComparison(
        p_beat=float(normal_cdf(mean / sd)),
        mean=mean,
        sd=sd,
        ci_low=mean - half,
        ci_high=mean + half,
        loss_treatment=_expected_shortfall(mean, sd),
        loss_control=_expected_shortfall(-mean, sd),
    )


def beta_quantiles(arm: BetaPosterior) -> FloatArray:
    """Points that split a Beta's mass for `panels`, ends of its range included."""
    tails = np.asarray(_TAILS)
    below = special.betaincinv(arm.a, arm.b, np.append(tails, 0.5))
    above = special.betainccinv(arm.a, arm.b, tails)
    return np.concatenate([[0.0], below, above, [1.0]])


def beta_density(arm: BetaPosterior, x: FloatArray) -> FloatArray:
    """A Beta's density at nodes of `panels`; below a parameter of 1 it is infinite at an end.

    Nodes are inside of [0, 1] but for rounding, which takes them to an end where mass is close.
    """
    inside = np.clip(x, np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg)
    from scipy import stats  # large, and only needed here

    return np.asarray(stats.beta.pdf(inside, arm.a, arm.b))


def normal_quantiles(mean: float, sd: float) -> FloatArray:
    """Points that split a normal's mass for `panels`, to nine standard deviations."""
    z = normal_ppf(np.append(np.asarray(_TAILS), 0.5))
    return np.asarray(mean + sd * np.concatenate([[-9.0], z, -z, [9.0]]))


def panels(quantiles: Sequence[FloatArray]) -> tuple[FloatArray, FloatArray]:
    """Nodes and weights that integrate over all of some distributions, however narrow each is.

    Args:
        quantiles: Points of each distribution between which its density is smooth.

    Source: composite Gauss-Legendre, 48 nodes per panel.
    """
    ends = np.unique(np.concatenate(list(quantiles)))
    unit_nodes, unit_weights = np.polynomial.legendre.leggauss(_NODES)
    half = np.diff(ends) / 2
    nodes = (ends[:-1] + half)[:, None] + half[:, None] * unit_nodes
    return nodes.ravel(), (half[:, None] * unit_weights).ravel()


def p_best(
    density: Callable[[int, FloatArray], FloatArray],
    cdf: Callable[[int, FloatArray], FloatArray],
    quantiles: Sequence[FloatArray],
) -> FloatArray:
    """P(arm i is the largest) of independent continuous posteriors, shape (arms,).

    Args:
        density: Of arm i at points x.
        cdf: Of arm i at points x.
        quantiles: Per arm, as for `panels`.

    Source: int f_i prod_{j != i} F_j; normalised, which takes off the last rounding.
    """
    x, weights = panels(quantiles)
    arms = range(len(quantiles))
    below = [cdf(i, x) for i in arms]
    best = np.zeros(len(quantiles))
    for i in arms:
        others = np.prod([below[j] for j in arms if j != i], axis=0)
        best[i] = np.sum(weights * density(i, x) * others)
    return np.asarray(best / best.sum())


def _single(name: str, cell: FloatArray, *, gt: float | None = None) -> float:
    if np.ndim(cell):
        raise ValueError(f"{name} has shape {np.shape(cell)}, must be one number")
    return check_scalar(name, float(cell), gt=gt)


def _expected_shortfall(mean: float, sd: float) -> float:
    # E[max(-X, 0)]; the difference of near equals is 0 from 37 standard deviations on.
    z = mean / sd
    return max(float(sd * normal_pdf(z) - mean * normal_sf(z)), 0.0)
