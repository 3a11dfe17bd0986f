"""Numbers of a plan as people read them: as `control.rollout.plain`, for what is only expected."""

from __future__ import annotations

from control.model.metrics import LATENCY
from control.rollout import plain


def duration(seconds: float) -> str:
    """A length of time in its two largest units."""
    return plain.duration(round(seconds * 1000))


def count(number: float) -> str:
    """A number of things; small expected ones with a decimal."""
    return f"{number:.1f}" if number < 10 and number % 1 else plain.count(round(number))


def value(metric: str, number: float) -> str:
    """A metric's value in its own unit."""
    if metric in LATENCY:
        return plain.milliseconds(number)
    return plain.percent(number) if abs(number) <= 1 else f"{number:.4g}"


def times(ratio: float) -> str:
    """A multiple: "1.5", "12"."""
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.3g}"


def chance(probability: float) -> str:
    """A probability in whole percent: "17 %", "below 1 %"."""
    if probability < 0.01:
        return "below 1 %"
    return f"{min(99, round(probability * 100))} %"
