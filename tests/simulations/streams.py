"""Streams of units as sufficient state at each look: shapes (reps, looks), cumulative.

Owns the generators that several parts of the plan share. Judges nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from control.stats.moments import Moments, merge

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Counts(NamedTuple):
    """Events x of units n, both arms."""

    x_c: Floats
    n_c: Floats
    x_t: Floats
    n_t: Floats


class World(NamedTuple):
    """Units per look in all, and the share of them that is the candidate's."""

    reps: int
    looks: int
    units_per_look: int
    share: float = 0.5


def bernoulli(world: World, rate_c: float, rate_t: float, rng: np.random.Generator) -> Counts:
    """Cumulative events of units that fall to the arms at random."""
    size = (world.reps, world.looks)
    n_t = rng.binomial(world.units_per_look, world.share, size)
    n_c = world.units_per_look - n_t
    x_c, x_t = rng.binomial(n_c, rate_c), rng.binomial(n_t, rate_t)
    return Counts(*(cumulated(each) for each in (x_c, n_c, x_t, n_t)))


def cumulated(increments: NDArray[np.generic]) -> Floats:
    """Sums up to each look."""
    return np.cumsum(increments, axis=1, dtype=np.float64)


def normal_arm(
    reps: int, looks: int, per_look: int, mean: float, rng: np.random.Generator
) -> Moments:
    """Moments of standard normal units around a mean, merged from look to look.

    A look's mean and sum of squares are drawn as such: mean ~ N(mean, 1/n), m2 ~ chi-squared(n-1).
    """
    means = mean + rng.standard_normal((looks, reps)) / np.sqrt(per_look)
    spreads = rng.chisquare(per_look - 1, (looks, reps))
    seen = Moments(np.zeros(reps), np.zeros(reps), np.zeros(reps))
    states = []
    for middle, m2 in zip(means, spreads, strict=True):
        seen = merge(seen, Moments(np.full(reps, float(per_look)), middle, m2))
        states.append(seen)
    return Moments(*(np.stack(field, axis=1) for field in zip(*states, strict=True)))


def first(crossed: Bools) -> NDArray[np.intp]:
    """Index of the first look that crossed; the number of looks where none did."""
    looks = crossed.shape[-1]
    return np.asarray(np.where(crossed.any(axis=-1), crossed.argmax(axis=-1), looks))


def at(values: Floats, look: NDArray[np.intp]) -> Floats:
    """Each rep's value at its own look, shape (reps,)."""
    return np.asarray(np.take_along_axis(values, look[:, None], axis=1)[:, 0])
