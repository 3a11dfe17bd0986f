"""The highest steady rate that the machine gives: wrk in the background, and what it saw."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path
from typing import Final, NamedTuple, Self

from tests.integration.waiting import LOOPBACK

CONNECTIONS: Final = 32
_FOREVER_S: Final = 3_600
_STOP_S: Final = 30.0
_SCRIPT: Final = Path(__file__).with_name("users.lua")


class Seen(NamedTuple):
    """What wrk says of its requests.

    Attributes:
        requests: With an answer.
        per_s: The same, per second.
        failed: Answered with anything but 2xx or 3xx, or not at all.
        worst_ms: The longest that one took.
    """

    requests: int
    per_s: float
    failed: int
    worst_ms: float


class Wrk:
    """wrk against Envoy, for as long as the context lasts."""

    def __init__(self, port: int, *, connections: int = CONNECTIONS, rest_ms: int = 0) -> None:
        """Nothing runs before the context is entered.

        Args:
            port: Envoy's.
            connections: Each asks again when it has its answer,
            rest_ms: and has rested for so long.
        """
        self._url = f"http://{LOOPBACK}:{port}/"
        self._connections = connections
        self._rest_ms = rest_ms
        self._process: asyncio.subprocess.Process | None = None
        self._report = ""

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *("wrk", "-t1", f"-c{self._connections}", f"-d{_FOREVER_S}s", "--latency"),
            *("-s", str(_SCRIPT), self._url, "--", str(self._rest_ms)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()

    async def stop(self) -> Seen:
        """Let it end, and read what it says."""
        process = self._process
        assert process is not None
        assert process.returncode is None, "wrk ended by itself"
        process.send_signal(signal.SIGINT)
        output, _ = await asyncio.wait_for(process.communicate(), _STOP_S)
        return seen(output.decode())


def seen(report: str) -> Seen:
    """Read wrk's report."""
    requests = re.search(r"(\d+) requests in", report)
    per_s = re.search(r"Requests/sec:\s+([\d.]+)", report)
    worst = re.search(r"Latency +\S+ +\S+ +([\d.]+)(us|ms|s|m)\b", report)
    assert requests, report
    assert per_s, report
    assert worst, report
    failed = 0
    if found := re.search(r"Non-2xx or 3xx responses: (\d+)", report):
        failed += int(found[1])
    if found := re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+)", report):
        failed += sum(map(int, found.groups()))
    scale = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}[worst[2]]
    return Seen(int(requests[1]), float(per_s[1]), failed, float(worst[1]) * scale)
