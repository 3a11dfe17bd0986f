"""P1: nothing is different and everybody looks, 100 times. How often is a difference found?"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from control.stats.confseq import asymptotic_sequence
from control.stats.means import cautious_variance, estimate, mean_variances, welch
from control.stats.moments import (
    Moments,
    PairMoments,
    moments_from_sums,
    pair_moments_from_sums,
)
from control.stats.proportions import pooled_variance
from control.stats.ratios import ratio_variance
from tests.simulations.figures import SEED, Claim, Figure, rate_within
from tests.simulations.streams import Bools, Floats, World, bernoulli, cumulated

LOOKS: Final = 100
ALPHA: Final = 0.05
SHARES: Final = {"50/50": 0.5, "95/5": 0.05, "99/1": 0.01}
UNITS_LEAST: Final = 100
EVENTS_LEAST: Final = 10
# Of the smaller arm at the last look, so that the floors are passed early in every split.
EVENTS_AT_END: Final = 500
POPULATION: Final = 1 << 16


class Found(NamedTuple):
    """Shares of reps in which any look said "different"; welch: our sequence with Welch's sum."""

    ours: float
    naive: float
    welch: float = 0.0


def run(*, long: bool) -> list[Figure]:
    """The rates of false differences."""
    figures = []
    reps = 12_000 if long else 4_000
    for number, (split, share) in enumerate(SHARES.items()):
        for rate in (0.10, 0.01, 0.002):
            found = proportions(reps, rate, share, number)
            figures.append(_figure(f"{rate:g} of units, {split}", reps, found))
        found = lognormal(reps, share, number)
        figures.append(_figure(f"lognormal (sigma 2), {split}", reps, found))
        if split != "50/50":
            theirs = Claim(found.welch, ">=", 0.10)
            same = _figure(f"lognormal (sigma 2), {split}", reps, found)
            figures.append(replace(same, naive="ours with Welch's variance", theirs=theirs))
        found = ratio(reps, share, number)
        figures.append(_figure(f"errors of requests by user, {split}", reps, found))
    return figures


def _figure(what: str, reps: int, found: Found) -> Figure:
    return Figure(
        plan="P1",
        what=f"A/A, {what}: different in 100 looks",
        reps=reps,
        ours=rate_within(found.ours, ALPHA, reps),
        naive="t-test at each look",
        theirs=Claim(found.naive, ">=", 0.25),
    )


def proportions(reps: int, rate: float, share: float, seed: int) -> Found:
    """Proportions: pooled variance, floors of events; against Welch's test on 0 and 1."""
    total = max(10_000, round(EVENTS_AT_END / (rate * share)))
    world = World(reps, LOOKS, -(-total // LOOKS), share)
    x_c, n_c, x_t, n_t = c = bernoulli(world, rate, rate, np.random.default_rng([SEED, 1, seed]))
    sequence = asymptotic_sequence(
        x_t / n_t - x_c / n_c, pooled_variance(*c), n=n_c + n_t, n_star=total, alpha=ALPHA
    )
    floors = [np.minimum(np.minimum(x, n - x), n) for x, n in ((x_c, n_c), (x_t, n_t))]
    ready = np.minimum(*floors) >= EVENTS_LEAST
    arms = [moments_from_sums(n, x, sum_sq=x) for x, n in ((x_c, n_c), (x_t, n_t))]
    naive_p = welch(*arms, alpha=ALPHA).p_value
    return _found(sequence.p_value, ready & _enough(n_c, n_t), naive_p)


def lognormal(reps: int, share: float, seed: int) -> Found:
    """Heavy tails, as money has."""
    per_arm = _per_look(share)
    rng = np.random.default_rng([SEED, 2, seed])
    arms: list[Moments] = []
    for per_look in per_arm:
        sums, squares = np.empty((reps, LOOKS)), np.empty((reps, LOOKS))
        for rep in range(reps):
            values = np.exp(2 * rng.standard_normal((LOOKS, per_look)))
            sums[rep] = values.sum(axis=1)
            squares[rep] = np.einsum("ij,ij->i", values, values)
        n = np.arange(1, LOOKS + 1) * float(per_look) * np.ones((reps, 1))
        arms.append(moments_from_sums(n, cumulated(sums), sum_sq=cumulated(squares)))
    diff, (v_c, v_t) = arms[1].mean - arms[0].mean, mean_variances(*arms)
    naive_p = welch(*arms, alpha=ALPHA).p_value
    return _compared(diff, (v_c, arms[0].n), (v_t, arms[1].n), sum(per_arm) * LOOKS, naive_p)


def ratio(reps: int, share: float, seed: int) -> Found:
    """Errors of requests, users assigned: the delta method in the sequence, and peeked as a z."""
    per_arm = _per_look(share)
    rng = np.random.default_rng([SEED, 3, seed])
    requests = 1 + rng.negative_binomial(1, 0.2, POPULATION)
    errors = rng.binomial(requests, rng.beta(0.5, 4.5, POPULATION))
    columns = np.stack([errors, requests, errors**2, requests**2, errors * requests]).astype(float)
    arms: list[PairMoments] = []
    for per_look in per_arm:
        sums = np.empty((5, reps, LOOKS))
        for rep in range(reps):
            users = rng.integers(0, POPULATION, (LOOKS, per_look))
            for column, row in zip(columns, sums, strict=True):
                row[rep] = column[users].sum(axis=1)
        y, x, yy, xx, yx = (cumulated(row) for row in sums)
        n = np.arange(1, LOOKS + 1) * float(per_look) * np.ones((reps, 1))
        arms.append(
            pair_moments_from_sums(n, sum_y=y, sum_x=x, sum_sq_y=yy, sum_sq_x=xx, sum_yx=yx)
        )
    (r_c, v_c), (r_t, v_t) = (ratio_variance(arm) for arm in arms)
    naive = estimate(r_t - r_c, np.sqrt(v_c + v_t), alpha=ALPHA)
    arms_v = (v_c, arms[0].n), (v_t, arms[1].n)
    return _compared(r_t - r_c, *arms_v, sum(per_arm) * LOOKS, naive.p_value)


def _compared(
    diff: Floats,
    control: tuple[Floats, Floats],
    candidate: tuple[Floats, Floats],
    n_star: int,
    naive_p: Floats,
) -> Found:
    (v_c, n_c), (v_t, n_t) = control, candidate
    ours, plain = (
        asymptotic_sequence(diff, variance, n=n_c + n_t, n_star=n_star, alpha=ALPHA)
        for variance in (cautious_variance(v_c, n_c, v_t, n_t), v_c + v_t)
    )
    ready = _enough(n_c, n_t)
    found = _found(ours.p_value, ready, naive_p)
    return found._replace(welch=_ever(ready & (plain.p_value <= ALPHA)))


def _per_look(share: float) -> tuple[int, int]:
    """Units of control and candidate per look: 10,000 to 50,000 in all."""
    total = {0.5: 100, 0.05: 200, 0.01: 500}[share]
    mine = round(total * share)
    return total - mine, mine


def _enough(n_c: Floats, n_t: Floats) -> Bools:
    return np.asarray(np.minimum(n_c, n_t) >= UNITS_LEAST)


def _found(p_value: Floats, ready: Bools, naive_p: Floats) -> Found:
    return Found(_ever(ready & (p_value <= ALPHA)), _ever(naive_p < ALPHA))


def _ever(crossed: Bools) -> float:
    return float(crossed.any(axis=1).mean())
