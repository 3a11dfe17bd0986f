"""P5: do the arms have their shares of users? Asked at every look."""

from __future__ import annotations

from typing import Final

import numpy as np

from control.rollout.bounds import SRM_CONCENTRATION
from control.stats.counts import count_evidence
from control.stats.srm import srm_chi2
from tests.simulations.figures import SEED, Claim, Figure, rate_within
from tests.simulations.streams import first

ALPHA: Final = 0.001
LOOKS: Final = 100
USERS_PER_LOOK: Final = 1_000


def run(*, long: bool) -> list[Figure]:
    """False alarms, and users until 48 : 52 and 49 : 51 are seen."""
    counts = _counts(20_000, LOOKS, USERS_PER_LOOK, 0.5, 50)
    false = float(_fires(counts).any(axis=1).mean())
    naive = float((srm_chi2(counts, [1, 1]).p_value < ALPHA).any(axis=1).mean())
    figures = [
        Figure(
            plan="P5",
            what="50 : 50 users, 100 looks: mismatch at .001",
            reps=20_000,
            ours=rate_within(false, ALPHA, 20_000),
            naive="chi-squared at each look",
            theirs=Claim(naive, ">=", 0.01),
        )
    ]
    reps = 4_000 if long else 1_000
    for share, users, most in ((0.52, 40_000, 12_000.0), (0.51, 160_000, 48_000.0)):
        split = f"{100 - 100 * share:g} : {100 * share:g}"
        per_look = users // 400
        counts = _counts(reps, 400, per_look, share, 51)
        median = float(np.median(first(_fires(counts)) + 1)) * per_look
        figures.append(
            Figure(
                plan="P5",
                what=f"{split} users: median until the mismatch is seen",
                reps=reps,
                ours=Claim(median, "<=", most),
                unit="users",
            )
        )
    return figures


def _counts(reps: int, looks: int, per_look: int, share: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng([SEED, seed])
    mine = np.cumsum(rng.binomial(per_look, share, (reps, looks)), axis=1)
    users = per_look * np.arange(1, looks + 1)
    return np.stack([users - mine, mine], axis=-1)


def _fires(counts: np.ndarray) -> np.ndarray:
    evidence = count_evidence(counts, [1, 1], concentration=SRM_CONCENTRATION)
    return np.asarray(evidence.log_e >= -np.log(ALPHA))
