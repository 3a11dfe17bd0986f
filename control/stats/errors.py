"""Argument checks that every family shares: what is refused, and in which words.

Owns the one form of refusal, `ValueError("alpha == 2, must be < 1")`: argument, value, rule.
Refuses to repair anything: a NaN is never dropped, a number never clipped.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Alternative = Literal["two-sided", "greater", "less"]
Direction = Literal["higher_is_better", "lower_is_better"]

# Fourth powers of what lies between are numbers still: nothing overflows on the way.
LARGEST: Final = 1e60
SMALLEST: Final = 1e-60
_SMALL_KINDS: Final = "biu"  # arrays of 64 bits at most: finite, and below the largest
_NUMERIC_KINDS: Final = "biufO"  # O: integers beyond 64 bits


def require(name: str, value: npt.ArrayLike, holds: npt.ArrayLike, rule: str) -> None:
    """Refuse when a condition fails anywhere.

    Args:
        name: The argument's name as the caller knows it.
        value: What was given; any shape.
        holds: Booleans that broadcast with `value`.
        rule: What must hold, to follow "must be".

    Raises:
        ValueError: Somewhere it does not; names the first such value.
    """
    held = np.asarray(holds, dtype=np.bool_)
    if not held.all():
        values, failed = np.broadcast_arrays(np.asarray(value), ~held)
        raise ValueError(f"{name} == {values[failed].flat[0]!s}, must be {rule}")


def check(
    name: str,
    value: npt.ArrayLike,
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    whole: bool = False,
) -> FloatArray:
    """Finite numbers of any shape, within bounds, as float64.

    Args:
        name: The argument's name as the caller knows it.
        value: Numbers, any shape; NaN, infinities and magnitudes above 1e60 are refused.
        gt: Bound that all must be above; above 0 is at least 1e-60.
        ge: Bound that all must be at least.
        lt: Bound that all must be below.
        le: Bound that all may be at most.
        whole: Whether all must be integers.

    Raises:
        ValueError: Not numbers, not finite or outside a bound.
    """
    array = numbers(name, value)
    if array.ndim == 0 and _within(float(array), gt, ge, lt, le, whole):
        return array
    if getattr(value, "dtype", array.dtype).kind not in _SMALL_KINDS:
        require(name, array, np.isfinite(array), "finite")
        require(name, array, np.abs(array) <= LARGEST, "at most 1e60 in magnitude")
    if gt is not None:
        require(name, array, array > gt, f"> {gt:g}")
    if gt == 0:
        require(name, array, array >= SMALLEST, ">= 1e-60")
    if ge is not None:
        require(name, array, array >= ge, f">= {ge:g}")
    if lt is not None:
        require(name, array, array < lt, f"< {lt:g}")
    if le is not None:
        require(name, array, array <= le, f"<= {le:g}")
    if whole:
        require(name, array, array == np.floor(array), "whole")
    return array


def numbers(name: str, value: npt.ArrayLike) -> FloatArray:
    """Numbers of any shape as float64, NaN and infinities among them.

    Raises:
        ValueError: Not numbers.
    """
    try:
        raw = np.asarray(value)
        if raw.dtype.kind not in _NUMERIC_KINDS:
            raise TypeError(raw.dtype)
        return raw.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} == {value!r}, must be numbers") from error


def check_scalar(
    name: str,
    value: float,
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    whole: bool = False,
) -> float:
    """One finite number within bounds; arguments as of `check`.

    Raises:
        ValueError: An array, not a number, not finite or outside a bound.
    """
    array = check(name, value, gt=gt, ge=ge, lt=lt, le=le, whole=whole)
    if array.ndim:
        raise ValueError(f"{name} has shape {array.shape}, must be one number")
    return float(array)


def check_vector(
    name: str,
    values: npt.ArrayLike,
    *,
    least: int = 1,
    ge: float | None = None,
    le: float | None = None,
    whole: bool = False,
) -> FloatArray:
    """A one-dimensional array of at least so many finite numbers; bounds as of `check`.

    Raises:
        ValueError: Another shape, too few, not finite or outside a bound.
    """
    array = check(name, values, ge=ge, le=le, whole=whole)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}, must be one-dimensional")
    if len(array) < least:
        raise ValueError(f"{name} has {len(array)} values, must be at least {least}")
    return array


def check_alpha(alpha: float, *, name: str = "alpha", below: float = 1.0) -> float:
    """An error probability in (0, below).

    Raises:
        ValueError: It is not.
    """
    return check_scalar(name, alpha, gt=0.0, lt=below)


def check_alternative(alternative: str) -> Alternative:
    """One of "two-sided", "greater" (the treatment's value is), "less".

    Raises:
        ValueError: Another word.
    """
    for known in get_args(Alternative):
        if alternative == known:
            return known  # type: ignore[no-any-return]
    raise ValueError(f"alternative == {alternative!r}, must be one of {get_args(Alternative)}")


def check_direction(direction: str) -> Direction:
    """One of "higher_is_better", "lower_is_better".

    Raises:
        ValueError: Another word.
    """
    for known in get_args(Direction):
        if direction == known:
            return known  # type: ignore[no-any-return]
    raise ValueError(f"direction == {direction!r}, must be one of {get_args(Direction)}")


def check_shapes(**arrays: npt.ArrayLike) -> tuple[int, ...]:
    """The shape to which named arrays broadcast.

    Raises:
        ValueError: They do not fit each other.
    """
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    try:
        return np.broadcast_shapes(*shapes.values())
    except ValueError as error:
        raise ValueError(f"shapes {shapes}, must fit each other") from error


def _within(
    value: float,
    gt: float | None,
    ge: float | None,
    lt: float | None,
    le: float | None,
    whole: bool,
) -> bool:
    """As the rules of `check`, of one number: a tenth of the time, and looks are full of those."""
    return (
        -LARGEST <= value <= LARGEST
        and (gt is None or (value > gt and (gt != 0 or value >= SMALLEST)))
        and (ge is None or value >= ge)
        and (lt is None or value < lt)
        and (le is None or value <= le)
        and (not whole or value.is_integer())
    )
