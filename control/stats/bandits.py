"""Allocation of traffic to arms by how likely each is the best, and inference afterwards.

Owns P(best), Thompson and top-two weights, the exploration floor, and the means and differences
that shares which followed the outcomes leave valid. Refuses to draw: it computes the probabilities,
chance stays with the assignment; and to pool raw counts over epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from control.stats.bayes import (
    BetaPosterior,
    beta_density,
    beta_quantiles,
    check_posterior,
    normal_quantiles,
    p_best,
)
from control.stats.bucketed import bucketed_difference
from control.stats.distributions import normal_cdf, normal_pdf
from control.stats.errors import (
    SMALLEST,
    FloatArray,
    check,
    check_scalar,
    check_vector,
    require,
)


class ArmMeans(NamedTuple):
    """Mean reward of each arm and its variance, both of shape (arms,); NaN without evidence."""

    mean: FloatArray
    variance: FloatArray


class ArmDifference(NamedTuple):
    """Mean reward of one arm - another's; NaN where no epoch has both.

    diff, variance: Of the difference. effective: 4 sum n_c n_t / (n_c + n_t), the number of
    requests at 50:50 that tells as much.
    """

    diff: float
    variance: float
    effective: float


def p_best_betas(arms: Sequence[BetaPosterior]) -> FloatArray:
    """P(arm has the largest rate), shape (arms,), sums to 1: the weights of Thompson sampling.

    Args:
        arms: Posteriors, at least 2; see `bayes.beta_posterior`.

    Raises:
        ValueError: Fewer than 2 arms, or a parameter is outside [0.1, 1e15].

    Source: Thompson 1933. Checked against: bandit_prob_best.json (scipy). O(arms^2).
    """
    _check_arms(len(arms))
    for index, arm in enumerate(arms):
        check_posterior(f"arms[{index}]", arm)
    return p_best(
        lambda i, x: beta_density(arms[i], x),
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
    require("ses", sd, sd >= SMALLEST, ">= 1e-60")
    if len(sd) != len(mean):
        raise ValueError(f"ses has {len(sd)} values, must be {len(mean)} as means")
    # Around the best: far from 0 the steps of float64 are wider than a posterior.
    mean = mean - mean.max()
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
    (1 - P_j)). An arm that is certainly best leaves the others' part to them evenly. O(arms^2).
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
    # Summed anew for each: the best arm's odds are so large that taking them off would leave noise.
    rest = np.array([np.sum(np.delete(odds, i)) for i in range(len(p))])
    weights = p * (share + (1 - share) * rest)
    return np.asarray(weights / weights.sum())


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


def stratified_means(rewards: npt.ArrayLike, counts: npt.ArrayLike) -> ArmMeans:
    """Mean reward per arm when shares changed from epoch to epoch by what was seen.

    Each epoch's arms are compared under one fixed split; epochs are weighted by their traffic in
    all arms, so that a base rate which drifts while traffic moves is in every arm's mean alike.

    Args:
        rewards: Rewards earned, each request's in [0, 1], shape (epochs, arms, buckets).
        counts: Requests, >= 0, the same shape. Buckets hold whole units: a unit that comes back in
            another epoch is in the same one. One bucket: requests are independent.

    Returns:
        NaN when no epoch has requests in every arm; an epoch that has not is left out.

    Raises:
        ValueError: Shapes differ, or not 0 <= rewards <= counts.

    Source: post-stratification by epoch (for adaptive experiments: Hadad et al. 2021,
    arXiv 1911.02768); variance over buckets of each one's
    whole influence, at least the binomial one. O(epochs x arms x buckets).
    """
    x, n = _check_rewards(rewards, counts)
    arms, totals = n.shape[1], n.sum(axis=2)
    every = (totals > 0).all(axis=1)
    if not every.any():
        return _nothing(arms)
    x, n, totals = x[every], n[every], totals[every]
    weights = totals.sum(axis=1) / totals.sum()
    rates = x.sum(axis=2) / totals
    scale = (weights[:, None] / totals)[:, :, None]
    influence = (scale * (x - rates[:, :, None] * n)).sum(axis=0)
    floor = (weights[:, None] ** 2 * _binomial(x.sum(axis=2), totals)).sum(axis=0)
    return ArmMeans(weights @ rates, np.maximum(_spread(influence), floor))


def propensity_means(
    rewards: npt.ArrayLike, counts: npt.ArrayLike, shares: npt.ArrayLike
) -> ArmMeans:
    """Mean reward per arm, every request weighted by one over the share that its arm had.

    Args:
        rewards: As `stratified_means`.
        counts: As `stratified_means`.
        shares: Share of the arm in the epoch, by design, in (0, 1], shape (epochs, arms).

    Returns:
        NaN for an arm without requests.

    Raises:
        ValueError: Shapes differ, or a number is outside its range.

    Source: Horvitz, Thompson 1952, with the weights' own sum below (Hajek 1971); delta-method
    variance over buckets, at least that of independent requests. O(epochs x arms x buckets).
    """
    x, n = _check_rewards(rewards, counts)
    mean, influence, floor = _propensity(x, n, _check_shares(shares, x))
    return ArmMeans(mean, np.maximum(_spread(influence), floor))


def stratified_difference(
    rewards: npt.ArrayLike, counts: npt.ArrayLike, *, control: int, treatment: int
) -> ArmDifference:
    """Difference of two arms, within epochs only.

    Args:
        rewards: As `stratified_means`.
        counts: As `stratified_means`.
        control: Index of the arm that is compared with.
        treatment: Index of the other arm.

    Raises:
        ValueError: As `stratified_means`, or no such arm.

    Source: `bucketed.bucketed_difference`; its variance is at least the binomial one here, because
    a short epoch of a rare event can have none at all. O(epochs x buckets).
    """
    x, n = _check_rewards(rewards, counts)
    _check_pair(n.shape[1], control, treatment)
    if n.shape[2] == 1:  # one bucket has no spread: the floor alone speaks
        x, n = (np.concatenate([part, np.zeros_like(part)], axis=2) for part in (x, n))
        alone = True
    else:
        alone = False
    found = bucketed_difference(x[:, control], n[:, control], x[:, treatment], n[:, treatment])
    totals = n.sum(axis=2)[:, [control, treatment]]
    both = (totals > 0).all(axis=1)
    if not both.any():
        return ArmDifference(float("nan"), float("nan"), 0.0)
    sums, totals = x.sum(axis=2)[both][:, [control, treatment]], totals[both]
    harmonic = totals.prod(axis=1) / totals.sum(axis=1)
    weights = harmonic / harmonic.sum()
    floor = float((weights[:, None] ** 2 * _binomial(sums, totals)).sum())
    variance = floor if alone else max(found.variance, floor)
    return ArmDifference(found.diff, variance, found.effective)


def propensity_difference(
    rewards: npt.ArrayLike,
    counts: npt.ArrayLike,
    shares: npt.ArrayLike,
    *,
    control: int,
    treatment: int,
) -> ArmDifference:
    """Difference of two arms by inverse propensity; see `propensity_means`.

    Raises:
        ValueError: As `propensity_means`, or no such arm.
    """
    x, n = _check_rewards(rewards, counts)
    _check_pair(n.shape[1], control, treatment)
    mean, influence, floors = _propensity(x, n, _check_shares(shares, x))
    totals = n.sum(axis=(0, 2))[[control, treatment]]
    effective = 4 * float(totals.prod() / totals.sum()) if totals.all() else 0.0
    both = influence[treatment] - influence[control]
    floor = float(floors[treatment] + floors[control])
    variance = max(float(_spread(both[None, :])[0]), floor)
    return ArmDifference(float(mean[treatment] - mean[control]), variance, effective)


def _propensity(
    x: FloatArray, n: FloatArray, shares: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Means, each bucket's influence on them (arms, buckets), and variances of single requests."""
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = (n.sum(axis=2) / shares).sum(axis=0)
        mean = (x.sum(axis=2) / shares).sum(axis=0) / whole
        scale = 1 / (shares * whole)
        left = x - mean[None, :, None] * n
        influence = (scale[:, :, None] * left).sum(axis=0)
        trials = n.sum(axis=2)
        # One hit and one miss added, so that an arm without either has a variance, too.
        smooth = (x.sum(axis=(0, 2)) + 1) / (trials.sum(axis=0) + 2)
        floor = (scale**2 * trials).sum(axis=0) * smooth * (1 - smooth)
    return mean, influence, floor


def _binomial(hits: FloatArray, trials: FloatArray) -> FloatArray:
    """Variance of a share of independent trials; one hit and one miss added, so that it is > 0."""
    smooth = (hits + 1) / (trials + 2)
    return np.asarray(smooth * (1 - smooth) / trials)


def _spread(influence: FloatArray) -> FloatArray:
    """Variance of a sum of buckets' influences that add up to 0, shape (arms, buckets)."""
    buckets = influence.shape[-1]
    if buckets < 2:
        return np.zeros(influence.shape[0])
    return np.asarray(buckets / (buckets - 1) * (influence**2).sum(axis=-1))


def _nothing(arms: int) -> ArmMeans:
    return ArmMeans(np.full(arms, np.nan), np.full(arms, np.nan))


def _check_rewards(rewards: npt.ArrayLike, counts: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    x, n = check("rewards", rewards, ge=0), check("counts", counts, ge=0)
    if x.ndim != 3 or x.shape != n.shape or x.shape[1] < 2 or x.shape[2] < 1:
        raise ValueError(
            f"rewards has shape {x.shape} and counts {n.shape}, must be (epochs, >= 2 arms, "
            "buckets) both"
        )
    require("rewards", x, x <= n, "<= counts")
    return x, n


def _check_shares(shares: npt.ArrayLike, rewards: FloatArray) -> FloatArray:
    share = check("shares", shares, gt=0, le=1)
    if share.shape != rewards.shape[:2]:
        raise ValueError(f"shares has shape {share.shape}, must be {rewards.shape[:2]}")
    return share


def _check_pair(arms: int, control: int, treatment: int) -> None:
    # A bool is an int, and would be a mask.
    known = (type(one) in (int, np.int64) and 0 <= one < arms for one in (control, treatment))
    if not all(known) or control == treatment:
        raise ValueError(f"control == {control}, treatment == {treatment}: two of {arms} arms")


def _check_arms(arms: int) -> None:
    if arms < 2:
        raise ValueError(f"arms == {arms}, must be at least 2")


def _check_distribution(name: str, values: npt.ArrayLike) -> FloatArray:
    p = check_vector(name, values, least=2, ge=0, le=1)
    require(f"sum of {name}", p.sum(), np.abs(p.sum() - 1) < 1e-9, "1")
    return p
