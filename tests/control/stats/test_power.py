"""Sample sizes reach their power, by the tests that they are for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from control.stats.power import power_means, power_proportions


def test_t_size_has_its_power_by_the_noncentral_t() -> None:
    n = power_means(0.5, 1.0, use_t=True, power=0.9)
    df = n.n_control + n.n_treatment - 2
    reached = stats.nct.sf(stats.t.isf(0.025, df), df, 0.5 * (n.n_control / 2) ** 0.5)
    assert reached == pytest.approx(0.9, rel=1e-6)


# statsmodels 0.15.0: NormalIndPower, TTestIndPower, samplesize_proportions_2indep_onetail
def test_sizes_are_those_of_statsmodels_when_arms_differ_or_one_side_counts() -> None:
    z = power_means(0.1, 1.0, ratio_treatment_to_control=0.1)
    assert z == pytest.approx((8633.74656, 863.374656), rel=1e-8)
    t = power_means(0.1, 1.0, alternative="greater", use_t=True)
    assert t.n_control == pytest.approx(1237.18838759, rel=1e-8)
    strict = power_means(
        0.1, 1.0, power=0.9, alpha=0.01, ratio_treatment_to_control=3, alternative="greater"
    )
    assert strict.n_control == pytest.approx(1735.591782154788, rel=1e-9)


def test_proportions_need_as_many_of_one_as_of_the_other_when_swapped() -> None:
    a = power_proportions(0.05, 0.06, ratio_treatment_to_control=3)
    b = power_proportions(0.06, 0.05, ratio_treatment_to_control=1 / 3)
    assert a.n_control == pytest.approx(b.n_treatment, rel=1e-12)


@given(st.floats(0.01, 2), st.floats(0.5, 0.99))
def test_size_grows_when_the_effect_shrinks_or_the_power_grows(d: float, power: float) -> None:
    n = power_means(d, 1.0, power=power).n_control
    assert power_means(d / 2, 1.0, power=power).n_control > n
    assert power_means(d, 1.0, power=(1 + power) / 2).n_control > n


def test_sizes_are_refused_when_there_is_nothing_to_find() -> None:
    with pytest.raises(ValueError, match=r"delta == 0.0, must not be 0"):
        power_means(0.0, 1.0)
    with pytest.raises(ValueError, match=r"sd == 0.0"):
        power_means(0.1, 0.0)
    with pytest.raises(ValueError, match=r"power == 0.01, must be > 0.05"):
        power_means(0.1, 1.0, power=0.01)
    with pytest.raises(ValueError, match=r"must have the sign of alternative"):
        power_means(-0.1, 1.0, alternative="greater")
    with pytest.raises(ValueError, match=r"must not be p_control"):
        power_proportions(0.1, 0.1)
    with pytest.raises(ValueError, match=r"p_control == 0.0"):
        power_proportions(0.0, 0.1)
    with pytest.raises(ValueError, match=r"must be on the side of alternative"):
        power_proportions(0.1, 0.05, alternative="greater")
