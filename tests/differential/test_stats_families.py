"""Clusters, many tests, sample sizes, pairs, strata, quantiles, looks and posteriors elsewhere.

Elsewhere is statsmodels, scipy, or where neither has it an independent way to the same number: a
closed sum for two Beta posteriors, the bivariate normal for two looks.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import optimize, special, stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats import multitest, power, proportion
from statsmodels.stats.contingency_tables import StratifiedTable, mcnemar

from control.stats import paired, sequential
from control.stats.bayes import beta_posterior, compare_betas
from control.stats.clusters import Clusters, cluster_robust
from control.stats.errors import Alternative
from control.stats.multiplicity import Method, adjust
from control.stats.power import power_means, power_proportions
from control.stats.proportions import Share
from control.stats.quantiles import quantile_interval
from control.stats.srm import srm_chi2
from control.stats.strata import stratified_proportions
from tests.differential.statworlds import WORLDS, agree, counted, worlds

SEED = 20_261_123


def generator(number: int) -> np.random.Generator:
    return np.random.default_rng((SEED, number))


def test_clustered_errors_are_statsmodels_cr0_and_hc0() -> None:
    done = 0
    for number in range(WORLDS):
        rng = generator(number)
        arms = []
        for rate in (0.1, rng.uniform(0.05, 0.3)):
            users = int(10 ** rng.uniform(0.5, 1.7))
            n = 1 + rng.poisson(rng.choice([0.5, 3.0, 10.0]), users)
            y = rng.binomial(n, rng.beta(rate * 2, (1 - rate) * 2, users))
            arms.append(Clusters(y, n))
        ours = cluster_robust(*arms)
        events, arm, group = _requests(arms)
        if len(np.unique(events)) == 1:
            assert ours.se_cluster == ours.se_request_level == 0.0
            continue
        model = OLS(events, np.column_stack([np.ones_like(arm), arm]))
        if ours.se_cluster < 1e-12:
            continue  # every user has the arm's own rate: statsmodels' variance is rounding
        if not np.ptp(events[arm == 0]):
            continue  # so is that of an intercept, and its root a warning
        clustered = model.fit(
            cov_type="cluster", cov_kwds={"groups": group, "use_correction": False}
        )
        plain = model.fit(cov_type="HC0")
        agree(ours.diff, clustered.params[1], f"diff {number}", scale=float(plain.bse[1]))
        agree(ours.se_cluster, clustered.bse[1], f"clustered {number}")
        agree(ours.se_request_level, plain.bse[1], f"requests {number}")
        done += 1
    assert done >= 850


def _requests(arms: list[Clusters]) -> tuple[Any, Any, Any]:
    events, arm, group = [], [], []
    for side, one in enumerate(arms):
        for user, (y, n) in enumerate(zip(np.asarray(one.y), np.asarray(one.n), strict=True)):
            events += [1.0] * int(y) + [0.0] * int(n - y)
            arm += [float(side)] * int(n)
            group += [side * 1_000_000 + user] * int(n)
    return np.array(events), np.array(arm), np.array(group)


@pytest.mark.parametrize(("method", "name"), [("holm", "holm"), ("bh", "fdr_bh")])
def test_adjusted_p_values_are_statsmodels(method: Method, name: str) -> None:
    for number in range(40 if method == "holm" else WORLDS):  # its Holm takes 50 ms
        rng = generator(number)
        p = rng.random(int(rng.integers(1, 60))) ** float(rng.choice([1, 4, 40]))
        if rng.random() < 0.3:
            p = np.round(p, 2)  # ties, zeros, ones
        alpha = float(rng.choice([0.001, 0.05, 0.2]))
        ours = adjust(p, method=method, alpha=alpha)
        reject, adjusted, _, _ = multitest.multipletests(p, alpha=alpha, method=name)
        for index, (a, b) in enumerate(zip(ours.adjusted, adjusted, strict=True)):
            agree(a, b, f"{method} {number}[{index}]", atol=1e-300)
        assert np.array_equal(ours.reject, reject), f"{method} {number}"


def test_sample_sizes_are_statsmodels() -> None:
    """Its solver stops at 1e-12 of the power, ours at 1e-12 of ln n: equal to 1e-9 of n."""
    words: dict[Alternative, str] = {"two-sided": "two-sided", "greater": "larger"}
    for number in range(WORLDS):
        rng = generator(number)
        side: Alternative = "two-sided" if number % 2 else "greater"
        effect, sd = 10 ** rng.uniform(-2.0, 0.0), 10 ** rng.uniform(-3, 9)
        alpha, wanted = 10 ** rng.uniform(-3, -0.7), rng.uniform(0.5, 0.99)
        ratio = float(rng.choice([0.01, 0.25, 1.0, 3.0, 99.0]))
        ours = power_means(
            effect * sd,
            sd,
            alpha=alpha,
            power=wanted,
            ratio_treatment_to_control=ratio,
            alternative=side,
        )
        reached = power.NormalIndPower().power(effect, ours.n_control, alpha, ratio, words[side])
        agree(reached, wanted, f"power {number}")
        p_c, p_t = rng.uniform(0.001, 0.4), rng.uniform(0.41, 0.999)
        mine = power_proportions(
            p_c,
            p_t,
            alpha=alpha,
            power=wanted,
            ratio_treatment_to_control=ratio,
            alternative=side,
        )
        # Of its arms the first has the difference, and `ratio` is the second's share of it.
        theirs = proportion.samplesize_proportions_2indep_onetail(
            p_t - p_c,
            p_c,
            wanted,
            ratio=1 / ratio,
            alpha=alpha / 2 if side == "two-sided" else alpha,
            alternative="larger",
        )
        agree(mine.n_treatment, theirs, f"proportions {number}")


def test_sample_sizes_by_t_are_statsmodels() -> None:
    for number in range(100):
        rng = generator(number)
        effect, wanted = 10 ** rng.uniform(-1.5, 0.0), rng.uniform(0.5, 0.95)
        ratio = float(rng.choice([0.25, 1.0, 3.0]))
        n = power_means(
            effect, 1.0, power=wanted, ratio_treatment_to_control=ratio, use_t=True
        ).n_control
        reached = power.TTestIndPower().power(effect, n, 0.05, ratio=ratio)
        agree(reached, wanted, f"power {number}")


def test_sample_ratio_is_scipys_chi_squared() -> None:
    for number in range(WORLDS):
        rng = generator(number)
        arms = int(rng.integers(2, 7))
        weights = rng.choice([1.0, 5.0, 50.0, 94.0], arms)
        counts = rng.multinomial(int(10 ** rng.uniform(0, 7)), weights / weights.sum())
        ours = srm_chi2(counts, weights)
        theirs = stats.chisquare(counts, counts.sum() * weights / weights.sum())
        agree(ours.chi2, theirs.statistic, f"chi2 {number}", scale=1.0)
        agree(ours.p_value, theirs.pvalue, f"p {number}", atol=1e-300)


def test_mcnemar_is_statsmodels() -> None:
    for number in range(WORLDS):
        rng = generator(number)
        both, b, c, none = (int(10 ** rng.uniform(0, 5)) - 1 for _ in range(4))
        if both + b + c + none == 0:
            continue
        ours = paired.mcnemar(b, c, both_right=both, both_wrong=none)
        table = [[both, b], [c, none]]
        # Below that its binomial tail is 0; ours is that of integer arithmetic.
        agree(ours.p_exact, mcnemar(table, exact=True).pvalue, f"exact {number}", atol=1e-270)
        if b + c == 0:
            assert math.isnan(ours.p)
            continue
        theirs = mcnemar(table, exact=False, correction=True)
        agree(ours.chi2_corrected, theirs.statistic, f"corrected {number}")
        agree(ours.p_corrected, theirs.pvalue, f"corrected p {number}", atol=1e-300)
        theirs = mcnemar(table, exact=False, correction=False)
        agree(ours.chi2, theirs.statistic, f"chi2 {number}")
        agree(ours.p, theirs.pvalue, f"p {number}", atol=1e-300)


def test_strata_are_statsmodels_stratified_table() -> None:
    for number in range(WORLDS):
        rng = generator(number)
        strata = int(rng.integers(2, 7))
        n_c, n_t = (rng.integers(5, 10 ** rng.integers(1, 6), strata) + 5 for _ in range(2))
        rate = rng.uniform(0.1, 0.6, strata)
        x_c, x_t = rng.binomial(n_c - 2, rate) + 1, rng.binomial(n_t - 2, rate) + 1
        ours = stratified_proportions(Share(x_c, n_c), Share(x_t, n_t))
        tables = [
            np.array([[a, m - a], [b, n - b]], dtype=np.float64)
            for a, m, b, n in zip(x_t, n_t, x_c, n_c, strict=True)
        ]
        theirs = StratifiedTable(tables)
        test = theirs.test_null_odds(correction=False)
        agree(ours.mh_odds_ratio, theirs.oddsratio_pooled, f"odds {number}")
        agree(ours.cmh, test.statistic, f"cmh {number}", scale=1.0)
        agree(ours.cmh_p, test.pvalue, f"p {number}", atol=1e-300)


def test_quantile_intervals_are_scipys() -> None:
    for number, world in enumerate(worlds()):
        rng = generator(number)
        q, alpha = float(rng.uniform(0.01, 0.99)), float(rng.choice([0.001, 0.05, 0.2]))
        x = world.control.y
        ours = quantile_interval(x, q, alpha=alpha)
        test = stats.quantile_test(x, p=q)
        theirs = test.confidence_interval(confidence_level=1 - alpha)
        assert (ours.ci_low, ours.ci_high) == pytest.approx(
            (theirs.low, theirs.high), nan_ok=True, rel=0, abs=0
        ), world.name
        agree(ours.estimate, np.quantile(x, q), f"quantile of {world.name}")


def test_bounds_of_two_looks_are_those_of_the_bivariate_normal() -> None:
    for number in range(40):
        rng = generator(number)
        t = float(rng.uniform(0.05, 0.95))
        alpha, phi = float(rng.choice([0.001, 0.01, 0.05])), float(rng.uniform(1, 4))
        for sides in (1, 2):
            first, second = sequential.group_sequential_bounds(
                [t, 1.0], alpha=alpha, phi=phi, sides=sides
            )
            spent = np.array([t**phi, 1.0]) * alpha / sides
            agree(first, -special.ndtri(spent[0]), f"first {number}")
            law = stats.multivariate_normal(cov=[[1.0, math.sqrt(t)], [math.sqrt(t), 1.0]])

            def crossed(z: float, law: Any = law, first: float = first) -> float:
                # P(second > z, first not crossed) = P(first < bound) - P(both below).
                return float(special.ndtr(first) - law.cdf([first, z]))

            wanted = float(spent[1] - spent[0])
            theirs = optimize.brentq(lambda z: crossed(z) - wanted, 0.0, 9.0, xtol=1e-13)  # noqa: B023
            # A difference of probabilities near 1 has 16 digits, and steps of it move z by 1e-16 /
            # density.
            slope = math.exp(-(theirs**2) / 2)
            agree(second, theirs, f"second {number}", atol=1e-14 / slope)


def test_chance_to_beat_is_the_closed_sum() -> None:
    """P(t > c) = sum over i < a_t of B(a_c + i, b_c + b_t) / ((b_t + i) B(1 + i, b_t) B(a_c, b_c)).

    For whole a_t (Miller, evanmiller.org/bayesian-ab-testing.html).
    """
    done = 0
    for pair in counted():
        if pair.x_t > 3_000 or pair.n_c + pair.n_t > 20_000:
            continue
        control = beta_posterior(pair.x_c, pair.n_c)
        treatment = beta_posterior(pair.x_t, pair.n_t)
        i = np.arange(int(treatment.a))
        logs = (
            special.betaln(control.a + i, control.b + treatment.b)
            - np.log(treatment.b + i)
            - special.betaln(1 + i, treatment.b)
            - special.betaln(control.a, control.b)
        )
        ours = compare_betas(control, treatment)
        # Logarithms of up to 1e4 keep 1e-12 of the sum.
        agree(ours.p_beat, np.exp(special.logsumexp(logs)), pair.name, atol=1e-15)
        done += 1
    assert done >= 300


def test_expected_loss_is_the_difference_of_means_and_of_the_other_loss() -> None:
    """E[max(c - t, 0)] - E[max(t - c, 0)] = E[c] - E[t]."""
    for pair in counted():
        control = beta_posterior(pair.x_c, pair.n_c)
        treatment = beta_posterior(pair.x_t, pair.n_t)
        ours = compare_betas(control, treatment)
        means = [arm.a / (arm.a + arm.b) for arm in (control, treatment)]
        agree(
            ours.loss_treatment - ours.loss_control,
            means[0] - means[1],
            pair.name,
            scale=max(ours.loss_treatment, ours.loss_control),
            atol=1e-16,
        )
