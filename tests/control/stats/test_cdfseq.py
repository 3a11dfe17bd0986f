"""Quantiles at any time are those printed by confseq, and hold the quantile."""

from __future__ import annotations

import numpy as np
import pytest

from control.stats.cdfseq import dkw_radius, quantile_ab, quantile_sequence


@pytest.mark.parametrize(
    ("q", "shift", "p"),
    [(0.5, 70, 0.814704), (0.5, 85, 0.0838055), (0.5, 100, 0.0054947), (0.9, 55, 0.0340463)],
)
def test_comparison_of_quantiles_is_that_printed_by_confseq(q: float, shift: int, p: float) -> None:
    # gostevehoward/confseq 70b1ef3, test/uniform_boundaries_unittest.cpp
    values = np.arange(1, 1001)
    assert quantile_ab(values, values + shift, q=q, t_opt=100) == pytest.approx(p, abs=1e-5)
    assert quantile_ab(values + shift, values, q=q, t_opt=100) == pytest.approx(p, abs=1e-5)


def test_comparison_says_nothing_when_all_values_are_equal() -> None:
    assert quantile_ab([1.0] * 50, [1.0] * 50, q=0.5, t_opt=100) == 1.0
    assert quantile_ab([1.0], [2.0], q=0.5, t_opt=100) > 0.1


def test_band_is_infinite_before_its_first_look_and_narrows_after() -> None:
    radii = dkw_radius([99, 100, 1000, 10**9], alpha=0.05, n_min=100)
    assert radii[0] == np.inf
    assert list(radii) == sorted(radii, reverse=True)
    assert dkw_radius(1000, alpha=0.01, n_min=100) > dkw_radius(1000, alpha=0.05, n_min=100)


def test_quantile_sequence_has_values_as_ends_and_is_open_when_there_are_few() -> None:
    values = np.arange(1000.0)
    r = quantile_sequence(values, 0.5, alpha=0.05, t_opt=1000)
    assert 400 < r.low < 499 < 500 < r.high < 600
    assert {r.low, r.high} <= set(values)
    assert quantile_sequence(values[:3], 0.99, alpha=0.05, t_opt=1000).high == np.inf
    assert quantile_sequence([5.0], 0.5, alpha=0.05, t_opt=1000) == (-np.inf, np.inf)


def test_quantile_functions_refuse_bad_input() -> None:
    with pytest.raises(ValueError, match=r"q == 1.0"):
        quantile_ab([1.0], [1.0], q=1.0, t_opt=100)
    with pytest.raises(ValueError, match=r"control has 0 values"):
        quantile_ab([], [1.0], q=0.5, t_opt=100)
    with pytest.raises(ValueError, match=r"values == nan"):
        quantile_sequence([np.nan], 0.5, alpha=0.05, t_opt=100)
    with pytest.raises(ValueError, match=r"leading == 0.7"):
        dkw_radius(100, alpha=0.05, n_min=10, leading=0.7)
    with pytest.raises(ValueError, match=r"n == 0.0"):
        dkw_radius(0, alpha=0.05, n_min=10)
