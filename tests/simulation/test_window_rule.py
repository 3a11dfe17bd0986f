"""False alarms of the window rule as implemented, where some users always fail.

Requests of one user are no independent evidence; the rule's standard errors believe they are. The
units behind the errors are what keeps it quiet.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from control.rollout.assess import assess
from control.rollout.policy import Policy, StepPolicy
from control.rollout.run import Run
from control.rollout.seen import LaneState, Seen, WindowSeen
from control.rollout.words import Kind, Phase, Reason, State
from turnout.contract import BUCKET_COUNT

SEED = 20260722
REQUESTS_PER_S = 200
ALWAYS_FAILING = 0.01
STEP_S = 10
STEPS = 360  # an hour
WINDOW_STEPS = 90  # 15 minutes
CONTROL, CANDIDATE = "control", "v2"


def judged(seen: Seen, fraction: float) -> bool:
    """Does the real window rule roll back on this?"""
    ppm = round(fraction * BUCKET_COUNT)
    split = {CONTROL: BUCKET_COUNT - ppm, CANDIDATE: ppm}
    policy = Policy(CONTROL, (CANDIDATE,), (StepPolicy(Phase.CANARY, split, dwell_ms=1),))
    run = Run("simulated", state=State.RUNNING, phase=Phase.CANARY, epoch=1, split_ppm=split)
    harms = assess(run, policy, seen, now_ms=1_000).harms
    return any(harm.reason is Reason.WINDOW_RULE for harm in harms)


def one_hour(users: int, fraction: float, rng: np.random.Generator) -> tuple[bool, bool]:
    """(Rolled back, rolled back without looking at units) in one harmless hour."""
    in_candidate = rng.random(users) < fraction
    failing = rng.random(users) < ALWAYS_FAILING
    rate = REQUESTS_PER_S * STEP_S / users
    arms = []
    for arm in (in_candidate, ~in_candidate):
        failed = rng.poisson(rate * (arm & failing).sum(), STEPS)
        served = failed + rng.poisson(rate * (arm & ~failing).sum(), STEPS)
        arms.append([np.convolve(x, np.ones(WINDOW_STEPS, int))[:STEPS] for x in (served, failed)])
    (n_t, x_t), (n_c, x_c) = arms
    # Only steps that could fire are worth the real rule.
    far = x_t / np.maximum(1, n_t) - x_c / np.maximum(1, n_c) > 0.05
    lane = LaneState(
        kind=Kind.ERROR,
        variant=CANDIDATE,
        block=1,
        log_e_value=0.0,
        log_threshold=7.4,
        candidate_events=int((in_candidate & failing).sum()),
        control_events=int((~in_candidate & failing).sum()),
        theta=fraction,
        crossed=False,
    )
    with_units = without = False
    for i in np.flatnonzero(far & (n_t >= 300) & (n_c >= 300)):
        window = {
            CONTROL: WindowSeen(int(n_c[i]), int(x_c[i])),
            CANDIDATE: WindowSeen(int(n_t[i]), int(x_t[i])),
        }
        seen = Seen(window=window, lanes=(lane,))
        with_units = with_units or judged(seen, fraction)
        without = without or judged(replace(seen, lanes=()), fraction)
        if with_units:
            break
    return with_units, without


@pytest.mark.parametrize("hours", [pytest.param(300), pytest.param(2_000, marks=pytest.mark.soak)])
def test_window_rule_stays_quiet_when_some_users_always_fail(hours: int) -> None:
    """A 1 % canary of 3,000 users: 30 users, of whom one or two failing ones are 3 to 7 %."""
    rng = np.random.default_rng(SEED)
    found = [one_hour(3_000, 0.01, rng) for _ in range(hours)]
    rolled_back, without = (sum(flags) for flags in zip(*found, strict=True))
    print(f"window rule, 1 h: {rolled_back} of {hours}, without units {without}")
    assert rolled_back <= 0.005 * hours
    assert without > 0.02 * hours


@pytest.mark.soak
@pytest.mark.parametrize("users", [300, 1_000, 3_000, 30_000])
@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.2, 0.5])
def test_window_rule_stays_quiet_when_the_arms_are_of_any_size(users: int, fraction: float) -> None:
    rng = np.random.default_rng([SEED, users])
    found = [one_hour(users, fraction, rng) for _ in range(500)]
    rolled_back, without = (sum(flags) for flags in zip(*found, strict=True))
    print(f"window rule, {users} users, {fraction:.0%}: {rolled_back} of 500, without {without}")
    assert rolled_back <= 0.015 * 500
