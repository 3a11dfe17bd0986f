"""Typed access to the special functions of scipy that the families share.

Owns nothing but names and types; tails are computed as tails, so that p-values keep their relative
precision far below 1e-16. Refuses to check arguments: its callers do.
Source: scipy.special (Cephes, Boost); NaN in gives NaN out. All vectorised, O(1) per element.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from control.stats.errors import Alternative, FloatArray


@cache
def _special() -> Any:
    """scipy.special, imported when first used: that takes longer than a million rows to count."""
    from scipy import special

    return special


def normal_cdf(z: npt.ArrayLike) -> FloatArray:
    """P(Z <= z) of the standard normal."""
    return np.asarray(_special().ndtr(z))[()]


def normal_log_cdf(z: npt.ArrayLike) -> FloatArray:
    """Ln P(Z <= z), without underflow."""
    return np.asarray(_special().log_ndtr(z))[()]


def normal_sf(z: npt.ArrayLike) -> FloatArray:
    """P(Z > z) of the standard normal."""
    return np.asarray(_special().ndtr(-np.asarray(z)))[()]


def normal_pdf(z: npt.ArrayLike) -> FloatArray:
    """Density of the standard normal."""
    return np.asarray(np.exp(-(np.asarray(z, dtype=np.float64) ** 2) / 2) / np.sqrt(2 * np.pi))[()]


def normal_ppf(p: npt.ArrayLike) -> FloatArray:
    """The z with P(Z <= z) = p."""
    return np.asarray(_special().ndtri(p))[()]


def t_sf(t: npt.ArrayLike, df: npt.ArrayLike) -> FloatArray:
    """P(T > t) of Student's t; df = inf is the normal."""
    return np.asarray(_special().stdtr(df, -np.asarray(t)))[()]


def t_ppf(p: npt.ArrayLike, df: npt.ArrayLike) -> FloatArray:
    """The t with P(T <= t) = p; df = inf is the normal."""
    return np.asarray(_special().stdtrit(df, p))[()]


def chi2_sf(x: npt.ArrayLike, df: npt.ArrayLike) -> FloatArray:
    """P(X > x) of chi-squared."""
    return np.asarray(_special().chdtrc(df, x))[()]


def chi2_ppf(p: float, df: float) -> float:
    """The x with P(X <= x) = p of chi-squared."""
    return float(_special().chdtri(df, 1 - p))


def log_gamma(x: npt.ArrayLike) -> FloatArray:
    """The ln of the gamma function, x > 0."""
    return np.asarray(_special().gammaln(x))[()]


def log_beta(a: npt.ArrayLike, b: npt.ArrayLike) -> FloatArray:
    """The ln of the beta function, a, b > 0."""
    return np.asarray(_special().betaln(a, b))[()]


def p_value(statistic: npt.ArrayLike, df: npt.ArrayLike, alternative: Alternative) -> FloatArray:
    """P-value of a t (df = inf: z) statistic under an alternative; broadcast shapes."""
    t = np.asarray(statistic, dtype=np.float64)
    if alternative == "greater":
        return t_sf(t, df)
    if alternative == "less":
        return t_sf(-t, df)
    return 2 * t_sf(np.abs(t), df)
