"""Exact bounds where a few users are a stage: A/A worlds in which some users always fail.

By requests, each a trial of its own, harm is seen that is not there; that stands beside it, and
must fail, or the worlds would show nothing. Seeded, so that nothing is left to chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from control.rollout.bounds import rate_interval
from control.rollout.cells import Cell, CellKey, Cells, Epoch
from control.rollout.judging import is_better, is_shown_worse
from control.rollout.looks import Method
from control.rollout.policy import GuardrailPolicy, Policy
from control.rollout.reduce import GUARDRAIL_ALPHA, reduce
from turnout.contract import BUCKET_COUNT, UNIT_BUCKETS

SEED = 20261122
LOOKS = 12
CONTROL, V2 = "control", "v2"
POLICY = Policy(CONTROL, (V2,), (), guardrails=(GuardrailPolicy("error_rate"),))
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """Users, the candidate's share of them, who always fails, and requests of a user a look."""

    users: int
    share: float
    failing: float
    base: float
    requests: float


WORLDS = (
    World(3_000, 0.01, 0.01, 0.01, 1.5),
    World(3_000, 0.01, 0.05, 0.01, 5.0),
    World(3_000, 0.01, 0.2, 0.0, 3.0),
    World(400, 0.5, 0.01, 0.0, 5.0),
)


def play(world: World, random: np.random.Generator) -> tuple[bool, bool, bool]:
    """(Worse, better) at any look by exact bounds, and worse by requests."""
    mine = random.random(world.users) < world.share
    rate = np.where(random.random(world.users) < world.failing, 1.0, world.base)
    busy = random.gamma(2.0, world.requests / 2, world.users)
    bucket = random.integers(0, UNIT_BUCKETS, world.users)
    requests = random.poisson(busy, (LOOKS, world.users))
    errors = random.binomial(requests, rate)
    ppm = round(BUCKET_COUNT * world.share)
    epochs = (Epoch(1, 0, {CONTROL: BUCKET_COUNT - ppm, V2: ppm}),)
    worse = better = naive = False
    for n, y in zip(np.cumsum(requests, axis=0), np.cumsum(errors, axis=0), strict=True):
        cells = {
            CellKey(1, name, 0): Cell(
                requests=_by_bucket(bucket[arm], n[arm]), errors=_by_bucket(bucket[arm], y[arm])
            )
            for name, arm in ((CONTROL, ~mine), (V2, mine))
        }
        looks = reduce(Cells("x", epochs, cells), POLICY)
        if looks is None:
            continue
        (look,) = looks.metrics
        if look.method is Method.EXACT:
            worse |= is_shown_worse(look)
            better |= is_better(look)
            arms = [(int(y[arm].sum()), int(n[arm].sum())) for arm in (~mine, mine)]
            control, own = (rate_interval(*arm, alpha=GUARDRAIL_ALPHA / 2) for arm in arms)
            naive |= own.low > control.high
    return worse, better, naive


def _by_bucket(bucket: Integers, counts: Integers) -> Integers:
    return np.bincount(bucket, counts, UNIT_BUCKETS).astype(np.int64)


def check(world: World, reps: int) -> None:
    """Harm and gain that are not there: at most as often as promised; by requests far too often."""
    found = [play(world, np.random.default_rng([SEED, seed])) for seed in range(reps)]
    worse, better, naive = (float(share) for share in np.mean(found, axis=0))
    error = (GUARDRAIL_ALPHA * (1 - GUARDRAIL_ALPHA) / reps) ** 0.5
    assert worse <= GUARDRAIL_ALPHA + 3 * error
    assert better <= 0.025 + 3 * (0.025 * 0.975 / reps) ** 0.5
    assert naive >= 5 * GUARDRAIL_ALPHA


def test_exact_bounds_see_no_harm_that_is_not_there() -> None:
    check(WORLDS[1], 60)


@pytest.mark.soak
@pytest.mark.parametrize("world", WORLDS)
def test_exact_bounds_see_no_harm_that_is_not_there_in_any_world(world: World) -> None:
    check(world, 500)
