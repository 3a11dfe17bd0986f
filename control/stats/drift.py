"""Has a distribution moved: of inputs, scores or predictions, between two times or two arms.

Owns PSI with its sampling law, Jensen-Shannon, chi-squared and Kolmogorov-Smirnov. Refuses a bare
PSI limit: PSI of equal distributions grows as samples shrink, so its alarm has a law.
"""

from __future__ import annotations

import warnings
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from control.stats.distributions import chi2_ppf, chi2_sf
from control.stats.errors import FloatArray, check_alpha, check_scalar, check_vector, require

# Shares of empty bins in PSI, as evidently fills them: its logarithm has no value at 0.
EMPTY_SHARE: Final = 1e-4
EMPTY_DIVISOR: Final = 1e6
KS_EXACT_MAX: Final = 10_000  # as scipy's own limit: the exact law is O(n m)


class BinnedDrift(NamedTuple):
    """psi: Natural logarithm, empty bins filled. psi_p: By its sampling law under no drift.

    psi_limit: What psi has to exceed for an alarm. alarm: Whether it does. js_distance: Root of
    the Jensen-Shannon divergence in bits, in [0, 1]. chi2, df, p_value: Of homogeneity.
    """

    psi: float
    psi_p: float
    psi_limit: float
    alarm: bool
    js_distance: float
    chi2: float
    df: int
    p_value: float


class KolmogorovSmirnov(NamedTuple):
    """statistic: Largest distance.

    p_asymptotic: By the limit law; NaN for one value a side. p_exact: NaN above 10,000 values, or
    where its path counts overflow.
    """

    statistic: float
    p_asymptotic: float
    p_exact: float


def binned_drift(
    reference: npt.ArrayLike,
    current: npt.ArrayLike,
    *,
    alpha: float = 0.001,
    psi_least: float = 0.1,
) -> BinnedDrift:
    """Compare two histograms of the same bins.

    Args:
        reference: Counts per bin, whole, >= 0, shape (bins,), at least 2 bins in use.
        current: As reference. Bins that are empty in both are left out.
        alpha: Of the PSI alarm, in (0, 1).
        psi_least: The alarm's limit with endless data, >= 0.

    Raises:
        ValueError: Counts that are no counts, different bins, an empty side, or one bin in use.

    Source: PSI / (1/n + 1/m) ~ chi-squared with bins - 1 (Yurdakul 2018); empty bins filled as
    evidently does; JS by Lin 1991; Pearson. Checked against: drift_binned.json (evidently, scipy).
    O(bins).
    """
    counts = [
        check_vector(name, side, least=2, ge=0, whole=True)
        for name, side in (("reference", reference), ("current", current))
    ]
    if len(counts[0]) != len(counts[1]):
        raise ValueError(f"current has {len(counts[1])} bins, must be {len(counts[0])}")
    for name, side in zip(("reference", "current"), counts, strict=True):
        require(f"sum of {name}", side.sum(), side.sum() > 0, "> 0")
    used = counts[0] + counts[1] > 0
    require("bins in use", used.sum(), used.sum() >= 2, ">= 2")
    table = np.array([side[used] for side in counts])
    sizes = table.sum(axis=1)
    expected = sizes[:, None] * table.sum(axis=0) / sizes.sum()
    chi2, df = float(np.sum((table - expected) ** 2 / expected)), int(used.sum()) - 1
    p, q = table / sizes[:, None]
    psi = population_stability(p, q)
    scale = float(np.sum(1 / sizes))
    noise = chi2_ppf(1 - check_alpha(alpha), df) * scale
    limit = max(check_scalar("psi_least", psi_least, ge=0), noise)
    middle = (p + q) / 2
    from scipy import special  # slow to import

    bits = (special.rel_entr(p, middle) + special.rel_entr(q, middle)).sum() / (2 * np.log(2))
    return BinnedDrift(
        psi=psi,
        psi_p=float(chi2_sf(psi / scale, df)),
        psi_limit=limit,
        alarm=psi > limit,
        js_distance=float(np.sqrt(max(bits, 0.0))),
        chi2=chi2,
        df=df,
        p_value=float(chi2_sf(chi2, df)),
    )


def population_stability(reference: FloatArray, current: FloatArray) -> float:
    """PSI of two vectors of shares: sum (p - q) ln(p / q).

    An empty bin counts as 1e-4, or as a millionth of its side's smallest share if that is <= 1e-4.

    Source: evidently, get_binned_data(feel_zeroes=True).
    """
    p, q = (_filled(np.asarray(side, dtype=np.float64)) for side in (reference, current))
    return float(np.sum((p - q) * np.log(p / q)))


def kolmogorov_smirnov(reference: npt.ArrayLike, current: npt.ArrayLike) -> KolmogorovSmirnov:
    """Compare two samples of values.

    Args:
        reference: Finite values, shape (n,), at least one.
        current: As reference.

    Raises:
        ValueError: An argument is outside its range.

    Source: Smirnov 1939; exact law by Hodges 1958, as scipy.stats.ks_2samp. Checked against:
    tests/vectors/statcases/ks.json (scipy). O(n log n), exact O(n m).
    """
    from scipy import stats  # slow to import

    a, b = check_vector("reference", reference), check_vector("current", current)
    effective = round(len(a) * len(b) / (len(a) + len(b)))
    statistic = float(stats.ks_2samp(a, b, method="exact" if effective < 1 else "asymp").statistic)
    asymptotic = float("nan")
    if effective >= 1:
        asymptotic = float(stats.ks_2samp(a, b, method="asymp").pvalue)
    return KolmogorovSmirnov(statistic, asymptotic, _ks_exact(a, b))


def _ks_exact(a: FloatArray, b: FloatArray) -> float:
    if max(len(a), len(b)) > KS_EXACT_MAX:
        return float("nan")
    from scipy import stats  # slow to import

    with warnings.catch_warnings():
        # Where its path counts overflow scipy warns and answers with the limit law instead.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(stats.ks_2samp(a, b, method="exact").pvalue)
        except RuntimeWarning:
            return float("nan")


def _filled(shares: FloatArray) -> FloatArray:
    least = shares[shares > 0].min()
    fill = least / EMPTY_DIVISOR if least <= EMPTY_SHARE else EMPTY_SHARE
    return np.where(shares > 0, shares, fill)
