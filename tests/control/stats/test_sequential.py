"""Group sequential bounds spend what they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from control.stats.sequential import group_sequential_bounds, spent_alpha


def test_one_look_is_the_fixed_test() -> None:
    assert group_sequential_bounds([1.0]) == pytest.approx([1.959964], abs=1e-6)
    assert group_sequential_bounds([1.0], sides=1) == pytest.approx([1.644854], abs=1e-6)


def test_two_looks_cross_with_the_probability_spent() -> None:
    t = [0.4, 1.0]
    b = group_sequential_bounds(t, alpha=0.05, phi=2.0, sides=1)
    law = stats.multivariate_normal(cov=[[1, np.sqrt(0.4)], [np.sqrt(0.4), 1]])
    assert 1 - law.cdf(b) == pytest.approx(0.05, abs=1e-5)
    assert stats.norm.sf(b[0]) == pytest.approx(0.05 * 0.4**2, rel=1e-9)


def test_bounds_hold_when_simulated() -> None:
    # 20,000 runs of 10 looks at one-sided .05: outside 840..1160 crossings has P < 1e-6.
    t = np.linspace(0.1, 1, 10)
    b = group_sequential_bounds(t, alpha=0.05, phi=1.0, sides=1)
    steps = np.random.default_rng(8).normal(size=(20_000, 10)) * np.sqrt(0.1)
    crossed = np.any(np.cumsum(steps, axis=1) / np.sqrt(t) > b, axis=1).sum()
    assert 840 <= crossed <= 1160


def test_spending_grows_to_alpha() -> None:
    assert spent_alpha([0.5, 1.0], alpha=0.05, phi=3.0) == pytest.approx([0.00625, 0.05])


@pytest.mark.parametrize(
    ("t", "options", "message"),
    [
        ([0.5, 0.5], {}, "must be increasing"),
        ([0.0, 1.0], {}, "information_fractions == 0.0"),
        ([0.5, 1.1], {}, "information_fractions == 1.1"),
        ([], {}, "has 0 values"),
        ([1.0], {"sides": 3}, "sides == 3"),
        ([1.0], {"phi": 0.0}, "phi == 0.0"),
        ([1.0], {"alpha": 0.0}, "alpha == 0.0"),
    ],
)
def test_bounds_refuse_bad_input(t: list[float], options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_sequential_bounds(t, **options)  # type: ignore[arg-type]
