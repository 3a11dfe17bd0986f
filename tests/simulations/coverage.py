"""P9: stop when it looks decided. Does the interval still cover the truth, and what is the bias?"""

from __future__ import annotations

from typing import Final

import numpy as np

from control.stats.confseq import asymptotic_means
from control.stats.means import welch
from tests.simulations.figures import SEED, Claim, Figure
from tests.simulations.power import ALPHA, LOOKS, MDE
from tests.simulations.streams import Floats, at, first, normal_arm

PER_LOOK: Final = 50
EFFECTS: Final = (0.0, 0.25, 0.5, 1.0, 1.5)  # in MDE


def run(*, long: bool) -> list[Figure]:
    """Coverage at the first look that excludes 0, or at the last; bias of the point estimate."""
    reps = 8_000 if long else 4_000
    figures = []
    for number, times in enumerate(EFFECTS):
        rng = np.random.default_rng([SEED, 90, number])
        truth = times * MDE
        control = normal_arm(reps, LOOKS, PER_LOOK, 0.0, rng)
        treatment = normal_arm(reps, LOOKS, PER_LOOK, truth, rng)
        total = 2.0 * PER_LOOK * LOOKS / 2
        ours = asymptotic_means(control, treatment, n_star=total, alpha=ALPHA)
        fixed = welch(control, treatment, alpha=ALPHA)
        covered, bias = _stopped(ours.diff, ours.ci_low, ours.ci_high, truth)
        naive, naive_bias = _stopped(fixed.diff, fixed.ci_low, fixed.ci_high, truth)
        what = f"effect {times:g} x MDE, stopped when 0 is excluded"
        figures.append(
            Figure(
                plan="P9",
                what=f"{what}: interval covers the truth",
                reps=reps,
                ours=Claim(covered, ">=", 0.95),
                naive="t interval, peeked",
                theirs=Claim(naive, "<=", 0.95),
            )
        )
        if truth:
            # Both err: a difference that stops an experiment is too large. Show the interval.
            figures.append(
                Figure(
                    plan="P9",
                    what=f"{what}: the raw difference is too large by (MDE)",
                    reps=reps,
                    ours=Claim(bias / MDE, "<=", naive_bias / MDE),
                    naive="t-test, peeked",
                    theirs=Claim(naive_bias / MDE, ">=", 0.2),
                    unit="number",
                )
            )
    return figures


def _stopped(diff: Floats, low: Floats, high: Floats, truth: float) -> tuple[float, float]:
    stop = np.minimum(first((low > 0) | (high < 0)), LOOKS - 1)
    covers = (at(low, stop) <= truth) & (truth <= at(high, stop))
    return float(covers.mean()), float(at(diff, stop).mean() - truth)
