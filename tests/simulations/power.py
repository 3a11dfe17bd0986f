"""P4: a real effect. How often, and how soon, is it found?"""

from __future__ import annotations

from typing import Final

import numpy as np

from control.stats.confseq import asymptotic_means
from control.stats.means import welch
from control.stats.power import power_means
from tests.simulations.figures import SEED, Claim, Figure
from tests.simulations.streams import first, normal_arm

LOOKS: Final = 200
ALPHA: Final = 0.05
MDE: Final = 0.056  # in standard deviations: 10,000 units at one look
# Effect in MDE: power within twice the units of the fixed plan, median stop in its units.
BOUNDS: Final = {1.0: (0.80, 1.15), 1.5: (0.98, 0.60), 2.0: (0.99, 0.40)}


def run(*, long: bool) -> list[Figure]:
    """Power and median stop of the sequence tuned at the fixed plan's units."""
    reps = 8_000 if long else 4_000
    fixed = power_means(MDE, 1.0, alpha=ALPHA, power=0.8).n_control  # per arm
    per_look = round(2 * fixed / LOOKS)
    figures = []
    for number, (times, (power, stop)) in enumerate(BOUNDS.items()):
        rng = np.random.default_rng([SEED, 40, number])
        control = normal_arm(reps, LOOKS, per_look, 0.0, rng)
        treatment = normal_arm(reps, LOOKS, per_look, times * MDE, rng)
        sequence = asymptotic_means(control, treatment, n_star=2 * fixed, alpha=ALPHA)
        crossed = sequence.ci_low > 0
        found = float(crossed.any(axis=1).mean())
        median = float(np.median(first(crossed) + 1)) * per_look / fixed
        # Valid as well, by the union bound: alpha / looks at each look.
        split = welch(control, treatment, alternative="greater").p_value < ALPHA / 2 / LOOKS
        slow = float(np.median(first(split) + 1)) * per_look / fixed
        weak = float(split.any(axis=1).mean())
        what = f"effect {times:g} x MDE, 200 looks to twice the fixed units"
        figures += [
            Figure(
                plan="P4",
                what=f"{what}: found",
                reps=reps,
                ours=Claim(found, ">=", power),
                naive="t-test at alpha / looks (Bonferroni)",
                theirs=Claim(weak, "<=", found),
            ),
            Figure(
                plan="P4",
                what=f"{what}: median stop in fixed units",
                reps=reps,
                ours=Claim(median, "<=", stop),
                naive="t-test at alpha / looks (Bonferroni)",
                theirs=Claim(slow, ">=", median),
                unit="number",
            ),
        ]
    return figures
