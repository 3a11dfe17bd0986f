"""A small arm beside a large one: nothing is different, and everybody looks from 2 units on.

Seeded: the same numbers on every run. The bound is alpha plus three standard errors at the
repetitions used. The old way stands beside: a t mixture by the units of both arms together, on
Welch's variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from control.analyze.aggregate import Cell
from control.analyze.estimate import TOO_FEW, UNITS_LEAST, Compared, Settings, compare
from control.analyze.metrics import Metric
from control.analyze.plans import Plan
from control.stats.confseq import t_radius
from control.stats.means import welch
from control.stats.moments import Moments, PairMoments, moments_from_sums
from tests.analyze.worlds import Floats, ask, first

ALPHA = 0.05
REPS = 200
PLAN = Plan(Metric("y", "mean", "y"), "y")
Draw = Callable[[np.random.Generator, int], Floats]
WORLDS: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "lognormal": lambda rng, n: rng.lognormal(0, 1, n),
}


def state(values: Floats, n: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Moments:
    """Moments of the first n values, for each n."""
    total, squares = np.cumsum(values)[n - 1], np.cumsum(values**2)[n - 1]
    return moments_from_sums(n, total, sum_sq=squares)


def at_look(moments: Moments, look: int) -> Moments:
    return Moments(*(np.asarray(field)[look] for field in moments))


def compared(control: Moments, treatment: Moments) -> Compared:
    cells = []
    for arm in (control, treatment):
        zero = np.zeros(())
        pair = PairMoments(arm.n, arm.mean, zero, arm.m2, zero, zero)
        cells.append(Cell(int(arm.n), 0, {(0, 0): pair}, False, False, False, 0.0, 0))
    return compare(PLAN, "treatment", cells[0], cells[1], Settings(ALPHA))


def old_radius(n: int) -> float:
    try:
        return t_radius(n, 2, alpha=ALPHA, g=1.0)
    except ValueError:
        return math.inf


def crossed(draw: Draw, ratio: int, spread: float, seed: int) -> tuple[float, float]:
    """Shares of A/A experiments in which a look said "different": ours, the old way."""
    rng = np.random.default_rng([20260722, ratio, seed])
    n_t = np.arange(2, UNITS_LEAST)
    n_c = n_t * ratio
    radii = np.array([old_radius(int(n)) for n in n_c + n_t])
    middle = float(draw(rng, 1_000_000).mean())
    ours = old = 0
    for _ in range(REPS):
        control = state(draw(rng, int(n_c[-1])) - middle, n_c)
        treatment = state((draw(rng, int(n_t[-1])) - middle) * spread, n_t)
        test = welch(control, treatment, alpha=ALPHA)
        old += bool((abs(test.diff) > radii * test.se).any())
        # No sequence is narrower than the interval of one look: other looks cannot cross.
        for look in np.flatnonzero(test.p_value < ALPHA).tolist():
            result = compared(at_look(control, look), at_look(treatment, look)).result
            if result.cs_low is not None and result.cs_high is not None:
                apart = result.cs_low > 0 or result.cs_high < 0
                assert apart == (
                    result.always_valid_p is not None and result.always_valid_p < ALPHA
                )
                if apart:
                    ours += 1
                    break
    return ours / REPS, old / REPS


@pytest.mark.parametrize(
    ("world", "ratio", "spread", "old_least"),
    [
        ("normal", 1, 0.5, 0.0),
        ("normal", 19, 1.0, 0.10),
        ("normal", 99, 2.0, 0.10),
        ("lognormal", 4, 1.0, 0.0),
        ("lognormal", 99, 1.0, 0.20),
    ],
)
def test_sequence_holds_its_alpha_and_the_old_one_does_not_when_an_arm_is_small(
    world: str, ratio: int, spread: float, old_least: float
) -> None:
    ours, old = crossed(WORLDS[world], ratio, spread, 1)
    assert ours <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / REPS)
    assert old >= old_least


@pytest.mark.parametrize("sizes", [(2_000, 10), (2_000, 60), (12, 12), (60, 400)])
def test_sequence_is_no_narrower_than_one_look_when_an_arm_is_small(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    for _ in range(10):
        arms = [rng.normal(size=n) for n in sizes]
        result = compared(*(at_look(state(y, np.array([len(y)])), 0) for y in arms)).result
        assert result.cs_low is not None
        assert result.cs_high is not None
        assert result.ci_low is not None
        assert result.ci_high is not None
        assert result.cs_low <= result.ci_low
        assert result.cs_high >= result.ci_high


def world_of(treated: int) -> pa.Table:
    rng = np.random.default_rng(4)
    n = 1_500 + treated
    user = np.repeat(np.arange(n), 3)
    y = rng.normal(size=n)[user] + rng.normal(size=len(user))
    y[user >= 1_500] -= 9.0
    label = (rng.random(len(user)) < 0.5).astype(np.int64)
    names = np.where(user < 1_500, "control", "treatment")
    # Scores that are all wrong in the treatment, nearly all right in control.
    score = np.where(user < 1_500, label, 1 - label) + 0.3 * rng.normal(size=len(user))
    return pa.table({"variant": names, "user": user, "y": y, "label": label, "score": score})


@pytest.mark.parametrize("metric", ["y:mean", "q=y:quantile:0.5", "auc"])
def test_no_sequence_exists_and_nothing_rolls_back_when_an_arm_has_two_units(metric: str) -> None:
    columns = {"label_column": "label", "score_column": "score"} if metric == "auc" else {}
    got = ask(world_of(2), metric, unit_column="user", expected=None, **columns)
    result = got.metrics[0]
    assert (result.cs_low, result.cs_high, result.always_valid_p) == (None, None, None)
    assert got.decision == "WARMING_UP"
    if metric != "q=y:quantile:0.5":  # too few values for its error is said instead
        assert any(TOO_FEW in warning for warning in got.warnings)


def test_harm_is_found_in_a_small_arm_when_it_is_large() -> None:
    result = first(world_of(20), "y:mean", unit_column="user", expected=None)
    assert result.cs_high is not None
    assert result.cs_high < 0
