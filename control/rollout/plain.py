"""Numbers as people read them, for sentences. Values in, text out."""

from __future__ import annotations

import math


def percent(share: float) -> str:
    """A share as a percentage with at most three significant digits: "0.25 %", "20 %"."""
    return f"{_digits(100 * share)} %"


def count(number: int) -> str:
    """A whole number with separators: "12,345"."""
    return f"{number:,}"


def e_value(log_e: float) -> str:
    """A number given by its natural logarithm: "9,870" below a million, else "2.1e6"."""
    if log_e < math.log(1e6):
        value = math.exp(log_e)
        return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
    exponent = math.floor(log_e / math.log(10))
    mantissa = math.exp(log_e - exponent * math.log(10))
    if mantissa >= 9.95:  # would print as 10.0
        mantissa, exponent = 1.0, exponent + 1
    return f"{mantissa:.1f}e{exponent}"


def milliseconds(value_ms: float) -> str:
    """A latency: "7.3 ms", "182 ms"."""
    return f"{_digits(value_ms)} ms"


def duration(value_ms: int) -> str:
    """A length of time in its two largest units: "1h 30m", "45s"."""
    seconds = max(0, round(value_ms / 1000))
    units = ((seconds // 86400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "m"))
    parts = [f"{number}{unit}" for number, unit in (*units, (seconds % 60, "s")) if number]
    return " ".join(parts[:2]) or "0s"


def _digits(value: float) -> str:
    if value >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 else f"{value:.1e}"
