"""One worker process, from its start to its end.

Owns the process, its end of the socket pair and its memory file. Refuses to decide who comes after
it (`workers` does) and to look into a plan or a delta.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from typing import Final

from sidecar.clock import monotonic_ms
from sidecar.counters import CounterFile, CounterReader
from sidecar.ipc import Faults, FrameError, Kind, PlanReport, frame, read_frame
from sidecar.scheduling import SHORT_NS, ask_for_turns
from sidecar.spawning import Place, Spawned, spawn

_LOG = logging.getLogger(__name__)

SILENCE_MS: Final = 2_000
# Imports on a busy machine; a worker that hangs before its first heartbeat is rare and not urgent.
START_MS: Final = 30_000


class Life:
    """One worker; its memory file is its own, so that two of a place never write into one."""

    def __init__(
        self,
        place: Place,
        *,
        on_delta: Callable[[bytes], None],
        on_report: Callable[[], None],
        spawned: Spawned | None = None,
    ) -> None:
        """Nothing is started before `run`.

        Args:
            place: Whose turn it is.
            on_delta: Takes the encoded FoldDelta.
            on_report: Called when it has taken a plan or its socket.
            spawned: Its process, when it was started already.
        """
        self.place = place
        self._on_delta = on_delta
        self._on_report = on_report
        self._spawned = spawned
        # None: there was never a process.
        self.decided: CounterReader | None = None
        self.report: PlanReport | None = None
        self.status: int | None = None
        self.faults: Mapping[str, int] = {}
        # Another has its socket: its end is no fault.
        self.retiring = False
        self._process: subprocess.Popen[bytes] | None = None
        self._counters: CounterFile | None = None
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
            self._process.send_signal(number)

    def close(self) -> None:
        """Let go of the memory file: nobody reads it any more."""
        if self._counters is not None:
            self._counters.close()
            self._counters = self.decided = None

    async def run(self) -> None:
        """Start the process and listen to it until it has ended."""
        self._started_ms = monotonic_ms()
        try:
            spawned = self._spawned or spawn(self.place)
        except OSError as error:
            extra = {"worker": self.place.number}
            _LOG.error("a worker cannot start: %s", error, extra=extra)
            return
        process = self._process = spawned.process
        self._counters, self.decided = spawned.counters, CounterReader(spawned.counters)
        try:
            # Bytes that wait for a reader are read when it comes: a plan is there before the
            # worker is.
            reader, writer = await asyncio.open_unix_connection(sock=spawned.link)
            self._writer = writer
            unsaid, self._unsaid = self._unsaid, []
            writer.writelines(unsaid)
            # What a dead worker sent is still read: the link ends after its last byte.
            await self._listen(reader)
            writer.close()
        finally:
            self.report = None
            if not self.retiring:
                process.kill()
            self.status = await _ended(process)
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
            elif kind is Kind.HEARTBEAT:
                if payload:
                    self.faults = Faults.decode(payload).counts
            elif kind is Kind.APPLIED:
                before, self.report = self.listening, PlanReport.decode(payload)
                if self.listening and not before and self._process is not None:
                    ask_for_turns(SHORT_NS, self._process.pid)
                self._on_report()


async def _ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process's end; its status."""
    if process.poll() is None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        descriptor = os.pidfd_open(process.pid)
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
    return process.wait()
