"""Cells as sidecars would have counted them: users with requests, errors and labels, seeded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from control.rollout.cells import Cell, CellKey, Cells, Epoch
from control.rollout.seen import Sketch
from turnout.contract import UNIT_BUCKETS

CONTROL, V2 = "control", "v2"
HALF = {CONTROL: 500_000, V2: 500_000}


@dataclass(frozen=True)
class Arm:
    """Of one epoch and stratum: users, mean requests of each, and how they fare.

    `sticky` is the share of the users whose every request fails.
    """

    users: int = 2_000
    requests: float = 4.0
    error: float = 0.02
    accuracy: float = 0.9
    over: float = 0.03
    latency_bin: int = 190
    sticky: float = 0.0
    labelled: float = 1.0


def cell(random: np.random.Generator, arm: Arm, slo_ms: float = 200.0) -> Cell:
    """One cell."""
    buckets = random.integers(0, UNIT_BUCKETS, arm.users)
    requests = random.poisson(arm.requests, arm.users)
    rate = np.where(random.random(arm.users) < arm.sticky, 1.0, arm.error)
    errors = random.binomial(requests, rate)
    labelled = random.binomial(requests - errors, arm.labelled)
    right = random.binomial(labelled, arm.accuracy)
    positive = random.binomial(right, 0.3)

    def summed(per_user: np.ndarray) -> np.ndarray:
        return np.bincount(buckets, weights=per_user, minlength=UNIT_BUCKETS).astype(np.int64)

    slow = random.binomial(requests, arm.over)
    total, beyond = int(requests.sum()), int(slow.sum())
    bins = ((arm.latency_bin, total - beyond), (arm.latency_bin + 60, beyond))
    return Cell(
        requests=summed(requests),
        errors=summed(errors),
        slow=summed(slow),
        latency_over={slo_ms: summed(slow)},
        labelled=summed(labelled),
        tp=summed(positive),
        tn=summed(right - positive),
        fp=summed((labelled - right) // 2),
        fn=summed(labelled - right - (labelled - right) // 2),
        latency=Sketch(bins),
        units=arm.users,
    )


def cells(
    arms: Mapping[tuple[int, str, int], Arm],
    *,
    splits: Mapping[int, Mapping[str, int]] | None = None,
    seed: int = 1,
) -> Cells:
    """An experiment's cells by (epoch, variant, stratum); epochs are split in half by default."""
    random = np.random.default_rng(seed)
    made = {CellKey(*key): cell(random, arm) for key, arm in sorted(arms.items())}
    epochs = sorted({key.epoch for key in made})
    units: dict[tuple[int, str], int] = {}
    for key, one in made.items():
        place = (key.epoch, key.variant)
        units[place] = units.get(place, 0) + one.units
    return Cells(
        "x",
        tuple(Epoch(e, 1_000 * e, dict((splits or {}).get(e, HALF))) for e in epochs),
        made,
        1,
        units,
    )


def both(
    control: Arm, candidate: Arm, *, epoch: int = 1, stratum: int = 0
) -> dict[tuple[int, str, int], Arm]:
    """The arms of one epoch and stratum."""
    return {(epoch, CONTROL, stratum): control, (epoch, V2, stratum): candidate}
