"""A worker: answers Envoy on one socket, folds its access log, reports to its supervisor.

Owns the process around the pure core: which plan serves (one reference, swapped whole), the decided
counters, heartbeats, flushes and the drain. Refuses to talk to the control plane or to touch a
disk. A supervisor starts it with a socket pair and a memory file; when the supervisor is gone, it
drains.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import signal
import socket
from typing import Final

import uvloop

from sidecar import deltas
from sidecar.counters import CounterFile
from sidecar.ipc import FrameError, Kind, PlanOrder, PlanReport, frame, read_frame
from sidecar.listen import Listen
from sidecar.plan import InvalidSnapshot, Plan, decode_snapshot
from sidecar.protocol import SERVER_DEFAULT, Server, ServerKind, make_server
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

    def __init__(self, work: Work, server: Server) -> None:
        """Nothing runs before `run`."""
        self._work = work
        self._server = server
        self._stopping = asyncio.Event()
        self._generation = 0

    async def run(self, link: socket.socket) -> None:
        """Serve until SIGTERM, or until the supervisor is gone."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stopping.set)
        # ^C goes to the whole process group; the supervisor decides what it means.
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        reader, writer = await asyncio.open_unix_connection(sock=link)
        # The first plan is built before the socket is there: no request meets an empty worker that
        # could have been ready a moment later.
        tasks = [
            asyncio.create_task(self._obey(reader, writer)),
            asyncio.create_task(self._beat(writer)),
            asyncio.create_task(self._flush(writer)),
        ]
        try:
            await self._stopping.wait()
            await self._server.drain(DRAIN_S)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(OSError):
            self._send_delta(writer)
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    async def _obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Apply orders one after the other, the newest of those that wait."""
        started = False
        try:
            while True:
                kind, payload = await read_frame(reader)
                if kind is not Kind.PLAN:
                    raise FrameError(f"a worker takes no {kind.name}")
                order = PlanOrder.decode(payload)
                error = await self._apply(order) if order.snapshot else ""
                if not started:
                    await self._server.start()
                    started = True
                serving = self._work.plan
                report = PlanReport(order.generation, serving.version if serving else 0, error)
                _say(writer, Kind.APPLIED, report.encode())
        except (asyncio.IncompleteReadError, ConnectionError):
            _LOG.info("the supervisor is gone: draining")
        except OSError as error:
            _LOG.error("cannot serve: %s", error)
        finally:
            self._stopping.set()

    async def _apply(self, order: PlanOrder) -> str:
        """Build off the loop, then swap; the reason why not, if not."""
        try:
            plan = await asyncio.to_thread(_build, order)
        except (InvalidSnapshot, ValueError) as error:
            return str(error)
        self._work.serve(plan)
        # A plan lives long and has no cycles: keep the collector from walking through it.
        gc.freeze()
        return ""

    async def _beat(self, writer: asyncio.StreamWriter) -> None:
        while True:
            if _unread(writer) < UNREAD_BYTES_MAX:
                _say(writer, Kind.HEARTBEAT)
            await asyncio.sleep(HEARTBEAT_S)

    async def _flush(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            if _unread(writer) < UNREAD_BYTES_MAX:
                self._send_delta(writer)

    def _send_delta(self, writer: asyncio.StreamWriter) -> None:
        delta = self._work.fold.take()
        if delta:
            _say(writer, Kind.DELTA, deltas.encode(delta))


def _build(order: PlanOrder) -> Plan:
    return Plan.build(
        decode_snapshot(order.snapshot),
        tenant_key=order.tenant_key,
        dead=order.dead,
        open_gates=order.open_gates,
        slots=order.slots,
        defaults=order.defaults,
    )


def _say(writer: asyncio.StreamWriter, kind: Kind, payload: bytes = b"") -> None:
    """Tell the supervisor; when it is gone there is nobody to tell, and that was logged."""
    if not writer.is_closing():
        writer.write(frame(kind, payload))


def _unread(writer: asyncio.StreamWriter) -> int:
    return writer.transport.get_write_buffer_size()


def main(arguments: list[str] | None = None) -> None:
    """Run one worker; only a supervisor calls this."""
    parser = argparse.ArgumentParser(prog="turnout-worker", description=__doc__)
    parser.add_argument(
        "--listen", type=Listen.parse, required=True, help="unix:PATH or tcp:HOST:PORT"
    )
    parser.add_argument("--server", type=ServerKind, default=SERVER_DEFAULT, help="which server")
    parser.add_argument("--link", type=int, required=True, help="descriptor of the socket pair")
    parser.add_argument("--counters", type=int, required=True, help="descriptor of the memory file")
    parser.add_argument("--index", type=int, default=0, help="its number, for the log")
    parser.add_argument("--log-format", type=LogFormat, default=LogFormat.TEXT)
    parser.add_argument("--log-level", type=LogLevel, default=LogLevel.WARNING)
    options = parser.parse_args(arguments)
    configure(Style(options.log_format, options.log_level), {"worker": options.index})
    work = Work(CounterFile(options.counters))

    async def run() -> None:
        worker = Worker(work, make_server(options.server, options.listen, work))
        await worker.run(socket.socket(fileno=options.link))

    uvloop.run(run())


if __name__ == "__main__":
    main()
