"""Standardised effects have no unit and no value without spread."""

from __future__ import annotations

import numpy as np
import pytest

from control.stats.effects import effect_size
from control.stats.moments import moments


def test_effect_stays_when_the_unit_changes_and_flips_with_the_arms() -> None:
    rng = np.random.default_rng(1)
    c, t = rng.normal(5, 2, 30), rng.normal(6, 2, 50)
    plain, cents = (
        effect_size(moments(c), moments(t)),
        effect_size(moments(100 * c), moments(100 * t)),
    )
    assert cents == pytest.approx(plain, rel=1e-12)
    assert effect_size(moments(t), moments(c)).cohens_d == -plain.cohens_d
    assert abs(plain.hedges_g) < abs(plain.cohens_d)


def test_effect_is_nan_without_spread_and_refused_for_one_unit() -> None:
    assert np.isnan(effect_size(moments([1.0, 1.0]), moments([2.0, 2.0]))).all()
    with pytest.raises(ValueError, match=r"treatment.n == 1.0"):
        effect_size(moments([1.0, 2.0]), moments([2.0]))
