"""False alarms and speed of the safety lanes as implemented, in worlds of sticky users.

Every test has a short form (in `make test`) and a full one (marked soak, `make soak`), both seeded.
The figures of the full form are in control/rollout/README.md.
"""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from control.rollout.lanes import assess_all
from control.rollout.words import Kind
from tests.simulation import worlds
from tests.simulation.worlds import World, bad_events, first_of_each_block, seconds_to_rollback

SEED = 20260722
HOUR_S = 3_600.0
STICKY = World()
FALSE_ROLLBACKS_MAX = 0.005
# Time from the change until the lanes are assessed with the event in hand.
ASSESS_EVERY_S = 1.0


def rollbacks(world: World, duration_s: float, runs: int, *, raw: bool = False) -> int:
    """Runs of an A/A world that the lanes roll back."""
    found = 0
    for number in range(runs):
        rng = np.random.default_rng([SEED, number])
        events = bad_events(world, duration_s, rng)
        events = worlds.raw(events) if raw else first_of_each_block(events)
        every_s = 10.0 if raw else 0.0
        found += math.isfinite(seconds_to_rollback(world, events, every_s=every_s))
    return found


def detection_s(change_s: float, runs: int, kinds: tuple[Kind, ...] = (Kind.ERROR,)) -> list[float]:
    """Seconds from the change 1 % -> 5 % to the rollback."""
    world = World(base=0.01, always_failing=0.0, harmed=0.05, change_s=change_s)
    found = []
    for number in range(runs):
        rng = np.random.default_rng([SEED, 7, number])
        events = first_of_each_block(bad_events(world, change_s + 900.0, rng))
        rolled_back_s = seconds_to_rollback(
            world, events, every_s=ASSESS_EVERY_S, from_s=change_s, kinds=kinds
        )
        found.append(rolled_back_s - change_s)
    return found


def report(what: str, times_s: list[float]) -> float:
    median_s = statistics.median(times_s)
    p95_s = float(np.quantile(times_s, 0.95))
    print(f"{what}: median {median_s:.0f} s, p95 {p95_s:.0f} s in {len(times_s)} runs")
    return median_s


@pytest.mark.parametrize("base", [0.0, 0.01])
def test_lanes_agree_when_repeats_are_left_out(base: float) -> None:
    """The thinning that the other simulations use changes no assessment."""
    world = World(base=base, users=300, requests_per_s=20.0)
    events = bad_events(world, 4_000.0, np.random.default_rng(SEED))
    thinned = first_of_each_block(events)
    assert len(thinned.user) < len(events.user)
    whole, part = worlds.Driver(world), worlds.Driver(world)
    for now_s in range(100, 4_001, 100):
        for driver, source in ((whole, events), (part, thinned)):
            recent = (source.time_s > now_s - 100) & (source.time_s <= now_s)
            for i in np.flatnonzero(recent):
                driver.add(
                    float(source.time_s[i]),
                    int(source.user[i]),
                    candidate=bool(source.candidate[i]),
                )
        now_ms = worlds.START_MS + now_s * 1000
        states = [
            assess_all(d.run, d.policy, {worlds.EPOCH: d.tracker}, now_ms=now_ms)
            for d in (whole, part)
        ]
        assert states[0] == states[1]


@pytest.mark.parametrize(
    ("runs", "allowed"),
    [
        # At 5 % false rollbacks, 300 runs without one would have a probability of 2e-7.
        pytest.param(300, 0),
        pytest.param(1_000, 5, marks=pytest.mark.soak),
    ],
)
def test_lanes_stay_quiet_when_some_users_always_fail(runs: int, allowed: int) -> None:
    found = rollbacks(STICKY, HOUR_S, runs)
    print(f"sticky A/A, 1 h: {found} of {runs} rolled back")
    assert found <= allowed


@pytest.mark.parametrize("runs", [pytest.param(50), pytest.param(1_000, marks=pytest.mark.soak)])
def test_raw_counting_rolls_back_when_some_users_always_fail(runs: int) -> None:
    """The world is able to fail a wrong method: the same lanes, given every event as a unit."""
    found = rollbacks(STICKY, HOUR_S, runs, raw=True)
    print(f"sticky A/A, 1 h, raw counting: {found} of {runs} rolled back")
    assert found > 0.2 * runs


@pytest.mark.parametrize(
    ("runs", "allowed"), [pytest.param(40, 0), pytest.param(1_000, 5, marks=pytest.mark.soak)]
)
def test_lanes_stay_quiet_when_a_day_has_passed(runs: int, allowed: int) -> None:
    found = rollbacks(STICKY, 24 * HOUR_S, runs)
    print(f"sticky A/A, 24 h: {found} of {runs} rolled back")
    assert found <= allowed


@pytest.mark.soak
@pytest.mark.parametrize(
    ("name", "world"),
    [
        ("independent errors of 1 %", World(base=0.01, always_failing=0.0)),
        ("1 % of users always fail, others 1 %", World(base=0.01)),
        ("10 % of users always fail", World(always_failing=0.1)),
        ("half of the units are the candidate's", World(fraction=0.5)),
    ],
)
def test_lanes_stay_quiet_when_errors_come_otherwise(name: str, world: World) -> None:
    runs = 200
    found = rollbacks(world, HOUR_S, runs)
    print(f"A/A, 1 h, {name}: {found} of {runs} rolled back")
    assert found <= 1


@pytest.mark.parametrize("runs", [pytest.param(60), pytest.param(500, marks=pytest.mark.soak)])
def test_lanes_find_harm_within_40_s_when_it_comes_at_the_start(runs: int) -> None:
    assert report("1 -> 5 % at the start", detection_s(0.0, runs)) <= 40.0


@pytest.mark.parametrize("runs", [pytest.param(60), pytest.param(300, marks=pytest.mark.soak)])
@pytest.mark.parametrize("after_block_s", [0.0, 150.0])
def test_lanes_find_harm_within_150_s_when_it_comes_after_an_hour(
    after_block_s: float, runs: int
) -> None:
    times_s = detection_s(HOUR_S + after_block_s, runs)
    assert report(f"1 -> 5 % after 1 h and {after_block_s:.0f} s", times_s) <= 150.0


@pytest.mark.soak
@pytest.mark.parametrize("after_block_s", [float(s) for s in range(30, 300, 30)])
def test_lanes_find_harm_within_150_s_when_it_comes_anywhere_in_a_block(
    after_block_s: float,
) -> None:
    times_s = detection_s(HOUR_S + after_block_s, 100)
    assert report(f"1 -> 5 % after 1 h and {after_block_s:.0f} s", times_s) <= 150.0


@pytest.mark.soak
@pytest.mark.parametrize(("change_s", "limit_s"), [(0.0, 40.0), (HOUR_S + 150.0, 150.0)])
def test_lanes_find_harm_in_time_when_three_kinds_share_alpha(
    change_s: float, limit_s: float
) -> None:
    times_s = detection_s(change_s, 300, tuple(Kind))
    assert report(f"1 -> 5 % after {change_s:.0f} s, three kinds", times_s) <= limit_s
