"""Allocation of traffic to arms by how likely each is the best.

Owns P(best), Thompson and top-two weights and the exploration floor. Refuses to draw: it computes
the probabilities, chance stays with the assignment. Inference after a bandit goes by epochs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from control.stats.bayes import BetaPosterior, beta_quantiles, normal_quantiles, p_best
from control.stats.distributions import normal_cdf, normal_pdf
from control.stats.errors import FloatArray, check_scalar, check_vector, require


def p_best_betas(arms: Sequence[BetaPosterior]) -> FloatArray:
    """P(arm has the largest rate), shape (arms,), sums to 1: the weights of Thompson sampling.

    Args:
        arms: Posteriors, at least 2; see `bayes.beta_posterior`.

    Raises:
        ValueError: Fewer than 2 arms, or a parameter <= 0.

    Source: Thompson 1933. Checked against: bandit_prob_best.json (scipy). O(arms^2).
    """
    _check_arms(len(arms))
    for index, arm in enumerate(arms):
        check_scalar(f"arms[{index}].a", arm.a, gt=0)
        check_scalar(f"arms[{index}].b", arm.b, gt=0)
    return p_best(
        lambda i, x: np.asarray(stats.beta.pdf(x, arms[i].a, arms[i].b)),
        lambda i, x: np.asarray(special.betainc(arms[i].a, arms[i].b, x)),
        [beta_quantiles(arm) for arm in arms],
    )


def p_best_normals(means: npt.ArrayLike, ses: npt.ArrayLike) -> FloatArray:
    """P(arm has the largest mean) of independent normal posteriors, shape (arms,).

    Args:
        means: Posterior means, shape (arms,), at least 2.
        ses: Posterior standard deviations, > 0.

    Raises:
        ValueError: An argument is outside its range.

    Source: Thompson 1933. O(arms^2).
    """
    mean, sd = check_vector("means", means), check_vector("ses", ses)
    _check_arms(len(mean))
    require("ses", sd, sd > 0, "> 0")
    if len(sd) != len(mean):
        raise ValueError(f"ses has {len(sd)} values, must be {len(mean)} as means")
    return p_best(
        lambda i, x: np.asarray(normal_pdf((x - mean[i]) / sd[i]) / sd[i]),
        lambda i, x: normal_cdf((x - mean[i]) / sd[i]),
        [normal_quantiles(float(m), float(s)) for m, s in zip(mean, sd, strict=True)],
    )


def top_two_weights(prob_best: npt.ArrayLike, *, beta: float = 0.5) -> FloatArray:
    """Share of traffic per arm by top-two Thompson sampling, shape (arms,), sums to 1.

    Args:
        prob_best: P(arm is best), in [0, 1], sums to 1.
        beta: Share of the plays for the best drawn, in [0, 1]; 1 is Thompson sampling.

    Raises:
        ValueError: An argument is outside its range.

    Source: Russo 2016 (arXiv 1602.08448), psi_i = P_i (beta + (1 - beta) sum_{j != i} P_j /
    (1 - P_j)). An arm that is certainly best leaves the others' part to them evenly. O(arms).
    """
    p = _check_distribution("prob_best", prob_best)
    share = check_scalar("beta", beta, ge=0, le=1)
    # 1 - P_j as the sum of the others, which is exact where P_j is nearly 1.
    others = np.array([np.sum(np.delete(p, j)) for j in range(len(p))])
    # Below the smallest normal number the odds overflow: that arm is certainly best, too.
    certain = others < np.finfo(np.float64).tiny
    if np.any(certain):
        return np.where(certain, share, (1 - share) / (len(p) - 1))
    odds = p / others
    return np.asarray(p * (share + (1 - share) * (odds.sum() - odds)))


def with_floor(weights: npt.ArrayLike, *, floor: float) -> FloatArray:
    """Mix an exploration floor in: p_i = f + (1 - K f) w_i, shape (arms,).

    Args:
        weights: In [0, 1], sums to 1.
        floor: Least share of each of K arms, in [0, 1 / K].

    Raises:
        ValueError: An argument is outside its range.

    Source: epsilon-mixing of an allocation, as GrowthBook's minimum weight. O(arms).
    """
    w = _check_distribution("weights", weights)
    f = check_scalar("floor", floor, ge=0, le=1 / len(w))
    return np.asarray(f + (1 - len(w) * f) * w)


def _check_arms(arms: int) -> None:
    if arms < 2:
        raise ValueError(f"arms == {arms}, must be at least 2")


def _check_distribution(name: str, values: npt.ArrayLike) -> FloatArray:
    p = check_vector(name, values, least=2, ge=0, le=1)
    require(f"sum of {name}", p.sum(), np.abs(p.sum() - 1) < 1e-9, "1")
    return p
