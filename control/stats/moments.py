"""Means, variances and covariances as mergeable state: how evidence of many places becomes one.

Owns the sufficient statistics (n, mean, M2[, of a pair]) and their merge. Refuses raw sums of
squares whose variance is lost in rounding.
Source: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance", eq. 2.1 (pairwise
update). Checked against: tests/vectors/statcases/merge_moments.json (numpy, tea-tasting).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from control.stats.errors import FloatArray, check, check_shapes, require

# Below this share of the raw sum of squares the centred one is rounding noise: float64 sums of n
# numbers err by about sqrt(n) 1.1e-16, and 4e-15 covers n = 1,000.
CANCELLATION_SHARE: Final = 4e-15
_EXACT_MAX: Final = 2.0**53


class Moments(NamedTuple):
    """State of one metric; all arrays of one shape, `()` for a single cell.

    n: Units. mean: Their mean, in the metric's unit. m2: Sum of squared deviations, unit^2.
    """

    n: FloatArray
    mean: FloatArray
    m2: FloatArray

    @property
    def variance(self) -> FloatArray:
        """Sample variance (ddof 1), unit^2; NaN where n < 2."""
        return _over(self.m2, self.n - 1)

    @property
    def variance_of_mean(self) -> FloatArray:
        """Squared standard error of the mean, unit^2; NaN where n < 2."""
        return _over(self.variance, self.n)


class PairMoments(NamedTuple):
    """State of two numbers per unit: y and x (a covariate, or a ratio's denominator).

    n: Units. mean_y, mean_x: Means. m2_y, m2_x: Sums of squared deviations. c_yx: Sum of products
    of deviations. All arrays of one shape.
    """

    n: FloatArray
    mean_y: FloatArray
    mean_x: FloatArray
    m2_y: FloatArray
    m2_x: FloatArray
    c_yx: FloatArray

    @property
    def y(self) -> Moments:
        """The first number alone."""
        return Moments(self.n, self.mean_y, self.m2_y)

    @property
    def x(self) -> Moments:
        """The second number alone."""
        return Moments(self.n, self.mean_x, self.m2_x)

    @property
    def covariance(self) -> FloatArray:
        """Sample covariance (ddof 1); NaN where n < 2."""
        return _over(self.c_yx, self.n - 1)


def moments(values: npt.ArrayLike) -> Moments:
    """Moments over the last axis: shape (..., units) gives cells of shape (...).

    Raises:
        ValueError: A value is not finite, or there is no axis.
    """
    array = _with_axis("values", values)
    mean = _mean(array)
    return Moments(_count(array), mean, np.sum((array - mean[..., None]) ** 2, axis=-1))


def pair_moments(y: npt.ArrayLike, x: npt.ArrayLike) -> PairMoments:
    """Moments of pairs over the last axis; y and x of the same shape (..., units).

    Raises:
        ValueError: A value is not finite, or the shapes differ.
    """
    ys, xs = _with_axis("y", y), _with_axis("x", x)
    if ys.shape != xs.shape:
        raise ValueError(f"y and x have shapes {ys.shape} and {xs.shape}, must be the same")
    mean_y, mean_x = _mean(ys), _mean(xs)
    dy, dx = ys - mean_y[..., None], xs - mean_x[..., None]
    sums = (np.sum(a * b, axis=-1) for a, b in ((dy, dy), (dx, dx), (dy, dx)))
    return PairMoments(_count(ys), mean_y, mean_x, *sums)


def moments_from_summary(
    n: npt.ArrayLike, mean: npt.ArrayLike, *, variance: npt.ArrayLike
) -> Moments:
    """Moments from a count, a mean and a sample variance (ddof 1), of shapes that fit.

    Raises:
        ValueError: n < 1 or not whole, variance < 0, or a value is not finite.
    """
    units = check("n", n, ge=1, whole=True)
    shape = check_shapes(n=n, mean=mean, variance=variance)
    spread = check("variance", variance, ge=0)
    return Moments(*_spread(shape, units, check("mean", mean), spread * (units - 1)))


def moments_from_sums(
    n: npt.ArrayLike, total: npt.ArrayLike, *, sum_sq: npt.ArrayLike, shift: npt.ArrayLike = 0.0
) -> Moments:
    """Moments from sums over units: of y - shift, and of its squares.

    A fixed shift near the mean, chosen before the data, keeps sums of large numbers exact.

    Args:
        n: Units, whole, >= 1.
        total: sum(y - shift).
        sum_sq: sum((y - shift)^2), >= 0.
        shift: The number taken off each y.

    Raises:
        ValueError: An argument is outside its range, the sums contradict each other, or the
            variance is lost in rounding (see CANCELLATION_SHARE).
    """
    units, sums = check("n", n, ge=1, whole=True), check("total", total)
    squares = check("sum_sq", sum_sq, ge=0)
    shape = check_shapes(n=n, total=total, sum_sq=sum_sq, shift=shift)
    m2 = _centred("sum_sq", squares, sums, units)
    return Moments(*_spread(shape, units, sums / units + check("shift", shift), m2))


def pair_moments_from_sums(
    n: npt.ArrayLike,
    *,
    sum_y: npt.ArrayLike,
    sum_x: npt.ArrayLike,
    sum_sq_y: npt.ArrayLike,
    sum_sq_x: npt.ArrayLike,
    sum_yx: npt.ArrayLike,
) -> PairMoments:
    """Moments of pairs from sums over units of y, x, y^2, x^2 and y x; shapes that fit.

    Raises:
        ValueError: An argument is outside its range, the sums contradict each other (also
            |correlation| > 1), or a variance is lost in rounding.
    """
    units = check("n", n, ge=1, whole=True)
    y, x, yx = check("sum_y", sum_y), check("sum_x", sum_x), check("sum_yx", sum_yx)
    shape = check_shapes(
        n=n, sum_y=sum_y, sum_x=sum_x, sum_sq_y=sum_sq_y, sum_sq_x=sum_sq_x, sum_yx=sum_yx
    )
    m2_y = _centred("sum_sq_y", check("sum_sq_y", sum_sq_y, ge=0), y, units)
    m2_x = _centred("sum_sq_x", check("sum_sq_x", sum_sq_x, ge=0), x, units)
    c_yx = yx - y * (x / units)
    noise = CANCELLATION_SHARE * np.sqrt(np.asarray(sum_sq_y) * np.asarray(sum_sq_x))
    limit = np.sqrt(m2_y * m2_x) * (1 + 1e-9) + noise
    require("sum_yx", yx, np.abs(c_yx) <= limit, "within the variances (|correlation| <= 1)")
    return PairMoments(*_spread(shape, units, y / units, x / units, m2_y, m2_x, c_yx))


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both sets of units together; commutative, associative up to rounding.

    A cell with n = 0 changes nothing. Shapes must fit. O(1) per cell.
    """
    n = np.asarray(a.n + b.n)
    delta = b.mean - a.mean
    share = _share(b.n, n)
    mean = np.where(np.asarray(a.n) == 0, b.mean, a.mean + delta * share)
    return Moments(n[()], mean[()], (a.m2 + b.m2 + delta**2 * a.n * share)[()])


def merge_pairs(a: PairMoments, b: PairMoments) -> PairMoments:
    """As `merge`, for pairs."""
    y, x = merge(a.y, b.y), merge(a.x, b.x)
    product = (b.mean_y - a.mean_y) * (b.mean_x - a.mean_x) * a.n * _share(b.n, y.n)
    return PairMoments(y.n, y.mean, x.mean, y.m2, x.m2, a.c_yx + b.c_yx + product)


def merge_all(parts: Iterable[Moments]) -> Moments:
    """Merge any number of parts, of shapes that fit.

    Raises:
        ValueError: There is none, or a part holds what is no count, mean or sum of squares.
    """
    whole: Moments | None = None
    for part in parts:
        check("n", part.n, ge=0, whole=True)
        check("mean", part.mean)
        check("m2", part.m2, ge=0)
        whole = part if whole is None else merge(whole, part)
    if whole is None:
        raise ValueError("parts == [], must be at least one")
    return whole


def _with_axis(name: str, values: npt.ArrayLike) -> FloatArray:
    array = check(name, values)
    if array.ndim == 0:
        raise ValueError(f"{name} is one number, must be an array over units")
    return array


def _count(array: FloatArray) -> FloatArray:
    return np.full(array.shape[:-1], float(array.shape[-1]))[()]


def _mean(array: FloatArray) -> FloatArray:
    if array.shape[-1] == 0:
        return np.zeros(array.shape[:-1])
    # A second pass takes off the rounding of the first: at 1e9 it is larger than the deviations.
    first = np.mean(array, axis=-1)
    return np.asarray(first + np.mean(array - first[..., None], axis=-1))


def _centred(name: str, squares: FloatArray, total: FloatArray, n: FloatArray) -> FloatArray:
    m2 = squares - total * (total / n)
    noise = CANCELLATION_SHARE * squares
    require(name, squares, m2 >= -noise, f">= total^2 / n ({np.max(total * (total / n)):g})")
    # No spread at all can be told from a lost one where every sum is an exact integer.
    exact = (squares <= _EXACT_MAX) & (squares == np.floor(squares)) & (total == np.floor(total))
    lost = (np.abs(m2) <= noise) & ~((m2 == 0) & exact)
    require(name, squares, ~lost, "clear of total^2 / n: variance lost in rounding, use a shift")
    return m2


def _over(a: FloatArray, b: FloatArray) -> FloatArray:
    denominator = np.asarray(b, dtype=np.float64)
    quotient = np.asarray(a) / np.where(denominator > 0, denominator, np.nan)
    return np.asarray(quotient)[()]


def _share(part: FloatArray, n: FloatArray) -> FloatArray:
    return np.asarray(part) / np.where(np.asarray(n) > 0, n, 1.0)


def _spread(shape: tuple[int, ...], *arrays: npt.ArrayLike) -> list[FloatArray]:
    return [np.broadcast_to(np.asarray(array), shape)[()] for array in arrays]
