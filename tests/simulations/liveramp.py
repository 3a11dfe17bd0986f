"""P3 as the rollout looks at it: sticky users over a ramp, by `control.rollout.reduce`.

3,000 users; 1 % of them always fail, the others' base rate drifts from 1 to 2 %. The candidate
serves 1, 5, 10, 25 and 50 % of the users, the same ones and more. Nothing is different.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from control.rollout.cells import Cell, CellKey, Cells, Epoch
from control.rollout.judging import is_better, is_harmed
from control.rollout.policy import GuardrailPolicy, Policy
from control.rollout.reduce import GUARDRAIL_ALPHA, reduce
from control.stats.proportions import Share, two_proportions
from tests.simulations.figures import SEED, Claim, Figure, rate_within
from turnout.contract import UNIT_BUCKETS

USERS: Final = 3_000
STAGES: Final = (0.01, 0.05, 0.10, 0.25, 0.50)
BASES: Final = (0.01, 0.0125, 0.015, 0.0175, 0.02)
LOOKS_PER_STAGE: Final = 8
REQUESTS_PER_LOOK: Final = 1.5  # of a user, on average
ALWAYS_FAILING: Final = 0.01
ALPHA: Final = 0.05
CONTROL, CANDIDATE = "control", "v2"
POLICY: Final = Policy(CONTROL, (CANDIDATE,), (), guardrails=(GuardrailPolicy("error_rate"),))
EPOCHS: Final = tuple(
    Epoch(
        number + 1,
        number * 3_600_000,
        {CONTROL: round(1e6 * (1 - share)), CANDIDATE: round(1e6 * share)},
    )
    for number, share in enumerate(STAGES)
)
Integers = NDArray[np.int64]


def run(reps: int) -> list[Figure]:
    """How often the live looks find a gain, or harm, that is not there."""
    rng = np.random.default_rng([SEED, 33])
    better = harmed = naive = naive_harm = 0
    for _ in range(reps):
        ours, theirs = _experiment(rng)
        better, harmed = better + ours[0], harmed + ours[1]
        naive, naive_harm = naive + theirs[0], naive_harm + theirs[1]
    world = "live looks, sticky users on the ramp, A/A"
    z = "z-test of this stage's requests, each look"
    return [
        Figure(
            plan="P3",
            what=f"{world}: better in {len(STAGES) * LOOKS_PER_STAGE} looks at .05",
            reps=reps,
            ours=rate_within(better / reps, ALPHA / 2, reps),
            naive=z,
            theirs=Claim(naive / reps, ">=", 0.30),
        ),
        Figure(
            plan="P3",
            what=f"{world}: harm at .01",
            reps=reps,
            ours=rate_within(harmed / reps, GUARDRAIL_ALPHA, reps),
            naive=f"one-sided {z}",
            theirs=Claim(naive_harm / reps, ">=", 0.10),
        ),
    ]


def _experiment(rng: np.random.Generator) -> tuple[tuple[bool, bool], tuple[bool, bool]]:
    """(Better, harmed) at any look: by the live looks, and by the naive test."""
    place, failing = rng.random(USERS), rng.random(USERS) < ALWAYS_FAILING
    busy = rng.gamma(2.0, REQUESTS_PER_LOOK / 2, USERS)
    bucket = rng.integers(0, UNIT_BUCKETS, USERS)
    better = harmed = naive = naive_harm = False
    kept: dict[CellKey, Cell] = {}
    for number, (share, base) in enumerate(zip(STAGES, BASES, strict=True)):
        mine = place < share
        made = np.cumsum(rng.poisson(busy, (LOOKS_PER_STAGE, USERS)), axis=0)
        here = np.diff(made, axis=0, prepend=0)
        lost = np.cumsum(rng.binomial(here, np.where(failing, 1.0, base)), axis=0)
        for requests, errors in zip(made, lost, strict=True):
            for name, arm in ((CONTROL, ~mine), (CANDIDATE, mine)):
                cell = Cell(
                    requests=_by_bucket(bucket[arm], requests[arm]),
                    errors=_by_bucket(bucket[arm], errors[arm]),
                )
                kept[CellKey(number + 1, name, 0)] = cell
            looks = reduce(Cells("exp", EPOCHS[: number + 1], kept), POLICY)
            assert looks is not None
            (found,) = looks.metrics
            better |= is_better(found)
            harmed |= is_harmed(found)
        p, worse = _naive(made, lost, mine)
        naive, naive_harm = naive or p, naive_harm or worse
    return (better, harmed), (naive, naive_harm)


def _by_bucket(bucket: NDArray[np.int64], counts: NDArray[np.int64]) -> Integers:
    return np.bincount(bucket, counts, UNIT_BUCKETS).astype(np.int64)


def _naive(made: Integers, lost: Integers, mine: NDArray[np.bool_]) -> tuple[bool, bool]:
    arms = [Share(lost[:, arm].sum(axis=1), made[:, arm].sum(axis=1)) for arm in (~mine, mine)]
    two = two_proportions(*arms, alternative="less").p_value < ALPHA / 2
    one = two_proportions(*arms, alternative="greater").p_value < GUARDRAIL_ALPHA
    return bool(two.any()), bool(one.any())
