"""Quantiles of one arm: order-statistic intervals, clustered errors, mergeable sketches.

Owns the estimates and their errors. Refuses quantiles 0 and 1, which no sample bounds. Two arms at
any time: `cdfseq.quantile_ab`; as a difference with errors: `means.estimate` on both se.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from control.stats.distributions import normal_ppf
from control.stats.errors import (
    Alternative,
    FloatArray,
    check,
    check_alpha,
    check_alternative,
    check_scalar,
    check_vector,
    require,
)

_SMALLEST: Final = 1e-300  # magnitudes below count as 0 in a sketch: no rank depends on them


class QuantileInterval(NamedTuple):
    """estimate: Interpolated sample quantile. ci_low, ci_high: Order statistics.

    An end is NaN where the sample is too small to have it; infinite where one-sided.
    """

    estimate: float
    ci_low: float
    ci_high: float


class ClusterSums(NamedTuple):
    """Per user: S = events at or below the quantile, N = events; sums over `users` >= 2 users."""

    users: int
    sum_s: float
    sum_n: float
    sum_ss: float
    sum_nn: float
    sum_sn: float


class Sketch(NamedTuple):
    """Counts in bins of relative width; merges by addition, in any order, without loss.

    accuracy: Relative error of a quantile, in (0, 1). positive, negative: Bin -> count, of
    magnitudes. zero: Count of zeros.
    """

    accuracy: float
    positive: dict[int, int]
    negative: dict[int, int]
    zero: int

    @property
    def total(self) -> int:
        """Values seen."""
        return self.zero + sum(self.positive.values()) + sum(self.negative.values())


def quantile_interval(
    values: npt.ArrayLike,
    q: float,
    *,
    alpha: float = 0.05,
    alternative: Alternative = "two-sided",
) -> QuantileInterval:
    """Quantile with a distribution-free interval of order statistics, for independent values.

    Args:
        values: Finite, shape (n,), at least one.
        q: In (0, 1).
        alpha: Error probability of the interval, in (0, 1).
        alternative: "greater" bounds the quantile from below alone, "less" from above.

    Raises:
        ValueError: An argument is outside its range.

    Source: Conover 1999, section 3.2: ranks at the binomial's quantiles. Checked against:
    tests/vectors/statcases/quantile_ci.json (scipy, numpy). O(n log n).
    """
    x = np.sort(check_vector("values", values))
    level = check_scalar("q", q, gt=0, lt=1)
    sided = check_alternative(alternative)
    lower, upper = interval_ranks(len(x), level, alpha=alpha, alternative=sided)
    low = float(x[lower]) if lower >= 0 else float("nan")
    high = float(x[upper]) if upper < len(x) else float("nan")
    if sided == "greater":
        high = float("inf")
    elif sided == "less":
        low = float("-inf")
    return QuantileInterval(float(np.quantile(x, level)), low, high)


def interval_ranks(
    n: int, q: float, *, alpha: float = 0.05, alternative: Alternative = "two-sided"
) -> tuple[int, int]:
    """Ranks, from 0, of the order statistics that `quantile_interval` ends at.

    Args:
        n: Values, >= 1.
        q: As of `quantile_interval`, like the rest.
        alpha: Error probability.
        alternative: Sides.

    Returns:
        -1 for a lower end, n or more for an upper one, that the sample is too small to have.

    Raises:
        ValueError: An argument is outside its range.

    Source: as of `quantile_interval`. O(1).
    """
    values = int(check_scalar("n", n, ge=1, le=1e12, whole=True))
    tail = check_alpha(alpha) / (2 if check_alternative(alternative) == "two-sided" else 1)
    from scipy import stats  # slow to import, and only needed here

    binomial = stats.binom(values, check_scalar("q", q, gt=0, lt=1))
    return int(binomial.ppf(tail)) - 1, int(binomial.isf(tail))


def quantile_se(
    lower: float, upper: float, *, n: int, alpha: float = 0.05, n_bounds: int | None = None
) -> float:
    """Standard error of a quantile from its interval's ends, for independent events.

    Args:
        lower: Lower order statistic of the interval at 1 - alpha.
        upper: Upper one, >= lower.
        n: Events, >= 2.
        alpha: Of the interval, in (0, 1).
        n_bounds: Events for which the ranks were taken; n by default.

    Raises:
        ValueError: An argument is outside its range.

    Source: Deng, Knoblich, Lu 2018 (KDD), section 4; (n - 1) / n as gbstats. Checked against:
    tests/vectors/statcases/quantile_se_clustered.json (gbstats). O(1).
    """
    low = check_scalar("lower", lower)
    high = check_scalar("upper", upper, ge=low)
    events = check_scalar("n", n, ge=2, whole=True)
    scale = check_scalar("n_bounds", n if n_bounds is None else n_bounds, ge=1) / events
    z = float(-normal_ppf(check_alpha(alpha) / 2))
    return float(np.sqrt(scale * (events - 1) / events) * (high - low) / (2 * z))


def quantile_se_clustered(se_iid: float, sums: ClusterSums, *, q: float) -> float:
    """The standard error when users have several events each.

    Args:
        se_iid: As if independent; see `quantile_se`.
        sums: Per-user sums.
        q: In (0, 1).

    Returns:
        se_iid times the root of var(share below, by user) / (q (1 - q) / events).

    Raises:
        ValueError: An argument is outside its range, or the sums contradict each other.

    Source: Deng, Knoblich, Lu 2018; Yao, Li, Lu 2024, algorithm 1. O(1).
    """
    iid = check_scalar("se_iid", se_iid, ge=0)
    level = check_scalar("q", q, gt=0, lt=1)
    users = check_scalar("sums.users", sums.users, ge=2, whole=True)
    events = check_scalar("sums.sum_n", sums.sum_n, gt=0)
    s, ss = check_scalar("sums.sum_s", sums.sum_s, ge=0), check_scalar("sums.sum_ss", sums.sum_ss)
    nn, sn = check_scalar("sums.sum_nn", sums.sum_nn), check_scalar("sums.sum_sn", sums.sum_sn)
    share = s / events
    # Residuals S - share N sum to 0, so their squares need no centring.
    squares = ss - 2 * share * sn + share**2 * nn
    require("sums.sum_sn", sn, squares >= -1e-9 * (ss + nn), "within the squares")
    clustered = max(squares, 0.0) * users / (users - 1) / events**2
    return float(iid * np.sqrt(clustered / (level * (1 - level) / events)))


def sketch(values: npt.ArrayLike, *, accuracy: float = 0.01) -> Sketch:
    """A sketch of values, any sign.

    Args:
        values: Finite, shape (n,), may be empty.
        accuracy: Relative error of any quantile, in [1e-9, 1).

    Raises:
        ValueError: An argument is outside its range.

    Source: Masson, Rim, Lee 2019 (arXiv 1908.10693), DDSketch without collapsing. O(n).
    """
    x = check("values", values).ravel()
    width = _log_gamma(check_scalar("accuracy", accuracy, ge=1e-9, lt=1))
    positive, negative = _bins(x[x > _SMALLEST], width), _bins(-x[x < -_SMALLEST], width)
    return Sketch(accuracy, positive, negative, int(np.sum(np.abs(x) <= _SMALLEST)))


def merge_sketches(parts: Iterable[Sketch]) -> Sketch:
    """The sketch of all values together.

    Raises:
        ValueError: No part, or parts of different accuracy.
    """
    positive: dict[int, int] = {}
    negative: dict[int, int] = {}
    accuracy, zero = None, 0
    for part in parts:
        if accuracy not in (None, part.accuracy):
            raise ValueError(f"accuracy == {part.accuracy}, must be {accuracy} as of other parts")
        accuracy, zero = part.accuracy, zero + part.zero
        for into, bins in ((positive, part.positive), (negative, part.negative)):
            for index, count in bins.items():
                into[index] = into.get(index, 0) + count
    if accuracy is None:
        raise ValueError("parts == [], must be at least one")
    return Sketch(accuracy, positive, negative, zero)


def sketch_quantiles(of: Sketch, q: npt.ArrayLike) -> FloatArray:
    """Lower order statistics x[floor(q (n - 1))] of what a sketch has seen, within its accuracy.

    Args:
        of: A sketch with at least one value.
        q: In [0, 1], any shape.

    Returns:
        Values, of q's shape and the values' unit.

    Raises:
        ValueError: An argument is outside its range, or the sketch is empty.

    Source: as of `sketch`, algorithm 2. O(bins + quantiles log bins).
    """
    levels = check("q", q, ge=0, le=1)
    require("sketch.total", of.total, of.total > 0, "> 0")
    width = _log_gamma(of.accuracy)

    def middle(index: int) -> float:
        # The point of a bin whose relative distance to both its ends is the same.
        return float(np.exp(index * width) * 2 / (1 + np.exp(width)))

    bins = [(-middle(i), of.negative[i]) for i in sorted(of.negative, reverse=True)]
    bins += [(0.0, of.zero)] + [(middle(i), of.positive[i]) for i in sorted(of.positive)]
    upto = np.cumsum([count for _, count in bins])
    ranks = np.floor(levels * (of.total - 1))
    places = np.searchsorted(upto, ranks, side="right")
    return np.asarray(np.array([value for value, _ in bins])[places])[()]


def _bins(magnitudes: FloatArray, width: float) -> dict[int, int]:
    bins, counts = np.unique(np.ceil(np.log(magnitudes) / width).astype(int), return_counts=True)
    return {int(index): int(count) for index, count in zip(bins, counts, strict=True)}


def _log_gamma(accuracy: float) -> float:
    return float(np.log1p(accuracy) - np.log1p(-accuracy))
