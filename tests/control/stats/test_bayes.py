"""Posteriors integrate right when they are wide, narrow or far apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from control.stats.bayes import GaussPrior, beta_posterior, compare_betas, compare_gauss
from control.stats.moments import moments, moments_from_summary

COUNTS = st.tuples(st.integers(0, 10**6), st.integers(0, 10**6))


@given(COUNTS, COUNTS)
def test_beta_comparison_is_consistent_at_any_counts(
    c: tuple[int, int], t: tuple[int, int]
) -> None:
    arms = [beta_posterior(x, x + misses) for x, misses in (c, t)]
    r, swapped = compare_betas(*arms), compare_betas(*reversed(arms))
    assert r.p_beat + swapped.p_beat == pytest.approx(1.0, abs=1e-8)
    # E[t - c] is the one loss less the other.
    means = [arm.a / (arm.a + arm.b) for arm in arms]
    assert r.loss_control - r.loss_treatment == pytest.approx(means[1] - means[0], abs=1e-9)


def test_beta_comparison_is_the_closed_form_when_the_treatment_has_whole_parameters() -> None:
    c, t = beta_posterior(7, 40), beta_posterior(11, 35)
    k = np.arange(int(t.a))
    log = special.betaln(c.a + k, c.b + t.b) - np.log(t.b + k)
    log -= special.betaln(1 + k, t.b) + special.betaln(c.a, c.b)
    assert compare_betas(c, t).p_beat == pytest.approx(float(np.exp(log).sum()), rel=1e-10)


def test_prior_alone_is_a_coin() -> None:
    r = compare_betas(beta_posterior(0, 0), beta_posterior(0, 0))
    assert r.p_beat == pytest.approx(0.5, rel=1e-12)
    assert r.loss_treatment == pytest.approx(1 / 6, rel=1e-10)


def test_gauss_posterior_shrinks_to_its_prior() -> None:
    c, t = (moments_from_summary(100, m, variance=1.0) for m in (0.0, 1.0))
    flat, wide = compare_gauss(c, t), compare_gauss(c, t, prior=GaussPrior(0.0, 1e12))
    assert wide == pytest.approx(flat, rel=1e-9)
    tight = compare_gauss(c, t, prior=GaussPrior(0.0, 0.02))
    assert tight.mean == pytest.approx(0.5)
    assert tight.sd == pytest.approx(0.1)
    assert flat.loss_control - flat.loss_treatment == pytest.approx(flat.mean)


def test_comparisons_refuse_bad_input() -> None:
    with pytest.raises(ValueError, match=r"arm.successes == 3.0, must be <= arm.trials"):
        beta_posterior(3, 2)
    with pytest.raises(ValueError, match=r"prior_a == 0.0"):
        beta_posterior(1, 2, prior_a=0.0)
    with pytest.raises(ValueError, match=r"variance of the difference == 0.0"):
        compare_gauss(moments([1.0, 1.0]), moments([2.0, 2.0]))
    with pytest.raises(ValueError, match=r"prior.variance == 0.0"):
        compare_gauss(moments([1.0, 2.0]), moments([2.0, 3.0]), prior=GaussPrior(0, 0))
