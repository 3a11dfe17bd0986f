"""The sample ratio test agrees with scipy and needs users."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from control.stats.srm import srm_chi2


def test_chi_squared_agrees_with_scipy_for_many_arms_and_any_weights() -> None:
    observed, weights = np.array([5030, 4970, 2100]), np.array([5.0, 5.0, 2.0])
    r = srm_chi2(observed, weights)
    s = stats.chisquare(observed, observed.sum() * weights / weights.sum())
    assert (r.chi2, r.p_value) == pytest.approx((s.statistic, s.pvalue), rel=1e-10)
    assert r.df == 2


def test_sample_ratio_works_on_cells_at_1e9() -> None:
    r = srm_chi2([[10**9, 10**9], [10**9, 10**9 + 10**6]], [1, 1])
    assert r.p_value[0] == 1.0
    assert 0 < r.p_value[1] < 1e-50


@pytest.mark.parametrize(
    ("counts", "weights", "message"),
    [
        ([0, 0], [1, 1], "sum of counts"),
        ([-1, 2], [1, 1], "counts == -1"),
        ([1, 2], [1, -1], "weights == -1"),
        ([5], [1], "must end in the same arms"),
        ([5, 6], [1, np.inf], "weights == inf"),
    ],
)
def test_sample_ratio_refuses_bad_input(
    counts: list[int], weights: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        srm_chi2(counts, weights)
