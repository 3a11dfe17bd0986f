"""One worker process, from its start to its end.

Owns the process, its end of the socket pair and its memory file. Refuses to decide who comes after
it (`workers` does) and to look into a plan or a delta.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Final, NamedTuple

from sidecar.clock import monotonic_ms
from sidecar.counters import CounterFile, CounterReader
from sidecar.ipc import FrameError, Kind, PlanReport, frame, read_frame
from sidecar.listen import SERVER_DEFAULT, Listen, ServerKind
from turnout.logs import PLAIN, Style

_LOG = logging.getLogger(__name__)

SILENCE_MS: Final = 2_000
# Imports on a busy machine; a worker that hangs before its first heartbeat is rare and not urgent.
START_MS: Final = 30_000


class Place(NamedTuple):
    """What a worker and those that come after it have in common.

    Attributes:
        number: Of the worker, from 0.
        listen: Where it serves.
        server: Which server it runs.
        log: How it logs.
    """

    number: int
    listen: Listen
    server: ServerKind = SERVER_DEFAULT
    log: Style = PLAIN


class Life:
    """One worker; its memory file is its own, so that two of a place never write into one."""

    def __init__(
        self,
        place: Place,
        *,
        on_delta: Callable[[bytes], None],
        on_report: Callable[[], None],
    ) -> None:
        """Nothing is started before `run`.

        Args:
            place: Whose turn it is.
            on_delta: Takes the encoded FoldDelta.
            on_report: Called when it has taken a plan or its socket.
        """
        self.place = place
        self._on_delta = on_delta
        self._on_report = on_report
        self.counters = CounterFile.create(f"turnout-decided-{place.number}")
        self.decided = CounterReader(self.counters)
        self.report: PlanReport | None = None
        self.status: int | None = None
        # Another has its socket: its end is no fault.
        self.retiring = False
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        # Said before there was somebody to hear it.
        self._unsaid: list[bytes] = []
        # 0 = no heartbeat yet.
        self._heard_ms = 0
        self._started_ms = monotonic_ms()

    @property
    def pid(self) -> int | None:
        """Of the process; None = not started, or ended."""
        return self._process.pid if self._process is not None else None

    @property
    def listening(self) -> bool:
        """Whether it has its socket and answers on it."""
        return self.report is not None and self.report.listening

    @property
    def lived_ms(self) -> int:
        """Since its start."""
        return monotonic_ms() - self._started_ms

    def say(self, kind: Kind, payload: bytes = b"") -> None:
        """Tell the worker something; one that is not there yet hears it first of all."""
        data = frame(kind, payload)
        if self._writer is None:
            self._unsaid.append(data)
        elif not self._writer.is_closing():
            self._writer.write(data)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if there is a process."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def close(self) -> None:
        """Let go of the memory file: nobody reads it any more."""
        self.counters.close()

    async def run(self) -> None:
        """Start the process and listen to it until it has ended."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        extra = {"worker": self.place.number}
        self._started_ms = monotonic_ms()
        try:
            process = await self._spawn(theirs)
        except OSError as error:
            _LOG.error("a worker cannot start: %s", error, extra=extra)
            ours.close()
            return
        finally:
            theirs.close()
        self._process = process
        try:
            # Bytes that wait for a reader are read when it comes: a plan is there before the
            # worker is.
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            self._writer = writer
            unsaid, self._unsaid = self._unsaid, []
            writer.writelines(unsaid)
            # What a dead worker sent is still read: the link ends after its last byte.
            await self._listen(reader)
            writer.close()
        finally:
            self.report = None
            with contextlib.suppress(ProcessLookupError):
                if not self.retiring:
                    process.kill()
            self.status = await process.wait()
            self._process = None

    def watch(self, now_ms: int) -> None:
        """Kill it when it is silent: it takes connections and answers nothing."""
        limit_ms = SILENCE_MS if self._heard_ms else START_MS
        silent_ms = now_ms - (self._heard_ms or self._started_ms)
        if self._process is None or silent_ms <= limit_ms:
            return
        extra = {"worker": self.place.number}
        _LOG.error("a worker was silent for %d ms: killed", silent_ms, extra=extra)
        # Once is enough: SIGKILL works on a stopped process too.
        self._heard_ms = now_ms
        self.signal(signal.SIGKILL)

    def excuse(self, now_ms: int) -> None:
        """It was not its silence: nobody could have been heard."""
        self._heard_ms = now_ms if self._heard_ms else 0
        self._started_ms = max(self._started_ms, now_ms - START_MS // 2)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        extra = {"worker": self.place.number}
        while True:
            try:
                kind, payload = await read_frame(reader)
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            except FrameError as error:
                _LOG.error("a worker sends what it should not: %s", error, extra=extra)
                return
            self._heard_ms = monotonic_ms()
            if kind is Kind.DELTA:
                self._on_delta(payload)
            elif kind is Kind.APPLIED:
                self.report = PlanReport.decode(payload)
                self._on_report()

    async def _spawn(self, link: socket.socket) -> asyncio.subprocess.Process:
        place = self.place
        # -P: what lies in the working directory is not imported.
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-m", "sidecar.worker"),
            *("--listen", str(place.listen), "--server", place.server),
            *("--link", str(link.fileno())),
            *("--counters", str(self.counters.fd)),
            *("--index", str(place.number)),
            *("--log-format", place.log.format, "--log-level", place.log.level),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(link.fileno(), self.counters.fd),
            env={"GRPC_VERBOSITY": "NONE", **os.environ},
        )
