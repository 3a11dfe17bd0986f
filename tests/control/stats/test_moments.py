"""Moments merge like the data they stand for, at any magnitude."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.stats import moments as m

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)


@given(NUMBERS, st.lists(st.integers(0, 30), max_size=4), st.floats(-1e9, 1e9))
def test_merged_moments_equal_those_of_the_whole_when_cut_anywhere(
    values: list[float], cuts: list[int], offset: float
) -> None:
    y = np.array(values) + offset
    parts = np.split(y, sorted(min(cut, len(y)) for cut in cuts))
    merged = m.merge_all(m.moments(part) for part in parts)
    whole = m.moments(y)
    # Rounding of the data themselves, at their magnitude.
    step = np.spacing(np.abs(y).max() + 1)
    assert merged.n == whole.n
    assert abs(merged.mean - whole.mean) <= 64 * step
    spread = np.sqrt(whole.m2 * len(y)) + len(y) * step
    assert abs(merged.m2 - whole.m2) <= 1e-12 * whole.m2 + 64 * step * spread


@given(NUMBERS, NUMBERS)
def test_merge_is_commutative(a: list[float], b: list[float]) -> None:
    one, two = m.merge(m.moments(a), m.moments(b)), m.merge(m.moments(b), m.moments(a))
    assert np.allclose(one, two, rtol=1e-12, atol=1e-9)


def test_merge_keeps_the_other_part_when_one_is_empty() -> None:
    part = m.moments([1.0, 2.0, 4.0])
    empty = m.moments([])
    assert m.merge(empty, part) == part
    assert m.merge(part, empty) == part
    assert m.merge(empty, empty).n == 0


def test_pairs_merge_like_the_whole_at_offsets_of_1e9() -> None:
    rng = np.random.default_rng(1)
    y, x = rng.normal(1e9, 1, (2, 1000))
    merged = m.merge_pairs(m.pair_moments(y[:300], x[:300]), m.pair_moments(y[300:], x[300:]))
    assert merged.covariance == pytest.approx(np.cov(y - 1e9, x - 1e9)[0, 1], rel=1e-6)
    assert merged.y.variance == pytest.approx(np.var(y - 1e9, ddof=1), rel=1e-9)


def test_moments_work_on_cells_when_given_leading_axes() -> None:
    values = np.arange(24.0).reshape(2, 3, 4) ** 2
    cells = m.moments(values)
    assert cells.mean.shape == (2, 3)
    assert np.allclose(cells.variance, np.var(values, axis=-1, ddof=1), rtol=1e-13)
    alone = m.moments(values[1, 2])
    assert float(cells.m2[1, 2]) == float(alone.m2)


def test_sums_give_the_same_moments_as_values() -> None:
    values = np.array([1.0, 2.0, 5.0, 9.0])
    sums = m.moments_from_sums(4, values.sum(), sum_sq=(values**2).sum())
    assert np.allclose(sums, m.moments(values), rtol=1e-14)
    shifted = m.moments_from_sums(4, (values - 4).sum(), sum_sq=((values - 4) ** 2).sum(), shift=4)
    assert np.allclose(shifted, m.moments(values), rtol=1e-14)


def test_sums_are_refused_when_the_variance_is_lost_in_rounding() -> None:
    values = 1e9 + np.arange(1000.0) % 7
    with pytest.raises(ValueError, match=r"sum_sq == .* variance lost in rounding, use a shift"):
        m.moments_from_sums(1000, values.sum(), sum_sq=(values**2).sum())
    d = values - 1e9
    kept = m.moments_from_sums(1000, d.sum(), sum_sq=(d**2).sum(), shift=1e9)
    assert kept.variance == pytest.approx(np.var(d, ddof=1), rel=1e-12)


def test_sums_are_refused_when_they_contradict_each_other() -> None:
    with pytest.raises(ValueError, match=r"sum_sq == 1.0, must be >= total"):
        m.moments_from_sums(2, 10.0, sum_sq=1.0)
    with pytest.raises(ValueError, match=r"sum_yx == 9.0, must be within the variances"):
        m.pair_moments_from_sums(2, sum_y=1.0, sum_x=1.0, sum_sq_y=1.0, sum_sq_x=1.0, sum_yx=9.0)


def test_constant_integers_have_no_variance_and_one_unit_has_none_defined() -> None:
    assert m.moments_from_sums(100, 300, sum_sq=900).variance == 0
    assert m.moments_from_sums(100, 0, sum_sq=0).variance == 0
    assert np.isnan(m.moments([3.0]).variance)


@pytest.mark.parametrize("bad", [[1.0, np.nan], [np.inf], 1.0])
def test_moments_refuse_what_is_no_array_of_finite_numbers(bad: object) -> None:
    with pytest.raises(ValueError, match=r"^values"):
        m.moments(bad)  # type: ignore[arg-type]


def test_moments_refuse_impossible_counts_and_variances() -> None:
    with pytest.raises(ValueError, match=r"n == 0"):
        m.moments_from_summary(0, 1.0, variance=1.0)
    with pytest.raises(ValueError, match=r"variance == -1"):
        m.moments_from_summary(2, 1.0, variance=-1.0)
    with pytest.raises(ValueError, match=r"y and x have shapes"):
        m.pair_moments([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"parts"):
        m.merge_all([])
