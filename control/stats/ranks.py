"""Rank comparisons, to be shown: Mann-Whitney, common language effect size, area under the curve.

Owns them for values and for histograms of the same bins. Refuses to be a gate: ranks of
autocorrelated points under repeated looks control no error rate.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from control.stats.distributions import normal_sf
from control.stats.errors import (
    Alternative,
    FloatArray,
    check_alternative,
    check_scalar,
    check_vector,
    require,
)


class MannWhitney(NamedTuple):
    """u_treatment: Pairs in which the treatment is larger, ties half. cles: Their share.

    p_value: Normal approximation, ties and continuity corrected; NaN where all values are equal.
    """

    u_treatment: float
    cles: float
    p_value: float


class Auc(NamedTuple):
    """auc: P(score of a positive > of a negative), ties half. se: By Hanley and McNeil."""

    auc: float
    se: float


def mann_whitney(
    control: npt.ArrayLike, treatment: npt.ArrayLike, *, alternative: Alternative = "two-sided"
) -> MannWhitney:
    """Mann-Whitney U test of two samples of values.

    Args:
        control: Finite values, shape (n,), at least one.
        treatment: As control.
        alternative: "greater" means that the treatment's values tend to be larger.

    Raises:
        ValueError: An argument is outside its range.

    Source: Mann, Whitney 1947; as scipy.stats.mannwhitneyu(method="asymptotic"). Checked against:
    tests/vectors/statcases/mann_whitney.json (scipy). O(n log n).
    """
    c, t = check_vector("control", control), check_vector("treatment", treatment)
    bins, where = np.unique(np.concatenate([c, t]), return_inverse=True)
    counts_c = np.bincount(where[: len(c)], minlength=len(bins))
    counts_t = np.bincount(where[len(c) :], minlength=len(bins))
    return mann_whitney_histogram(counts_c, counts_t, alternative=alternative)


def mann_whitney_histogram(
    control: npt.ArrayLike, treatment: npt.ArrayLike, *, alternative: Alternative = "two-sided"
) -> MannWhitney:
    """The same from counts per bin, bins in ascending order and the same for both arms.

    Raises:
        ValueError: Different bins, counts that are no counts, or an empty arm.

    Source: as of `mann_whitney`, each bin one tie. O(bins).
    """
    sided = check_alternative(alternative)
    c, t = _histograms("control", control, "treatment", treatment)
    n_c, n_t = c.sum(), t.sum()
    u = _pairs_won(c, t)
    n = n_c + n_t
    ties = np.sum((c + t) ** 3 - (c + t))
    spread = n_c * n_t / 12 * (n + 1 - ties / (n * (n - 1)))
    if spread <= 0:
        return MannWhitney(u, u / (n_c * n_t), float("nan"))
    above = u - n_c * n_t / 2
    toward = {"greater": above, "less": -above, "two-sided": abs(above)}[sided]
    tail = float(normal_sf((toward - 0.5) / np.sqrt(spread)))
    p = min(1.0, 2 * tail) if sided == "two-sided" else tail
    return MannWhitney(u, float(u / (n_c * n_t)), p)


def auc_histogram(positive: npt.ArrayLike, negative: npt.ArrayLike) -> Auc:
    """Area under the ROC curve from score histograms per class, same ascending bins.

    Args:
        positive: Counts of positives per score bin, whole, >= 0, shape (bins,), not all 0.
        negative: As positive.

    Raises:
        ValueError: Different bins, counts that are no counts, or a class without any.

    Source: AUC = U / (n_p n_n); error by Hanley, McNeil 1982, eq. 2. Checked against:
    tests/vectors/statcases/classifier.json (scikit-learn). O(bins).
    """
    p, n = _histograms("positive", positive, "negative", negative)
    return auc_of_pairs(_pairs_won(n, p), float(p.sum()), float(n.sum()))


def auc_of_pairs(won: float, positives: float, negatives: float) -> Auc:
    """Area under the ROC curve from the pairs in which the positive scores higher, ties half.

    Args:
        won: From 0 to positives * negatives.
        positives: Their count, at least 1.
        negatives: As positives.

    Raises:
        ValueError: An argument is outside its range.

    Source: as of `auc_histogram`. O(1).
    """
    positives = check_scalar("positives", positives, ge=1)
    negatives = check_scalar("negatives", negatives, ge=1)
    won = check_scalar("won", won, ge=0, le=positives * negatives)
    area = won / (positives * negatives)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area)
    spread += (positives - 1) * (q1 - area**2) + (negatives - 1) * (q2 - area**2)
    return Auc(float(area), float(np.sqrt(max(spread, 0.0) / (positives * negatives))))


def _pairs_won(low: FloatArray, high: FloatArray) -> float:
    below = np.cumsum(low) - low
    return float(np.sum(high * (below + low / 2)))


def _histograms(
    first: str, a: npt.ArrayLike, second: str, b: npt.ArrayLike
) -> tuple[FloatArray, FloatArray]:
    counts_a = check_vector(first, a, ge=0, whole=True)
    counts_b = check_vector(second, b, ge=0, whole=True)
    if len(counts_a) != len(counts_b):
        raise ValueError(f"{second} has {len(counts_b)} bins, must be {len(counts_a)} as {first}")
    for name, counts in ((first, counts_a), (second, counts_b)):
        require(f"sum of {name}", counts.sum(), counts.sum() > 0, "> 0")
    return counts_a, counts_b
