"""On random data sets: the numbers of statsmodels and scipy, where the definition is the same."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats import proportion, weightstats

from control.stats.effects import effect_size
from control.stats.errors import Alternative
from control.stats.means import welch
from control.stats.moments import moments
from control.stats.noninferiority import non_inferior_means, non_inferior_proportions
from control.stats.proportions import Share, two_proportions
from control.stats.ranks import mann_whitney
from tests.differential.statworlds import Counted, World, agree, counted, worlds

LEAST = 900  # worlds that a comparison must have reached; the others have no spread
SIDES: dict[Alternative, str] = {"two-sided": "two-sided", "greater": "larger", "less": "smaller"}


def compared(world: World) -> Any:
    return weightstats.CompareMeans(
        weightstats.DescrStatsW(world.treatment.y), weightstats.DescrStatsW(world.control.y)
    )


@pytest.mark.parametrize("side", SIDES)
def test_welch_is_statsmodels(side: Alternative) -> None:
    done = 0
    for world in worlds():
        ours = welch(*world.arms, alternative=side, alpha=0.03)
        if not any(world.spread):
            assert not ours.decided, world.name
            continue
        theirs = compared(world)
        t, p, df = theirs.ttest_ind(alternative=SIDES[side], usevar="unequal")
        low, high = theirs.tconfint_diff(alpha=0.03, alternative=SIDES[side], usevar="unequal")
        agree(ours.df, df, f"df of {world.name}")
        agree(ours.statistic, t, f"t of {world.name}", scale=1.0)
        agree(ours.p_value, p, f"p of {world.name}", atol=1e-300)
        agree(ours.ci_low, low, f"low of {world.name}", scale=float(ours.se))
        agree(ours.ci_high, high, f"high of {world.name}", scale=float(ours.se))
        done += 1
    assert done >= LEAST


def test_equivalence_is_statsmodels_tost() -> None:
    done = 0
    for world in worlds():
        if not any(world.spread):
            continue
        margin = float(1.7 * welch(*world.arms).se)
        ours = non_inferior_means(*world.arms, margin=margin)
        p, (above, below) = compared(world).ttost_ind(-margin, margin, usevar="unequal")
        agree(ours.p_equivalent, p, f"p of {world.name}", atol=1e-300)
        agree(ours.statistic, above[0], f"t of {world.name}", scale=1.0)
        agree(ours.p_non_inferior, above[1], f"p of {world.name}", atol=1e-300)
        lower = non_inferior_means(*world.arms, margin=margin, direction="lower_is_better")
        agree(lower.p_non_inferior, below[1], f"p of {world.name}", atol=1e-300)
        done += 1
    assert done >= LEAST


def test_effect_size_is_statsmodels_pooled_t() -> None:
    """Cohen's d = Student's t times the root of 1/n_c + 1/n_t."""
    done = 0
    for world in worlds():
        if not any(world.spread):
            continue
        t, _, df = compared(world).ttest_ind(usevar="pooled")
        size = np.sqrt(1 / len(world.control.y) + 1 / len(world.treatment.y))
        ours = effect_size(*world.arms)
        agree(ours.cohens_d, t * size, f"d of {world.name}", scale=1.0)
        agree(ours.hedges_g, t * size * (1 - 3 / (4 * df - 1)), f"g of {world.name}", scale=1.0)
        done += 1
    assert done >= LEAST


@pytest.mark.parametrize("side", SIDES)
def test_mann_whitney_is_scipys(side: Alternative) -> None:
    done = 0
    for world in worlds():
        c, t = world.control.y, world.treatment.y
        ours = mann_whitney(c, t, alternative=side)
        if np.ptp(np.concatenate([c, t])) == 0:
            assert np.isnan(ours.p_value), world.name
            continue
        theirs = stats.mannwhitneyu(t, c, alternative=side, method="asymptotic")
        agree(ours.u_treatment, theirs.statistic, f"u of {world.name}")
        agree(ours.cles, theirs.statistic / len(c) / len(t), f"share of {world.name}")
        agree(ours.p_value, theirs.pvalue, f"p of {world.name}", atol=1e-300)
        done += 1
    assert done >= LEAST


def shares(pair: Counted) -> tuple[Share, Share]:
    return Share(pair.x_c, pair.n_c), Share(pair.x_t, pair.n_t)


@pytest.mark.parametrize("side", SIDES)
def test_pooled_z_is_statsmodels(side: Alternative) -> None:
    done = 0
    for pair in counted():
        ours = two_proportions(*shares(pair), alternative=side)
        if pair.x_c + pair.x_t in (0, pair.n_c + pair.n_t):
            assert not ours.decided, pair.name
            continue
        z, p = proportion.proportions_ztest(
            [pair.x_t, pair.x_c], [pair.n_t, pair.n_c], alternative=SIDES[side]
        )
        agree(ours.z, z, f"z of {pair.name}", scale=1.0)
        agree(ours.p_value, p, f"p of {pair.name}", atol=1e-300)
        table = [[pair.x_t, pair.n_t - pair.x_t], [pair.x_c, pair.n_c - pair.x_c]]
        theirs = stats.chi2_contingency(table, correction=False)
        agree(ours.chi2, theirs.statistic, f"chi2 of {pair.name}", scale=1.0)
        agree(ours.chi2_p, theirs.pvalue, f"p of {pair.name}", atol=1e-300)
        done += 1
    assert done >= 450  # half of the rates are 0 or 1


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.4])
def test_intervals_of_proportions_are_statsmodels(alpha: float) -> None:
    for pair in counted():
        ours = two_proportions(*shares(pair), alpha=alpha)
        given = (pair.x_t, pair.n_t, pair.x_c, pair.n_c)
        for method, mine in (("wald", ours.wald), ("newcomb", ours.newcombe)):
            low, high = proportion.confint_proportions_2indep(
                *given, method=method, compare="diff", alpha=alpha
            )
            width = float(mine.high - mine.low)
            agree(mine.low, low, f"{method} low of {pair.name}", scale=width)
            agree(mine.high, high, f"{method} high of {pair.name}", scale=width)
        for x, n, own in (
            (pair.x_c, pair.n_c, ours.wilson_control),
            (pair.x_t, pair.n_t, ours.wilson_treatment),
        ):
            low, high = proportion.proportion_confint(x, n, alpha=alpha, method="wilson")
            # At 0 and n ours is exactly 0 or 1 where the formula leaves rounding.
            agree(own.low, low, f"wilson low of {pair.name}", scale=1 / n, atol=1e-15)
            agree(own.high, high, f"wilson high of {pair.name}", scale=1 / n, atol=1e-15)


def test_equivalence_of_proportions_is_statsmodels_wald() -> None:
    done = 0
    for pair in counted():
        p_c, p_t = pair.x_c / pair.n_c, pair.x_t / pair.n_t
        if p_c * (1 - p_c) + p_t * (1 - p_t) == 0:
            continue
        margin = 0.01
        ours = non_inferior_proportions(*shares(pair), margin=margin)
        given = (pair.x_t, pair.n_t, pair.x_c, pair.n_c)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tails below 1e-308
            theirs = proportion.tost_proportions_2indep(*given, -margin, margin, method="wald")
        agree(ours.p_equivalent, theirs.pvalue, f"p of {pair.name}", atol=1e-300)
        done += 1
    assert done >= 450


def test_means_at_a_billion_are_exact_where_the_sums_of_squares_are_lost() -> None:
    """Integers near 1e9: their deviations are exact, their squares' sums are not."""
    for number in range(100):
        rng = np.random.default_rng((7, number))
        c = rng.integers(-5, 6, rng.integers(2, 400)).astype(np.float64)
        t = rng.integers(-5, 7, rng.integers(2, 400)).astype(np.float64)
        far = welch(moments(c + 1e9), moments(t + 1e9))
        near = stats.ttest_ind(t, c, equal_var=False)
        # A mean of 1e9 itself is a float64 with steps of 1.2e-7.
        agree(far.diff, np.mean(t) - np.mean(c), f"world {number}", atol=2.4e-7)
        agree(far.p_value, near.pvalue, f"world {number}", rtol=1e-5)
        agree(far.se, welch(moments(c), moments(t)).se, f"world {number}")
