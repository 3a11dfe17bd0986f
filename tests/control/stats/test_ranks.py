"""Ranks agree with scipy, ties and all, from values and from histograms."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from scipy import stats

from control.stats.ranks import auc_histogram, mann_whitney, mann_whitney_histogram


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_mann_whitney_agrees_with_scipy(
    alternative: Literal["two-sided", "greater", "less"],
) -> None:
    rng = np.random.default_rng(4)
    for top in (3, 10, 10**6):
        c, t = rng.integers(0, top, 40), rng.integers(0, top + 1, 25)
        r = mann_whitney(c, t, alternative=alternative)
        s = stats.mannwhitneyu(t, c, method="asymptotic", alternative=alternative)
        assert (r.u_treatment, r.p_value) == pytest.approx((s.statistic, s.pvalue), rel=1e-10)


def test_histograms_give_the_same_as_their_values() -> None:
    rng = np.random.default_rng(5)
    c, t = rng.integers(0, 8, 100), rng.integers(0, 9, 90)
    bins = [np.bincount(x, minlength=9) for x in (c, t)]
    assert mann_whitney_histogram(*bins) == mann_whitney(c, t)


def test_ranks_say_nothing_when_all_values_are_equal() -> None:
    r = mann_whitney([1.0, 1.0], [1.0])
    assert r.cles == 0.5
    assert np.isnan(r.p_value)


def test_auc_is_1_for_perfect_scores_and_a_half_for_useless_ones() -> None:
    assert auc_histogram([0, 5], [5, 0]) == (1.0, 0.0)
    useless = auc_histogram([50, 50], [80, 80])
    assert useless.auc == 0.5
    assert useless.se == pytest.approx(0.037, abs=0.002)


def test_ranks_refuse_bad_input() -> None:
    with pytest.raises(ValueError, match=r"control has 0 values"):
        mann_whitney([], [1.0])
    with pytest.raises(ValueError, match=r"treatment == inf"):
        mann_whitney([1.0], [np.inf])
    with pytest.raises(ValueError, match=r"sum of positive == 0"):
        auc_histogram([0, 0], [1, 1])
    with pytest.raises(ValueError, match=r"negative has 1 bins, must be 2"):
        auc_histogram([1, 0], [1])
    with pytest.raises(ValueError, match=r"positive == -1"):
        auc_histogram([-1, 2], [1, 1])
