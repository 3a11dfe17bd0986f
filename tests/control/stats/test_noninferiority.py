"""Not worse by a margin: both directions, and no verdict without spread."""

from __future__ import annotations

import numpy as np
import pytest

from control.stats.moments import moments, moments_from_summary
from control.stats.noninferiority import non_inferior_means, non_inferior_proportions
from control.stats.proportions import Share


def test_directions_mirror_each_other() -> None:
    c, t = np.arange(20.0), np.arange(25.0) - 1
    up = non_inferior_means(moments(c), moments(t), margin=5.0)
    down = non_inferior_means(moments(-c), moments(-t), margin=5.0, direction="lower_is_better")
    assert down.p_non_inferior == up.p_non_inferior
    assert down.bound == -up.bound
    assert up.p_equivalent >= up.p_non_inferior


def test_decision_and_bound_agree() -> None:
    for mean in (-0.3, -0.1, 0.0, 0.2):
        r = non_inferior_means(
            moments_from_summary(100, 0.0, variance=1.0),
            moments_from_summary(90, mean, variance=1.0),
            margin=0.3,
        )
        assert r.non_inferior == (r.bound > -0.3)


def test_fewer_errors_are_never_inferior_and_no_spread_is_undecided() -> None:
    better = non_inferior_proportions(
        Share(100, 1000), Share(50, 1000), margin=0.001, direction="lower_is_better"
    )
    assert better.non_inferior
    none = non_inferior_proportions(Share(0, 100), Share(0, 100), margin=0.01)
    assert np.isnan(none.p_non_inferior)
    assert not none.non_inferior


def test_margins_are_refused_when_not_positive() -> None:
    arm = moments([1.0, 2.0])
    with pytest.raises(ValueError, match=r"margin == 0.0, must be > 0"):
        non_inferior_means(arm, arm, margin=0.0)
    with pytest.raises(ValueError, match=r"direction == 'up'"):
        non_inferior_means(arm, arm, margin=1.0, direction="up")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"treatment.n == 0"):
        non_inferior_proportions(Share(1, 2), Share(0, 0), margin=0.1)
