"""The only place where the sidecar reads a clock; everything else is told the time."""

from __future__ import annotations

import time


def now_ms() -> int:
    """Unix time in milliseconds: for what is stored or sent."""
    return time.time_ns() // 1_000_000


def now_ns() -> int:
    """Unix time in nanoseconds: of spans."""
    return time.time_ns()


def monotonic_ms() -> int:
    """Milliseconds that only go forward: for waiting and for ages."""
    return time.monotonic_ns() // 1_000_000


def monotonic_ns() -> int:
    """Nanoseconds that only go forward: for how long something takes."""
    return time.monotonic_ns()
