"""Durations as people write them: "30s", "5m", "1h30m", "50ms", "14d"."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

from google.protobuf.duration_pb2 import Duration

RULE: Final = 'a duration like "50ms", "30s", "5m", "1h30m" or "14d"'

_UNITS_NS: Final = {
    "d": 86_400 * 10**9,
    "h": 3_600 * 10**9,
    "m": 60 * 10**9,
    "s": 10**9,
    "ms": 10**6,
}
_NUMBER: Final = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)"
# Every unit at most once, the larger first.
_PATTERN: Final = re.compile("".join(f"(?:{_NUMBER}{unit})?" for unit in _UNITS_NS))


def parse(text: str) -> Duration | None:
    """Read a duration; None when the text is not one. Never negative."""
    match = _PATTERN.fullmatch(text)
    if match is None or not text:
        return None
    total = sum(
        (Fraction(number) * unit_ns)
        for number, unit_ns in zip(match.groups(), _UNITS_NS.values(), strict=True)
        if number is not None
    )
    nanos = int(total)
    return Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)


def milliseconds(duration: Duration) -> float:
    """Length in milliseconds."""
    return duration.seconds * 1e3 + duration.nanos / 1e6


def text(duration: Duration) -> str:
    """Write a duration so that `parse` reads the same."""
    total = duration.seconds * 10**9 + duration.nanos
    if total < 0:
        return f"-{text(Duration(seconds=-total // 10**9, nanos=-total % 10**9))}"
    parts = []
    for unit, unit_ns in _UNITS_NS.items():
        count, total = divmod(total, unit_ns)
        if unit == "ms" and total:
            decimals = f"{total / unit_ns:.6f}"[1:].rstrip("0")
            parts.append(f"{count}{decimals}ms")
        elif count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
