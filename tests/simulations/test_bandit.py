"""Bandits: they lose less than equal shares, and what is said afterwards is true.

Regret and coverage over seeded runs, by the product's own code. Bounds on coverage are 3 standard
errors below 95 %; the naive estimate (all epochs pooled, requests independent) stands beside it and
must miss them, else the world would not show anything. Seeds are fixed, so nothing here is left to
chance: the bounds say what the figures mean.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from control.rollout.policy import BanditPolicy
from control.rollout.seen import Interval
from control.stats.bandits import stratified_difference
from tests.simulations.bandit_worlds import DWELL_MS, EVERY_MS, Z95, Outcome, World, pooled, run

# Every arm gets worse during the step while traffic moves to the better ones.
DRIFTING = World(drift=-0.2)
# Besides, units come back, busy ones a hundred times, and each has a chance of its own.
STICKY = World(base=0.8, drift=-0.2, units=3_000, spread=0.08)
# Nobody is better: the bandit wanders.
ALIKE = World(effects=(0.0, 0.0, 0.0), drift=-0.2)


class Figures(NamedTuple):
    """Over many runs: shares of runs in which what is shown held the truth, and regrets.

    strata, propensity: 95 % confidence sequences, at every look. naive: The same boundary around
    the pooled estimate, at every look. fixed: The interval of a single look at the end, stratified;
    nobody is shown it: information that depends on what was seen is not normal. regret, uniform:
    One for each run.
    """

    strata: float
    propensity: float
    naive: float
    fixed: float
    regret: tuple[float, ...]
    uniform: tuple[float, ...]


def figures(world: World, runs: int, algorithm: str = "thompson") -> Figures:
    """Play a world many times."""
    policy = BanditPolicy(algorithm, "error_rate", 0.05, EVERY_MS, 100)
    outcomes = [run(world, policy, np.random.default_rng([7, index])) for index in range(runs)]
    held = np.array([_held(outcome, world.effects[1]) for outcome in outcomes])
    strata, propensity, naive, fixed = (float(share) for share in held.mean(axis=0))
    return Figures(
        strata,
        propensity,
        naive,
        fixed,
        regret=tuple(outcome.regret for outcome in outcomes),
        uniform=tuple(outcome.uniform for outcome in outcomes),
    )


def _held(outcome: Outcome, truth: float) -> tuple[bool, bool, bool, bool]:
    last = stratified_difference(outcome.rewards, outcome.counts, control=0, treatment=1)
    return (
        all(_covers(seen.arms[1].strata, truth) for seen in outcome.looks),
        all(_covers(seen.arms[1].propensity, truth) for seen in outcome.looks),
        all(_covers(pooled(outcome, look + 1), truth) for look in range(len(outcome.looks))),
        abs(last.diff - truth) <= Z95 * last.variance**0.5,
    )


def _covers(at: Interval | None, truth: float) -> bool:
    return at is None or at.lower <= truth <= at.upper


def least(runs: int) -> float:
    """95 % - 3 standard errors."""
    return float(0.95 - 3 * np.sqrt(0.95 * 0.05 / runs))


def check_inference(found: Figures, runs: int) -> None:
    """The valid sequences hold; the naive one does not."""
    assert min(found.strata, found.propensity) >= least(runs), found
    assert found.naive < least(runs), found


def check_regret(found: Figures, part: float) -> None:
    """Less is lost than by equal shares: in every run, and on average by far."""
    regret, uniform = np.array(found.regret), np.array(found.uniform)
    assert (regret < uniform).all()
    assert regret.mean() < part * uniform.mean()


def test_bandit_loses_less_and_inference_holds_when_everything_drifts() -> None:
    found = figures(DRIFTING, 120)
    check_regret(found, 0.35)
    check_inference(found, 120)


def test_bandit_loses_less_and_inference_holds_when_units_come_back() -> None:
    found = figures(STICKY, 25)
    check_regret(found, 0.5)
    check_inference(found, 25)


def test_top_two_loses_less_than_equal_shares() -> None:
    found = figures(DRIFTING, 30, "top_two")
    check_regret(found, 0.8)
    assert min(found.strata, found.propensity) >= least(30)


def test_inference_holds_when_nobody_is_better_and_the_bandit_wanders() -> None:
    check_inference(figures(ALIKE, 60), 60)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("world", "runs"),
    [(DRIFTING, 1_000), (STICKY, 300), (ALIKE, 1_000)],
    ids=["drifting", "sticky", "alike"],
)
@pytest.mark.parametrize("algorithm", ["thompson", "top_two"])
def test_inference_holds_over_many_runs(world: World, runs: int, algorithm: str) -> None:
    found = figures(world, runs, algorithm)
    assert min(found.strata, found.propensity) >= least(runs), found
    if algorithm == "thompson":  # top-two moves too little for the naive answer to go wrong by much
        assert found.naive < least(runs), found
    if max(world.effects) > 0:
        check_regret(found, 0.8)


def test_step_of_a_day_has_at_most_its_looks() -> None:
    policy = BanditPolicy("thompson", "error_rate", 0.05, EVERY_MS, 100)
    assert len(run(ALIKE, policy, np.random.default_rng(1)).looks) <= 28
    assert DWELL_MS // EVERY_MS == 288
