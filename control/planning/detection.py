"""How long the safety lanes take to find harm that is there from the start of a step.

Owns the probability that a lane has crossed by a time, as a function of traffic, split, rate of bad
events and harm. Asks `control.rollout.lanes` for the e-value of expected counts and for thresholds.

A block's e-value depends on two numbers of first bad events, the candidate's and control's. Both
are Poisson (their units are many), with the means that `Arm.first_events` gives. The chance that
the e-value is above its threshold at a time is summed over both; the chance that it was before, and
has fallen again, is that of a Brownian motion with the same mean and variance (reflection). Blocks
after the first are taken to be independent when they begin after it has ended (or learns no more),
and those between them as no help: real lanes are a little faster there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Final

from control.rollout.lanes import RESTARTS, log_threshold, log_tilt
from turnout.contract import (
    FIRST_BAD_BLOCK_EVERY,
    FIRST_BAD_BLOCK_SLOTS,
    FIRST_BAD_SLOT_S,
    FIRST_BAD_UNITS_MAX,
)

BLOCK_EVERY_S: Final = FIRST_BAD_SLOT_S * FIRST_BAD_BLOCK_EVERY
BLOCK_LIFE_S: Final = FIRST_BAD_SLOT_S * FIRST_BAD_BLOCK_SLOTS
# A sidecar reports and the control plane looks once a second.
LOOK_S: Final = 1.0
HALF: Final = 0.5
MOST: Final = 0.95

_NORMAL: Final = NormalDist()
# Gauss-Hermite nodes and weights (probabilists', n = 7): a normal mean of anything smooth.
_NODES: Final = (
    (-3.750439717725742, 0.000548268855972),
    (-2.366759410734541, 0.030757123967586),
    (-1.154405394739968, 0.240123178605013),
    (0.0, 0.457142857142857),
    (1.154405394739968, 0.240123178605013),
    (2.366759410734541, 0.030757123967586),
    (3.750439717725742, 0.000548268855972),
)
_EXACT_MAX: Final = 30
_BISECTIONS: Final = 48
_LOG_RESTART: Final = math.log(RESTARTS[0])


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm's traffic.

    Attributes:
        requests_per_s: > 0.
        units: Units that come within an hour, equally busy; None: every request is its own unit.
    """

    requests_per_s: float
    units: float | None = None

    def first_events(self, rate: float, seconds: float) -> float:
        """Expected number of units that had a bad event: their requests fail independently.

        Args:
            rate: Probability that a request is a bad event.
            seconds: Since the block began, at most its life.
        """
        events = self.requests_per_s * rate * seconds
        if self.units is None:
            return events
        return -self.units * math.expm1(-events / self.units)


@dataclass(frozen=True, slots=True)
class Lane:
    """One lane of one step.

    Attributes:
        candidate, control: The two arms.
        alpha: `safety.alpha` / (kinds of bad events x candidates).
        blocks_before: Blocks that the experiment has begun in earlier steps.
    """

    candidate: Arm
    control: Arm
    alpha: float
    blocks_before: int = 0

    @property
    def theta(self) -> float:
        """Share of the first bad events that is the candidate's without harm."""
        served = self.candidate.requests_per_s + self.control.requests_per_s
        return self.candidate.requests_per_s / served


@dataclass(frozen=True, slots=True)
class Detection:
    """When harm of one size is found.

    Attributes:
        rate: The candidate's rate of bad events.
        chance: Probability that it is found within the step.
        median_s, p95_s: Seconds after the step's start by which it is found in half, in 95 %, of
            the cases; None = not within the step.
    """

    rate: float
    chance: float
    median_s: float | None
    p95_s: float | None


def detect(lane: Lane, *, base: float, rate: float, within_s: float) -> Detection:
    """When a lane finds a rate of bad events.

    Args:
        lane: Its traffic, alpha and age.
        base: Control's rate, 0..1.
        rate: The candidate's rate from the step's start on, 0..1.
        within_s: Length of the step.

    Raises:
        ValueError: A rate is outside 0..1, or a length, an alpha or traffic is not positive.
    """
    _check(lane, base, rate, within_s)

    def chance(seconds: float) -> float:
        return crossed_by(lane, base=base, rate=rate, seconds=seconds)

    whole = chance(within_s)
    return Detection(
        rate=rate,
        chance=whole,
        median_s=_first(chance, HALF, within_s) if whole >= HALF else None,
        p95_s=_first(chance, MOST, within_s) if whole >= MOST else None,
    )


def smallest_found(lane: Lane, *, base: float, within_s: float) -> float | None:
    """The lowest rate of the candidate that is found within a step in half of the cases.

    None = not even a candidate all of whose requests are bad events. Arguments and errors are those
    of `detect`.
    """
    _check(lane, base, base, within_s)

    def chance(rate: float) -> float:
        return crossed_by(lane, base=base, rate=rate, seconds=within_s)

    if base >= 1 or chance(1.0) < HALF:
        return None
    low, high = base, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if chance(middle) >= HALF else (middle, high)
        if high - low <= 1e-4 * high:
            break
    return high


def crossed_by(lane: Lane, *, base: float, rate: float, seconds: float) -> float:
    """Probability that a lane has crossed this long after the step's start.

    Args:
        lane: Its traffic, alpha and age.
        base: Control's rate of bad events.
        rate: The candidate's; at most `base` is no harm and gives 0.
        seconds: Since the step's start; the last second is the look's.
    """
    seconds -= LOOK_S
    if rate <= base or seconds <= 0:
        return 0.0
    life = _useful_life(lane, base, rate)
    blocks_per_life = math.ceil(life / BLOCK_EVERY_S)
    missed, block, left = 1.0, lane.blocks_before + 1, seconds
    while left > 0 and missed > 1e-9:
        threshold = log_threshold(block, lane.alpha)
        missed *= 1 - _block_crossed(lane, base, rate, min(left, life), threshold)
        left -= blocks_per_life * BLOCK_EVERY_S
        block += blocks_per_life
    return 1 - missed


def _block_crossed(lane: Lane, base: float, rate: float, seconds: float, threshold: float) -> float:
    mean_t = lane.candidate.first_events(rate, seconds)
    mean_c = lane.control.first_events(base, seconds)
    if mean_t <= 0:
        return 0.0
    # About how many it takes: a root of events more than its share of control's.
    share = mean_c * lane.theta / (1 - lane.theta)
    above, needed = 0.0, max(1, round(share + 3 * math.sqrt(share + threshold)))
    for node, weight in _NODES:
        control = max(0.0, mean_c + node * math.sqrt(mean_c))
        needed = _events_needed(control, lane.theta, threshold, guess=needed)
        above += weight * poisson_at_least(needed, mean_t)
    return min(1.0, above + _reflected(lane, mean_t, mean_c, threshold) * (1 - above))


@lru_cache(maxsize=256)
def _useful_life(lane: Lane, base: float, rate: float) -> float:
    """Seconds until a block learns no more: it is full, or most of its units have failed once."""

    def events(at_s: float) -> tuple[float, float]:
        return lane.candidate.first_events(rate, at_s), lane.control.first_events(base, at_s)

    low, high = 0.0, float(BLOCK_LIFE_S)
    if sum(events(high)) > FIRST_BAD_UNITS_MAX:
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (
                (low, middle) if sum(events(middle)) > FIRST_BAD_UNITS_MAX else (middle, high)
            )
    if lane.candidate.units is None:
        return high
    # What is expected of the e-value rises and then falls: the ends close in on its top.
    low, end = LOOK_S, high
    for _ in range(_BISECTIONS):
        if end - low <= 1e-2 * end:
            break
        left, right = low + (end - low) / 3, end - (end - low) / 3
        if _log_e(*events(left), lane.theta) < _log_e(*events(right), lane.theta):
            low = left
        else:
            end = right
    return min(high, end)


def _log_e(candidate: float, control: float, theta: float) -> float:
    """Of a block that counts from its first slot: its largest part when harm was there then."""
    return _LOG_RESTART + log_tilt(candidate, control, theta)


def _events_needed(control: float, theta: float, threshold: float, *, guess: int) -> int:
    """The candidate's first events with which the e-value reaches its threshold.

    Args:
        control: Control's first events.
        theta: Share of the candidate without harm.
        threshold: Natural logarithm.
        guess: Where to look first, >= 1.
    """
    low, high, step = 0, guess, 1
    while _log_e(high, control, theta) < threshold:
        low, high, step = high, high + step, step * 2
    step = 1
    while low < high - step and _log_e(high - step, control, theta) >= threshold:
        high, step = high - step, step * 2
    low = max(low, high - step)
    while high - low > 1:
        middle = (low + high) // 2
        if _log_e(middle, control, theta) >= threshold:
            high = middle
        else:
            low = middle
    return high


def _reflected(lane: Lane, mean_t: float, mean_c: float, threshold: float) -> float:
    """Probability to have been above the threshold and to be below it now."""
    theta = lane.theta
    mean = _log_e(mean_t, mean_c, theta)
    if mean <= 0:
        return 0.0
    by_t = _log_e(mean_t + 0.5, mean_c, theta) - _log_e(max(0.0, mean_t - 0.5), mean_c, theta)
    by_c = _log_e(mean_t, mean_c + 0.5, theta) - _log_e(mean_t, max(0.0, mean_c - 0.5), theta)
    variance = by_t**2 * mean_t + by_c**2 * mean_c
    if variance <= 0:
        return 0.0
    tail = _NORMAL.cdf(-(mean + threshold) / math.sqrt(variance))
    return min(1.0, math.exp(min(2 * mean * threshold / variance, 700.0)) * tail) if tail else 0.0


def poisson_at_least(number: int, mean: float) -> float:
    """Probability that a Poisson number is at least `number`.

    Exact up to 30, beyond it by the cube root of the equivalent gamma (Wilson, Hilferty 1931; error
    below 0.001).
    """
    if number <= 0:
        return 1.0
    if mean <= 0:
        return 0.0
    if number <= _EXACT_MAX:
        term = total = math.exp(-mean)
        for k in range(1, number):
            term *= mean / k
            total += term
        return max(0.0, 1 - total)
    root = (mean / number) ** (1 / 3)
    return _NORMAL.cdf(3 * math.sqrt(number) * (root - 1 + 1 / (9 * number)))


def _first(chance: Callable[[float], float], level: float, within_s: float) -> float:
    """The first time at which an increasing chance has reached a level; it has at `within_s`."""
    low, high = LOOK_S, within_s
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if chance(middle) >= level else (middle, high)
        if high - low <= 2e-3 * high:
            break
    return high


def _check(lane: Lane, base: float, rate: float, within_s: float) -> None:
    for name, value in (("base", base), ("rate", rate)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} == {value}, must be in 0..1")
    if not within_s > 0:
        raise ValueError(f"within_s == {within_s}, must be > 0")
    if not 0 < lane.alpha < 1:
        raise ValueError(f"alpha == {lane.alpha}, must be in (0, 1)")
    for arm in (lane.candidate, lane.control):
        if not arm.requests_per_s > 0 or (arm.units is not None and not arm.units > 0):
            raise ValueError(f"{arm}, must have requests and units")
