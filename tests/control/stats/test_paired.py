"""Paired models: only requests that they answer differently count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from control.stats.paired import mcnemar


@given(st.integers(0, 200), st.integers(1, 200))
def test_exact_p_value_is_the_binomial_test(b: int, c: int) -> None:
    r = mcnemar(b, c, both_right=10)
    assert r.p_exact == pytest.approx(stats.binomtest(b, b + c).pvalue, rel=1e-9)
    assert r.p_corrected >= r.p or abs(b - c) < 1


def test_difference_has_the_standard_error_of_paired_values() -> None:
    first = np.repeat([1, 0, 1, 0], [5, 12, 70, 13])
    second = np.repeat([0, 1, 1, 0], [5, 12, 70, 13])
    r = mcnemar(5, 12, both_right=70, both_wrong=13)
    assert r.diff == pytest.approx(np.mean(second - first))
    assert r.se == pytest.approx(np.std(second - first) / 10)


def test_nothing_is_tested_when_the_models_agree_always() -> None:
    r = mcnemar(0, 0, both_right=5)
    assert (r.diff, r.se, r.p_exact) == (0.0, 0.0, 1.0)
    assert np.isnan([r.chi2, r.p, r.chi2_corrected, r.p_corrected]).all()


def test_counts_of_1e9_are_taken() -> None:
    r = mcnemar(10**9, 10**9 + 10**5, both_right=10**12)
    assert 0 < r.p_exact == pytest.approx(r.p, rel=0.01)


def test_counts_are_refused_when_they_are_none() -> None:
    with pytest.raises(ValueError, match=r"only_first == -1"):
        mcnemar(-1, 2)
    with pytest.raises(ValueError, match=r"requests == 0"):
        mcnemar(0, 0)
