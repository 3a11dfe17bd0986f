"""Standardised effect sizes, to be shown: Cohen's d and Hedges' g.

Owns their formulas. Refuses to be a gate: a standardised effect has no unit to set a limit in.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from control.stats.errors import FloatArray
from control.stats.means import mean_variances
from control.stats.moments import Moments


class EffectSize(NamedTuple):
    """cohens_d: Difference in pooled standard deviations. hedges_g: Less its small-sample bias.

    NaN where both arms are without spread. Arrays of one shape.
    """

    cohens_d: FloatArray
    hedges_g: FloatArray


def effect_size(control: Moments, treatment: Moments) -> EffectSize:
    """Standardised difference treatment - control; vectorised.

    Args:
        control: Moments with n >= 2.
        treatment: As control; the shapes must fit.

    Raises:
        ValueError: An arm has fewer than 2 units, or a number is not finite.

    Source: Cohen 1988 (pooled by degrees of freedom, ddof 1); Hedges 1981, factor
    1 - 3 / (4 (n_c + n_t) - 9). Checked against: cohens_d.json (pingouin). O(1) per cell.
    """
    mean_variances(control, treatment)
    n = np.asarray(control.n + treatment.n)
    pooled = np.asarray((control.m2 + treatment.m2) / (n - 2))
    d = (treatment.mean - control.mean) / np.sqrt(np.where(pooled > 0, pooled, np.nan))
    return EffectSize(np.asarray(d)[()], np.asarray(d * (1 - 3 / (4 * n - 9)))[()])
