"""What control/stats/README.md says of other libraries is so: each difference, shown once."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tea_tasting as tt
from statsmodels.stats.contingency_tables import mcnemar
from tea_tasting.aggr import Aggregates

from control.stats import paired
from control.stats.cuped import relative_lift
from control.stats.means import welch
from control.stats.moments import moments
from tests.differential.statpeers import ask_gbstats, sums

CONTROL = np.array([1.0, 2.0, 4.0, 4.0, 5.0, 7.0])
FAR = CONTROL + 60.0


def test_gbstats_says_no_difference_where_one_arm_has_no_spread() -> None:
    flat = np.full(6, 9.0)
    arms = {"control": sums(CONTROL), "treatment": sums(flat)}
    theirs = ask_gbstats([{"call": "compare", "of": "mean", "alpha": 0.05} | arms])[0]
    assert (theirs["p_value"], theirs["diff"]) == (1.0, 0.0)
    ours = welch(moments(CONTROL), moments(flat))
    assert ours.p_value < 0.01
    assert ours.diff > 5


def test_gbstats_p_value_is_zero_where_ours_is_a_tail() -> None:
    control, treatment = (np.tile(arm, 20) for arm in (CONTROL, FAR))
    arms = {"control": sums(control), "treatment": sums(treatment)}
    theirs = ask_gbstats([{"call": "compare", "of": "mean", "alpha": 0.05} | arms])[0]
    assert theirs["p_value"] == 0.0
    assert 0 < welch(moments(control), moments(treatment)).p_value < 1e-100


def test_gbstats_lifts_over_a_baseline_that_may_be_zero() -> None:
    control = CONTROL - CONTROL.mean() + 0.01
    arms = {"control": sums(control), "treatment": sums(CONTROL)}
    call = {"call": "compare", "of": "mean", "alpha": 0.05, "relative": True}
    assert ask_gbstats([call | arms])[0]["diff"] > 100
    assert not relative_lift(moments(control), moments(CONTROL)).decided


def test_tea_tasting_corrects_and_switches_tests_unless_told() -> None:
    def share(x: int, n: int) -> Aggregates:
        return Aggregates(count_=n, mean_={"y": x / n})

    plain = tt.Proportion("y", method="norm", correction=False, equal_var=True)
    for n in (100, 5_000):
        arms = share(n // 10, n), share(n // 8, n)
        default = tt.Proportion("y", equal_var=True).analyze_aggregates(*arms)
        assert default.pvalue != pytest.approx(plain.analyze_aggregates(*arms).pvalue, rel=1e-3)


def test_tea_tasting_adjusts_by_hochberg_and_sidak_unless_told() -> None:
    results = tt.experiment.ExperimentResult({"a": {"pvalue": 0.04}, "b": {"pvalue": 0.045}})
    default = tt.adjust_fwer(results)["-"]
    holm = tt.adjust_fwer(results, arbitrary_dependence=True, method="bonferroni")["-"]
    assert default["a"]["pvalue_adj"] == pytest.approx(0.045)
    assert holm["a"]["pvalue_adj"] == pytest.approx(0.08)


def test_exact_mcnemar_is_zero_elsewhere_where_integers_are_not() -> None:
    assert mcnemar([[0, 1059], [18, 0]], exact=True).pvalue == 0.0
    assert paired.mcnemar(1059, 18).p_exact == pytest.approx(6.466418606629016e-286)


def test_statsmodels_answers_arms_without_spread() -> None:
    from statsmodels.stats.weightstats import ttest_ind

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, p, _ = ttest_ind(np.full(5, 2.0), np.full(5, 1.0), usevar="unequal")
    assert not p > 0
    assert not welch(moments(np.full(5, 1.0)), moments(np.full(5, 2.0))).decided
