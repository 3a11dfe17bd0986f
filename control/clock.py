"""The only place where the control plane reads a clock or draws a random number."""

from __future__ import annotations

import random
import secrets
import time
from typing import Final

ID_BYTES: Final = 16
NONCE_BYTES: Final = 8
SALT_BYTES: Final = 8


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def monotonic_s() -> float:
    """Seconds that only go forward, from an arbitrary start: for deadlines."""
    return time.monotonic()


def now_ns() -> int:
    """Unix time in nanoseconds: of spans, which nothing is decided on."""
    return time.time_ns()


def new_id() -> str:
    """A random identifier."""
    return secrets.token_hex(ID_BYTES)


def new_nonce() -> str:
    """A random nonce."""
    return secrets.token_hex(NONCE_BYTES)


def new_salt() -> str:
    """A random assignment salt."""
    return secrets.token_hex(SALT_BYTES)


def jitter() -> float:
    """A number in [0, 1)."""
    return random.random()  # noqa: S311 - it spreads retries, it guards nothing
