"""A worker: answers Envoy on one socket, folds its access log, reports to its supervisor.

Owns the process around the pure core: which plan serves (one reference, swapped whole), the decided
counters, heartbeats, flushes and the drain. Refuses to talk to the control plane or to touch a
disk. A supervisor starts it with a socket pair and a memory file; when the supervisor is gone, it
drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from typing import Final

import uvloop

from sidecar import deltas
from sidecar.building import build, let_go, read
from sidecar.counters import CounterFile
from sidecar.ipc import (
    MALFORMED_MESSAGE,
    Faults,
    FrameError,
    Kind,
    PlanOrder,
    PlanReport,
    frame,
    read_frame,
)
from sidecar.listen import Listen, ServerKind
from sidecar.plan import InvalidSnapshot
from sidecar.protocol import Server, make_server
from sidecar.watchdog import Watchdog
from sidecar.work import Work
from turnout.logs import LogFormat, LogLevel, Style, configure

_LOG = logging.getLogger(__name__)

HEARTBEAT_S: Final = 0.25
# What a killed worker has folded and not flushed is lost (and seen as loss: decided - logged).
FLUSH_S: Final = 0.2
# Envoy flushes its access log within a second: streams stay open a little longer than that.
DRAIN_S: Final = 1.2
# A supervisor that does not read (stopped, overloaded) must not fill our memory: the fold is
# bounded, this buffer would not be.
UNREAD_BYTES_MAX: Final = 8 * 1024 * 1024


class Worker:
    """The tasks around a Work: orders in, heartbeats and deltas out."""

    def __init__(self, work: Work, server: Server, watchdog: Watchdog) -> None:
        """Nothing runs before `run`."""
        self._work = work
        self._server = server
        self._watchdog = watchdog
        self._stopping = asyncio.Event()
        # Of orders that wait only the newest counts.
        self._newest: bytes | None = None
        self._ordered = asyncio.Event()
        # Set when the supervisor wants us on our socket, and when the first order was carried out.
        self._wanted = asyncio.Event()
        self._settled = asyncio.Event()
        self._listening = False
        self._generation = 0
        self._error = ""

    async def run(self, link: socket.socket) -> None:
        """Serve until told to retire, until SIGTERM, or until the supervisor is gone."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        # ^C goes to the whole process group; the supervisor decides what it means.
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        self._watchdog.start()
        reader, writer = await asyncio.open_unix_connection(sock=link)
        tasks = [
            asyncio.create_task(self._hear(reader)),
            asyncio.create_task(self._obey(writer)),
            asyncio.create_task(self._listen(writer)),
            asyncio.create_task(self._beat(writer)),
            asyncio.create_task(self._flush(writer)),
        ]
        try:
            # A part that fails is a bug: end whole, and be replaced.
            stop = asyncio.create_task(self._stopping.wait())
            await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
            # Heartbeats and deltas go on meanwhile.
            if self._listening:
                await self._server.drain(DRAIN_S)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(OSError):
            self._send_delta(writer)
            self._say_alive(writer)
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    def _stop(self) -> None:
        """Drain for good: Envoy is to ask others from now on."""
        self._work.retire()
        self._stopping.set()

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        """Take what the supervisor says."""
        try:
            while True:
                kind, payload = await read_frame(reader)
                if kind is Kind.PLAN:
                    self._newest = payload
                    self._ordered.set()
                elif kind is Kind.SERVE:
                    self._wanted.set()
                elif kind is Kind.RETIRE:
                    # Another has our socket, and Envoy's health checks are to stay content.
                    self._stopping.set()
                else:
                    raise FrameError(f"a worker takes no {kind.name}")
        except (asyncio.IncompleteReadError, ConnectionError):
            if not self._stopping.is_set():
                if self._wanted.is_set():
                    _LOG.info("the supervisor is gone: draining")
                self._stop()

    async def _obey(self, writer: asyncio.StreamWriter) -> None:
        """Carry out the newest order, again and again."""
        while True:
            await self._ordered.wait()
            self._ordered.clear()
            newest, self._newest = self._newest, None
            assert newest is not None
            order = await read(newest)
            del newest
            self._error = await self._apply(order) if order.snapshot else ""
            self._generation = order.generation
            self._settled.set()
            # What was not to be seen before the socket is there is said with it.
            self._report(writer)

    async def _listen(self, writer: asyncio.StreamWriter) -> None:
        """Take the socket once it is wanted and the first plan is there.

        No request meets an empty worker that could have been ready a moment later.
        """
        await self._wanted.wait()
        await self._settled.wait()
        try:
            await self._server.start()
        except OSError as error:
            _LOG.error("cannot serve: %s", error)
            self._stopping.set()
            return
        self._listening = True
        self._report(writer)
        await asyncio.Event().wait()

    async def _apply(self, order: PlanOrder) -> str:
        """Build between requests, then swap; the reason why not, if not."""
        before = self._work.plan
        try:
            plan = await build(order, before)
        except (InvalidSnapshot, ValueError) as error:
            return str(error)
        self._work.serve(plan)
        if before is not None:
            parts = before.parts()
            del before
            await let_go(parts)
        return ""

    def _report(self, writer: asyncio.StreamWriter) -> None:
        serving = self._work.plan
        version = serving.version if serving else 0
        report = PlanReport(self._generation, version, self._error, self._listening)
        _say(writer, Kind.APPLIED, report.encode())

    async def _beat(self, writer: asyncio.StreamWriter) -> None:
        while True:
            self._watchdog.beat()
            if _unread(writer) < UNREAD_BYTES_MAX:
                self._say_alive(writer)
            await asyncio.sleep(HEARTBEAT_S)

    async def _flush(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            if _unread(writer) < UNREAD_BYTES_MAX:
                self._send_delta(writer)

    def _say_alive(self, writer: asyncio.StreamWriter) -> None:
        """And what peers have done wrong."""
        faults = dict(self._server.faults)
        if self._work.malformed:
            faults[MALFORMED_MESSAGE] = self._work.malformed
        _say(writer, Kind.HEARTBEAT, Faults(faults).encode())

    def _send_delta(self, writer: asyncio.StreamWriter) -> None:
        delta = self._work.fold.take()
        if delta:
            _say(writer, Kind.DELTA, deltas.encode(delta))


def _say(writer: asyncio.StreamWriter, kind: Kind, payload: bytes = b"") -> None:
    """Tell the supervisor; when it is gone there is nobody to tell, and that was logged."""
    if not writer.is_closing():
        writer.write(frame(kind, payload))


def _unread(writer: asyncio.StreamWriter) -> int:
    return writer.transport.get_write_buffer_size()


def main() -> None:
    """Run one worker; only a supervisor calls this, with all its options as pairs."""
    # argparse and what it imports would be a tenth of a worker's start.
    given = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    log = Style(LogFormat(given["--log-format"]), LogLevel(given["--log-level"]))
    configure(log, {"worker": int(given["--index"])})
    work = Work(CounterFile(int(given["--counters"])))
    listen, kind = Listen.parse(given["--listen"]), ServerKind(given["--server"])
    link = socket.socket(fileno=int(given["--link"]))

    async def run() -> None:
        await Worker(work, make_server(kind, listen, work), Watchdog()).run(link)

    # What is imported stays: the collector need not look at it.
    gc.freeze()
    uvloop.run(run())


if __name__ == "__main__":
    main()
