"""Strata: no ramp can fake an effect, no segment can hide one."""

from __future__ import annotations

import numpy as np
import pytest

from control.stats.proportions import Share
from control.stats.strata import stratified, stratified_proportions


def test_ramp_with_drifting_base_has_no_effect_when_stratified() -> None:
    n_c, n_t = np.array([9900, 9500, 9000]), np.array([100, 500, 1000])
    rate = np.array([0.05, 0.08, 0.2])
    r = stratified_proportions(Share(n_c * rate, n_c), Share(n_t * rate, n_t))
    assert r.population.diff == pytest.approx(0.0, abs=1e-15)
    assert r.pooled_diff > 0.02


def test_population_weights_are_shares_of_units_and_precision_has_the_least_variance() -> None:
    diffs, variances = [[0.1, 0.3], [0.0, 0.0]], [[0.01, 0.04], [0.02, 0.02]]
    population = stratified(diffs, variances, units=[100, 300])
    precision = stratified(diffs, variances, weighting="precision")
    assert population.diff == pytest.approx([0.25, 0.0])
    assert np.all(precision.variance <= population.variance)
    assert precision.q[1] == 0
    assert list(population.q_df) == [1, 1]


def test_heterogeneity_is_found_where_effects_oppose_each_other() -> None:
    r = stratified([0.1, -0.1], [1e-4, 1e-4], units=[1, 1])
    assert r.diff == 0
    assert r.q_p < 1e-6


def test_one_stratum_has_no_heterogeneity_to_test() -> None:
    r = stratified([0.1], [0.01], weighting="precision")
    assert r.diff == 0.1
    assert r.q_df == 0
    assert np.isnan(r.q_p)


def test_stratum_without_events_has_no_weight_when_weighted_by_precision() -> None:
    some = Share([30, 12], [1000, 400]), Share([45, 9], [1000, 300])
    more = Share([30, 0, 12, 50], [1000, 70, 400, 50]), Share([45, 0, 9, 20], [1000, 80, 300, 20])
    without, r = stratified_proportions(*some), stratified_proportions(*more)
    assert list(r.precision.weights[[1, 3]]) == [0.0, 0.0]
    assert r.precision.diff == without.precision.diff
    assert r.precision.q_df == 1
    assert (r.mh_odds_ratio, r.cmh) == pytest.approx((without.mh_odds_ratio, without.cmh))
    assert list(r.diffs[[1, 3]]) == [0.0, 0.0]


def test_strata_refuse_differences_without_error() -> None:
    with pytest.raises(ValueError, match=r"no stratum has spread"):
        stratified_proportions(Share([0, 5], [9, 5]), Share([0, 7], [8, 7]))
    with pytest.raises(ValueError, match=r"variances == 0.0, must be > 0"):
        stratified_proportions(Share([3, 0], [9, 5]), Share([4, 7], [8, 7]))


def test_strata_refuse_bad_input() -> None:
    with pytest.raises(ValueError, match=r"units == None"):
        stratified([0.1], [0.1])
    with pytest.raises(ValueError, match=r"sum of units == 0"):
        stratified([0.1], [0.1], units=[0])
    with pytest.raises(ValueError, match=r"variances == 0.0, must be > 0 when weighted"):
        stratified([0.1], [0.0], weighting="precision")
    with pytest.raises(ValueError, match=r"weighting == 'equal'"):
        stratified([0.1], [0.1], weighting="equal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"diffs has shape \(0,\)"):
        stratified([], [], units=[])
    with pytest.raises(ValueError, match=r"treatment has shape"):
        stratified_proportions(Share([1, 2], [5, 5]), Share(1, 5))
