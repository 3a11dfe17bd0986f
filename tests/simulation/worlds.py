"""Worlds of sticky users for the safety lanes, and the real lanes code driven through them.

Owns the generators (seeded numpy) and the drivers; judges nothing. Time is simulated seconds since
the epoch began. In a world without harm (A/A) both arms fail alike: every rollback is a false one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from control.rollout.lanes import SLOT_MS, BlockTracker, assess_all
from control.rollout.policy import Policy, StepPolicy
from control.rollout.run import BLOCK_EVERY_MS, Run
from control.rollout.words import Kind, Phase, State
from turnout.contract import BUCKET_COUNT, FIRST_BAD_SLOT_S

EPOCH = 1
START_MS = 1_700_000_000_000
CANDIDATE = "v2"
CONTROL = "control"
BLOCK_S = BLOCK_EVERY_MS // 1000


@dataclass(frozen=True)
class World:
    """Sticky users and what befalls their requests.

    Attributes:
        users: Number of users, each equally busy.
        requests_per_s: Of all users together, a Poisson process.
        fraction: Probability that a user is the candidate's.
        base: Probability that a request fails, independently.
        always_failing: Share of users, in both arms alike, whose requests all fail.
        harmed: The candidate's probability to fail from `change_s` on.
        change_s: When the candidate becomes worse; infinity = never (A/A).
    """

    users: int = 3_000
    requests_per_s: float = 200.0
    fraction: float = 0.05
    base: float = 0.0
    always_failing: float = 0.01
    harmed: float = 0.05
    change_s: float = math.inf


@dataclass(frozen=True)
class BadEvents:
    """Bad events in order of time; shapes (events,)."""

    time_s: NDArray[np.float64]
    user: NDArray[np.int64]
    candidate: NDArray[np.bool_]


def bad_events(world: World, duration_s: float, rng: np.random.Generator) -> BadEvents:
    """All bad events of one run. A user's arm and fate are drawn independently of each other."""
    in_candidate = rng.random(world.users) < world.fraction
    doomed = rng.random(world.users) < world.always_failing
    parts = [_requests(np.flatnonzero(doomed), world, 1.0, 0.0, duration_s, rng)]
    others = np.flatnonzero(~doomed)
    parts.append(_requests(others, world, world.base, 0.0, duration_s, rng))
    if world.change_s < duration_s:
        harmed = np.flatnonzero(~doomed & in_candidate)
        more = world.harmed - world.base
        parts.append(_requests(harmed, world, more, world.change_s, duration_s, rng))
    time_s = np.concatenate([p[0] for p in parts])
    user = np.concatenate([p[1] for p in parts])
    order = np.argsort(time_s, kind="stable")
    return BadEvents(time_s[order], user[order], in_candidate[user[order]])


def _requests(
    users: NDArray[np.int64],
    world: World,
    probability: float,
    begin_s: float,
    end_s: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Failing requests of these users: a Poisson process thinned by the probability to fail."""
    rate = world.requests_per_s / world.users * probability * len(users)
    number = int(rng.poisson(rate * (end_s - begin_s)))
    time_s = begin_s + rng.random(number) * (end_s - begin_s)
    return time_s, rng.choice(users, number) if number else np.empty(0, dtype=np.int64)


def first_of_each_block(events: BadEvents) -> BadEvents:
    """Each user's first bad event in every stretch between two block starts.

    In order of time the others change no block's counts; see
    `test_lanes_agree_when_repeats_are_left_out`.
    """
    key = events.user * 1_000_000 + (events.time_s // BLOCK_S).astype(np.int64)
    _, index = np.unique(key, return_index=True)
    index.sort()
    return BadEvents(events.time_s[index], events.user[index], events.candidate[index])


def raw(events: BadEvents) -> BadEvents:
    """Every bad event as a unit of its own: what the lanes must not be given for sticky users."""
    number = np.arange(len(events.user), dtype=np.int64)
    return BadEvents(events.time_s, number, events.candidate)


class Driver:
    """One experiment at one split, its real tracker and the real assessment."""

    def __init__(self, world: World, kinds: tuple[Kind, ...] = (Kind.ERROR,)) -> None:
        ppm = round(world.fraction * BUCKET_COUNT)
        split = {CONTROL: BUCKET_COUNT - ppm, CANDIDATE: ppm}
        step = StepPolicy(phase=Phase.CANARY, split_ppm=split, dwell_ms=1)
        self.policy = Policy(CONTROL, (CANDIDATE,), (step,), kinds=kinds)
        self.run = Run(
            "simulated",
            state=State.RUNNING,
            phase=Phase.CANARY,
            epoch=EPOCH,
            epoch_start_ms=START_MS,
            step_start_ms=START_MS,
            split_ppm=split,
        )
        self.tracker = BlockTracker()

    def add(self, time_s: float, user: int, *, candidate: bool) -> None:
        """One bad event."""
        variant = CANDIDATE if candidate else CONTROL
        self.tracker.add(Kind.ERROR, int(time_s // FIRST_BAD_SLOT_S), variant, (user,))

    def crossed(self, time_s: float) -> bool:
        """Would the control loop roll back at this time?"""
        now_ms = START_MS + int(time_s * 1000)
        trackers = {EPOCH: self.tracker}
        return any(s.crossed for s in assess_all(self.run, self.policy, trackers, now_ms=now_ms))


def seconds_to_rollback(
    world: World,
    events: BadEvents,
    *,
    every_s: float,
    from_s: float = 0.0,
    kinds: tuple[Kind, ...] = (Kind.ERROR,),
) -> float:
    """When the lanes first cross, infinity = never.

    Args:
        world: For the split.
        events: In order of time.
        every_s: The lanes are assessed at its multiples if something came in; 0 = at every event.
        from_s: They are not assessed before (used where crossing before is another simulation's
            subject).
        kinds: In use; all errors are of kind ERROR, the others only divide alpha.
    """
    driver = Driver(world, kinds)
    time_s, user, candidate = events.time_s, events.user, events.candidate
    begin = 0
    while begin < len(user):
        end = begin + 1
        now_s = float(time_s[begin])
        if every_s:
            now_s = max(math.ceil(now_s / every_s) * every_s, from_s)
            end = int(np.searchsorted(time_s, now_s, side="right"))
        for i in range(begin, end):
            driver.add(float(time_s[i]), int(user[i]), candidate=bool(candidate[i]))
        if now_s >= from_s and driver.crossed(now_s):
            return now_s
        begin = end
    return math.inf


assert SLOT_MS == FIRST_BAD_SLOT_S * 1000
