"""On random data sets: the numbers of tea-tasting, where the definition is the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tea_tasting as tt
from tea_tasting.aggr import Aggregates

from control.stats.cuped import cuped
from control.stats.errors import Alternative
from control.stats.means import welch
from control.stats.multiplicity import adjust
from control.stats.proportions import Share, two_proportions
from control.stats.ranks import mann_whitney
from control.stats.ratios import ratio_delta
from control.stats.srm import srm_chi2
from tests.differential.statworlds import WORLDS, Units, World, agree, counted, worlds

SIDES: tuple[Alternative, ...] = ("two-sided", "greater", "less")
LEAST = 900


def aggregates(arm: Units) -> Any:
    """What tea-tasting takes from a database: means, variances, covariances."""
    columns = arm._asdict()
    pairs = [(a, b) for a in columns for b in columns if a < b]
    return Aggregates(
        count_=len(arm.y),
        mean_={name: float(np.mean(values)) for name, values in columns.items()},
        var_={name: float(np.var(values, ddof=1)) for name, values in columns.items()},
        cov_={(a, b): float(np.cov(columns[a], columns[b])[0, 1]) for a, b in pairs},
    )


def analysed(metric: Any, world: World) -> Any:
    return metric.analyze_aggregates(aggregates(world.control), aggregates(world.treatment))


@pytest.mark.parametrize("side", SIDES)
def test_welch_is_tea_tastings(side: Alternative) -> None:
    metric = tt.Mean("y", alternative=side, confidence_level=0.97, equal_var=False, use_t=True)
    done = 0
    for world in worlds():
        if not any(world.spread) or not world.control.y.sum() or not world.treatment.y.sum():
            continue  # it divides by both means, for its relative interval
        theirs, ours = analysed(metric, world), welch(*world.arms, alternative=side, alpha=0.03)
        se = float(ours.se)
        agree(ours.diff, theirs.effect_size, f"diff of {world.name}", scale=se)
        agree(ours.p_value, theirs.pvalue, f"p of {world.name}", atol=1e-300)
        agree(ours.ci_low, theirs.effect_size_ci_lower, f"low of {world.name}", scale=se)
        agree(ours.ci_high, theirs.effect_size_ci_upper, f"high of {world.name}", scale=se)
        done += 1
    assert done >= 800


@pytest.mark.parametrize("side", SIDES)
def test_ratio_is_tea_tastings(side: Alternative) -> None:
    metric = tt.RatioOfMeans("y", "d", alternative=side, confidence_level=0.97, use_t=False)
    done = 0
    for world in worlds():
        if not any(world.spread) or not world.control.y.sum() or not world.treatment.y.sum():
            continue
        ours = ratio_delta(*world.ratios, alternative=side, alpha=0.03)
        theirs, se = analysed(metric, world), float(ours.se)
        agree(ours.diff, theirs.effect_size, f"diff of {world.name}", scale=se)
        agree(ours.p_value, theirs.pvalue, f"p of {world.name}", atol=1e-300)
        agree(ours.ci_low, theirs.effect_size_ci_lower, f"low of {world.name}", scale=se)
        agree(ours.ci_high, theirs.effect_size_ci_upper, f"high of {world.name}", scale=se)
        agree(ours.rel_diff, theirs.rel_effect_size, f"relative of {world.name}", scale=1.0)
        done += 1
    assert done >= 800


@pytest.mark.parametrize("side", SIDES)
def test_adjusted_difference_is_tea_tastings(side: Alternative) -> None:
    metric = tt.Mean("y", "x", alternative=side, confidence_level=0.97, use_t=False)
    done = 0
    for world in worlds():
        c, t = world.covariates
        if not any(world.spread) or not world.control.y.sum() or not world.treatment.y.sum():
            continue
        ours = cuped(c, t, alternative=side, alpha=0.03)
        theirs = analysed(metric, world)
        se = float(ours.unadjusted.se)
        # A difference between numbers of the size of the unadjusted error.
        agree(ours.adjusted.diff, theirs.effect_size, f"diff of {world.name}", scale=se)
        low, high = theirs.effect_size_ci_lower, theirs.effect_size_ci_upper
        agree(ours.adjusted.ci_low, low, f"low of {world.name}", scale=se)
        agree(ours.adjusted.ci_high, high, f"high of {world.name}", scale=se)
        z = abs(float(ours.adjusted.statistic))
        sharper = se / float(ours.adjusted.se) * (1 + z * z)
        agree(
            ours.adjusted.p_value,
            theirs.pvalue,
            f"p of {world.name}",
            rtol=max(1e-9, 1e-14 * sharper),
            atol=1e-300,
        )
        done += 1
    assert done >= 800


@pytest.mark.parametrize("side", SIDES)
def test_pooled_z_is_tea_tastings(side: Alternative) -> None:
    metric = tt.Proportion("y", method="norm", alternative=side, equal_var=True, correction=False)
    done = 0
    for pair in counted():
        if not 0 < pair.x_c < pair.n_c or not 0 < pair.x_t < pair.n_t:
            continue  # it divides by the rates, for its relative interval
        theirs = metric.analyze_aggregates(
            Aggregates(count_=pair.n_c, mean_={"y": pair.x_c / pair.n_c}),
            Aggregates(count_=pair.n_t, mean_={"y": pair.x_t / pair.n_t}),
        )
        ours = two_proportions(
            Share(pair.x_c, pair.n_c), Share(pair.x_t, pair.n_t), alternative=side
        )
        agree(ours.p_value, theirs.pvalue, f"p of {pair.name}", atol=1e-300)
        done += 1
    assert done >= 350


def test_adjusted_p_values_are_tea_tastings() -> None:
    for number in range(WORLDS):
        rng = np.random.default_rng((14, number))
        p = rng.random(int(rng.integers(1, 30))) ** float(rng.choice([1, 4, 40]))
        names = [str(index) for index in range(len(p))]
        plain = {n: {"pvalue": float(value)} for n, value in zip(names, p, strict=True)}
        results = tt.experiment.ExperimentResult(plain)
        theirs = tt.adjust_fdr(results)["-"]
        ours = adjust(p, method="bh").adjusted
        for name, value in zip(names, ours, strict=True):
            agree(value, theirs[name]["pvalue_adj"], f"bh {number}[{name}]", atol=1e-300)
        theirs = tt.adjust_fwer(results, arbitrary_dependence=True, method="bonferroni")["-"]
        ours = adjust(p, method="holm").adjusted
        for name, value in zip(names, ours, strict=True):
            agree(value, theirs[name]["pvalue_adj"], f"holm {number}[{name}]", atol=1e-300)


def test_sample_ratio_of_two_arms_is_tea_tastings_z() -> None:
    for number in range(WORLDS):
        rng = np.random.default_rng((15, number))
        ratio = float(rng.choice([1 / 99, 0.25, 1.0, 4.0, 99.0]))
        total = int(10 ** rng.uniform(0.3, 7))
        n_t = int(rng.binomial(total, ratio / (1 + ratio)))
        arms = {0: Aggregates(count_=total - n_t), 1: Aggregates(count_=n_t)}
        theirs = tt.SampleRatio(ratio, method="norm", correction=False).analyze(arms, 0, 1)
        ours = srm_chi2([total - n_t, n_t], [1.0, ratio])
        agree(ours.p_value, theirs.pvalue, f"p {number}", atol=1e-300)


@pytest.mark.parametrize("side", SIDES)
def test_mann_whitney_is_tea_tastings(side: Alternative) -> None:
    metric = tt.MannWhitneyU("y", alternative=side, method="asymptotic", correction=True)
    done = 0
    for world in worlds()[::5]:
        c, t = world.control.y, world.treatment.y
        if np.ptp(np.concatenate([c, t])) == 0:
            continue
        both = {"y": np.concatenate([c, t]), "arm": np.repeat([0, 1], [len(c), len(t)])}
        theirs = metric.analyze(pa.table(both), 0, 1, "arm")
        agree(mann_whitney(c, t, alternative=side).p_value, theirs.pvalue, world.name, atol=1e-300)
        done += 1
    assert done >= 180
