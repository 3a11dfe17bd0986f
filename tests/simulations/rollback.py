"""P6: the safety lanes as the rollout runs them, in worlds of sticky users.

The lanes (control.rollout.lanes) are driven through tests/simulation/worlds.py; 100 requests/s, of
which a canary of 5 % gets 5.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

import numpy as np

from control.stats.proportions import Share, two_proportions
from tests.simulation.worlds import BadEvents, Driver, World, bad_events, first_of_each_block
from tests.simulations.figures import SEED, Claim, Figure
from tests.simulations.streams import Floats

MINUTE_S: Final = 60.0
DAY_S: Final = 24 * 3600.0
RUN_S: Final = 2 * 3600.0
WINDOW_S: Final = 900.0
ASSESS_S: Final = 5.0
ALPHA: Final = 0.01  # of the plan; the product's default is .001
MOST_A_DAY: Final = 0.02
USERS: Final = 30_000
IID: Final = World(users=USERS, requests_per_s=100.0, base=0.01, always_failing=0.0)
STICKY: Final = World(users=3_000, requests_per_s=100.0, base=0.0, always_failing=0.01)


def run(*, long: bool) -> list[Figure]:
    """Minutes to the rollback of a doubled error rate; false rollbacks in a day."""
    figures = [
        _speed(ratio, alpha, most, 1_000 if long else 200)
        for ratio, alpha, most in ((2.0, ALPHA, 8.0), (5.0, ALPHA, 2.0), (5.0, 0.001, 2.0))
    ]
    days = (
        (IID, "errors independent", 400 if long else 30, 0.03),
        (STICKY, "1 % of users always fail", 1_000 if long else 100, 0.3),
    )
    figures += [_day(world, words, reps, least) for world, words, reps, least in days]
    return figures


def _speed(ratio: float, alpha: float, most: float, reps: int) -> Figure:
    world = replace(IID, harmed=ratio * IID.base, change_s=0.0)
    minutes, usual = [], []
    for rep in range(reps):
        events = bad_events(world, RUN_S, np.random.default_rng([SEED, 60, rep]))
        minutes.append(seconds_to_rollback(world, events, alpha, ASSESS_S) / MINUTE_S)
        usual.append(_window_rule_s(world, events) / MINUTE_S)
    return Figure(
        plan="P6",
        what=f"errors 1 % -> {ratio:g} % at 5 requests/s, alpha {alpha:g}: median to rollback",
        reps=reps,
        ours=Claim(float(np.median(minutes)), "<=", most),
        naive="rates of 15 min differ by > .05 (run: 120 min)",
        theirs=Claim(float(np.median(usual)), ">=", most),
        unit="minutes",
    )


def _day(world: World, words: str, reps: int, least: float) -> Figure:
    false = naive = 0
    for rep in range(reps):
        events = bad_events(world, DAY_S, np.random.default_rng([SEED, 61, rep]))
        false += math.isfinite(seconds_to_rollback(world, events, ALPHA, MINUTE_S))
        naive += bool((_peeked(world, events) < ALPHA).any())
    return Figure(
        plan="P6",
        what=f"A/A, 24 h, {words}, alpha {ALPHA:g}: rolled back",
        reps=reps,
        ours=Claim(false / reps, "<=", MOST_A_DAY),
        naive="one-sided z-test of requests each minute",
        theirs=Claim(naive / reps, ">=", least),
    )


def seconds_to_rollback(world: World, events: BadEvents, alpha: float, every_s: float) -> float:
    """When the lanes cross if they are assessed every so often; infinity: never."""
    events = first_of_each_block(events)
    driver = Driver(world)
    driver.policy = replace(driver.policy, alpha=alpha)
    steps = np.ceil(events.time_s / every_s)
    ends = np.searchsorted(steps, np.unique(steps), side="right")
    begin = 0
    for end in ends.tolist():
        for i in range(begin, end):
            driver.add(
                float(events.time_s[i]), int(events.user[i]), candidate=bool(events.candidate[i])
            )
        now_s = float(steps[begin]) * every_s
        if driver.crossed(now_s):
            return now_s
        begin = end
    return math.inf


def _peeked(world: World, events: BadEvents) -> Floats:
    """P-values of "the candidate fails more often" at each minute, of all requests so far."""
    looks = np.arange(1, DAY_S / MINUTE_S + 1) * MINUTE_S
    failed_t, failed_c = (
        np.searchsorted(events.time_s[mine], looks)
        for mine in (events.candidate, ~events.candidate)
    )
    requests = world.requests_per_s * looks
    n_t = np.maximum(np.round(world.fraction * requests), failed_t)
    n_c = np.maximum(np.round((1 - world.fraction) * requests), failed_c)
    test = two_proportions(Share(failed_c, n_c), Share(failed_t, n_t), alternative="greater")
    return np.where(np.isfinite(test.p_value), test.p_value, 1.0)


def _window_rule_s(world: World, events: BadEvents) -> float:
    """When the rates of the last 15 minutes first differ by more than .05; the run's end: never."""
    looks = np.arange(1, RUN_S / MINUTE_S + 1) * MINUTE_S
    lost_t, lost_c = (
        now - before
        for now, before in zip(
            _failed(events, looks), _failed(events, np.maximum(looks - WINDOW_S, 0.0)), strict=True
        )
    )
    requests = world.requests_per_s * np.minimum(looks, WINDOW_S)
    apart = lost_t / (world.fraction * requests) - lost_c / ((1 - world.fraction) * requests)
    found = np.flatnonzero(apart > 0.05)
    return float(looks[found[0]]) if len(found) else RUN_S


def _failed(events: BadEvents, looks: Floats) -> tuple[Floats, Floats]:
    """Failed requests of candidate and control up to each look."""
    mine, others = events.time_s[events.candidate], events.time_s[~events.candidate]
    counts = (np.searchsorted(mine, looks), np.searchsorted(others, looks))
    return counts[0].astype(np.float64), counts[1].astype(np.float64)
