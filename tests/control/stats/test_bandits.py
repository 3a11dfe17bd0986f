"""Allocations are distributions, whatever the arms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.stats import bandits
from control.stats.bayes import BetaPosterior, beta_posterior, compare_betas

ARMS = st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 10**4)), min_size=2, max_size=4)


@given(ARMS)
def test_chances_sum_to_1_and_follow_the_arms_when_reordered(arms: list[tuple[int, int]]) -> None:
    posteriors = [beta_posterior(x, x + misses) for x, misses in arms]
    best = bandits.p_best_betas(posteriors)
    assert best.sum() == pytest.approx(1.0)
    assert np.allclose(bandits.p_best_betas(posteriors[::-1]), best[::-1], atol=1e-9)
    assert bandits.top_two_weights(best).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("b", [1 - 7e-15, 0.9, 0.5])
def test_chances_are_numbers_when_a_density_has_no_bound_at_an_end(b: float) -> None:
    """As after thirty of thirty under Jeffreys' prior; 4.9 errors of 100,000 draws."""
    arms = [BetaPosterior(30.5, b), BetaPosterior(61.0, 1.25), BetaPosterior(40.5, b)]
    random = np.random.default_rng(20261122)
    best = np.argmax([random.beta(arm.a, arm.b, 100_000) for arm in arms], axis=0)
    drawn = np.bincount(best, minlength=3) / 100_000
    assert np.allclose(bandits.p_best_betas(arms), drawn, atol=4.9 * 0.5 / 100_000**0.5)


def test_two_arms_are_the_chance_to_beat() -> None:
    c, t = beta_posterior(50, 500), beta_posterior(61, 500)
    assert bandits.p_best_betas([c, t])[1] == pytest.approx(compare_betas(c, t).p_beat, rel=1e-9)


def test_normal_arms_are_the_closed_form_of_two_and_even_when_equal() -> None:
    best = bandits.p_best_normals([0.0, 1.0], [3.0, 4.0])
    assert best[1] == pytest.approx(0.57925971, rel=1e-7)
    assert bandits.p_best_normals([2.0] * 4, [1.0] * 4) == pytest.approx([0.25] * 4)
    narrow = bandits.p_best_normals([0.0, 1e-9, 5.0], [1e-12, 1e-12, 1e6])
    assert narrow.sum() == pytest.approx(1.0)


def test_top_two_explores_evenly_when_one_arm_is_certain() -> None:
    assert bandits.top_two_weights([1.0, 0.0, 0.0]) == pytest.approx([0.5, 0.25, 0.25])
    assert bandits.top_two_weights([0.6, 0.4], beta=1.0) == pytest.approx([0.6, 0.4])


def test_top_two_explores_evenly_when_the_odds_would_overflow() -> None:
    """Found by hypothesis: P = (3e-309, 1) from 0 of 1,317 and 531 of 766."""
    assert bandits.top_two_weights([3e-309, 1.0]) == pytest.approx([0.5, 0.5])


def test_floor_keeps_every_arm_and_the_sum() -> None:
    assert bandits.with_floor([1.0, 0.0], floor=0.1) == pytest.approx([0.9, 0.1])
    with pytest.raises(ValueError, match=r"floor == 0.6, must be <= 0.5"):
        bandits.with_floor([1.0, 0.0], floor=0.6)


def test_allocations_refuse_bad_input() -> None:
    with pytest.raises(ValueError, match=r"arms == 1"):
        bandits.p_best_betas([beta_posterior(1, 2)])
    with pytest.raises(ValueError, match=r"sum of prob_best == 0.5, must be 1"):
        bandits.top_two_weights([0.25, 0.25])
    with pytest.raises(ValueError, match=r"ses == 0.0"):
        bandits.p_best_normals([0.0, 1.0], [0.0, 1.0])
    with pytest.raises(ValueError, match=r"ses has 1 values"):
        bandits.p_best_normals([0.0, 1.0], [1.0])
