"""Waiting for a condition instead of for a time, and ports that are free."""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, overload

LOOPBACK: Final = "127.0.0.1"
DEADLINE_S: Final = 30.0  # many times what a busy machine with two cores needs
POLL_S: Final = 0.02

T = TypeVar("T")


@overload
async def wait_for(
    condition: Callable[[], Awaitable[T | None]], what: str, *, timeout_s: float = DEADLINE_S
) -> T: ...


@overload
async def wait_for(
    condition: Callable[[], T | None], what: str, *, timeout_s: float = DEADLINE_S
) -> T: ...


async def wait_for(
    condition: Callable[[], Any], what: str, *, timeout_s: float = DEADLINE_S
) -> Any:
    """Poll until the condition gives something true, and return it; AssertionError otherwise."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        found = condition()
        value = await found if inspect.isawaitable(found) else found
        if value:
            return value
        if loop.time() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what} (last: {value!r})")
        await asyncio.sleep(POLL_S)


def free_port() -> int:
    """A TCP port of the loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
