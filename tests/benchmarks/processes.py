"""Processes that are measured: their CPU time and memory from /proc, and wrk's view of them."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

HERE: Final = Path(__file__).parent
CONNECTIONS: Final = 32
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class Memory(NamedTuple):
    """Memory of some processes, in MiB."""

    rss: float  # of each, added up: what they share counts several times
    pss: float  # what they share counts once


class Report(NamedTuple):
    """What wrk saw."""

    requests: int
    rps: float
    p50_ms: float
    p99_ms: float


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").iterdir():
            found.extend(map(int, (task / "children").read_text().split()))
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds, user and system, that processes have used so far; in hundredths of a second."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS_PER_S


def memory(pids: Iterable[int]) -> Memory:
    """Resident and proportional memory of processes."""
    rss = pss = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        rss += int(_found(r"^Rss:\s+(\d+)", text))
        pss += int(_found(r"^Pss:\s+(\d+)", text))
    return Memory(rss / 1024, pss / 1024)


async def wrk(port: int, seconds: int) -> Report:
    """Load one port.

    Raises:
        AssertionError: wrk failed, or a request did.
    """
    process = await asyncio.create_subprocess_exec(
        *("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency"),
        *("-s", str(HERE / "wrk.lua"), f"http://127.0.0.1:{port}/"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    text = (await process.communicate())[0].decode()
    assert process.returncode == 0, text
    return read_report(text)


def read_report(text: str) -> Report:
    """What wrk printed.

    Raises:
        AssertionError: A request failed.
    """
    assert "Non-2xx" not in text, text
    assert "Socket errors" not in text, text
    return Report(
        requests=int(_found(r"(\d+) requests in", text)),
        rps=float(_found(r"Requests/sec:\s+([\d.]+)", text)),
        p50_ms=milliseconds(_found(r"\n +50% +(\S+)", text)),
        p99_ms=milliseconds(_found(r"\n +99% +(\S+)", text)),
    )


def milliseconds(text: str) -> float:
    """A duration as wrk prints it."""
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    assert match is not None, text
    return match[1]
