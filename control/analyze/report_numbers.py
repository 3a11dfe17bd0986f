"""Numbers as a person reads them: digits by the uncertainty, percent points for proportions.

Owns the words for numbers in reports and plots. Refuses None: what stands in for a number that is
not there, and why it is not, is said by `report_view`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

MINUS: Final = "\N{MINUS SIGN}"
_TIMES: Final = "\N{MULTIPLICATION SIGN}"
_NARROW: Final = "\N{NARROW NO-BREAK SPACE}"
_SPACE: Final = "\N{NO-BREAK SPACE}"
_SUPERSCRIPTS: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

# Kinds whose values are shares of 1, so that their differences are percent points.
_SHARES: Final = frozenset(
    ("proportion", "accuracy", "precision", "recall", "specificity", "false_positive_rate")
)
_DECIMALS_MAX: Final = 12
_DOUBLE_DIGITS: Final = 15  # significant digits that a double has for sure
_SMALL_ZEROS: Final = 4  # more zeros after the point than this: a power of ten
_PLAIN_MOST: Final = 1e15  # from here on as well
_P_PLAIN_LEAST: Final = 1e-4


def digits(uncertainty: float) -> int:
    """Decimals that show two significant digits of an uncertainty (> 0), 0..12."""
    return min(_DECIMALS_MAX, max(0, 1 - math.floor(math.log10(uncertainty))))


def decimal(value: float, decimals: int, *, signed: bool = False) -> str:
    """1234.5 -> "1,234.5"; far from 1 as a power of ten; `signed` writes + as well."""
    size = abs(value)
    if size >= _PLAIN_MOST:
        return power(value, 4, signed=signed)
    leading = math.floor(math.log10(size)) + 1 if size else 1
    if size and leading < -_SMALL_ZEROS and decimals > _SMALL_ZEROS:
        return power(value, max(1, min(leading + decimals, 6)), signed=signed)
    text = f"{size:,.{min(decimals, max(0, _DOUBLE_DIGITS - leading))}f}"
    zero = not text.strip("0.,")
    return _sign(0.0 if zero else value, signed=signed) + text


def power(value: float, significant: int, *, signed: bool = False) -> str:
    """A number in powers of ten: 3.2 and a raised -7 for 3.2e-7."""
    mantissa, _, exponent = f"{abs(value):.{significant - 1}e}".partition("e")
    raised = str(int(exponent)).translate(_SUPERSCRIPTS)
    return f"{_sign(value, signed=signed)}{mantissa}{_NARROW}{_TIMES}{_NARROW}10{raised}"


def whole(value: float) -> str:
    """A count: 1234567 -> "1,234,567"; an expected count may have a decimal."""
    return decimal(value, 0 if float(value).is_integer() or abs(value) >= 1000 else 1)


def probability(value: float) -> str:
    """A p-value with two significant digits; never 0, which no p-value is."""
    if value <= 0.0:
        return f"<{_NARROW}10⁻³⁰⁰"
    if value < _P_PLAIN_LEAST:
        return power(value, 2)
    if value > 0.99:
        return "1" if value >= 1.0 else f">{_NARROW}0.99"
    return f"{value:.{max(2, 1 - math.floor(math.log10(value)))}f}"


def evidence(value: float | None) -> str:
    """An e-value; None stands for one beyond the largest number."""
    if value is None or math.isinf(value):
        return f">{_NARROW}10³⁰⁸"
    if value and not 1e-3 <= value < 1e6:
        return power(value, 2)
    return decimal(value, 2 if value < 100 else 0)


def setting(value: float | int | str | None) -> str:
    """A value as it was chosen, with no more digits than needed."""
    if value is None:
        return "not set"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}".replace("-", MINUS)
    return f"{value:,.6g}".replace("-", MINUS)


@dataclass(frozen=True, slots=True)
class Measure:
    """How values of one metric are written: factor to the shown unit, and decimals there.

    unit: Of a difference ("pp" for percent points, else none). share: Values are shares of 1.
    """

    share: bool
    decimals: int

    @property
    def factor(self) -> float:
        """From the metric's own unit to the shown one."""
        return 100.0 if self.share else 1.0

    def value(self, value: float) -> str:
        """An arm's value."""
        return decimal(value * self.factor, self.decimals) + (f"{_SPACE}%" if self.share else "")

    def change(self, value: float) -> str:
        """A difference, with its sign and unit."""
        return self.bound(value) + (f"{_SPACE}pp" if self.share else "")

    def bound(self, value: float) -> str:
        """An end of an interval: a difference without its unit."""
        return decimal(value * self.factor, self.decimals, signed=True)

    def interval(self, low: float, high: float) -> str:
        """Both ends, in brackets, with the unit once."""
        unit = f"{_SPACE}pp" if self.share else ""
        return f"[{self.bound(low)}, {self.bound(high)}]{unit}"


def measure(kind: str, uncertainty: float | None, sizes: tuple[float | None, ...]) -> Measure:
    """How to write a metric.

    Args:
        kind: Of the metric.
        uncertainty: A standard error in the metric's unit; None, 0: by the sizes.
        sizes: Values to be shown, in the metric's unit; where no error says how sure they are,
            the smallest but zero gets 4 significant digits.
    """
    share = kind in _SHARES
    factor = 100.0 if share else 1.0
    if uncertainty and uncertainty > 0 and math.isfinite(uncertainty):
        return Measure(share, digits(uncertainty * factor))
    seen = [abs(size) * factor for size in sizes if size]
    return Measure(share, digits(min(seen) / 100.0) if seen else 0)


def percent(value: float, uncertainty: float | None) -> str:
    """A relative difference (share of control's mean), with its sign."""
    sure = uncertainty is not None and 0 < uncertainty < math.inf
    decimals = digits(100.0 * (uncertainty or 0.0)) if sure else 2
    return f"{decimal(100.0 * value, min(decimals, 6), signed=True)}{_SPACE}%"


def _sign(value: float, *, signed: bool) -> str:
    if value < 0:
        return MINUS
    return "+" if signed and value > 0 else ""
