"""Worlds in which a bandit runs: rewards drawn, splits and inference by the product's own code.

Owns the chance, seeded, and the truth that estimates are compared with.
"""

from __future__ import annotations

import itertools
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from control import snapshot
from control.rollout import bandit
from control.rollout.policy import BanditPolicy
from control.rollout.seen import BanditSeen, Interval
from control.stats.confseq import asymptotic_sequence
from turnout.contract import BUCKET_COUNT, UNIT_BUCKETS

Floats = npt.NDArray[np.float64]

EVERY_MS: Final = 300_000
DWELL_MS: Final = 24 * 3_600_000
NAMES: Final = ("control", "a", "b")
EQUAL: Final = {"control": 333_334, "a": 333_333, "b": 333_333}
Z95: Final = 1.959963984540054


class World(NamedTuple):
    """What is true.

    Attributes:
        effects: Of each arm on the chance of a reward, control's 0.
        base: Control's chance at the start.
        drift: By how much every arm's chance has changed at the end, linearly.
        requests: Of all arms over the whole step, on average.
        units: That come back, each with a chance of its own; 0 = every request is a unit.
        spread: Standard deviation of units' chances.
    """

    effects: tuple[float, ...] = (0.0, 0.02, -0.02)
    base: float = 0.9
    drift: float = 0.0
    requests: int = 30_000
    units: int = 0
    spread: float = 0.0


class Outcome(NamedTuple):
    """One run.

    Attributes:
        seen: At the end.
        looks: At each look.
        rewards, counts, shares: By epoch, as `bandit.earnings` takes them.
        regret: Rewards that were truly lost against the best arm, expected.
        uniform: What equal shares would have lost.
        moved: Share of the units that changed their arm, over the whole run.
    """

    seen: BanditSeen
    looks: tuple[BanditSeen, ...]
    rewards: Floats
    counts: Floats
    shares: Floats
    regret: float
    uniform: float
    moved: float


def run(world: World, policy: BanditPolicy, generator: np.random.Generator) -> Outcome:
    """One bandit step from its start to its end, reallocated at every look."""
    people = _People(world, generator) if world.units else None
    times = [0, *bandit.looks(policy.every_ms, DWELL_MS), DWELL_MS]
    split, allocation = dict(EQUAL), snapshot.reallocate({}, EQUAL, control="control")
    sums: list[Floats] = []
    trials: list[Floats] = []
    shares: list[list[float]] = []
    looks: list[BanditSeen] = []
    effects = np.array(world.effects)
    lost, regret, uniform, moved = effects.max() - effects, 0.0, 0.0, 0.0
    for start, end in itertools.pairwise(times):
        share = np.array([split[name] / BUCKET_COUNT for name in NAMES])
        mean = world.requests * (end - start) / DWELL_MS
        level = world.base + world.drift * (start + end) / 2 / DWELL_MS
        if people is None:
            n = generator.poisson(mean * share).astype(np.float64)[:, None]
            chance = np.clip(level + effects, 0, 1)
            x = generator.binomial(n.astype(int)[:, 0], chance).astype(np.float64)[:, None]
        else:
            x, n = people.serve(allocation, mean, level, effects)
        sums.append(x.astype(np.float64))
        trials.append(n)
        shares.append(list(share))
        regret += float(n.sum(axis=1) @ lost)
        uniform += float(n.sum() * lost.mean())
        seen = bandit.earnings(NAMES, np.array(sums), np.array(trials), np.array(shares))
        looks.append(seen)
        if end < DWELL_MS and bandit.enough(seen, policy):
            wanted = bandit.next_split(seen, policy).ppm
            if bandit.moved_ppm(split, wanted) >= bandit.MOVE_PPM_MIN:
                moved += bandit.moved_ppm(split, wanted) / BUCKET_COUNT
                split = wanted
                allocation = snapshot.reallocate(allocation, split, control="control")
    arrays = (np.array(sums), np.array(trials), np.array(shares))
    return Outcome(looks[-1], tuple(looks), *arrays, regret, uniform, moved)


class _People:
    """Units that come back, each in its hash bucket and at its place in the assignment."""

    def __init__(self, world: World, generator: np.random.Generator) -> None:
        self._generator = generator
        self._place = generator.integers(0, BUCKET_COUNT, world.units)
        self._bucket = generator.integers(0, UNIT_BUCKETS, world.units)
        self._own = generator.normal(0, world.spread, world.units)
        busy = generator.pareto(2.5, world.units) + 0.3
        self._busy = busy / busy.sum()

    def serve(
        self, allocation: snapshot.Allocation, mean: float, level: float, effects: Floats
    ) -> tuple[Floats, Floats]:
        """Rewards and requests of one epoch, shape (arms, buckets)."""
        arm = np.zeros(len(self._place), np.int64)
        for index, name in enumerate(NAMES):
            for start, end in allocation.get(name, ()):
                arm[(self._place >= start) & (self._place < end)] = index
        n = self._generator.poisson(mean * self._busy)
        chance = np.clip(level + effects[arm] + self._own, 0, 1)
        x = self._generator.binomial(n, chance)
        cell = arm * UNIT_BUCKETS + self._bucket
        shape = (len(NAMES), UNIT_BUCKETS)
        size = len(NAMES) * UNIT_BUCKETS
        return (
            np.bincount(cell, x, size).reshape(shape).astype(np.float64),
            np.bincount(cell, n, size).reshape(shape).astype(np.float64),
        )


def pooled(outcome: Outcome, looks: int) -> Interval:
    """The naive answer of the first looks: all epochs thrown together, requests independent.

    With the boundary that the valid ones have, so that only the estimate is wrong.
    """
    x = outcome.rewards[:looks, :2].sum(axis=(0, 2))
    n = outcome.counts[:looks, :2].sum(axis=(0, 2))
    p = x / n
    variance = float((p * (1 - p) / n).sum())
    effective = float(4 * n.prod() / n.sum())
    at = asymptotic_sequence(
        float(p[1] - p[0]), variance, n=effective, n_star=bandit.N_STAR, alpha=bandit.ALPHA
    )
    return Interval(float(at.diff), float(at.ci_low), float(at.ci_high))
