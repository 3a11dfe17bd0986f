"""Two proportions agree with scipy; edges are exact; no counts are no counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from control.stats.proportions import Share, two_proportions, wilson


def test_chi_squared_agrees_with_scipy() -> None:
    for x_c, n_c, x_t, n_t in [(5, 100, 9, 120), (500, 1000, 480, 900), (1, 10**9, 9, 10**9)]:
        r = two_proportions(Share(x_c, n_c), Share(x_t, n_t))
        s = stats.chi2_contingency([[x_c, n_c - x_c], [x_t, n_t - x_t]], correction=False)
        assert r.chi2 == pytest.approx(s.statistic, rel=1e-9)
        assert r.p_value == pytest.approx(s.pvalue, rel=1e-9)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_intervals_hold_the_estimate_and_stay_in_range(a: int, b: int, c: int, d: int) -> None:
    r = two_proportions(Share(a, a + b + 1), Share(c, c + d + 1))
    assert -1 <= r.newcombe.low <= r.diff + 1e-15
    assert r.diff - 1e-15 <= r.newcombe.high <= 1
    assert 0 <= r.wilson_control.low <= a / (a + b + 1) + 1e-15
    assert r.decided or (a + c == 0) or (b + d + 2 == 0)


@given(st.integers(0, 40), st.integers(1, 60))
def test_wilson_narrows_when_there_is_more_of_the_same(x: int, n: int) -> None:
    x = min(x, n)
    one, ten = wilson(x, n), wilson(10 * x, 10 * n)
    assert ten.high - ten.low < one.high - one.low


def test_no_event_at_all_is_undecided_with_bounds_for_each_arm() -> None:
    r = two_proportions(Share(0, 100), Share(0, 50))
    assert not r.decided
    assert np.isnan(r.p_value)
    assert r.wilson_treatment.low == 0
    assert 0 < r.wilson_treatment.high < 0.1
    assert r.newcombe.low < 0 < r.newcombe.high


def test_cells_are_as_if_alone_when_given_arrays() -> None:
    cells = two_proportions(Share([1, 5], [10, 20]), Share([[2], [3]], 10))
    assert cells.p_value.shape == (2, 2)
    alone = two_proportions(Share(5, 20), Share(3, 10))
    assert float(cells.newcombe.low[1, 1]) == float(alone.newcombe.low)


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (Share(1, 0), "control.n == 0"),
        (Share(-1, 5), "control.x == -1"),
        (Share(6, 5), "control.x == 6.0, must be <= control.n"),
        (Share(1.5, 5), "control.x == 1.5, must be whole"),
        (Share(np.nan, 5), "control.x == nan"),
        (Share([1, 2], [5, 5, 5]), "shapes"),
    ],
)
def test_counts_are_refused_when_they_are_none(share: Share, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        two_proportions(share, Share(1, 5))
