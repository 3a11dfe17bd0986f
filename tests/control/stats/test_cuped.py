"""A covariate narrows the interval; a lift over almost nothing is refused."""

from __future__ import annotations

import numpy as np
import pytest

from control.stats.cuped import cuped, relative_lift
from control.stats.moments import moments, moments_from_summary, pair_moments


def arms(seed: int, rho: float) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(10, 2, (2, 400))
    return [rho * x + rng.normal(0, 1, (2, 400)), x]


def test_adjusted_error_is_smaller_when_the_covariate_explains() -> None:
    y, x = arms(1, 1.0)
    r = cuped(pair_moments(y[0], x[0]), pair_moments(y[1], x[1]))
    assert r.theta == pytest.approx(1.0, abs=0.1)
    assert r.adjusted.se < 0.6 * r.unadjusted.se


def test_adjustment_is_as_if_done_to_each_value() -> None:
    y, x = arms(2, 0.7)
    r = cuped(pair_moments(y[0], x[0]), pair_moments(y[1], x[1]), theta=0.5)
    by_hand = [moments(y[i] - 0.5 * (x[i] - x.mean())) for i in (0, 1)]
    assert r.adjusted.diff == pytest.approx(float(by_hand[1].mean - by_hand[0].mean), rel=1e-10)
    variance = by_hand[0].variance_of_mean + by_hand[1].variance_of_mean
    assert r.adjusted.se == pytest.approx(float(np.sqrt(variance)), rel=1e-10)


def test_constant_covariate_changes_nothing() -> None:
    y, x = arms(3, 0.7)
    r = cuped(pair_moments(y[0], 0 * x[0] + 3), pair_moments(y[1], 0 * x[1] + 3))
    assert r.theta == 0
    assert r.adjusted == r.unadjusted


def test_lift_is_undecided_when_the_control_is_within_3_errors_of_0() -> None:
    near = moments_from_summary(100, 0.29, variance=1.0)
    far = moments_from_summary(100, 0.31, variance=1.0)
    assert not relative_lift(near, far).decided
    assert np.isnan(relative_lift(near, far).lift)
    assert relative_lift(far, near).decided
    zero = moments([0.0, 0.0])
    assert not relative_lift(zero, far).decided


def test_lift_of_negative_means_keeps_the_sign_of_the_ratio() -> None:
    r = relative_lift(
        moments_from_summary(100, -10.0, variance=1.0),
        moments_from_summary(100, -11.0, variance=1.0),
    )
    assert r.lift == pytest.approx(0.1)
    assert r.ci_low < 0.1 < r.ci_high


def test_cuped_refuses_one_unit() -> None:
    one = pair_moments([1.0], [1.0])
    with pytest.raises(ValueError, match=r"control.n == 1.0"):
        cuped(one, one)
